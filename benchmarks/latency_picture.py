"""The latency ladder as a picture: a bar a row, and beside it how far its actions are from the exact ones."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from motus_jax.sampling.pictures import write_figure

BARS, DOTS = "#4c78a8", "#e45756"


def draw(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes a PNG: one panel of milliseconds and one of distances for each mode."""
    modes = report["modes"]
    most = max(len(measured["rows"]) for measured in modes.values())
    figure = Figure(figsize=(11, (0.6 + 0.3 * most) * len(modes)), layout="constrained")
    axes = figure.subplots(len(modes), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), (mode, measured) in zip(axes, modes.items()):
        rows = measured["rows"]
        names, places = list(rows), range(len(rows))
        left.barh(places, [row["p50_ms"] for row in rows.values()], color=BARS)
        for place, row in zip(places, rows.values()):
            left.text(row["p50_ms"], place, f" {row['p50_ms']:.0f} ms ({row['speed']:.1f}x)", va="center", fontsize=7)
        left.set(yticks=places, yticklabels=names, title=f"{mode}: median call", xlabel="ms")
        right.plot([row["action_error"]["most"] for row in rows.values()], places, "o", color=DOTS)
        right.set(yticks=places, yticklabels=[], title="largest error of the normalised actions")
        right.grid(axis="x", alpha=0.3)
        left.margins(x=0.25)
        for axis in (left, right):
            axis.invert_yaxis()
    write_figure(path, figure)
