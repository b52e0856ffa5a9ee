"""Policies act in the simulator: many episodes in lock-step, so that the policy is asked for a batch at a time."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.errors import UserError
from motus_jax.evaluation.intervals import wilson_interval
from motus_jax.robots import tasks
from motus_jax.robots.aloha import HOME
from motus_jax.robots.rollout import follow

# (frames by camera's short name, measured states, instructions) -> absolute joint targets [B, T, 14]; target i is to be
# reached (i + 1) / action_hz seconds later. Angles in rad, grippers 0 closed .. 1 open.
Policy = Callable[
    [dict[str, UInt8[np.ndarray, "B H W 3"]], Float[np.ndarray, "B 14"], list[str]], Float[np.ndarray, "B T 14"]
]

# Recorded starts are drawn from (seed, split, number, attempt) with split 0 or 1; these can never coincide with them.
UNSEEN = 2


@dataclasses.dataclass(frozen=True)
class Result:
    """How one episode went.

    Attributes:
      task: name in the task table.
      seed: what the start was drawn from.
      instruction: what the policy was told.
      success: whether the task was fulfilled at any moment.
      reward: share of the task's stages reached, 0..1.
      steps: actions executed until success or until time was up.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    reward: float
    steps: int


class _Run:
    """One episode on its way."""

    def __init__(self, task: str, seed: int):
        self.task, self.seed = task, seed
        self.world, self.instruction = tasks.reset(task, unseen_start(seed))
        self.target = self.world.state()
        self.frames = self.world.render()
        self.stage = self.steps = 0

    @property
    def success(self) -> bool:
        return self.stage == len(tasks.task(self.task).stages)

    def act(self, chunk: Float[np.ndarray, "T 14"], action_hz: float) -> None:
        """Executes the chunk, up to success."""
        for target in chunk:
            if self.success:
                return
            follow(self.world, self.target, target, action_hz)
            self.target = target
            self.steps += 1
            self.stage = max(self.stage, tasks.reached_stage(self.task, self.world))
        self.frames = self.world.render()

    def result(self) -> Result:
        reward = self.stage / len(tasks.task(self.task).stages)
        return Result(self.task, self.seed, self.instruction, self.success, reward, self.steps)


def unseen_start(seed: int) -> np.random.Generator:
    """Where the start and look of a closed-loop episode come from; never those of a recorded one."""
    return np.random.default_rng(np.random.SeedSequence([seed, UNSEEN]))


def evaluate_policy(
    policy: Policy,
    task_names: Sequence[str],
    seeds: Sequence[int],
    *,
    action_hz: float = 10.0,
    execute: int | None = 8,
    seconds: float = 6.0,
    batch_size: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Result]:
    """Lets a policy act from unseen starts, one episode a seed, the tasks taking turns.

    Targets are interpolated linearly up to the robot's control rate (50 Hz). Pictures are rendered only when the policy
    is asked.

    Args:
      policy: see `Policy`. Every call has exactly `batch_size` rows (finished episodes stay in, unused rows repeat the
        last one), so a jitted policy compiles once.
      task_names: names in the task table.
      seeds: one start each.
      action_hz: rate of the policy's targets.
      execute: targets executed before the policy looks again; None executes whole chunks.
      seconds: time limit of an episode (the scripted expert needs less than 4).
      batch_size: episodes in lock-step.
      on_progress: called with (episodes finished, episodes in all).

    Raises:
      UserError: unknown task, a rate that does not divide 50 Hz, or targets of a wrong shape.
    """
    for name in task_names:
        tasks.task(name)
    limit = round(seconds * action_hz)
    results: list[Result] = []
    for begin in range(0, len(seeds), batch_size):
        group = [
            _Run(task_names[(begin + k) % len(task_names)], seed) for k, seed in enumerate(seeds[begin:][:batch_size])
        ]
        while active := [run for run in group if not run.success and run.steps < limit]:
            for run, chunk in zip(group, _ask(policy, group, batch_size), strict=False):
                if run in active:
                    run.act(chunk[: min(execute or len(chunk), limit - run.steps)], action_hz)
        results += [run.result() for run in group]
        if on_progress is not None:
            on_progress(len(results), len(seeds))
    return results


def _ask(policy: Policy, group: list[_Run], batch_size: int) -> Float[np.ndarray, "B T 14"]:
    rows = group + [group[-1]] * (batch_size - len(group))
    frames = {camera: np.stack([run.frames[camera] for run in rows]) for camera in rows[0].frames}
    states = np.stack([run.world.state() for run in rows])
    chunks = np.asarray(policy(frames, states, [run.instruction for run in rows]))
    if chunks.ndim != 3 or chunks.shape[::2] != states.shape or not np.isfinite(chunks).all():
        expected = f"[{batch_size}, T, {states.shape[1]}]"
        raise UserError(f"policy: expected finite joint targets of shape {expected}, found {list(chunks.shape)}")
    return chunks


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Success rate with its 95 % Wilson interval (value, low, high), counts, mean reward, and the same by task."""

    def of(some: Sequence[Result]) -> dict[str, Any]:
        successes = sum(result.success for result in some)
        reward = float(np.mean([result.reward for result in some])) if some else float("nan")
        interval = wilson_interval(successes, len(some))._asdict()
        return {**interval, "successes": successes, "episodes": len(some), "reward": reward}

    by_task: Mapping[str, list[Result]] = {
        name: [result for result in results if result.task == name] for name in {result.task for result in results}
    }
    return {**of(results), "tasks": {name: of(some) for name, some in sorted(by_task.items())}}


def hold(chunk: int = 8) -> Policy:
    """The policy that keeps the measured state."""

    def policy(frames: dict, states: np.ndarray, instructions: list[str]) -> np.ndarray:
        return np.repeat(states[:, None], chunk, axis=1)

    return policy


def random_motion(seed: int = 0, chunk: int = 8) -> Policy:
    """The policy that moves smoothly to joint targets drawn around the home pose."""
    rng = np.random.default_rng(seed)

    def policy(frames: dict, states: np.ndarray, instructions: list[str]) -> np.ndarray:
        count = len(states)
        pose = HOME + rng.normal(0, 0.35, (count, *HOME.shape))
        goal = np.concatenate([pose, rng.uniform(0, 1, (count, 2, 1))], axis=2).reshape(count, 14)
        share = np.arange(1, chunk + 1)[None, :, None] / chunk
        return states[:, None] + (goal - states)[:, None] * share

    return policy
