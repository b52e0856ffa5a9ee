"""What each arm of the phases' benchmark reached as a picture: a panel a measure, a line an arm, a dot a seed."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from motus_jax.sampling.pictures import write_figure

MEAN, SEED = "#4c78a8", "#e45756"


def draw(arms: Mapping[str, Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes a PNG of `benchmarks.phases.summary`."""
    measures = list(next(iter(arms.values())))
    figure = Figure(figsize=(1.8 + 2.4 * len(measures), 0.9 + 0.35 * len(arms)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for panel, measure in zip(panels, measures):
        for place, rows in enumerate(arms.values()):
            row = rows[measure]
            low, high = row.get("interval", (row["mean"], row["mean"]))
            panel.plot([low, high], [place, place], color=MEAN, lw=5, alpha=0.3, solid_capstyle="butt")
            panel.plot(row["mean"], place, "|", color=MEAN, ms=16, mew=2.5)
            panel.plot(row["seeds"], [place] * len(row["seeds"]), "o", color=SEED, ms=4, alpha=0.8)
        panel.set(title=measure, yticks=range(len(arms)), yticklabels=list(arms))
        panel.title.set_fontsize(8)
        panel.grid(axis="x", alpha=0.3)
        panel.margins(y=0.2)
    panels[0].invert_yaxis()
    write_figure(path, figure)
