"""The robots that can be recorded, as one table."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.errors import UserError
from motus_jax.robots.episode import Episode


class World(Protocol):
    """One episode in which a policy acts.

    Attributes:
      instruction: what the policy is told.
    """

    instruction: str

    def state(self) -> Float[np.ndarray, " P"]:
        """Measured, in the robot's units."""

    def render(self) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        """The robot's cameras by name."""

    def move(self, previous: Float[np.ndarray, " A"], target: Float[np.ndarray, " A"], hz: float) -> None:
        """Moves the robot's targets linearly from `previous` to `target` during 1 / hz seconds."""

    def stage(self) -> int:
        """How many stages of the task are fulfilled now, counted up to the last one that is."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is asked of a policy in a task.

    Attributes:
      instructions: paraphrases; an episode draws one.
      stages: steps of progress; the last one is success.
    """

    instructions: tuple[str, ...]
    stages: int


@dataclasses.dataclass(frozen=True)
class Robot:
    """What recording and closed-loop evaluation need to know of a robot.

    Attributes:
      robot_type: word for the dataset's `meta/info.json`.
      fps: rows per second.
      cameras: (height, width) in pixels by short name.
      state_names: one name a dimension of the state.
      action_names: one name a dimension of the action.
      tasks: names of its tasks, in the order in which they are recorded by default.
      record: (task, seed) -> the scripted expert's episode, successful or not.
      trials: by name, the tasks in which a policy can act and succeed.
      begin: (task, what everything random is drawn from) -> a fresh world of one of `trials`.
    """

    robot_type: str
    fps: int
    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    tasks: tuple[str, ...]
    record: Callable[[str, np.random.SeedSequence], Episode]
    trials: Mapping[str, Trial] = dataclasses.field(default_factory=dict)
    begin: Callable[[str, np.random.Generator], World] | None = None


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
    return load(MODULES[name])


def load(module: str) -> Robot:
    """The robot that a module defines, for processes that are told where to find it.

    Raises:
      UserError: its simulator is not installed.
    """
    return importlib.import_module(module).ROBOT
