"""The 14-dimensional bimanual ALOHA robot in MuJoCo: absolute joint targets at 50 Hz, physics at 500 Hz.

State and action: six joint angles (rad) and the gripper (0 closed .. 1 open) of the left arm, then of the right arm.
Robot meshes and scene files come from the installed gym-aloha package (Apache-2.0).
"""

import functools

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.robots.kinematics import InverseKinematics
from motus_jax.robots.scene import Look, build_model
from motus_jax.robots.simulator import mujoco, render

CONTROL_HZ = 50
SUBSTEPS = 10
CAMERAS = {"top": (72, 96), "left_wrist": (36, 48), "right_wrist": (36, 48)}
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
ARM_JOINTS = (np.arange(6), np.arange(8, 14))
FINGERS = (6, 14)
HOME = np.array([0, -0.96, 1.16, 0, -0.3, 0] * 2).reshape(2, 6)
FINGER_CLOSED, FINGER_OPEN = 0.01844, 0.05800
RENDER_SIZE = (144, 192)
SETTLE_STEPS = 100


def finger_of(gripper: float) -> float:
    """Finger joint position (m) of a gripper opening 0..1."""
    return FINGER_CLOSED + gripper * (FINGER_OPEN - FINGER_CLOSED)


def gripper_of(finger: float) -> float:
    """Gripper opening 0..1 of a finger joint position (m)."""
    return (finger - FINGER_CLOSED) / (FINGER_OPEN - FINGER_CLOSED)


class Stage:
    """A compiled scene with its renderer and kinematics: one a process and layout, shared by all episodes on it."""

    def __init__(self, layout: str):
        self.model = build_model(layout)
        self.kinematics = InverseKinematics(
            self.model, ("vx300s_left/gripper_link", "vx300s_right/gripper_link"), ARM_JOINTS
        )
        self.arm_geoms = [
            {g for g in range(self.model.ngeom) if f"vx300s_{side}/10_" in self.model.geom(g).name}
            for side in ("left", "right")
        ]
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._look: Look | None = None

    def show(self, look: Look) -> None:
        """Switches the shared model to an episode's look."""
        if look != self._look:
            look.apply(self.model)
            self._look = look

    def renderer(self, size: tuple[int, int]) -> mujoco.Renderer:
        """The renderer for pictures of `size` (height, width), made once."""
        if size not in self._renderers:
            self._renderers[size] = mujoco.Renderer(self.model, *size)
        return self._renderers[size]


@functools.cache
def stage(layout: str) -> Stage:
    """The process's stage of a layout, compiled on first use."""
    return Stage(layout)


class Aloha:
    """One episode's world: robot, objects and look. Objects are placed by the task (`motus_jax.robots.tasks`)."""

    def __init__(self, layout: str, objects: dict[str, Float[np.ndarray, "3"]], rng: np.random.Generator):
        """Args: `objects` maps a free body's name to its start position (m); `rng` draws light, start pose and play."""
        self.rng = rng
        self.stage = stage(layout)
        self.model = self.stage.model
        self.data = mujoco.MjData(self.model)
        self.look = Look.sample(rng)
        pose = HOME + rng.uniform(-0.12, 0.12, HOME.shape)
        grippers = rng.uniform(0.1, 0.5, 2)
        start = np.concatenate([np.r_[pose[arm], grippers[arm]] for arm in (0, 1)])
        self._command(start)
        self.data.qpos[:16] = self.data.ctrl
        for body, position in objects.items():
            address = int(self.model.jnt_qposadr[self.model.body(body).jntadr[0]])
            self.data.qpos[address : address + 7] = np.r_[position, 1, 0, 0, 0]
        mujoco.mj_step(self.model, self.data, SETTLE_STEPS)

    def state(self) -> Float[np.ndarray, "14"]:
        """Measured joint angles (rad) and gripper openings."""
        q = self.data.qpos
        return np.r_[q[:6], gripper_of(q[6]), q[8:14], gripper_of(q[14])].astype(np.float32)

    def step(self, target: Float[np.ndarray, "14"]) -> None:
        """Holds the joint targets for one control period (20 ms)."""
        self._command(target)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)

    def _command(self, target: np.ndarray) -> None:
        left, right = finger_of(target[6]), finger_of(target[13])
        self.data.ctrl[:] = np.r_[target[:6], left, -left, target[7:13], right, -right]

    def position(self, body: str) -> Float[np.ndarray, "3"]:
        """Position (m) of a body in the world."""
        return self.data.body(body).xpos.copy()

    def touching(self, first: set[int], second: set[int]) -> bool:
        """Whether any geom of one set is in contact with any geom of the other."""
        for a, b in self.data.contact.geom[: self.data.ncon].tolist():
            if (a in first and b in second) or (b in first and a in second):
                return True
        return False

    def geoms(self, *names: str) -> set[int]:
        """Geom ids by name."""
        return {self.model.geom(name).id for name in names}

    def held_by(self, arm: int, geoms: set[int]) -> bool:
        """Whether a finger of the arm (0 left, 1 right) touches the geoms."""
        return self.touching(self.stage.arm_geoms[arm], geoms)

    def render(self) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        """The robot's cameras at their recorded sizes, rendered large and averaged down against aliasing."""
        return {
            camera: cv2.resize(self.picture(camera, RENDER_SIZE), (width, height), interpolation=cv2.INTER_AREA)
            for camera, (height, width) in CAMERAS.items()
        }

    def picture(self, camera: str, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """One camera at any size (height, width)."""
        self.stage.show(self.look)
        return render(self.stage.renderer(size), self.data, camera)
