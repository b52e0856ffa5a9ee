"""Rows of a chunk, by time."""

import numpy as np
import pytest

from motus_jax.data.sampling import Timing
from motus_jax.errors import UserError


def test_equal_rates():
    timing = Timing(source_fps=10, action_hz=10, video_hz=5, chunk=16, video_frames=8)
    assert timing.horizon == 16
    assert timing.action_positions(3, 100).tolist() == list(range(3, 19))
    assert timing.frame_rows(3, 100).tolist() == list(range(3, 20, 2))
    assert timing.starts(30) == range(14)
    assert timing.frame_rows(timing.starts(30)[-1], 30)[-1] == 29


def test_faster_source():
    """50 Hz: the target for 0.1 s later is the command issued just before, at row c + 4."""
    timing = Timing(source_fps=50, action_hz=10, video_hz=5, chunk=4, video_frames=2)
    assert timing.action_positions(0, 100).tolist() == [4, 9, 14, 19]
    assert timing.frame_rows(0, 100).tolist() == [0, 10, 20]


def test_frames_go_to_the_nearest_row():
    assert Timing(30, 10, 8, 3, 3).frame_rows(1, 100).tolist() == [1, 5, 9, 12]  # 1 + 3.75, 7.5, 11.25


def test_slower_source_interpolates_actions():
    """A ramp stays a ramp of the same slope, whatever the rates."""
    actions = np.arange(20, dtype=np.float32)[:, None] * [[1.0, -2.0]]
    chunk = Timing(source_fps=10, action_hz=30, video_hz=10, chunk=9, video_frames=3).sample_actions(actions, 5)
    expected = 5 - 1 + np.arange(1, 10) / 3
    assert chunk.dtype == np.float32
    np.testing.assert_allclose(chunk, expected[:, None] * [[1.0, -2.0]], atol=1e-5)


def test_whole_rows_are_copied_exactly():
    actions = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    assert np.array_equal(Timing(30, 10, 5, 8, 4).sample_actions(actions, 7), actions[9 : 9 + 24 : 3])


def test_end_is_held():
    timing = Timing(10, 10, 5, 16, 8)
    assert timing.starts(9) == range(1)
    actions = np.arange(9, dtype=np.float32)[:, None]
    assert timing.sample_actions(actions, 4)[:, 0].tolist() == [4, 5, 6, 7] + [8] * 12
    assert timing.frame_rows(4, 9).tolist() == [4, 6] + [8] * 7


@pytest.mark.parametrize("name", ["chunk", "video_frames", "action_hz", "video_hz"])
def test_numbers_must_be_positive(name):
    sizes = {"source_fps": 10, "action_hz": 10, "video_hz": 5, "chunk": 16, "video_frames": 8} | {name: 0}
    with pytest.raises(UserError, match=f"data.{name}: expected a number above 0; found 0"):
        Timing(**sizes)


def test_video_cannot_be_faster_than_the_source():
    with pytest.raises(UserError, match=r"data.video_hz: expected at most the 10 frames/s of the dataset; found 20"):
        Timing(10, 10, 20, 16, 8)
