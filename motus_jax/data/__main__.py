"""Look at data, measure it, record it.

  python -m motus_jax.data inspect    --path=datasets/aloha_sim --out=aloha.html
  python -m motus_jax.data statistics --path=datasets/aloha_sim --chunk=16 --action_hz=10
  python -m motus_jax.data bench      --config=experiments/demo.py --step_seconds=0.5
  python -m motus_jax.data encode     --config=experiments/demo.py --out=features/demo
  python -m motus_jax.data label      --workdir=runs/latent_action --path=datasets/aloha_sim --out=latents/aloha_sim
  python -m motus_jax.data convert    --path=datasets/aloha_sim --out=gs://bucket/aloha
  python -m motus_jax.data record     --help
  python -m motus_jax.data pyramid    --out=datasets/pyramid
  python -m motus_jax.data tokenizers --path=datasets/aloha_sim --out=tokenizers

bench       examples a second, where their time goes, and whether a training step of a given length would wait
inspect     one static page: facts, pictures, curves, histograms, anything odd
statistics  means, deviations and quantiles of states and actions over the training episodes
encode      what the frozen encoders make of a dataset, for training without videos
label       latent actions of a dataset's videos, by a trained latent-action model
convert     any source as record files, which train fast from remote storage
record      simulated episodes (needs the simulator extra)
pyramid     a small data pyramid of all six layers (needs the simulator extra)
tokenizers  small tokenizers of the released encoders' kinds, for models trained from scratch

Each has its own --help.
"""

import importlib
from collections.abc import Sequence

from motus_jax import cli
from motus_jax.errors import UserError

# Imported when asked for: `record` needs a simulator, `encode` and `label` JAX, which the others do not.
COMMANDS = {
    "bench": "motus_jax.data.bench_command",
    "inspect": "motus_jax.data.inspect_command",
    "statistics": "motus_jax.data.statistics_command",
    "encode": "motus_jax.data.encode_command",
    "label": "motus_jax.data.label_command",
    "convert": "motus_jax.data.convert_command",
    "record": "motus_jax.data.record",
    "pyramid": "motus_jax.data.pyramid_command",
    "tokenizers": "motus_jax.data.tokenizers_command",
}


def main(argv: Sequence[str]) -> None:
    """Runs the subcommand `argv[1]` with the arguments after it.

    Raises:
      UserError: no or unknown subcommand, or bad input of the subcommand.
    """
    if len(argv) > 1 and argv[1] in ("--help", "-h"):
        print(__doc__.strip())
        return
    name = argv[1] if len(argv) > 1 else None
    if name not in COMMANDS:
        raise UserError(f"python -m motus_jax.data: expected one of {', '.join(COMMANDS)}; found {name!r} (see --help)")
    importlib.import_module(COMMANDS[name]).main(argv[1:])


if __name__ == "__main__":
    cli.run(main)
