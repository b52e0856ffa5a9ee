"""Episodes of the scripted expert at the dataset's rate, and the replay of recorded actions."""

import numpy as np
from jaxtyping import Float

from motus_jax.robots import tasks
from motus_jax.robots.aloha import CAMERAS, CONTROL_HZ, NAMES, Aloha
from motus_jax.robots.catalogue import Robot
from motus_jax.robots.episode import Episode

ROWS_AFTER_SUCCESS = 4


def follow(world: Aloha, previous: np.ndarray, target: np.ndarray, hz: float) -> None:
    """Moves the joint targets linearly from `previous` to `target` during 1 / hz seconds at the control rate.

    Holding a coarse target instead makes the arms jerk and lose objects.
    """
    ticks = round(CONTROL_HZ / hz)
    for tick in range(1, ticks + 1):
        world.step(previous + (target - previous) * (tick / ticks))


def record_expert(name: str, seed: np.random.SeedSequence) -> Episode:
    """Plays the expert once from a start drawn from `seed`; ends `ROWS_AFTER_SUCCESS` rows after lasting success."""
    world, instruction = tasks.reset(name, np.random.default_rng(seed))
    success = tasks.task(name).success
    states, actions, pictures = [], [], []
    previous = world.state()
    held = 0
    for target in tasks.expert_targets(name, world):
        states.append(world.state())
        pictures.append(world.render())
        actions.append(target)
        if held > ROWS_AFTER_SUCCESS:
            break
        follow(world, previous, target, tasks.PLAN_HZ)
        previous = target
        held = held + 1 if success(world) else 0
    frames = {camera: np.stack([row[camera] for row in pictures]) for camera in pictures[0]}
    return Episode(np.stack(states), np.stack(actions), frames, instruction, name, held > 0)


def replay(name: str, seed: np.random.SeedSequence, actions: Float[np.ndarray, "T 14"]) -> bool:
    """Whether recorded actions reach the goal again from the same start."""
    world, _ = tasks.reset(name, np.random.default_rng(seed))
    success = tasks.task(name).success
    previous = world.state()
    reached = False
    for target in actions:
        follow(world, previous, target, tasks.PLAN_HZ)
        previous = target
        reached = reached or success(world)
    return reached


ROBOT = Robot(
    robot_type="aloha",
    fps=tasks.PLAN_HZ,
    cameras=CAMERAS,
    state_names=NAMES,
    action_names=NAMES,
    tasks=tuple(tasks.TASKS),
    record=record_expert,
)
