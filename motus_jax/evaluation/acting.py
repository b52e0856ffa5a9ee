"""The model as a policy in the simulator, beside policies that need no model: success rates, videos, a manifest.

Simulator processes play the episodes and ask a server in this process, or one that runs elsewhere. Needs the simulator
and the serve extra.
"""

import contextlib
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import stats

from motus_jax.errors import UserError
from motus_jax.evaluation import acting_record as record
from motus_jax.evaluation.acting_names import MODEL
from motus_jax.evaluation.acting_setup import SECONDS, Model, Options, actors_of, executed, manifest, served
from motus_jax.evaluation.intervals import CONFIDENCE, wilson_interval
from motus_jax.evaluation.runner import FORWARD
from motus_jax.robots import catalogue
from motus_jax.robots.closed_loop import Actor, Episode, Result, Setting
from motus_jax.robots.film import Film
from motus_jax.robots.workers import Missing, Workers


def success_rates(
    model: Model, tasks: Sequence[str], options: Options, out: pathlib.Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Acts from unseen starts; the entry `closed_loop` of metrics.json, and everything below `out/closed_loop`.

    Returns:
      `policies`: per policy `value`, `interval` (Wilson, 95 %), `successes`, `episodes`, `missing`, `reward` (mean
      share of the task's stages reached), `seconds_per_answer` and the same per task; all have the same starts.
      `beats_baselines` (of the model's policies, and of all of them together): more successes than every other policy
      (`succeeds_more`), None where none acted. `videos`: files below `out` with what they show.

    Raises:
      UserError: the server is lost, refuses, or serves something else; or a policy has no episode at all.
    """
    started = time.monotonic()
    folder = out / record.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        server, metadata = served(model, options, stack)
        actors = actors_of(model, options, metadata)
        setting = Setting(
            robot=catalogue.MODULES[model.contract.robot], contract=model.contract,
            cameras=tuple(metadata["cameras"]), execute=executed(model.contract), seconds=SECONDS, seed=options.seed,
            folder=folder, lateness=options.lateness,
        )  # fmt: skip
        starts = [(tasks[number % len(tasks)], number) for number in range(options.episodes)]
        record.write(folder / record.MANIFEST, manifest(model, options, actors, setting, starts))
        workers = Workers(options.processes, options.lanes, setting, server, say)
        done = record.read(folder)
        wanted = [Episode(actor, task, seed) for actor in actors for task, seed in starts]
        waiting = [episode for episode in wanted if _place(episode) not in done]
        if len(waiting) < len(wanted):
            say(f"closed loop: {len(wanted) - len(waiting)} of {len(wanted)} episodes were played before")
        imagine = FORWARD if FORWARD in metadata.get("modes", ()) else ""
        stack.enter_context(workers)
        _play(workers, waiting, done, folder, say)
        films = _film(workers, [e for e in wanted if _place(e) in done], done, options, imagine, out, say)
    entry = {
        **_compared(actors, starts, done),
        "seconds": round(time.monotonic() - started, 2),
        "tasks": list(tasks),
        "delay": {"actions": options.delay, "prefix": options.prefix, "fusion": options.fusion},
        "videos": films,
    }
    record.write(folder / record.RESULTS, entry)
    return entry


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """Of at least one episode: success rate with its 95 % Wilson interval, counts, mean reward; the same by task."""
    by_task = {name: [result for result in results if result.task == name] for name in {r.task for r in results}}
    answers = sum(result.answers for result in results)
    waited = sum(result.answers * result.seconds_per_answer for result in results)
    return {
        **_rates(results),
        "seconds_per_answer": round(waited / answers, 4) if answers else None,
        "tasks": {name: _rates(own) for name, own in sorted(by_task.items())},
    }


def _rates(results: Sequence[Result]) -> dict[str, Any]:
    successes = sum(result.success for result in results)
    rate = wilson_interval(successes, len(results))
    return {
        "value": rate.value,
        "interval": [rate.low, rate.high],
        "successes": successes,
        "episodes": len(results),
        "reward": float(np.mean([result.reward for result in results])),
    }


def succeeds_more(own: Bool[np.ndarray, " n"], other: Bool[np.ndarray, " n"]) -> bool:
    """Whether the first policy succeeds more often from the same n starts (exact McNemar test, two-sided, 5 %)."""
    only_own, only_other = int((own & ~other).sum()), int((other & ~own).sum())
    if only_own <= only_other:
        return False
    return bool(stats.binomtest(only_own, only_own + only_other).pvalue < 1 - CONFIDENCE)


def _place(episode: Episode) -> tuple[str, str, int]:
    return episode.actor.key, episode.task, episode.seed


def _play(
    workers: Workers, waiting: Sequence[Episode], done: dict[tuple, Result], folder: pathlib.Path,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Plays what was not played before, and keeps every result as it comes.

    Raises:
      UserError: a policy has no episode, not even from before.
    """
    progress = {name: _Progress(name, own, say) for name, own in Counter(e.actor.name for e in waiting).items()}
    reasons: dict[str, str] = {}
    for episode, found in workers.run(waiting):
        if isinstance(found, Missing):
            if found.reason not in reasons.values():
                say(f"closed loop: no result of {episode.name}: {found.reason}")
            reasons[episode.actor.key] = found.reason
        else:
            record.append(folder, found)
            done[_place(episode)] = found
        progress[episode.actor.name].add(found)
    for episode in waiting:
        if not any(key == episode.actor.key for key, _, _ in done):
            reason = reasons[episode.actor.key]
            raise UserError(f"closed loop: no episode of {episode.actor.name} came to its end: {reason}")


class _Progress:
    """Says how far a policy's episodes are, some ten times."""

    def __init__(self, name: str, total: int, say: Callable[[str], None]) -> None:
        self._name, self._total, self._say, self._began = name, total, say, None
        self._done = self._successes = self._missing = 0

    def add(self, found: Result | Missing) -> None:
        self._began = time.monotonic() if self._began is None else self._began
        self._done += 1
        self._missing += isinstance(found, Missing)
        self._successes += isinstance(found, Result) and found.success
        if self._done % -(-self._total // 10) and self._done != self._total:
            return
        line = f"closed loop, {self._name}: {self._done}/{self._total} episodes, {self._successes} successes"
        line += f", {self._missing} missing" if self._missing else ""
        if 1 < self._done < self._total:
            left = (time.monotonic() - self._began) / (self._done - 1) * (self._total - self._done)
            line += f", {left:.0f} s left"
        self._say(line)


def _film(
    workers: Workers, episodes: Sequence[Episode], done: Mapping[tuple, Result], options: Options, imagine: str,
    out: pathlib.Path, say: Callable[[str], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Films the first successes and failures of each of the model's policies, unless they were filmed before."""
    chosen = []
    for name in options.model:
        for success in (True, False):
            alike = [e for e in episodes if e.actor.name == name and done[_place(e)].success == success]
            chosen += alike[: options.videos]

    def file(episode: Episode) -> pathlib.Path:
        return out / record.FOLDER / "videos" / f"{episode.name}.mp4"

    for film, found in workers.run([Film(episode, imagine) for episode in chosen if not file(episode).is_file()]):
        if isinstance(found, Missing):
            say(f"closed loop: no video of {film.episode.name}: {found.reason}")
    return [
        {
            "file": file(episode).relative_to(out).as_posix(),
            "policy": episode.actor.name,
            **{name: getattr(done[_place(episode)], name) for name in ("task", "seed", "instruction", "success")},
        }
        for episode in chosen
        if file(episode).is_file()
    ]


def _compared(
    actors: Sequence[Actor], starts: Sequence[tuple[str, int]], done: Mapping[tuple, Result]
) -> dict[str, Any]:
    """The policies' numbers, and whether the model's succeed more often than the others from the same starts."""
    played = {actor.name: {start: done.get((actor.key, *start)) for start in starts} for actor in actors}
    found = {}
    for name, own in played.items():
        results = [result for result in own.values() if result is not None]
        found[name] = {**summarise(results), "missing": len(starts) - len(results)}
    rivals = [name for name in played if name not in MODEL]
    verdicts = {
        name: all(succeeds_more(*_paired(played[name], played[rival])) for rival in rivals) if rivals else None
        for name in played
        if name in MODEL
    }
    for name, verdict in verdicts.items():
        found[name]["beats_baselines"] = verdict
    return {"beats_baselines": all(verdicts.values()) if rivals and verdicts else None, "policies": found}


def _paired(own: Mapping[Any, Result | None], other: Mapping[Any, Result | None]) -> Iterator[Bool[np.ndarray, " n"]]:
    """Successes of both from the starts that both have played."""
    both = [start for start in own if own[start] is not None and other[start] is not None]
    return (np.array([results[start].success for start in both], bool) for results in (own, other))
