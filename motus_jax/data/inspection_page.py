"""The HTML of an inspection: one file, no scripts, nothing loaded from elsewhere."""

import base64
import html
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data.inspection import Inspection, Shown

STYLE = """
:root { --ink: #1d2330; --soft: #667085; --line: #e3e7ee; --paper: #ffffff; --ground: #f5f7fa;
        --state: #98a2b3; --action: #2563eb; --warm: #b54708; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 30px; margin: 0 0 20px; letter-spacing: -.02em; }
h2 { font-size: 19px; margin: 40px 0 12px; }
h3 { font-size: 15px; margin: 20px 0 8px; color: var(--soft); font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 10px; }
.card { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 12px; font-weight: 500; color: var(--soft); }
.episode { background: var(--paper); border: 1px solid var(--line); border-radius: 12px; padding: 18px;
           margin: 14px 0; }
.episode h3 { margin-top: 0; color: var(--ink); font-size: 17px; }
.tag { font-size: 12px; color: var(--soft); border: 1px solid var(--line); border-radius: 99px; padding: 1px 9px; }
.sheet { display: flex; gap: 6px; }
.sheet figure { margin: 0; flex: 1 1 0; min-width: 0; }
.sheet img { width: 100%; border-radius: 4px; display: block; image-rendering: auto; }
figcaption { font-size: 11px; color: var(--soft); text-align: center; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(136px, 1fr)); gap: 10px; margin-top: 8px; }
.grid figure { margin: 0; }
svg { width: 100%; display: block; background: var(--ground); border-radius: 4px; }
svg text { font: 9px system-ui, sans-serif; fill: var(--soft); }
.legend { font-size: 12px; color: var(--soft); margin-top: 12px; }
.legend i { display: inline-block; width: 18px; height: 3px; vertical-align: middle; margin: 0 5px 0 0; }
.odd { border-left: 4px solid var(--warm); }
.fine { border-left: 4px solid #12b76a; }
table { border-collapse: collapse; width: 100%; } td { padding: 4px 0; border-bottom: 1px solid var(--line); }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; }
"""

_WIDTH, _HEIGHT = 160, 84
_BINS = 40
_PICTURE_WIDTH = 288


def render(found: Inspection) -> str:
    """The whole page."""
    facts = "".join(f'<div class="card"><b>{_text(label)}</b>{_text(value)}</div>' for label, value in found.facts)
    tasks = "".join(f"<tr><td>{_text(task)}</td><td>{count}</td></tr>" for task, count in found.tasks)
    episodes = "".join(_episode(shown, found) for shown in found.shown)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{_text(found.name)}: dataset</title><style>{STYLE}</style></head><body><main>
<h1>{_text(found.name)}</h1>
<div class="facts">{facts}</div>
<h2>Odd things</h2>{_odd(found.odd)}
<h2>Instructions</h2><div class="card"><table>{tasks}</table></div>
<h2>Episodes</h2>{episodes}
<h2>All episodes</h2>{_distributions(found)}
</main></body></html>
"""


def _odd(sentences: Sequence[str]) -> str:
    if not sentences:
        return '<div class="card fine">Nothing: every table is readable, every checked video is whole.</div>'
    return '<div class="card odd">' + "<br>".join(map(_text, sentences)) + "</div>"


def _episode(shown: Shown, found: Inspection) -> str:
    curves = "".join(
        _figure(
            _curves(shown, k, float(np.ptp(found.actions[:, k])) / 10),
            found.action_names[k],
            unit_of(found.action_names[k]),
        )
        for k in range(shown.action.shape[1])
    )
    tag = f'<span class="tag">episode {shown.index}{" · " + shown.split if shown.split else ""}</span>'
    length = f'<span class="tag">{len(shown.seconds) / found.fps:.1f} s</span>'
    state, action = (f'<i style="background:var(--{name})"></i>' for name in ("state", "action"))
    legend = f"{state}measured state &emsp;{action}commanded action; time runs from left to right"
    return f"""<section class="episode"><h3>{_text(shown.instruction)} {tag} {length}</h3>
{_sheet(shown)}<div class="legend">{legend}</div><div class="grid">{curves}</div></section>"""


def _sheet(shown: Shown) -> str:
    if shown.pictures is None:
        return "<p>No readable video.</p>"
    cells = "".join(
        f'<figure><img alt="row {row}" src="{_jpeg(picture)}">'
        f"<figcaption>{shown.seconds[row]:.1f} s</figcaption></figure>"
        for row, picture in zip(shown.moments, shown.pictures)
    )
    return f'<div class="sheet">{cells}</div>'


def _distributions(found: Inspection) -> str:
    seconds = np.array(found.lengths) / found.fps
    parts = ["<h3>Length</h3>", f'<div class="grid">{_figure(_histogram(seconds), "episodes", "s")}</div>']
    columns = [("Actions", found.actions)]
    if found.steps is not None:
        columns.append(("Actions minus the state of the same row", found.steps))
    for title, values in columns:
        figures = "".join(
            _figure(_histogram(values[:, k]), name, unit_of(name)) for k, name in enumerate(found.action_names)
        )
        parts.append(f'<h3>{title}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def unit_of(name: str) -> str:
    """The unit that a dim's name suggests: LeRobot stores none."""
    lowered = name.lower()
    if "gripper" in lowered:
        return "0..1"
    joints = ("joint", "waist", "shoulder", "elbow", "forearm", "wrist", "hip", "knee", "ankle")
    return "rad" if any(word in lowered for word in joints) else ""


def _figure(svg: str, name: str, unit: str) -> str:
    label = f"{name} [{unit}]" if unit else name
    return f"<figure>{svg}<figcaption>{_text(label)}</figcaption></figure>"


def _curves(shown: Shown, dim: int, least: float) -> str:
    """State and action over time; an axis spans at least `least`, so that a still joint looks still."""
    series = [("var(--action)", shown.action[:, dim])]
    if dim < shown.state.shape[1]:
        series.insert(0, ("var(--state)", shown.state[:, dim]))
    low, high = _limits(np.concatenate([values for _, values in series]), least)
    lines = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{_points(values, low, high)}"/>'
        for colour, values in series
    )
    return _svg(lines + _axis(low, high))


def _points(values: Float[np.ndarray, "n"], low: float, high: float) -> str:
    x = np.linspace(4, _WIDTH - 4, len(values))
    y = _HEIGHT - 8 - (values - low) / (high - low) * (_HEIGHT - 16)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y))


def _histogram(values: Float[np.ndarray, "n"]) -> str:
    low, high = _limits(values)
    counts, _ = np.histogram(values, _BINS, (low, high))
    width = (_WIDTH - 8) / _BINS
    heights = np.sqrt(counts / max(counts.max(), 1)) * (_HEIGHT - 26)  # square root: rare values stay visible
    bars = "".join(
        f'<rect x="{4 + k * width:.1f}" y="{_HEIGHT - 14 - h:.1f}" width="{width:.1f}" height="{h:.1f}" '
        'fill="var(--action)"/>'
        for k, h in enumerate(heights)
        if h > 0
    )
    ends = f'<text x="4" y="{_HEIGHT - 3}">{_number(low)}</text>'
    ends += f'<text x="{_WIDTH - 4}" y="{_HEIGHT - 3}" text-anchor="end">{_number(high)}</text>'
    return _svg(bars + ends)


def _axis(low: float, high: float) -> str:
    return f'<text x="4" y="10">{_number(high)}</text><text x="4" y="{_HEIGHT - 2}">{_number(low)}</text>'


def _limits(values: Float[np.ndarray, "n"], least: float = 0.0) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    missing = max(0.0, max(least, 1e-3) - (high - low)) / 2
    return low - missing, high + missing


def _number(value: float) -> str:
    return f"{float(f'{value:.3g}'):g}" if abs(value) >= 1e-3 else "0"


def _svg(content: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" xmlns="http://www.w3.org/2000/svg">{content}</svg>'


def _jpeg(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    height, width, _ = picture.shape
    if width > _PICTURE_WIDTH:
        size = (_PICTURE_WIDTH, round(height * _PICTURE_WIDTH / width))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def _text(value: str) -> str:
    return html.escape(str(value))
