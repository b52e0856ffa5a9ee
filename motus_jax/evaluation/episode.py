"""What a model says all along one episode: every mode asked again and again, beside what really happened."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data.dataset import Dataset
from motus_jax.evaluation.held_out import ActionUnits
from motus_jax.modes import get_mode


@dataclasses.dataclass(frozen=True)
class Call:
    """One question and its answer.

    Attributes:
      row: of the episode, at which the chunk starts.
      seconds: that the answer took, from the example in memory to the arrays in memory; nothing was compiled in it.
      video: uint8 [1+Nf, H, W, 3], None where the mode returns none.
      actions: [T, A] absolute targets in the robot's units, None where the mode returns none.
    """

    row: int
    seconds: float
    video: UInt8[np.ndarray, "F H W 3"] | None
    actions: Float[np.ndarray, "T A"] | None


@dataclasses.dataclass(frozen=True)
class Seen:
    """One episode and what was said of it.

    Attributes:
      title: of the episode: data, split, number.
      instruction: what the robot was told.
      times: [n] seconds of its rows.
      frames: uint8 [n, H, W, 3] as the model sees them.
      targets: [n, A] the real action after each row, for `times + 1 / action_hz`, in the robot's units.
      clips: by row at which a chunk starts: the real [1+Nf, H, W, 3].
      calls: by mode, in order of rows.
      units: of the actions.
      action_hz, video_hz: rates of the model.
    """

    title: str
    instruction: str
    times: Float[np.ndarray, " n"]
    frames: UInt8[np.ndarray, "n H W 3"]
    targets: Float[np.ndarray, "n A"]
    clips: Mapping[int, UInt8[np.ndarray, "F H W 3"]]
    calls: Mapping[str, Sequence[Call]]
    units: ActionUnits
    action_hz: float
    video_hz: float

    def action_times(self, row: int) -> Float[np.ndarray, " T"]:
        """Moments of the actions of the chunk that starts at a row, in seconds of the episode."""
        chunk = next(len(call.actions) for calls in self.calls.values() for call in calls if call.actions is not None)
        return self.times[row] + np.arange(1, chunk + 1) / self.action_hz

    def frame_times(self, row: int) -> Float[np.ndarray, " F"]:
        """Moments of its frames, the present one first."""
        return self.times[row] + np.arange(len(self.clips[row])) / self.video_hz


Sampler = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]
"""A batch of one example -> what the mode returns."""


def watch(
    dataset: Dataset, episode: int, samplers: Mapping[str, Sampler], every: int, title: str,
    say: Callable[[str], None] = lambda line: None,
) -> Seen:  # fmt: skip
    """Asks every mode at every `every`-th row of an episode, along with the first question once unmeasured.

    Args:
      samplers: by mode.
      say: takes a line a mode.

    Raises:
      UserError: no such episode, or its data are broken.
    """
    times = dataset.source.times(episode)
    starts = list(range(0, len(times), every))
    examples = {row: dataset.example(episode, row) for row in starts}
    calls = {}
    for mode, sample in samplers.items():
        began = time.monotonic()
        _ask(sample, examples[starts[0]])
        compiled = time.monotonic() - began
        calls[mode] = [_call(dataset, episode, mode, sample, row, examples[row]) for row in starts]
        median = np.median([call.seconds for call in calls[mode]])
        say(f"{mode}: {len(starts)} chunks, {1000 * median:.0f} ms each after {compiled:.1f} s for the first")
    rows = range(len(times))
    return Seen(
        title=title,
        instruction=dataset.source.instruction(episode),
        times=np.asarray(times, np.float64),
        frames=dataset.pictures(episode, rows),
        targets=np.stack([dataset.raw_actions(episode, row)[0] for row in rows]),
        clips={row: example["frames"] for row, example in examples.items()},
        calls=calls,
        units=ActionUnits.of(dataset.spec),
        action_hz=dataset.spec.action_hz,
        video_hz=dataset.spec.video_hz,
    )


def _ask(sample: Sampler, example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    batch = {name: np.asarray(value)[None] for name, value in example.items()}
    return {name: np.asarray(value[0]) for name, value in jax.block_until_ready(sample(batch)).items()}


def _call(
    dataset: Dataset, episode: int, mode: str, sample: Sampler, row: int, example: Mapping[str, np.ndarray]
) -> Call:
    started = time.monotonic()
    answer = _ask(sample, example)
    seconds = time.monotonic() - started
    video = actions = None
    if get_mode(mode).returns_video:
        video = np.round(np.clip(answer["video"], 0, 1) * 255).astype(np.uint8)
    if get_mode(mode).returns_actions:
        actions = dataset.denormalise_actions(answer["actions"], dataset.raw_state(episode, row))
    return Call(row, seconds, video, actions)


def action_error(seen: Seen, call: Call) -> Float[np.ndarray, " A"]:
    """Mean distance of a chunk's targets to the real ones at the same moments, per dimension; the end is held."""
    moments = seen.action_times(call.row)
    known = seen.times + 1 / seen.action_hz
    real = np.stack([np.interp(moments, known, column) for column in seen.targets.T], axis=1)
    return np.abs(call.actions - real).mean(0)


def video_error(seen: Seen, call: Call) -> float:
    """Mean absolute difference of the imagined future frames to the real ones, of 255."""
    return float(np.abs(np.int16(call.video[1:]) - np.int16(seen.clips[call.row][1:])).mean())
