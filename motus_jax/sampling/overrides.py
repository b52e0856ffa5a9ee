"""What a command line may say instead of `config.sampling`: one table for every command that samples."""

import argparse
from typing import Any

import ml_collections

from motus_jax.sampling.settings import Settings

FLAGS: dict[str, tuple[type, str]] = {
    "video_steps": (int, "denoising steps of the video (default: the config's)"),
    "action_steps": (int, "denoising steps of the actions (default: the config's)"),
    "solver": (str, "euler, heun or adams_bashforth (default: the config's)"),
    "reuse": (float, "change of the velocities below which a step reuses them; 0: never (default: the config's)"),
    "action_tail": (int, "joint steps before the actions go on alone; 0: all; docs/serving.md (default: the config's)"),
    "dtype": (str, "of the experts' products: float32 or bfloat16 (default: the config's)"),
    "weights": (str, "int8: the layers' matrices in 8 bits (default: the config's)"),
}
"""Field of `motus_jax.sampling.settings.Settings` -> its type, what it is."""


def define(parser: argparse.ArgumentParser) -> None:
    """Adds the flags; what is not given is None."""
    group = parser.add_argument_group("sampling, instead of what the training's config says")
    for name, (kind, text) in FLAGS.items():
        group.add_argument(f"--{name}", type=kind, help=text)


def given(flags: Any) -> dict[str, Any]:
    """What a parsed command line says, by name; `flags` has the names of `FLAGS` as attributes."""
    return {name: getattr(flags, name) for name in FLAGS if getattr(flags, name) is not None}


def changed(sampling: ml_collections.ConfigDict, flags: Any) -> ml_collections.ConfigDict:
    """A copy of `config.sampling` with what a parsed command line says instead.

    Raises:
      UserError: a value out of range, named.
    """
    copy = sampling.copy_and_resolve_references()
    with copy.unlocked():  # the config may be older than a field
        copy.update(given(flags))
    Settings.of(copy)
    return copy
