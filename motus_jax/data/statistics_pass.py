"""One pass over the tables of a source's training episodes: the sums behind `motus_jax.data.statistics`.

No video is opened. Threads take blocks of episodes; sums are put together in the order of the episodes, and the rows
from which quantiles are taken are fixed beforehand, so that the number of threads changes nothing.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from motus_jax.data import moments
from motus_jax.data.action_space import ACTION_SPACES, CHANGES, ActionSpace
from motus_jax.data.moments import Moments, Piece
from motus_jax.data.sampling import Timing, between
from motus_jax.data.source import BrokenData, Rows, Source
from motus_jax.errors import UserError

BLOCK = 16
"""Episodes that a thread takes at a time."""
REPORT_EVERY = 5.0
"""Seconds between two lines about the progress."""
MOST_THREADS = 16
"""Threads unless more are asked for."""
STATE = "state"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is computed.

    Attributes:
      dataset, timing: of whom.
      widths: dims of the state (`STATE`) and of each action space that the source has.
      state_sample, action_sample: numbers of the rows from which quantiles are taken, over all episodes, rising.
    """

    dataset: Source
    timing: Timing
    widths: dict[str, int]
    state_sample: Int[np.ndarray, "n"]
    action_sample: Int[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Part:
    """What an episode, or several, add.

    Attributes:
      episodes: how many of them could be read.
      sums: by quantity.
      samples: rows for the quantiles, by quantity.
      broken: why episodes could not be read.
    """

    episodes: int
    sums: dict[str, Piece]
    samples: dict[str, list[np.ndarray]]
    broken: list[str]


def run(
    dataset: Source, timing: Timing, threads: int = 0, space: str = ""
) -> tuple[Moments, dict[str, Moments]]:
    """Statistics of the states at chunk starts, and of the actions by action space, pooled over the chunk's steps.

    Args:
      space: see `motus_jax.data.statistics.compute`.

    An episode that cannot be read is left out, with a warning: training puts it into quarantine.

    Raises:
      UserError: no episode can be read.
    """
    episodes = dataset.split("train")
    counts = np.array([len(timing.starts(dataset.times(episode))) for episode in episodes], np.int64)
    total = int(counts.sum())
    widths = {STATE: dataset.state_dim}
    spaces = [name for name in ACTION_SPACES if name not in CHANGES or name == space]
    widths |= {name: width for name in spaces if (width := _width(ACTION_SPACES[name], dataset))}
    plan = Plan(dataset, timing, widths, moments.strata(total), moments.strata(total * timing.chunk))
    begins = np.concatenate([[0], np.cumsum(counts)])[:-1].tolist()
    places = list(zip(episodes, begins, counts.tolist()))
    found = _empty(plan)
    parts = _blocks(functools.partial(_block, plan), places, threads or min(os.cpu_count() or 1, MOST_THREADS))
    for part in _progress(parts, len(places)):
        found = _join(found, part)
    _warn(dataset, found)
    done = {}
    for name, width in widths.items():
        samples = found.samples[name]
        done[name] = moments.finish(found.sums[name], np.concatenate([np.zeros((0, width), np.float32), *samples]))
    return done.pop(STATE), done


def _width(space: ActionSpace, dataset: Source) -> int:
    """Dims of a source's actions in a space; 0 if it cannot be had."""
    if space.latent:
        return dataset.latent_dim
    if (space.needs_state and dataset.state_dim < dataset.action_dim) or dataset.action_dim % space.raw:
        return 0
    return space.encoded_width(dataset.action_dim)


def _blocks(work: Callable[[Sequence], Part], places: Sequence, threads: int) -> Iterator[Part]:
    """What `work` makes of each block of places, in order; no more blocks are in flight than are needed."""
    blocks = iter([places[k : k + BLOCK] for k in range(0, len(places), BLOCK)])
    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque(pool.submit(work, block) for block in itertools.islice(blocks, 2 * threads))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, block) for block in itertools.islice(blocks, 1))


def _progress(parts: Iterator[Part], episodes: int) -> Iterator[Part]:
    begun = reported = time.monotonic()
    done = 0
    for part in parts:
        yield part
        done += part.episodes + len(part.broken)
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            left = (reported - begun) / done * (episodes - done)
            print(f"statistics: {done} of {episodes} episodes, {left:.0f} s left", file=sys.stderr, flush=True)


def _warn(dataset: Source, found: Part) -> None:
    if not found.episodes:
        raise UserError(f"{dataset.path}: expected a readable training episode; found none: {found.broken[0]}")
    if found.broken:
        _log.warning(
            "statistics of %s: %d of %d episodes cannot be read and are left out; the first: %s",
            dataset.path,
            len(found.broken),
            len(found.broken) + found.episodes,
            found.broken[0],
        )


def _empty(plan: Plan) -> Part:
    sums = {name: moments.nothing(width) for name, width in plan.widths.items()}
    return Part(0, sums, {name: [] for name in sums}, [])


def _join(one: Part, other: Part) -> Part:
    sums = {name: moments.add(one.sums[name], other.sums[name]) for name in one.sums}
    for name, rows in other.samples.items():
        one.samples[name].extend(rows)
    return Part(one.episodes + other.episodes, sums, one.samples, one.broken + other.broken)


def _block(plan: Plan, places: Sequence[tuple[int, int, int]]) -> Part:
    found = _empty(plan)
    for episode, begin, count in places:
        try:
            rows = plan.dataset.rows(episode)
        except BrokenData as error:
            found.broken.append(str(error))
        else:
            found = _join(found, _episode(plan, rows, begin, count))
    return found


def _episode(plan: Plan, rows: Rows, begin: int, count: int) -> Part:
    """Sums and sampled rows of an episode whose `count` chunks follow `begin` earlier ones."""
    timing, starts = plan.timing, range(count)
    states = rows.state[:count]
    sums, samples = {}, {}
    if plan.widths[STATE]:
        sums[STATE] = moments.piece(states)
    samples[STATE] = states[_inside(plan.state_sample, begin, count)]
    chosen = _inside(plan.action_sample, begin * timing.chunk, count * timing.chunk)
    absolute = functools.cache(lambda: timing.action_places(rows, starts))
    for name in plan.widths.keys() - {STATE}:
        space = ACTION_SPACES[name]
        if space.targets is not None:
            changes = _pooled(timing.sample_changes_at(rows, starts, space.targets))
            sums[name], samples[name] = moments.piece(changes), changes[chosen]
            continue
        if space.latent:
            known = space.known(timing.sample_has_latent_at(rows, starts)).reshape(-1)
            latents = _pooled(space.from_absolute(timing.sample_latents_at(rows, starts), states))
            sums[name] = moments.piece(latents[known]) if known.any() else moments.nothing(latents.shape[1])
            samples[name] = latents[chosen[known[chosen]]]
            continue
        values, (low, weight) = rows.action, absolute()
        picked = between(values, low.reshape(-1)[chosen], None if weight is None else weight.reshape(-1)[chosen])
        if not space.needs_state and weight is None:
            # Each row counts as often as chunks hold it.
            sums[name] = moments.weighted_piece(values, np.bincount(low.reshape(-1), minlength=len(values)))
        else:
            sums[name] = moments.piece(_pooled(space.from_absolute(between(values, low, weight), states)))
        if space.needs_state:
            picked = space.from_absolute(picked[:, None], states[chosen // timing.chunk])[:, 0]
        samples[name] = picked
    missing = {name: moments.nothing(width) for name, width in plan.widths.items() if name not in sums}
    return Part(1, sums | missing, {name: [rows] for name, rows in samples.items()}, [])


def _pooled(chunks: Float[np.ndarray, "n T D"]) -> Float[np.ndarray, "nT D"]:
    return chunks.reshape(-1, chunks.shape[-1])


def _inside(sample: Int[np.ndarray, "n"], begin: int, count: int) -> Int[np.ndarray, "m"]:
    """Entries of a rising sample in [begin, begin + count), from `begin` on."""
    first, last = np.searchsorted(sample, [begin, begin + count])
    return sample[first:last] - begin
