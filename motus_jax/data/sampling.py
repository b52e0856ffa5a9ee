"""Which rows of an episode make one example: all by time, from any source rate to the model's rates."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from motus_jax.data.source import Rows
from motus_jax.errors import UserError

STARTS = ("inside", "all")
"""Where chunks may start: where they lie inside the episode as a whole, or at every row."""
SLACK = 1e-6
"""Seconds by which two moments may differ and be the same."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Rates of the model.

    A chunk that starts at row c, at time t, has action i = 0..T-1 as the target for t + (i + 1) / action_hz, video
    frame j = 1..Nf at t + j / video_hz, and latent action i as the motion that begins at t + i / action_hz. So a frame
    shows the world when the action of the same time was to be reached.

    Attributes:
      action_hz: actions per second of the model.
      video_hz: video frames per second of the model.
      chunk: actions T in a chunk.
      video_frames: future frames Nf.
      starts_at: one of `STARTS`.
    """

    action_hz: float
    video_hz: float
    chunk: int
    video_frames: int
    starts_at: str = "inside"

    def __post_init__(self) -> None:
        for name in ("action_hz", "video_hz", "chunk", "video_frames"):
            if not getattr(self, name) > 0:
                raise UserError(f"data.{name}: expected a number above 0; found {getattr(self, name)}")
        if self.starts_at not in STARTS:
            raise UserError(f"data.starts: expected one of {', '.join(STARTS)}; found {self.starts_at!r}")

    @property
    def seconds(self) -> float:
        """From the chunk's start to its last action's or frame's moment, whichever is later."""
        return max(self.chunk / self.action_hz, self.video_frames / self.video_hz)

    def starts(self, times: Float[np.ndarray, "n"]) -> range:
        """Rows at which a chunk may start in an episode with these moments.

        With "inside" those whose whole chunk lies inside; an episode shorter than one chunk gets the single start 0,
        its end held.
        """
        if self.starts_at == "all":
            return range(len(times))
        return range(max(1, int(np.searchsorted(times, times[-1] - self.seconds + SLACK, side="right"))))

    def frame_rows(self, start: int, times: Float[np.ndarray, "n"]) -> Int[np.ndarray, "1+Nf"]:
        """Rows of the condition frame and the future frames, the nearest in time (of two at the same distance the
        later); beyond the end the last is held."""
        return _nearest(times, times[start] + np.arange(self.video_frames + 1) / self.video_hz)

    def action_moments(self, start: int, times: Float[np.ndarray, "n"]) -> Float[np.ndarray, "T"]:
        """Seconds at which the chunk's actions are to be reached."""
        return times[start] + np.arange(1, self.chunk + 1) / self.action_hz

    def within(self, start: int, rows: Rows) -> np.ndarray:
        """bool [T]: which actions lie inside the episode; the others repeat its last."""
        return self.action_moments(start, rows.times) <= max(rows.action_times[-1], rows.times[-1]) + SLACK

    def sample_actions(self, rows: Rows, start: int) -> Float[np.ndarray, "T A"]:
        """The chunk's actions, linear between rows: a held target would lag behind the motion it was recorded from."""
        return self.sample_actions_at(rows, range(start, start + 1))[0]

    def sample_actions_at(self, rows: Rows, starts: range) -> Float[np.ndarray, "n T A"]:
        """The actions of many chunks."""
        low, weight = self.action_places(rows, starts)
        return between(rows.action, low, weight)

    def sample_changes(self, rows: Rows, start: int, targets: int) -> Float[np.ndarray, "T A"]:
        """The chunk's actions where those of the source are changes from row to row (`sample_changes_at`)."""
        return self.sample_changes_at(rows, range(start, start + 1), targets)[0]

    def sample_changes_at(self, rows: Rows, starts: range, targets: int) -> Float[np.ndarray, "n T A"]:
        """Changes over each step of many chunks: those of the rows, as far as they lie inside it, added up. Beyond the
        end nothing changes.

        Args:
          targets: so many of the last dims are no changes, but targets as in `sample_actions`.
        """
        count = rows.action.shape[1] - targets
        ends = rows.action_times
        first = ends[0] - (ends[1] - ends[0] if len(ends) > 1 else 1 / self.action_hz)
        knots = np.concatenate([[first], ends])
        reached = np.concatenate([np.zeros((1, count)), np.cumsum(rows.action[:, :count], axis=0, dtype=np.float64)])
        moments = rows.times[starts.start : starts.stop, None] + np.arange(self.chunk + 1) / self.action_hz
        at = np.stack([np.interp(moments, knots, reached[:, k]) for k in range(count)], axis=-1)
        changes = np.diff(at, axis=1).astype(np.float32)
        if not targets:
            return changes
        return np.concatenate([changes, self.sample_actions_at(rows, starts)[..., count:]], axis=-1)

    def action_places(
        self, rows: Rows, starts: range
    ) -> tuple[Int[np.ndarray, "n T"], Float[np.ndarray, "n T"] | None]:
        """Where the actions of many chunks lie: the row before each, and the weight of the row after it; no weights
        where all lie on rows."""
        moments = rows.times[starts.start : starts.stop, None] + np.arange(1, self.chunk + 1) / self.action_hz
        places = np.interp(moments, rows.action_times, np.arange(len(rows.action_times)))
        near = np.round(places)
        places = np.where(np.abs(places - near) < SLACK, near, places)
        low = places.astype(np.int64)
        weight = (places - low).astype(np.float32)
        return low, weight if weight.any() else None

    def sample_latents(self, rows: Rows, start: int) -> Float[np.ndarray, "T D"]:
        """The chunk's latent actions, those of the nearest rows: they stand for motion and have no in-between."""
        return self.sample_latents_at(rows, range(start, start + 1))[0]

    def sample_latents_at(self, rows: Rows, starts: range) -> Float[np.ndarray, "n T D"]:
        """The latent actions of many chunks."""
        return rows.latent[self.latent_rows(rows, starts)]

    def sample_has_latent(self, rows: Rows, start: int) -> Bool[np.ndarray, "T"]:
        """Which of the chunk's latent actions are ones."""
        return self.sample_has_latent_at(rows, range(start, start + 1))[0]

    def sample_has_latent_at(self, rows: Rows, starts: range) -> Bool[np.ndarray, "n T"]:
        """Which of the latent actions of many chunks are ones."""
        return rows.has_latent[self.latent_rows(rows, starts)]

    def latent_rows(self, rows: Rows, starts: range) -> Int[np.ndarray, "n T"]:
        """Rows of the latent actions of many chunks."""
        moments = rows.times[starts.start : starts.stop, None] + np.arange(self.chunk) / self.action_hz
        return _nearest(rows.times, moments)


def between(
    values: Float[np.ndarray, "n D"], low: Int[np.ndarray, "*m"], weight: Float[np.ndarray, "*m"] | None
) -> Float[np.ndarray, "*m D"]:
    """Linear between rows `low` and those after them."""
    if weight is None:
        return values[low]
    weight = weight[..., None]
    return values[low] * (1 - weight) + values[np.minimum(low + 1, len(values) - 1)] * weight


def _nearest(times: Float[np.ndarray, "n"], moments: Float[np.ndarray, "*m"]) -> Int[np.ndarray, "*m"]:
    high = np.clip(np.searchsorted(times, moments - SLACK), 0, len(times) - 1)
    low = np.maximum(high - 1, 0)
    return np.where(times[high] - moments <= moments - times[low] + SLACK, high, low)
