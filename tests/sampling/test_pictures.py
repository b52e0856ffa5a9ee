"""Pictures are files that others can read, of the size and content that was asked for."""

import av
import numpy as np
import pytest

from motus_jax.sampling import pictures


@pytest.fixture
def video():
    """A bright square that walks over a grey ramp [9, 28, 25, 3]."""
    frames = np.repeat(np.linspace(40, 120, 25, dtype=np.uint8)[None, None, :, None], 9, axis=0)
    frames = np.broadcast_to(frames, (9, 28, 25, 3)).copy()
    for time in range(9):
        frames[time, 10:16, 2 * time : 2 * time + 6] = (230, 60, 40)
    return frames


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.codec_context.name, float(stream.average_rate), stream.pix_fmt


def test_mp4_reads_back(tmp_path, video):
    pictures.write_mp4(tmp_path / "a.mp4", video, fps=5, scale=3)
    frames, codec, rate, pixels = read(tmp_path / "a.mp4")
    assert (codec, rate, pixels) == ("h264", 5.0, "yuv420p")
    # 25 wide, 3 times: 75 is odd and h264 needs even sizes.
    assert frames.shape == (9, 84, 74, 3)
    error = np.abs(frames.astype(float) - pictures.enlarge(video, 3)[:, :, :74]).mean()
    assert error < 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_side_by_side_holds_both_videos(video):
    both = pictures.side_by_side({"real": video, "imagined": 255 - video}, scale=2)
    assert both.shape == (9, 32 + 56, 50 + pictures.GAP + 50, 3)
    np.testing.assert_array_equal(both[:, 32:, :50], pictures.enlarge(video, 2))
    np.testing.assert_array_equal(both[:, 32:, 56:], pictures.enlarge(255 - video, 2))
    assert (both[:, :32] == pictures.FOREGROUND).all(axis=-1).any(), "titles are drawn"


def test_strip_has_a_row_per_video_and_shows_where_they_differ(video, tmp_path):
    imagined = video.copy()
    imagined[5, :4, :4] = 255
    image = pictures.strip({"real": video, "imagined": imagined}, hz=5.0, scale=2, error_of=("real", "imagined"))
    height, width, gap = 56, 50, pictures.GAP
    assert image.shape == (30 + 3 * (height + gap) - gap, 116 + 9 * (width + gap) - gap, 3)
    left = 116 + 5 * (width + gap)
    np.testing.assert_array_equal(image[30 : 30 + height, left : left + width], pictures.enlarge(video, 2)[5])
    heat = image[30 + 2 * (height + gap) :, left : left + width].astype(int).sum(axis=-1)
    assert heat[:4, :4].min() > 5 * heat[20:, 20:].max()
    pictures.write_image(tmp_path / "strip.png", image)
    assert (tmp_path / "strip.png").stat().st_size > 1000


def test_action_figure_has_a_panel_per_dimension_with_units(tmp_path):
    real = np.cumsum(np.random.default_rng(0).normal(0, 0.05, (16, 14)), axis=0)
    names = [
        f"{side} {joint}" for side in ("left", "right") for joint in ("j1", "j2", "j3", "j4", "j5", "j6", "gripper")
    ]
    units = (["rad"] * 6 + ["open fraction"]) * 2
    figure = pictures.action_figure(real, {"predicted": real + 0.01}, names, units, hz=10.0, state=real[0])
    assert [axis.get_title() for axis in figure.axes] == [f"{name} [{unit}]" for name, unit in zip(names, units)]
    line = figure.axes[3].get_lines()[2]
    np.testing.assert_allclose(line.get_ydata(), real[:, 3] + 0.01)
    np.testing.assert_allclose(line.get_xdata()[[0, -1]], [0.1, 1.6])
    pictures.write_figure(tmp_path / "actions.png", figure)
    assert (tmp_path / "actions.png").stat().st_size > 10_000


def test_action_figure_leaves_out_dimensions_without_values():
    mask = np.ones((4, 6), bool)
    mask[:, 4:] = False
    chunk = np.zeros((4, 6))
    figure = pictures.action_figure(chunk, {"predicted": chunk}, list("abcdef"), ["rad"] * 6, hz=10.0, mask=mask)
    assert [axis.get_title() for axis in figure.axes] == [f"{name} [rad]" for name in "abcd"]
