"""The simulator's own optical flow: where each visible point of a rigid part stands after the world has moved on.

From depth, the part that each pixel shows, and the poses of parts and camera before and after: exact but for
occlusion, which a flow does not know, and for soft parts, of which these worlds have none.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from motus_jax.robots.simulator import mujoco

SKY = 1e6
"""Depth in metres that nothing reaches."""


class TrueFlow:
    """Flow seen by one camera of a world.

    Args:
      model, data: of the simulator.
      camera: its name.
      size: (H, W) in pixels.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str, size: tuple[int, int]):
        self._model, self._data = model, data
        self._camera = model.camera(camera).id
        self._renderer = mujoco.Renderer(model, *size)
        self._height, self._width = size
        self._focal = size[0] / 2 / np.tan(np.deg2rad(model.cam_fovy[self._camera]) / 2)
        rows, columns = np.mgrid[: size[0], : size[1]]
        # Of a point at depth 1; MuJoCo's cameras look along -z, with y up.
        self._rays = np.stack(
            [(columns + 0.5 - size[1] / 2) / self._focal, -(rows + 0.5 - size[0] / 2) / self._focal, -np.ones(size)], -1
        )

    def __call__(
        self, advance: Callable[[], None]
    ) -> tuple[Float[np.ndarray, "H W 2"], Int[np.ndarray, "H W"]]:
        """(flow in pixels from now to after `advance`, the part that each pixel shows now; -1 and no flow: none)."""
        depth, part = self._see()
        before, camera_before = self._poses()
        advance()
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        after, camera_after = self._poses()
        shown = np.maximum(part, 0)
        world = (self._rays * depth[..., None]) @ camera_before[1].T + camera_before[0]
        own = np.einsum("hwji,hwj->hwi", before[1][shown], world - before[0][shown])
        world = np.einsum("hwij,hwj->hwi", after[1][shown], own) + after[0][shown]
        seen = (world - camera_after[0]) @ camera_after[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = seen[..., 0] / -seen[..., 2] * self._focal + self._width / 2 - 0.5
            rows = -seen[..., 1] / -seen[..., 2] * self._focal + self._height / 2 - 0.5
        here = np.mgrid[: self._height, : self._width]
        flow = np.stack([columns - here[1], rows - here[0]], -1).astype(np.float32)
        flow[(part < 0) | ~np.isfinite(flow).all(-1)] = 0
        return flow, part

    def close(self) -> None:
        """Lets go of the renderer."""
        self._renderer.close()

    def _see(self) -> tuple[Float[np.ndarray, "H W"], Int[np.ndarray, "H W"]]:
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        renderer = self._renderer
        renderer.update_scene(self._data, self._camera)
        renderer.enable_depth_rendering()
        depth = np.minimum(renderer.render(), SKY).astype(np.float64)
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        objects = renderer.render().copy()
        renderer.disable_segmentation_rendering()
        return depth, np.where(objects[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM), objects[..., 0], -1)

    def _poses(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """(places, rotations) of all parts, and of the camera."""
        data = self._data
        parts = data.geom_xpos.copy(), data.geom_xmat.reshape(-1, 3, 3).copy()
        return parts, (data.cam_xpos[self._camera].copy(), data.cam_xmat[self._camera].reshape(3, 3).copy())
