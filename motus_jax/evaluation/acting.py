"""The model as a policy in the simulator, beside two policies that need no model. Needs the simulator extra."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int
from scipy import stats

from motus_jax.data.contract import Contract
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError
from motus_jax.evaluation.intervals import CONFIDENCE
from motus_jax.evaluation.runner import Predict, mode_with
from motus_jax.modes import Role
from motus_jax.robots import closed_loop, rollout, tasks
from motus_jax.sampling.observation import observe

ACTING = mode_with(video=Role.NOISE, action=Role.DENOISED)
"""The mode that acts: from the present alone to actions."""

# The plan is made anew when this share of a chunk is executed.
EXECUTED_SHARE = 0.5


def make_policy(predict: Predict, contract: Contract, texts: Texts, seed: int) -> closed_loop.Policy:
    """The model as a policy: pictures, measured states and instructions in, absolute joint targets out.

    Args:
      predict: see `motus_jax.evaluation.runner`.
      contract: of the checkpoint.
      texts: of the same contract.
      seed: of the noise; every call draws anew.
    """
    calls = itertools.count()

    def policy(frames: dict[str, np.ndarray], states: np.ndarray, instructions: list[str]) -> np.ndarray:
        key = jax.random.fold_in(jax.random.key(seed), next(calls))
        prediction = predict(ACTING, observe(contract, texts, frames, states, instructions), key)
        return contract.denormalise_actions(np.asarray(prediction["actions"]), states)

    return policy


def simulated_tasks(instructions: Int[np.ndarray, "n L"], contract: Contract, texts: Texts) -> tuple[str, ...]:
    """Names of the simulator's tasks that were recorded with one of these instructions (tokens).

    Raises:
      UserError: there is none, or the checkpoint is of another robot than the simulator's.
    """
    if contract.robot != rollout.ROBOT.robot_type:
        raise UserError(f"--closed_loop: expected robot {rollout.ROBOT.robot_type!r}; found {contract.robot!r}")
    known = {tuple(row) for row in np.unique(instructions, axis=0).tolist()}
    names = tuple(
        name
        for name, task in tasks.TASKS.items()
        if task.stages and known & {tuple(texts(text)["instruction"].tolist()) for text in task.instructions}
    )
    if not names:
        raise UserError(
            f"--closed_loop: expected a dataset with instructions of the simulator's tasks {', '.join(tasks.TASKS)}; "
            "found none"
        )
    return names


def success_rates(
    predict: Predict, contract: Contract, texts: Texts, task_names: tuple[str, ...], episodes: int, batch_size: int,
    seed: int, say: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Acts from unseen starts; the entry `closed_loop` of metrics.json.

    Returns:
      `policies`: per policy `value`, `interval` (Wilson, 95 %), `successes`, `episodes`, `reward` (mean share of the
      task's stages reached) and the same per task; all policies have the same starts. `beats_baselines`: the model
      succeeds more often than every other policy (`succeeds_more`).
    """
    started = time.monotonic()
    policies = {
        "this_model": make_policy(predict, contract, texts, seed),
        "hold_the_state": closed_loop.hold(contract.chunk),
        "random_motion": closed_loop.random_motion(seed, contract.chunk),
    }
    found, wins = {}, {}
    for name, policy in policies.items():
        results = closed_loop.evaluate_policy(
            policy, task_names, range(episodes), action_hz=contract.action_hz,
            execute=max(1, round(EXECUTED_SHARE * contract.chunk)), batch_size=batch_size,
            on_progress=lambda done, total, name=name: say(f"closed loop, {name}: {done}/{total} episodes"),
        )  # fmt: skip
        found[name] = _with_interval(closed_loop.summarise(results))
        wins[name] = np.array([result.success for result in results])
    own = wins.pop("this_model")
    return {
        "beats_baselines": all(succeeds_more(own, other) for other in wins.values()),
        "seconds": round(time.monotonic() - started, 2),
        "tasks": list(task_names),
        "policies": found,
    }


def succeeds_more(own: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> bool:
    """Whether the first policy succeeds more often from the same n starts (exact McNemar test, two-sided, 5 %)."""
    only_own, only_other = int((own & ~other).sum()), int((other & ~own).sum())
    if only_own <= only_other:
        return False
    return bool(stats.binomtest(only_own, only_own + only_other).pvalue < 1 - CONFIDENCE)


def _with_interval(summary: dict[str, Any]) -> dict[str, Any]:
    """`low` and `high` as `interval`, as everywhere in metrics.json."""
    entry = {name: value for name, value in summary.items() if name not in ("low", "high", "tasks")}
    entry["interval"] = [summary["low"], summary["high"]]
    if "tasks" in summary:
        entry["tasks"] = {name: _with_interval(own) for name, own in summary["tasks"].items()}
    return entry
