"""What a prediction looks like: mp4 videos, strips of frames, and action plots, real beside predicted.

Frames are uint8 [F, H, W, 3] with the condition frame first; the small pictures of the demo are enlarged by a whole
factor so that a person can see them.
"""

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

SCALE = 3
"""Default enlargement of a frame."""

BACKGROUND, FOREGROUND = (17, 20, 24), (226, 230, 235)
GAP = 6

# Errors of this size (of 1) and above are drawn in the brightest colour of the heat row.
HEAT_FULL = 0.4

PREDICTED_COLOURS = ("#e4572e", "#7b5ea7", "#2a9d8f")
REAL_COLOUR = "#3b7dd8"


def enlarge(frames: UInt8[np.ndarray, "F H W 3"], scale: int = SCALE) -> UInt8[np.ndarray, "F H2 W2 3"]:
    """Frames `scale` times as large in each direction, smooth (cubic)."""
    height, width = frames.shape[1:3]
    size = (width * scale, height * scale)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC) for frame in frames])


def write_mp4(path: str | os.PathLike, frames: UInt8[np.ndarray, "F H W 3"], fps: float, scale: int = SCALE) -> None:
    """Writes an h264 mp4 (yuv420p: plays in every browser) and replaces `path` only when it is complete.

    Args:
      path: the file; its folder must exist.
      frames: at least one frame; an odd size loses its last row or column after enlarging (h264 needs even sizes).
      fps: frames per second.
      scale: whole factor of enlargement.
    """
    large = enlarge(frames, scale)
    large = large[:, : large.shape[1] // 2 * 2, : large.shape[2] // 2 * 2]
    partial = Path(path).with_suffix(".partial.mp4")
    with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = large.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "medium"}
        for frame in large:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    os.replace(partial, path)


def side_by_side(
    columns: Mapping[str, UInt8[np.ndarray, "F H W 3"]], scale: int = SCALE
) -> UInt8[np.ndarray, "F H2 W2 3"]:
    """Videos of equal shape in a row, each under its title; already enlarged (write it with `scale=1`)."""
    titles, videos = list(columns), [enlarge(video, scale) for video in columns.values()]
    count, height, width, _ = videos[0].shape
    header = 32
    canvas = _canvas(header + height, len(videos) * (width + GAP) - GAP)
    for index, title in enumerate(titles):
        _write(canvas, index * (width + GAP) + width // 2, header // 2, title, anchor="mm")
    out = np.repeat(np.asarray(canvas)[None], count, axis=0)
    for index, video in enumerate(videos):
        left = index * (width + GAP)
        out[:, header:, left : left + width] = video
    return out


def strip(
    rows: Mapping[str, UInt8[np.ndarray, "F H W 3"]], hz: float, scale: int = 2, error_of: tuple[str, str] | None = None
) -> UInt8[np.ndarray, "H2 W2 3"]:
    """Rows of frames under time labels, for example real above imagined.

    Args:
      rows: title -> video, all of one shape, the condition frame first (labelled "now").
      hz: frames per second.
      scale: whole factor of enlargement.
      error_of: two titles; adds a row that shows where and how much they differ (bright at `HEAT_FULL`).
    """
    videos = {title: enlarge(video, scale) for title, video in rows.items()}
    if error_of is not None:
        first, second = (rows[title].astype(np.float32) / 255 for title in error_of)
        videos["difference"] = enlarge(_heat(np.abs(first - second).mean(axis=-1)), scale)
    count, height, width, _ = next(iter(videos.values())).shape
    left, top = 116, 30
    canvas = _canvas(top + len(videos) * (height + GAP) - GAP, left + count * (width + GAP) - GAP)
    for column in range(count):
        label = "now" if column == 0 else f"+{column / hz:.1f} s"
        _write(canvas, left + column * (width + GAP) + width // 2, top // 2, label, anchor="mm")
    for row, title in enumerate(videos):
        _write(canvas, left - 8, top + row * (height + GAP) + height // 2, title, anchor="rm")
    out = np.asarray(canvas).copy()
    for row, video in enumerate(videos.values()):
        y = top + row * (height + GAP)
        for column, frame in enumerate(video):
            x = left + column * (width + GAP)
            out[y : y + height, x : x + width] = frame
    return out


def write_image(path: str | os.PathLike, image: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an image in the format of its suffix (.png, .jpg)."""
    Image.fromarray(image).save(path, **({"quality": 90} if str(path).endswith(".jpg") else {}))


def action_figure(
    real: Float[np.ndarray, "T A"],
    predicted: Mapping[str, Float[np.ndarray, "T A"]],
    names: Sequence[str],
    units: Sequence[str],
    hz: float,
    state: Float[np.ndarray, " A"] | None = None,
    mask: Bool[np.ndarray, "T A"] | None = None,
) -> Figure:
    """One small plot per action dimension: the real chunk and the predicted ones over time.

    Args:
      real: absolute targets in the robot's units.
      predicted: title -> chunk, same units.
      names, units: one per dimension.
      hz: actions per second; action i is drawn at (i + 1) / hz seconds.
      state: where the robot is at time 0 in the same units, drawn as a dot.
      mask: False where the real chunk has no value; such dimensions get no plot.
    """
    shown = [d for d in range(len(names)) if mask is None or mask[:, d].any()]
    columns = 7 if len(shown) % 7 == 0 else min(len(shown), 4)
    rows = -(-len(shown) // columns)
    times = np.arange(1, len(real) + 1) / hz
    with matplotlib.rc_context({"font.size": 8, "axes.titlesize": 7.5}):
        width, height = 1.8 * columns, 1.6 * rows + 0.3
        figure = Figure(figsize=(width, height))
        # In inches, by hand: the automatic layouts take a second a figure.
        figure.subplots_adjust(
            left=0.42 / width,
            right=1 - 0.14 / width,
            bottom=0.42 / height,
            top=1 - 0.5 / height,
            wspace=0.36,
            hspace=0.42,
        )
        axes = figure.subplots(rows, columns, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place >= len(shown):
                axis.set_axis_off()
                continue
            d = shown[place]
            if state is not None:
                axis.plot(0, state[d], "o", color=REAL_COLOUR, markersize=3.5)
            _plot_dimension(axis, times, real[:, d], {t: chunk[:, d] for t, chunk in predicted.items()}, units[d])
            axis.set_title(f"{names[d].replace('_', ' ')} [{units[d]}]", pad=4)
            if place // columns == rows - 1:
                axis.set_xlabel("time [s]")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=len(labels), frameon=False, fontsize=9, borderaxespad=0)
    return figure


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a figure as PNG (or what the suffix says) at screen resolution."""
    figure.savefig(path, dpi=130)


def _plot_dimension(axis, times: np.ndarray, real: np.ndarray, predicted: Mapping[str, np.ndarray], unit: str) -> None:
    axis.plot(times, real, color=REAL_COLOUR, linewidth=2.2, label="real")
    for (title, values), colour in zip(predicted.items(), PREDICTED_COLOURS):
        axis.plot(times, values, color=colour, linewidth=1.4, linestyle=(0, (4, 1.5)), label=title)
    # A joint that stands still should look still: at least 0.1 rad, or the gripper's whole range, is shown.
    low, high = axis.get_ylim()
    if unit == "rad":
        centre, half = (low + high) / 2, max(high - low, 0.1) / 2
        axis.set_ylim(centre - half, centre + half)
    else:
        axis.set_ylim(min(low, -0.05), max(high, 1.05))
    axis.set_xlim(left=-0.04 * times[-1])
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(length=2)


def _heat(error: Float[np.ndarray, "F H W"]) -> UInt8[np.ndarray, "F H W 3"]:
    levels = np.round(np.clip(error / HEAT_FULL, 0, 1) * 255).astype(np.uint8)
    return np.round(matplotlib.colormaps["inferno"](levels)[..., :3] * 255).astype(np.uint8)


def _canvas(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), BACKGROUND)


def _write(canvas: Image.Image, x: int, y: int, text: str, anchor: str) -> None:
    ImageDraw.Draw(canvas).text((x, y), text, fill=FOREGROUND, font=_FONT, anchor=anchor)


_FONT = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 19)
