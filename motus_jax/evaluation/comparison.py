"""From scores per chunk to a verdict: is the model better than the best baseline, beyond what chance explains?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from motus_jax.evaluation.intervals import Estimate, mean_interval


@dataclasses.dataclass(frozen=True)
class MetricSpec:
    """How a number is read.

    Attributes:
      unit: as shown to a reader.
      better: "higher" or "lower".
      primary: whether `beats_baselines` of a mode depends on it.
      meaning: one sentence.
    """

    unit: str
    better: str
    primary: bool
    meaning: str


VIDEO_METRICS = {
    "psnr": MetricSpec("dB", "higher", True, "peak signal-to-noise ratio over all future frames"),
    "moving_psnr": MetricSpec("dB", "higher", True, "PSNR over pixels that move in the real video"),
    "ssim": MetricSpec("", "higher", False, "structural similarity, 11 x 11 Gaussian windows"),
}
ACTION_METRICS = {
    "normalised_mse": MetricSpec("", "lower", True, "mean squared error of normalised actions over the chunk"),
    "joint_error": MetricSpec("rad", "lower", False, "mean absolute error of the joints, grippers left out"),
    "gripper_error": MetricSpec("of 0..1", "lower", False, "mean absolute error of the gripper opening"),
}
METRICS = VIDEO_METRICS | ACTION_METRICS

Scores = Mapping[str, Float[np.ndarray, " n"]]


def compare(
    model: Scores, baselines: Mapping[str, Scores], episodes: Int[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    """The metric table of one mode.

    Args:
      model: per metric, one value per chunk.
      baselines: the same for each baseline, chunk by chunk on the same examples; a baseline may know only some metrics.
      episodes: the episode of each chunk; intervals draw whole episodes.

    Returns:
      `metrics`, `baselines` (estimates) and `comparisons`: per metric the best baseline (best mean), the paired
      difference to each baseline (model - baseline), `beats` (the paired interval to the best baseline excludes zero
      on the right side) and `interval_excludes_best_baseline` (the model's own interval lies on the right side of the
      best baseline's mean).
    """
    metrics = {name: _estimate(name, values, episodes, seed) for name, values in model.items()}
    others = {
        baseline: {name: _estimate(name, values, episodes, seed) for name, values in scores.items() if name in model}
        for baseline, scores in baselines.items()
    }
    comparisons = {}
    for name in model:
        best = best_baseline(name, {who: table[name]["value"] for who, table in others.items() if name in table})
        differences = {
            baseline: difference(name, model[name], scores[name], episodes, seed)
            for baseline, scores in baselines.items()
            if name in scores
        }
        comparisons[name] = {
            "primary": METRICS[name].primary,
            "best_baseline": best,
            "differences": differences,
            "beats": differences[best]["beats"],
            "interval_excludes_best_baseline": _beyond(name, metrics[name], others[best][name]["value"]),
        }
    return {"metrics": metrics, "baselines": others, "comparisons": comparisons}


def difference(
    metric: str,
    model: Float[np.ndarray, " n"],
    other: Float[np.ndarray, " n"],
    episodes: Int[np.ndarray, " n"],
    seed: int,
) -> dict[str, Any]:
    """Paired difference model - other with its interval; `beats` when the interval lies on the model's side of zero."""
    result = estimate_dict(mean_interval(model - other, episodes, seed), METRICS[metric].unit)
    return {**result, "beats": _beyond(metric, result, 0.0)}


def best_baseline(metric: str, means: Mapping[str, float | None]) -> str:
    """The baseline with the best mean; one whose mean does not exist never wins over one that has a mean."""
    sign = 1.0 if METRICS[metric].better == "higher" else -1.0
    return max(means, key=lambda name: -np.inf if means[name] is None else sign * means[name])


def all_primary_beaten(comparisons: Mapping[str, Mapping[str, Any]]) -> bool:
    """True when every primary metric beats its best baseline."""
    return all(entry["beats"] for entry in comparisons.values() if entry["primary"])


def verdict(entry: Mapping[str, Any]) -> str:
    """What to call a mode's entry in one word.

    Returns:
      "beats" as `beats_baselines` says; "loses" where a primary metric is no better on average than its best
      baseline's; else "undecided": better, but not beyond chance, or given actions that make no difference.
    """
    if entry["beats_baselines"]:
        return "beats"
    for metric, found in entry["comparisons"].items():
        ahead = found["differences"][found["best_baseline"]]["value"]
        if METRICS[metric].better == "lower" and ahead is not None:
            ahead = -ahead
        if found["primary"] and ahead is not None and ahead <= 0:
            return "loses"
    return "undecided"


def estimate_dict(estimate: Estimate, unit: str) -> dict[str, Any]:
    """For JSON: `value`, `interval` [low, high] and `unit`; what does not exist is None."""
    value, low, high = (None if np.isnan(number) else number for number in estimate)
    return {"value": value, "interval": [low, high], "unit": unit}


def _estimate(
    metric: str, values: Float[np.ndarray, " n"], episodes: Int[np.ndarray, " n"], seed: int
) -> dict[str, Any]:
    return estimate_dict(mean_interval(values, episodes, seed), METRICS[metric].unit)


def _beyond(metric: str, estimate: Mapping[str, Any], threshold: float | None) -> bool:
    """Whether the whole interval is on the better side of the threshold."""
    low, high = estimate["interval"]
    if low is None or threshold is None:
        return False
    return low > threshold if METRICS[metric].better == "higher" else high < threshold
