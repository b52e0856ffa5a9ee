"""Rotations (unit quaternions w, x, y, z) and inverse kinematics of the two arms."""

import numpy as np
from jaxtyping import Float

from motus_jax.robots.simulator import mujoco

Vector = Float[np.ndarray, "3"]
Quaternion = Float[np.ndarray, "4"]

DAMPING = 1e-4
TOLERANCE = 1e-4
LARGEST_STEP = 0.2


def about(axis: tuple[float, float, float], degrees: float) -> Quaternion:
    """Rotation by `degrees` about a unit axis."""
    quaternion = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quaternion, np.asarray(axis, np.float64), np.deg2rad(degrees))
    return quaternion


def compose(outer: Quaternion, inner: Quaternion) -> Quaternion:
    """The rotation `inner`, then `outer`."""
    quaternion = np.zeros(4)
    mujoco.mju_mulQuat(quaternion, outer, inner)
    return quaternion


def rotate(quaternion: Quaternion, vector: Vector) -> Vector:
    """`vector` turned by `quaternion`."""
    turned = np.zeros(3)
    mujoco.mju_rotVecQuat(turned, np.asarray(vector, np.float64), quaternion)
    return turned


class InverseKinematics:
    """Damped least squares on a kinematic copy of the model, warm started by the caller (about 0.1 ms a solve)."""

    def __init__(self, model: mujoco.MjModel, bodies: tuple[str, ...], joints: tuple[np.ndarray, ...]):
        """Args: `bodies[k]` is the body that arm k steers; `joints[k]` are the indices of its joints in qpos."""
        self._model = model
        self._data = mujoco.MjData(model)
        self._bodies = [model.body(name).id for name in bodies]
        self.joints = joints

    def pose(self, qpos: np.ndarray, arm: int) -> tuple[Vector, Quaternion]:
        """Position (m) and rotation of the arm's body in the world at `qpos`."""
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        return self._data.xpos[self._bodies[arm]].copy(), self._data.xquat[self._bodies[arm]].copy()

    def solve(
        self, qpos: np.ndarray, arm: int, position: Vector, rotation: Quaternion, iterations: int = 100
    ) -> np.ndarray:
        """`qpos` with the joints of `arm` moved so that its body comes closest to the wanted pose (world frame)."""
        qpos = qpos.copy()
        joints = self.joints[arm]
        low, high = self._model.jnt_range[joints].T
        jacobian = np.zeros((6, self._model.nv))
        error, inverse = np.zeros(6), np.zeros(4)
        for _ in range(iterations):
            now, turned = self.pose(qpos, arm)
            mujoco.mju_negQuat(inverse, turned)
            error[:3] = position - now
            mujoco.mju_quat2Vel(error[3:], compose(rotation, inverse), 1.0)
            if np.abs(error).max() < TOLERANCE:
                break
            mujoco.mj_jacBody(self._model, self._data, jacobian[:3], jacobian[3:], self._bodies[arm])
            part = jacobian[:, joints]
            step = part.T @ np.linalg.solve(part @ part.T + DAMPING * np.eye(6), error)
            qpos[joints] = np.clip(qpos[joints] + np.clip(step, -LARGEST_STEP, LARGEST_STEP), low, high)
        return qpos
