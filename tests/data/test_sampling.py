"""Rows of a chunk, by time."""

import numpy as np
import pytest

from motus_jax.data import source
from motus_jax.data.sampling import Timing
from motus_jax.errors import UserError

TIMING = Timing(10, 5, 16, 8)


def seconds(length, fps):
    return np.arange(length) / fps


def commands(actions, fps):
    return source.commands(fps, actions, actions)


def test_equal_rates():
    times = seconds(30, 10)
    assert TIMING.seconds == 1.6
    assert TIMING.frame_rows(3, seconds(100, 10)).tolist() == list(range(3, 20, 2))
    assert TIMING.starts(times) == range(14)
    assert TIMING.frame_rows(TIMING.starts(times)[-1], times)[-1] == 29
    numbers = np.arange(100, dtype=np.float32)[:, None]
    assert TIMING.sample_actions(commands(numbers, 10), 3)[:, 0].tolist() == list(range(3, 19))


def test_faster_source():
    """50 Hz: the target for 0.1 s later is the command issued just before, at row c + 4."""
    timing, numbers = Timing(10, 5, 4, 2), np.arange(100, dtype=np.float32)[:, None]
    assert timing.sample_actions(commands(numbers, 50), 0)[:, 0].tolist() == [4, 9, 14, 19]
    assert timing.sample_actions(source.positions(50, numbers, numbers), 0)[:, 0].tolist() == [5, 10, 15, 20]
    assert timing.frame_rows(0, seconds(100, 50)).tolist() == [0, 10, 20]


@pytest.mark.parametrize("fps", [10, 25, 29.97, 30, 50, 60])
def test_any_rate_gives_the_same_motion(fps):
    """Positions along a known path come out the same from every rate; frames are at most half a row off."""
    times = seconds(400, fps)
    path = np.sin(times)[:, None]
    chunk = Timing(30, 5, 48, 8).sample_actions(source.positions(fps, path, path), 40)
    expected = np.sin(times[40] + np.arange(1, 49) / 30)
    np.testing.assert_allclose(chunk[:, 0], expected, atol=2e-3)
    rows = Timing(30, 5, 48, 8).frame_rows(40, times)
    assert np.abs(times[rows] - times[40] - np.arange(9) / 5).max() <= 0.5 / fps + 1e-6


def test_variable_rate_goes_by_time():
    times = np.array([0, 0.1, 0.15, 0.4, 0.45, 0.5, 0.9, 1.0, 1.3])
    timing = Timing(10, 5, 4, 2)
    assert timing.frame_rows(0, times).tolist() == [0, 2, 3]
    assert timing.starts(times) == range(7)
    column = times[:, None].astype(np.float32)
    rows = source.Rows(times, column, column, times, np.zeros((9, 0)), np.zeros(9, bool))
    np.testing.assert_allclose(timing.sample_actions(rows, 1)[:, 0], [0.2, 0.3, 0.4, 0.5], atol=1e-6)


def test_frames_go_to_the_nearest_row():
    assert Timing(10, 8, 3, 3).frame_rows(1, seconds(100, 30)).tolist() == [1, 5, 9, 12]  # 1 + 3.75, 7.5, 11.25


def test_slower_source_interpolates_actions():
    """A ramp stays a ramp of the same slope, whatever the rates."""
    actions = np.arange(20, dtype=np.float32)[:, None] * [[1.0, -2.0]]
    chunk = Timing(30, 10, 9, 3).sample_actions(commands(actions, 10), 5)
    expected = 5 - 1 + np.arange(1, 10) / 3
    assert chunk.dtype == np.float32
    np.testing.assert_allclose(chunk, expected[:, None] * [[1.0, -2.0]], atol=1e-5)


def test_whole_rows_are_copied_exactly():
    actions = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    assert np.array_equal(Timing(10, 5, 8, 4).sample_actions(commands(actions, 30), 7), actions[9 : 9 + 24 : 3])


def test_changes_add_up_at_any_rate():
    """Rows at 10 Hz whose actions are changes, the last dim a gripper's target."""
    changes = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    state = np.zeros((30, 0), np.float32)
    reached = np.concatenate([np.zeros((1, 2)), np.cumsum(changes[:, :2], 0, np.float64)])
    for rows in (source.commands(10, state, changes), source.positions(10, state, changes)):
        late = int(rows.action_times[0] == 0)  # a measured change ends at its own row
        same = Timing(10, 5, 8, 4).sample_changes(rows, 4, 1)
        np.testing.assert_allclose(same[:, :2], changes[4 + late : 12 + late, :2], atol=1e-6)
        np.testing.assert_array_equal(same[:, 2], changes[4 + late : 12 + late, 2])
        half = Timing(5, 5, 6, 4).sample_changes(rows, 4, 0)
        np.testing.assert_allclose(half[:, :2], np.diff(reached[4 + late : 18 + late : 2], axis=0), atol=1e-6)
    rows = source.commands(10, state, changes)
    fine = Timing(20, 5, 8, 4).sample_changes(rows, 4, 0)
    np.testing.assert_allclose(fine[0::2] + fine[1::2], changes[4:8], atol=1e-6)
    end = Timing(10, 5, 8, 4).sample_changes(rows, 27, 1)
    np.testing.assert_allclose(end[:3, :2], changes[27:, :2], atol=1e-6)
    assert not end[3:, :2].any() and (end[3:, 2] == changes[29, 2]).all()
    every = Timing(10, 5, 8, 4).sample_changes_at(rows, range(20), 1)
    np.testing.assert_array_equal(every[4], Timing(10, 5, 8, 4).sample_changes(rows, 4, 1))


def test_end_is_held():
    times, actions = seconds(9, 10), np.arange(9, dtype=np.float32)[:, None]
    assert TIMING.starts(times) == range(1)
    assert TIMING.sample_actions(commands(actions, 10), 4)[:, 0].tolist() == [4, 5, 6, 7] + [8] * 12
    assert TIMING.frame_rows(4, times).tolist() == [4, 6] + [8] * 7
    assert TIMING.within(4, commands(actions, 10)).tolist() == [True] * 5 + [False] * 11
    everywhere = Timing(10, 5, 16, 8, "all")
    assert everywhere.starts(times) == range(9)


def test_latent_actions_are_those_of_the_row_where_the_motion_begins():
    """As the public loader: the latent of step i is that of row c + 6 i at 30 Hz and 5 actions a second."""
    latent = np.arange(100, dtype=np.float32)[:, None]
    rows = source.positions(30, np.zeros((100, 0)), np.zeros((100, 0)), latent)
    assert Timing(5, 5, 8, 8).sample_latents(rows, 3)[:, 0].tolist() == [3 + 6 * i for i in range(8)]


@pytest.mark.parametrize("name", ["chunk", "video_frames", "action_hz", "video_hz"])
def test_numbers_must_be_positive(name):
    sizes = {"action_hz": 10, "video_hz": 5, "chunk": 16, "video_frames": 8} | {name: 0}
    with pytest.raises(UserError, match=f"data.{name}: expected a number above 0; found 0"):
        Timing(**sizes)


def test_unknown_starts():
    with pytest.raises(UserError, match=r"data\.starts: expected one of inside, all; found 'some'"):
        Timing(10, 5, 16, 8, "some")
