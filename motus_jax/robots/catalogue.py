"""The robots that can be recorded, as one table."""

import dataclasses
import importlib
from collections.abc import Callable

import numpy as np

from motus_jax.errors import UserError
from motus_jax.robots.episode import Episode


@dataclasses.dataclass(frozen=True)
class Robot:
    """What recording needs to know of a robot.

    Attributes:
      robot_type: word for the dataset's `meta/info.json`.
      fps: rows per second.
      cameras: (height, width) in pixels by short name.
      state_names: one name a dimension of the state.
      action_names: one name a dimension of the action.
      tasks: names of its tasks, in the order in which they are recorded by default.
      record: (task, seed) -> the scripted expert's episode, successful or not.
    """

    robot_type: str
    fps: int
    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    tasks: tuple[str, ...]
    record: Callable[[str, np.random.SeedSequence], Episode]


# Modules that define ROBOT; imported when asked for, each needs its own simulator packages.
MODULES = {
    "aloha": "motus_jax.robots.rollout",
    "aloha_disturbed": "motus_jax.robots.disturbed",
    "aloha_motion": "motus_jax.robots.motion",
    "sawyer": "motus_jax.robots.sawyer",
}


def robot(name: str) -> Robot:
    """A robot by name.

    Raises:
      UserError: no such robot, or its simulator is not installed.
    """
    if name not in MODULES:
        raise UserError(f"robot {name!r}: expected one of {', '.join(MODULES)}")
    return importlib.import_module(MODULES[name]).ROBOT
