"""Which rows of an episode make one example: all by time, from any source rate to the model's rates."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from motus_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Timing:
    """Rates of a dataset and of the model.

    A chunk that starts at row c (time c / source_fps) has action i = 0..T-1 as the joint target for
    (i + 1) / action_hz seconds later, and video frame j = 1..Nf at j / video_hz seconds later. LeRobot's row t holds
    the command issued at t, which is the target for t + 1; so at equal rates the actions are rows c .. c + T - 1, and
    a frame shows the world when the action of the same time was to be reached.

    Attributes:
      source_fps: rows per second of the dataset.
      action_hz: actions per second of the model.
      video_hz: video frames per second of the model.
      chunk: actions T in a chunk.
      video_frames: future frames Nf.
    """

    source_fps: float
    action_hz: float
    video_hz: float
    chunk: int
    video_frames: int

    def __post_init__(self) -> None:
        for name in ("source_fps", "action_hz", "video_hz", "chunk", "video_frames"):
            if not getattr(self, name) > 0:
                raise UserError(f"data.{name}: expected a number above 0; found {getattr(self, name)}")
        if self.video_hz > self.source_fps:
            raise UserError(
                f"data.video_hz: expected at most the {self.source_fps:g} frames/s of the dataset; "
                f"found {self.video_hz:g}"
            )

    @property
    def horizon(self) -> int:
        """Rows of the dataset from the chunk's start to its last action's or frame's moment, whichever is later."""
        seconds = max(self.chunk / self.action_hz, self.video_frames / self.video_hz)
        return math.ceil(seconds * self.source_fps - 1e-6)

    def starts(self, length: int) -> range:
        """Rows at which a chunk may start in an episode of `length` rows.

        Only starts whose whole chunk lies inside; an episode shorter than one chunk gets the single start 0, its end
        held.
        """
        return range(max(1, length - self.horizon))

    def action_positions(self, start: int, length: int) -> Float[np.ndarray, "T"]:
        """Fractional rows of the chunk's actions; beyond the end the last row is held."""
        steps = np.arange(1, self.chunk + 1) * (self.source_fps / self.action_hz)
        return np.clip(start + steps - 1, 0, length - 1)

    def frame_rows(self, start: int, length: int) -> Int[np.ndarray, "1+Nf"]:
        """Rows of the condition frame and the future frames, the nearest in time; beyond the end the last is held."""
        steps = np.arange(self.video_frames + 1) * (self.source_fps / self.video_hz)
        return np.minimum(np.floor(start + steps + 0.5).astype(np.int64), length - 1)

    def sample_actions(self, actions: Float[np.ndarray, "rows A"], start: int) -> Float[np.ndarray, "T A"]:
        """The chunk's actions, linear between rows: a held target would lag behind the motion it was recorded from."""
        positions = self.action_positions(start, len(actions))
        low = np.floor(positions + 1e-6).astype(np.int64)
        high = np.minimum(low + 1, len(actions) - 1)
        weight = np.maximum(positions - low, 0.0)[:, None]
        weight[weight < 1e-6] = 0.0
        mixed = actions[low] * (1.0 - weight) + actions[high] * weight
        return mixed.astype(np.float32)
