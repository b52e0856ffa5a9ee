"""An episode and what a model said of it, as one page that holds everything: pictures, plots, times; nothing is loaded.

A slider goes through the moments at which the model was asked, another through the future that it imagined there. Every
plot shows all chunks of a mode over the whole episode, where they overlap too, and the chosen one in front.
"""

import base64
import json
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.evaluation import charts, page
from motus_jax.evaluation.episode import Call, Seen, action_error, video_error
from motus_jax.evaluation.held_out import OPEN_FRACTION

SMALLEST_WIDTH = 160
"""Pixels to which small pictures are enlarged, by a whole factor."""
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 190, 46, 412, 10, 158
"""Of a plot, and of the axes in it."""

STYLE = """
.films { display: flex; flex-wrap: wrap; gap: 16px; margin: 18px 0 8px; }
.films figure { flex: 0 0 auto; }
.film { background-repeat: no-repeat; border-radius: 10px; background-color: #111418; }
.sliders { display: grid; grid-template-columns: auto 1fr 9em; gap: 8px 14px; align-items: center; max-width: 760px;
  margin-top: 16px; }
.sliders output { font-variant-numeric: tabular-nums; color: var(--soft); }
.choice { display: flex; flex-wrap: wrap; gap: 6px 18px; margin: 12px 0; align-items: center; }
.chart .real { fill: none; stroke: var(--text); stroke-width: 1.8; }
.chart .chunk { fill: none; stroke-width: 1.3; opacity: .5; }
.chart .chunk.chosen { stroke-width: 3; opacity: 1; }
.chart .dot { opacity: .7; }
.chart .now { stroke: var(--soft); stroke-dasharray: 3 3; }
[hidden] { display: none !important; }
button { font: inherit; border: 1px solid var(--line); background: var(--card); color: var(--text);
  border-radius: 99px; padding: 2px 14px; cursor: pointer; justify-self: start; }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const moment = document.getElementById('moment'), ahead = document.getElementById('ahead');
const films = [...document.querySelectorAll('.film')], play = document.getElementById('play');
function show() {
  const k = +moment.value, j = +ahead.value, at = data.times[k];
  for (const film of films) {
    film.style.backgroundImage = `url(${data.films[film.dataset.of][k]})`;
    film.style.backgroundPosition = `${-j * film.clientWidth}px 0`;
  }
  document.getElementById('at').value = `${at.toFixed(2)} s`;
  document.getElementById('after').value = `+${(j / data.video_hz).toFixed(2)} s`;
  for (const line of document.querySelectorAll('.chunk')) line.classList.toggle('chosen', +line.dataset.k === k);
  for (const line of document.querySelectorAll('.now')) {
    const x = data.left + (at + j / data.video_hz - data.first) / (data.last - data.first) * (data.right - data.left);
    line.setAttribute('x1', x); line.setAttribute('x2', x);
  }
}
function choose() {
  for (const box of document.querySelectorAll('.choice input')) {
    const groups = document.querySelectorAll(`g[data-mode="${box.value}"]`);
    for (const group of groups) group.toggleAttribute('hidden', !box.checked);
  }
}
let timer = null;
play.onclick = () => {
  if (timer) { clearInterval(timer); timer = null; play.textContent = 'play'; return; }
  play.textContent = 'stop';
  timer = setInterval(() => {
    if (+ahead.value < +ahead.max) ahead.value = +ahead.value + 1;
    else { ahead.value = 0; moment.value = (+moment.value + 1) % data.times.length; }
    show();
  }, 1000 / data.video_hz);
};
moment.oninput = ahead.oninput = show;
for (const box of document.querySelectorAll('.choice input')) box.onchange = choose;
show(); choose();
"""


def render(seen: Seen, run: str) -> str:
    """The page.

    Args:
      run: which model answered, e.g. the workdir and its step.
    """
    links = {"future": "Imagined", "actions": "Actions", "times": "Times"}
    videos = [mode for mode, calls in seen.calls.items() if calls[0].video is not None]
    acting = [mode for mode, calls in seen.calls.items() if calls[0].actions is not None]
    links = {key: text for key, text in links.items() if key != "actions" or acting}
    header = (
        f"<h1>{page.escape(seen.instruction or 'An episode')}</h1>"
        f'<p class="soft">{page.escape(seen.title)}; {len(seen.times)} rows of {seen.times[-1]:.1f} s; '
        f"{page.escape(run)}</p><nav>"
        + "".join(f'<a href="#{key}">{text}</a>' for key, text in links.items())
        + "</nav>"
    )
    sections = [_future(seen, videos)] + [_actions(seen, acting)] * bool(acting) + [_times(seen)]
    script = f'<script type="application/json" id="data">{_data(seen, videos)}</script><script>{SCRIPT}</script>'
    return page.page(seen.title, header, f"<style>{STYLE}</style>{''.join(sections)}{script}")


def _future(seen: Seen, videos: Sequence[str]) -> str:
    count, (height, width) = len(next(iter(seen.clips.values()))), _size(seen)
    cells = [
        f'<figure><figcaption>{page.escape(name.replace("_", " "))}</figcaption><div class="film" data-of="{name}" '
        f'style="width:{width}px;height:{height}px;background-size:{count * width}px {height}px"></div></figure>'
        for name in ("real", *videos)
    ]
    sliders = (
        '<div class="sliders"><label for="moment">asked at</label>'
        f'<input type="range" id="moment" min="0" max="{len(seen.clips) - 1}" value="0"><output id="at"></output>'
        '<label for="ahead">and then</label>'
        f'<input type="range" id="ahead" min="0" max="{count - 1}" value="0"><output id="after"></output>'
        '<button id="play">play</button></div>'
    )
    text = "<p>What happened, and what each mode imagined at that moment of what was to come.</p>"
    films = f'<div class="films">{"".join(cells)}</div>'
    return page.section("future", "Imagined and real", text + sliders + films)


def _actions(seen: Seen, acting: Sequence[str]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" value="{mode}"{" checked" * (index == 0)}> '
        f'<span style="color:{_colour(index)}">{mode.replace("_", " ")}</span></label>'
        for index, mode in enumerate(acting)
    )
    plots = [_plot(seen, acting, dimension) for dimension in range(len(seen.units.names))]
    text = (
        "<p>Where each joint was told to be (dark) and the chunks that the model said, over the whole episode. A dot "
        "is a chunk's first action; the chosen moment's chunk is bold.</p>"
    )
    content = f'{text}<div class="choice">{boxes}</div><div class="grid">{"".join(plots)}</div>'
    return page.section("actions", "Actions", content)


def _plot(seen: Seen, acting: Sequence[str], dimension: int) -> str:
    """One dimension's real targets and all chunks."""
    first, last = _range(seen)
    chunks = {mode: [(call.row, call.actions[:, dimension]) for call in seen.calls[mode]] for mode in acting}
    values = np.concatenate([seen.targets[:, dimension], *(chunk for own in chunks.values() for _, chunk in own)])
    low, high = float(values.min()), float(values.max())
    room = max(0.06 * (high - low), 0.01)
    low, high = low - room, high + room

    def x(moment: float) -> float:
        return LEFT + (moment - first) / (last - first) * (RIGHT - LEFT)

    def y(value: float) -> float:
        return BOTTOM - (value - low) / (high - low) * (BOTTOM - TOP)

    def points(moments: Sequence[float], numbers: Float[np.ndarray, " n"]) -> str:
        return " ".join(f"{x(moment):.1f},{y(value):.1f}" for moment, value in zip(moments, numbers))

    parts = _axes(x, y, (first, last), (low, high))
    parts.append(f'<line class="now" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{BOTTOM}"/>')
    parts.append(
        f'<polyline class="real" points="{points(seen.times + 1 / seen.action_hz, seen.targets[:, dimension])}"/>'
    )
    for index, mode in enumerate(acting):
        own = []
        for k, (row, chunk) in enumerate(chunks[mode]):
            moments = seen.action_times(row)
            own.append(f'<polyline class="chunk" data-k="{k}" points="{points(moments, chunk)}"/>')
            own.append(f'<circle class="dot" cx="{x(moments[0]):.1f}" cy="{y(chunk[0]):.1f}" r="2"/>')
        paint = f"stroke:{_colour(index)};fill:{_colour(index)}"
        parts.append(f'<g data-mode="{mode}" style="{paint}">{"".join(own)}</g>')
    name, unit = seen.units.names[dimension].replace("_", " "), seen.units.units[dimension]
    caption = page.escape(name) + (f" <small>{unit}</small>" if unit == OPEN_FRACTION else "")
    view = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    return f'<figure class="chart"><figcaption>{caption}</figcaption>{view}</figure>'


def _axes(x, y, seconds: tuple[float, float], values: tuple[float, float]) -> list[str]:
    parts = []
    for tick in charts.nice_ticks(*values, 4):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in charts.nice_ticks(*seconds):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{BOTTOM + 17}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(f'<text class="tick" x="{RIGHT}" y="{BOTTOM + 31}" text-anchor="end">seconds</text>')
    return parts


def _times(seen: Seen) -> str:
    rows, series = [], {}
    for mode, calls in seen.calls.items():
        waited = 1000 * np.array([call.seconds for call in calls])
        rows.append([
            page.escape(mode.replace("_", " ")),
            str(len(calls)),
            *(charts.number(float(value)) for value in (np.median(waited), np.percentile(waited, 95), waited.max())),
            _mean_error(seen, calls, "actions"),
            _mean_error(seen, calls, "video"),
        ])  # fmt: skip
        series[mode.replace("_", " ")] = list(zip((float(seen.times[call.row]) for call in calls), waited.tolist()))
    errors = ["Mean action error, own units", "Mean video error, of 255"]
    head = ["Mode", "Calls", "Median, ms", "95 %, ms", "Longest, ms", *errors]
    chart = charts.line_chart("Milliseconds of each call", series, x_label="asked at, seconds")
    text = "<p>One example at a time, from arrays in memory to the answer in memory, everything compiled before.</p>"
    content = f'{text}{page.table(head, rows)}<div class="grid two" style="margin-top:18px">{chart}</div>'
    return page.section("times", "Times", content)


def _mean_error(seen: Seen, calls: Sequence[Call], kind: str) -> str:
    if getattr(calls[0], kind) is None:
        return "–"
    error = action_error if kind == "actions" else video_error
    return charts.number(float(np.mean([error(seen, call) for call in calls])))


def _data(seen: Seen, videos: Sequence[str]) -> str:
    first, last = _range(seen)
    films = {"real": [_film(seen, clip) for clip in seen.clips.values()]}
    films |= {mode: [_film(seen, call.video) for call in seen.calls[mode]] for mode in videos}
    return json.dumps({
        "times": [float(seen.times[row]) for row in seen.clips],
        "video_hz": seen.video_hz, "first": first, "last": last, "left": LEFT, "right": RIGHT, "films": films,
    })  # fmt: skip


def _range(seen: Seen) -> tuple[float, float]:
    """Seconds that the plots show: the episode, and what the last chunks say beyond it."""
    rows = list(seen.clips)
    ends = [seen.frame_times(rows[-1])[-1], seen.times[-1] + 1 / seen.action_hz]
    if any(call.actions is not None for calls in seen.calls.values() for call in calls):
        ends.append(seen.action_times(rows[-1])[-1])
    return float(seen.times[0]), float(max(ends))


def _size(seen: Seen) -> tuple[int, int]:
    """Height and width at which a frame is shown."""
    height, width = seen.frames.shape[1:3]
    scale = max(1, -(-SMALLEST_WIDTH // width))
    return height * scale, width * scale


def _film(seen: Seen, clip: UInt8[np.ndarray, "F H W 3"]) -> str:
    """A clip's frames side by side, as a data URL."""
    height, width = _size(seen)
    large = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) for frame in clip]
    strip = np.concatenate(large, axis=1)
    _, found = cv2.imencode(".jpg", cv2.cvtColor(strip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return "data:image/jpeg;base64," + base64.b64encode(found.tobytes()).decode()


def _colour(index: int) -> str:
    return f"var(--series-{index % charts.SERIES_COLOURS})"
