"""What the paper leaves open of the latent actions, one choice changed at a time.

  python -m benchmarks.latent_choices --workdir=runs/latent_choices      ten minutes a row; run it again to go on

Every row is `experiments/latent_action.py` with the changes that it names, the same data, seed and steps, measured by
`motus_jax.evaluation.latents` on the same held-out pairs. A choice that changes the pictures or the distance of the
frames changes the pairs too: there the comparison with the tokens' principal components of the same row counts.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import machine
from experiments import latent_action
from motus_jax import cli
from motus_jax.evaluation import latents
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.train import set_up_jax
from motus_jax.training import loop
from motus_jax.training.inputs import open_data

ROWS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "squared error of pictures": {"loss.form": "l2"},
    "every pixel weighs the same": {"loss.motion": 0.0},
    "a draw is compared with the real action": {"loss.head": "sample"},
    "a linear reading is compared": {"loss.head": "linear"},
    "no real actions": {"loss.action": 0.0},
    "no task-agnostic motion": {"data.sources.motion.weight": 0.0, "data.layers": {"5": 9.0, "6": 1.0}},
    "twice the distance of the frames": {"data.action_hz": 2.5, "data.video_hz": 2.5},
    "half the distance of the frames": {"data.action_hz": 10.0, "data.video_hz": 10.0},
    "the top camera alone": {f"data.sources.{name}.cameras": ("top",) for name in ("video", "motion", "target")},
}
"""Name -> changes of the config."""


def main(argv: Sequence[str]) -> None:
    """Trains and measures what is missing, then writes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/latent_choices"))
    parser.add_argument("--steps", type=int, default=0, help="default: the experiment's")
    parser.add_argument("--rows", default="", help="comma-separated numbers, from 0 (default: all)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results/latent_choices.json"))
    arguments = parser.parse_args(argv[1:])
    set_up_jax(platform="")
    chosen = [int(number) for number in filter(None, arguments.rows.split(","))] or range(len(ROWS))
    found: dict[str, Any] = {}
    for number, (name, changes) in enumerate(ROWS.items()):
        if number in chosen:
            found[name] = run(changes, arguments.workdir / str(number), arguments.steps)
            print(f"{name}\n{latents.describe(found[name])}", flush=True)
    facts = {**machine.describe(machine.cores()), "steps": next(iter(found.values()))["step"]}
    arguments.out.write_text(json.dumps({**facts, "rows": found}, indent=1) + "\n")


def run(changes: Mapping[str, Any], workdir: pathlib.Path, steps: int) -> dict[str, Any]:
    """The figures of one row."""
    figures = workdir / "latents" / "latents.json"
    if not figures.exists():
        config = latent_action.get_config()
        for path, value in changes.items():
            *parents, key = path.split(".")
            part = config
            for parent in parents:
                part = part[parent]
            part[key] = value
        config.steps, config.validate_every = steps or config.steps, 0
        loop.train(config, workdir, LatentActionSystem, open_data)
        jax.clear_caches()
        latents.main(["latents", f"--workdir={workdir}"])
        jax.clear_caches()
    return json.loads(figures.read_text())


if __name__ == "__main__":
    cli.run(main)
