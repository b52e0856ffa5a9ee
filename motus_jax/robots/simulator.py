"""The one place that imports MuJoCo: chooses headless rendering before the import and explains a missing package."""

import importlib.util
import os
import pathlib
import sys

from motus_jax.errors import UserError

INSTALL = "pip install -e '.[simulator]' && pip install --no-deps gym-aloha metaworld"

if sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")
# One rasteriser thread a process: recording runs several processes, and more threads give a single one nothing.
os.environ.setdefault("LP_NUM_THREADS", "1")

try:
    import mujoco
except ModuleNotFoundError as error:
    raise UserError(f"the simulator needs the package mujoco, which is not installed: run {INSTALL}") from error

__all__ = ["INSTALL", "mujoco", "package_folder", "render"]


def package_folder(package: str) -> pathlib.Path:
    """Folder of an installed package, found without importing it (gym_aloha's own imports need more than its assets).

    Raises:
      UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the simulator needs the package {package}, which is not installed: run {INSTALL}")
    return pathlib.Path(spec.origin).parent


def render(renderer: mujoco.Renderer, data: mujoco.MjData, camera: str | int | mujoco.MjvCamera):
    """One picture, uint8 [H, W, 3], without shadows and reflections: on a CPU they cost ten times the rest."""
    renderer.update_scene(data, camera)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer.render().copy()
