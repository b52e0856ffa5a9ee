"""The ALOHA robot as it is recorded and as a policy moves it: the expert's episodes, replay, closed-loop trials."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from motus_jax.errors import UserError
from motus_jax.robots import tasks
from motus_jax.robots.aloha import CAMERAS, CONTROL_HZ, NAMES, Aloha
from motus_jax.robots.catalogue import Robot, Trial
from motus_jax.robots.episode import Episode

ROWS_AFTER_SUCCESS = 4


def follow(world: Aloha, previous: np.ndarray, target: np.ndarray, hz: float) -> None:
    """Moves the joint targets linearly from `previous` to `target` during 1 / hz seconds at the control rate.

    Holding a coarse target instead makes the arms jerk and lose objects.

    Raises:
      UserError: `hz` does not divide the control rate.
    """
    ticks = round(CONTROL_HZ / hz)
    if ticks < 1 or abs(ticks * hz - CONTROL_HZ) > 1e-6:
        raise UserError(f"action rate {hz:g} Hz: expected a divisor of the control rate, {CONTROL_HZ} Hz")
    for tick in range(1, ticks + 1):
        world.step(previous + (target - previous) * (tick / ticks))


def record_expert(
    name: str,
    seed: np.random.SeedSequence,
    executed: Callable[[Float[np.ndarray, "14"]], Float[np.ndarray, "14"]] = lambda target: target,
) -> Episode:
    """Plays the expert once from a start drawn from `seed`; ends `ROWS_AFTER_SUCCESS` rows after lasting success.

    `executed` makes of the expert's target, which is recorded, the one that the arms follow.
    """
    world, instruction = tasks.reset(name, np.random.default_rng(seed))
    states, actions, pictures = [], [], []
    previous = world.state()
    held = 0
    for target in tasks.expert_targets(name, world):
        states.append(world.state())
        pictures.append(world.render())
        actions.append(target)
        if held > ROWS_AFTER_SUCCESS:
            break
        reached = executed(target)
        follow(world, previous, reached, tasks.PLAN_HZ)
        previous = reached
        held = held + 1 if tasks.succeeded(name, world) else 0
    frames = {camera: np.stack([row[camera] for row in pictures]) for camera in pictures[0]}
    success = held > 0 or not tasks.task(name).stages
    return Episode(np.stack(states), np.stack(actions), frames, instruction, name, success)


def replay(name: str, seed: np.random.SeedSequence, actions: Float[np.ndarray, "T 14"]) -> bool:
    """Whether recorded actions reach the goal again from the same start."""
    world, _ = tasks.reset(name, np.random.default_rng(seed))
    previous = world.state()
    reached = False
    for target in actions:
        follow(world, previous, target, tasks.PLAN_HZ)
        previous = target
        reached = reached or tasks.succeeded(name, world)
    return reached


class Acting:
    """One episode in which a policy acts (`catalogue.World`)."""

    def __init__(self, name: str, rng: np.random.Generator) -> None:
        self._name = name
        self._world, self.instruction = tasks.reset(name, rng)
        self.state, self.render = self._world.state, self._world.render

    def move(self, previous: Float[np.ndarray, "14"], target: Float[np.ndarray, "14"], hz: float) -> None:
        """See `follow`."""
        follow(self._world, previous, target, hz)

    def stage(self) -> int:
        """See `tasks.reached_stage`."""
        return tasks.reached_stage(self._name, self._world)


ROBOT = Robot(
    robot_type="aloha",
    fps=tasks.PLAN_HZ,
    cameras=CAMERAS,
    state_names=NAMES,
    action_names=NAMES,
    tasks=tuple(tasks.TASKS),
    record=record_expert,
    trials={name: Trial(task.instructions, len(task.stages)) for name, task in tasks.TASKS.items() if task.stages},
    begin=Acting,
)
