"""Small SVG charts for the report, drawn with the page's own colours so that they read on light and dark."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

SERIES_COLOURS = 6
"""Colours `--series-0` .. of the page's style sheet."""


# Curves with at most this many points show each of them.
FEW_POINTS = 12


class Bar(NamedTuple):
    """One row of an interval chart: a value with its interval (None where it does not exist)."""

    label: str
    value: float
    low: float | None
    high: float | None
    emphasis: bool


def interval_chart(title: str, unit: str, better: str, bars: Sequence[Bar]) -> str:
    """Values with 95 % intervals below each other on one axis; the emphasised ones are the model's."""
    width, label_width, number_width, row_height, top = 390, 128, 62, 25, 6
    edges = [edge for bar in bars for edge in (bar.value, bar.low, bar.high) if edge is not None]
    low, high = _padded(min(edges), max(edges))
    left, right = label_width + 10, width - number_width
    height = top + row_height * len(bars) + 30

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_ticks(low, high, x, top, height - 24)]
    for row, bar in enumerate(bars):
        y = top + row_height * (row + 0.5)
        kind = "model" if bar.emphasis else "baseline"
        if bar.low is not None:
            parts.append(
                f'<line class="whisker {kind}" x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="{kind}" cx="{x(bar.value):.1f}" cy="{y}" r="{5 if bar.emphasis else 4}"/>')
        parts.append(
            f'<text class="{kind}" x="{label_width}" y="{y + 4}" text-anchor="end">{html.escape(bar.label)}</text>'
        )
        parts.append(
            f'<text class="number {kind}" x="{width - 2}" y="{y + 4}" text-anchor="end">{number(bar.value)}</text>'
        )
    caption = f"{title}{f' [{unit}]' if unit else ''} <small>{better} is better</small>"
    return _figure(caption, "intervals", width, height, "".join(parts))


def line_chart(
    title: str, series: Mapping[str, Sequence[tuple[float, float]]], log: bool = False, x_label: str = "step"
) -> str:
    """Curves over training steps, the last value written beside each name; `log` draws the values logarithmically."""
    curves = {name: _usable(points, log) for name, points in series.items()}
    curves = {name: points for name, points in curves.items() if points}
    if not curves:
        return ""
    width, height, left, right, top, bottom = 560, 260, 52, 550, 10, 226
    xs = [x for points in curves.values() for x, _ in points]
    ys = sorted(y for points in curves.values() for _, y in points)
    # A first step far off the rest would flatten the curve: the top is at the 99.5th percentile.
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1)
    y_low, y_high = _padded(ys[0], ys[min(int(0.995 * len(ys)), len(ys) - 1)])

    def place_x(value: float) -> float:
        return left + (value - x_low) / (x_high - x_low) * (right - left)

    def place_y(value: float) -> float:
        return bottom - (min(value, y_high) - y_low) / (y_high - y_low) * (bottom - top)

    parts = [
        _y_ticks(y_low, y_high, place_y, left, right, log),
        _ticks(x_low, x_high, place_x, bottom, bottom, grid=False),
    ]
    legend = []
    for index, (name, points) in enumerate(curves.items()):
        colour = f"var(--series-{index % SERIES_COLOURS})"
        path = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve" style="stroke:{colour}" points="{path}"/>')
        if len(points) <= FEW_POINTS:
            dots = (f'<circle cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.5"/>' for x, y in points)
            parts.append(f'<g style="fill:{colour}">{"".join(dots)}</g>')
        last = 10 ** points[-1][1] if log else points[-1][1]
        legend.append(f'<span><i style="background:{colour}"></i>{html.escape(name)} <b>{number(last)}</b></span>')
    parts.append(f'<text class="tick" x="{right}" y="{bottom + 30}" text-anchor="end">{html.escape(x_label)}</text>')
    chart = _figure(html.escape(title), "lines", width, height, "".join(parts))
    return chart.replace("</figure>", f'<div class="legend">{"".join(legend)}</div></figure>')


def number(value: float | None) -> str:
    """Three or four significant digits, as short as that allows."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(digits, 6)}f}" if abs(value) < 1e5 else f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _figure(caption: str, kind: str, width: int, height: int, content: str) -> str:
    view = f'<svg viewBox="0 0 {width} {height}" role="img">{content}</svg>'
    return f'<figure class="chart {kind}"><figcaption>{caption}</figcaption>{view}</figure>'


def _usable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return [(x, math.log10(y)) for x, y in finite if y > 0] if log else finite


def _padded(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `count` of them."""
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _ticks(low: float, high: float, x: Callable[[float], float], top: float, bottom: float, grid: bool = True) -> str:
    parts = []
    for tick in nice_ticks(low, high):
        if grid:
            parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    return "".join(parts)


def _y_ticks(low: float, high: float, y: Callable[[float], float], left: float, right: float, log: bool) -> str:
    """Grid lines and numbers of the vertical axis; with `log`, `low` and `high` are logarithms."""
    ticks = log_ticks(low, high) if log else nice_ticks(low, high)
    parts = []
    for tick in ticks:
        height = y(math.log10(tick) if log else tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return "".join(parts)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers whose logarithms lie between `low` and `high`: powers of ten, with 2 and 5 where there is room."""
    span = high - low
    factors = (1,) if span > 3 else (1, 2, 5) if span > 0.5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    return [float(f"{tick:.6g}") for tick in ticks if low <= math.log10(tick) <= high]
