"""Trains a model, or goes on training it: the same command resumes from the newest checkpoint in the workdir.

  python -m motus_jax.train --config=experiments/demo.py --workdir=runs/demo
  python -m motus_jax.train --config=experiments/demo.py --workdir=runs/demo --config.steps=4000 --config.platform=cpu

The workdir receives checkpoints/, frozen/ (the encoders that are not trained, once), config.json, metrics.jsonl (the
curve), timing.jsonl (speed, memory, where the time went) and tensorboard/. Exit codes: 0 trained, 2 bad input (one line
says what), 143 stopped by SIGTERM after saving.

On several hosts run the same command on each, with MOTUS_HOSTS=auto where JAX knows how it was started (Cloud TPU, GKE,
Slurm, Open MPI), or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. The workdir is one that all of
them see: a shared folder, or gs://.
"""

import os
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags

from motus_jax import cli
from motus_jax.errors import UserError

STOPPED_BY_SIGTERM = 143


def main(argv: Sequence[str]) -> None:
    """Parses the flags and trains.

    Raises:
      UserError: see `motus_jax.training.loop.train`.
    """
    config_flag = cli.define_config()
    workdir_flag = flags.DEFINE_string("workdir", None, "directory of the run, e.g. runs/demo")
    left = cli.parse_flags(argv, __doc__)
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}: expected only flags (see --help)")
    config, workdir = config_flag.value, workdir_flag.value
    for name, value in (("config", config), ("workdir", workdir)):
        if value is None:
            raise UserError(f"--{name} is missing: expected e.g. --config=experiments/demo.py --workdir=runs/demo")
    try:
        platform = config.platform
    except OSError as error:  # ml_collections reports a file it could not load at the first access
        raise UserError(f"--config: expected an experiment file; {' '.join(str(error).split())}") from error
    set_up_jax(platform)

    # Imported after the platform is chosen, in case an import touches a device.
    from motus_jax.models.latent_system import LatentActionSystem
    from motus_jax.models.system import System
    from motus_jax.models.vae_system import VaeSystem
    from motus_jax.training import hosts
    from motus_jax.training.inputs import open_data
    from motus_jax.training.loop import train

    systems = {"motus": System, "video_vae": VaeSystem, "latent_action": LatentActionSystem}
    if config.system not in systems:
        raise UserError(f"config.system: expected one of {', '.join(systems)}, found {config.system!r}")
    hosts.join()
    if not train(config, workdir, systems[config.system], open_data):
        sys.exit(STOPPED_BY_SIGTERM)


def set_up_jax(platform: str) -> None:
    """Chooses the platform (`cpu`, `gpu`, `tpu`, or empty: JAX chooses) and keeps compiled programs between runs."""
    names = {"": None, "cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
    if platform not in names:
        raise UserError(f"config.platform: expected cpu, gpu, tpu or nothing, found {platform!r}")
    if names[platform]:
        jax.config.update("jax_platforms", names[platform])
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path("~/.cache/motus_jax/xla").expanduser()))


if __name__ == "__main__":
    cli.run(main)
