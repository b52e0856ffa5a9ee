"""A policy acts in the simulator: one episode as questions to a policy and what follows from its answers.

An episode is a generator: it yields an observation as `motus_jax.robots.policy` takes it and is sent the answer. Who
runs it may ask a policy in the same process, or a server for many episodes at once (`motus_jax.robots.workers`).
"""

import dataclasses
import pathlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.robots import catalogue
from motus_jax_client.fusion import Plan, get_fusion

# Recorded starts are drawn from (seed, split, number, attempt) with split 0 or 1; these can never coincide with them.
UNSEEN = 2

Observation = dict[str, Any]
Answer = Mapping[str, Any]
Asking = Generator[Observation, Answer, Any]
"""Yields observations, is sent answers, and returns what came of it."""

Targets = Callable[[Float[np.ndarray, " P"]], Float[np.ndarray, "T A"]]
"""A policy that needs no model: the measured state -> absolute targets, both in the robot's units."""


@dataclasses.dataclass(frozen=True)
class Actor:
    """Who acts, as a process that simulates needs to know it.

    Attributes:
      name: of the policy, for people.
      key: another one for everything else that its episodes depend on (weights, sampling, rates, ...).
      mode: what the server is asked for; empty where `begin` makes the targets.
      begin: (contract, generator) -> the policy of one episode that needs no server.
    """

    name: str
    key: str
    mode: str = ""
    begin: Callable[[Contract, np.random.Generator], Targets] | None = None


@dataclasses.dataclass(frozen=True)
class Lateness:
    """Answers that are not there at once: the robot goes on with the former chunk meanwhile (docs/realtime.md).

    Attributes:
      ticks: targets that it executes between a look and its answer; at the first look it stands still.
      prefix: whether questions tell them, as committed.
      previous: whether they also tell what the former chunk has behind them.
      fusion: how chunks join where they overlap, a row of `motus_jax_client.fusion.FUSIONS`.
    """

    ticks: int = 0
    prefix: bool = False
    previous: bool = False
    fusion: str = "latest"


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all episodes have in common; goes to every process.

    Attributes:
      robot: the module that defines it (`catalogue.MODULES`).
      contract: of the model.
      cameras: what the server calls the contract's cameras, in their order.
      execute: targets executed before the policy looks again.
      seconds: time limit of an episode.
      seed: of the noise.
      folder: where `episodes/` and `videos/` lie.
      lateness: of a model's answers; policies without a model answer at once.
    """

    robot: str
    contract: Contract
    cameras: tuple[str, ...]
    execute: int
    seconds: float
    seed: int
    folder: pathlib.Path
    lateness: Lateness = Lateness()

    @property
    def limit(self) -> int:
        """Targets of an episode that does not succeed."""
        return round(self.seconds * self.contract.action_hz)


@dataclasses.dataclass(frozen=True)
class Result:
    """How one episode went.

    Attributes:
      policy, key: the actor's.
      task: name in the robot's table.
      seed: what the start was drawn from.
      instruction: what the policy was told.
      success: whether the task was fulfilled at any moment.
      reward: share of the task's stages reached, 0..1.
      steps: targets executed until success or until time was up.
      answers: how often the policy was asked.
      seconds_per_answer: mean time from a question to its answer, others in the same batch included; 0 without a model.
    """

    policy: str
    key: str
    task: str
    seed: int
    instruction: str
    success: bool
    reward: float
    steps: int
    answers: int
    seconds_per_answer: float


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode to be played: everything random in it follows from the seeds."""

    actor: Actor
    task: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.actor.name}_{self.task}_{self.seed}_{self.actor.key}"

    def start(self, setting: Setting) -> Asking:
        """See `play`."""
        return play(self, setting)


def unseen_start(seed: int) -> np.random.Generator:
    """Where the start and look of a closed-loop episode come from; never those of a recorded one."""
    return np.random.default_rng(np.random.SeedSequence([seed, UNSEEN]))


def question(
    episode: Episode, setting: Setting, world: catalogue.World, number: int, mode: str, **more: Any
) -> Observation:
    """What the policy is asked at one moment of an episode.

    The noise depends on the two seeds and the question's number alone: not on other episodes, their order or batches.
    A question is a session of its own, so that a server counts from 0 at each.
    """
    pictures = world.render()
    noise = np.random.SeedSequence([setting.seed, episode.seed, number]).generate_state(1)[0]
    return {
        "prompt": world.instruction,
        "state": world.state(),
        "images": {theirs: pictures[ours] for ours, theirs in zip(setting.contract.cameras, setting.cameras)},
        "mode": mode,
        "seed": int(noise),
        "session_id": f"{episode.name} {number} {mode}",
        **more,
    }


def play(episode: Episode, setting: Setting) -> Generator[Observation, Answer, Result]:
    """Lets the actor act from an unseen start until success or until time is up.

    Targets are interpolated linearly up to the robot's control rate; pictures are rendered only when the policy is
    asked. What is planned from each look on is kept in `episodes/NAME.npz`: `chunks` [n, T, A], which are the answers
    if they came at once, and `executed` [n], targets of each.

    Returns:
      How it went.

    Raises:
      UserError: targets of a wrong shape, or a rate that does not divide the control rate.
    """
    robot, actor, contract = catalogue.load(setting.robot), episode.actor, setting.contract
    world = robot.begin(episode.task, unseen_start(episode.seed))
    stages = robot.trials[episode.task].stages
    own = None
    if actor.begin is not None:
        own = actor.begin(contract, np.random.default_rng([setting.seed, episode.seed]))
    fusion = get_fusion(setting.lateness.fusion)
    plan, target, stage, waited = Plan(), world.state(), 0, 0.0
    chunks: list[np.ndarray] = []
    executed: list[int] = []
    while stage < stages and sum(executed) < setting.limit:
        now, late = sum(executed), setting.lateness.ticks if chunks and own is None else 0
        if own is None:
            overlap = _overlap(plan.after(now), late, setting.lateness)
            answer = yield question(episode, setting, world, len(chunks), actor.mode, **overlap)
            chunk, waited = answer["actions"], waited + answer["waited"]
        else:
            chunk = own(world.state())
        plan.join(now, _checked(chunk, contract), now + late, fusion)
        chunks.append(np.stack(plan.after(now)))
        executed.append(0)
        for target_now in chunks[-1][: min(setting.execute, setting.limit - now)]:
            world.move(target, target_now, contract.action_hz)
            target, stage = target_now, max(stage, int(world.stage()))
            executed[-1] += 1
            if stage == stages:
                break
        plan.forget(sum(executed) - 1)
    folder = setting.folder / "episodes"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{episode.name}.npz", chunks=np.stack(chunks), executed=np.array(executed))
    answers = 0 if own else len(chunks)
    return Result(
        actor.name, actor.key, episode.task, episode.seed, world.instruction, stage == stages, stage / stages,
        sum(executed), answers, round(waited / max(answers, 1), 4),
    )  # fmt: skip


def _overlap(planned: list[np.ndarray], late: int, lateness: Lateness) -> dict[str, np.ndarray]:
    """What a question says of the former chunk: nothing where there is none, or where the server takes none."""
    told = {"prefix": planned[:late]} if lateness.prefix else {}
    if lateness.previous:
        told["previous"] = planned[late:]
    return {name: np.stack(targets) for name, targets in told.items() if late and targets}


def _checked(chunk: Any, contract: Contract) -> Float[np.ndarray, "T A"]:
    chunk = np.asarray(chunk, np.float32)
    if chunk.ndim != 2 or chunk.shape[1] != contract.raw_action_dim or not len(chunk) or not np.isfinite(chunk).all():
        raise UserError(
            f"policy: expected finite targets of shape [T, {contract.raw_action_dim}]; found {list(chunk.shape)}"
        )
    return chunk
