"""A second embodiment: Meta-World's single-arm Sawyer with its scripted experts (MIT licence), hand position control.

State: hand position (m) and gripper opening (0..1). Action: where the hand's controller is told to be at the next row
(m) and the gripper command (0 open .. 1 closed with force). Physics and experts run at 80 Hz, slowed down to a pace at
which a row is worth looking at.
"""

import functools
import warnings

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.errors import UserError
from motus_jax.robots.catalogue import Robot
from motus_jax.robots.episode import Episode
from motus_jax.robots.simulator import INSTALL, mujoco, package_folder, render

CONTROL_HZ = 80
FPS = 10
PACE = 0.3  # of the experts' own speed: theirs are done within a second
CAMERAS = {"front": (72, 96), "wrist": (36, 48)}
RENDER_SIZE = (144, 192)
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
ACTION_NAMES = ("target_x", "target_y", "target_z", "gripper_command")
ROWS_AFTER_SUCCESS = 3
LONGEST_STEPS = 480  # the simulator refuses to go beyond 500

TASKS = {
    "pick_place": (
        "pick-place-v3",
        ("pick up the red cylinder and bring it to the goal", "grab the red object and carry it to the blue point"),
    ),
    "drawer_open": (
        "drawer-open-v3",
        ("open the drawer", "pull the drawer open", "grab the handle and open the drawer"),
    ),
    "button_press": (
        "button-press-topdown-v3",
        ("press the button from above", "push the button down", "hit the button with the hand"),
    ),
}


class Sawyer:
    """The world of one task; made once a process, started anew by `reset`."""

    def __init__(self, name: str):
        package_folder("metaworld")
        try:
            import metaworld
            from metaworld.policies import ENV_POLICY_MAP
        except ModuleNotFoundError as error:
            raise UserError(f"metaworld needs {error.name}, which is not installed: run {INSTALL}") from error
        # The experts warn that the simulator clips their actions; `expert` clips them too.
        warnings.filterwarnings("ignore", message="Constant", module="metaworld")
        environment, self.instructions = TASKS[name]
        self._env = metaworld.ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{environment}-goal-observable"](seed=0)
        self._env._freeze_rand_vec = False  # otherwise every reset gives the same start
        self._expert = ENV_POLICY_MAP[environment]()
        self._env.model.vis.quality.offsamples = 0
        self._renderer = mujoco.Renderer(self._env.model, *RENDER_SIZE)
        self._views = {"front": _front_view(), "wrist": "gripperPOV"}

    def reset(self, rng: np.random.Generator) -> str:
        """A new start; returns the instruction."""
        self._env.seed(int(rng.integers(2**31)))
        self._observation, _ = self._env.reset()
        return str(rng.choice(self.instructions))

    def state(self) -> Float[np.ndarray, "4"]:
        """Measured hand position (m) and gripper opening."""
        return self._observation[:4].astype(np.float32)

    def expert(self) -> Float[np.ndarray, "4"]:
        """What the scripted expert does now, in the simulator's own units, at our pace."""
        action = np.clip(self._expert.get_action(self._observation), -1, 1)
        return np.append(action[:3] * PACE, action[3])

    def step(self, action: Float[np.ndarray, "4"]) -> bool:
        """One control step (12.5 ms) of the simulator's own action; returns whether the task is fulfilled."""
        self._observation, _, _, _, info = self._env.step(action.astype(np.float32))
        return bool(info["success"])

    def command(self) -> Float[np.ndarray, "3"]:
        """Where the hand's controller is told to be (m)."""
        return self._env.data.mocap_pos[0].copy()

    def render(self) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        """The cameras at their recorded sizes."""
        return {
            camera: cv2.resize(
                render(self._renderer, self._env.data, self._views[camera]),
                (width, height),
                interpolation=cv2.INTER_AREA,
            )
            for camera, (height, width) in CAMERAS.items()
        }


def _front_view() -> mujoco.MjvCamera:
    """A free camera before the table: the scene's own ones are far away or upside down."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = (0.0, 0.66, 0.16)
    camera.distance, camera.azimuth, camera.elevation = 0.95, 125.0, -32.0
    return camera


@functools.cache
def world(name: str) -> Sawyer:
    """The process's world of a task."""
    return Sawyer(name)


def record_expert(name: str, seed: np.random.SeedSequence) -> Episode:
    """Plays the expert once from a start drawn from `seed`; ends `ROWS_AFTER_SUCCESS` rows after lasting success."""
    sawyer = world(name)
    instruction = sawyer.reset(np.random.default_rng(seed))
    states, actions, pictures = [], [], []
    held = 0
    for _ in range(LONGEST_STEPS * FPS // CONTROL_HZ):
        states.append(sawyer.state())
        pictures.append(sawyer.render())
        for _ in range(CONTROL_HZ // FPS):
            action = sawyer.expert()
            success = sawyer.step(action)
        held = held + 1 if success else 0
        actions.append(np.append(sawyer.command(), (1 + action[3]) / 2).astype(np.float32))
        if held > ROWS_AFTER_SUCCESS:
            break
    frames = {camera: np.stack([row[camera] for row in pictures]) for camera in CAMERAS}
    return Episode(np.stack(states), np.stack(actions), frames, instruction, name, held > 0)


ROBOT = Robot(
    robot_type="sawyer",
    fps=FPS,
    cameras=CAMERAS,
    state_names=STATE_NAMES,
    action_names=ACTION_NAMES,
    tasks=tuple(TASKS),
    record=record_expert,
)
