"""95 % intervals for means over chunks that are not independent: the bootstrap draws whole episodes.

The chunks of an episode overlap and share a scene, so that resampling chunks would give intervals that are far too
narrow. Here an episode is drawn with all its chunks.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 4000


class Estimate(NamedTuple):
    """A mean with its interval; `low` and `high` are NaN where fewer than two episodes have a value."""

    value: float
    low: float
    high: float


def mean_interval(values: Float[np.ndarray, " n"], episodes: Int[np.ndarray, " n"], seed: int = 0) -> Estimate:
    """The mean over chunks and its 95 % interval by a bootstrap over episodes.

    NaN values are left out. With few episodes the plain percentile interval is too narrow; the percentiles are moved
    outward as the t distribution asks ("expanded percentile interval", Hesterberg 2015, section 5.3).

    Args:
      values: one value per chunk; a paired difference (model - baseline) gives a paired interval.
      episodes: the episode of each chunk.
      seed: equal seeds give equal intervals.
    """
    sums, counts = _sum_by_episode(values, episodes)
    n = len(sums)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(sums.sum() / counts.sum())
    if n == 1:
        return Estimate(value, np.nan, np.nan)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means = (draws @ sums) / (draws @ counts)
    tail = stats.norm.cdf(np.sqrt(n / (n - 1)) * stats.t.ppf((1 - CONFIDENCE) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A success rate with its 95 % Wilson score interval (right also near 0 and 1)."""
    if trials == 0:
        return Estimate(np.nan, np.nan, np.nan)
    z = stats.norm.ppf(1 - (1 - CONFIDENCE) / 2)
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2)) / (1 + z**2 / trials)
    # At 0 and 1 both ends are exact; rounding would leave 1e-17.
    low, high = (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)
    return Estimate(rate, float(low), float(high))


def _sum_by_episode(
    values: Float[np.ndarray, " n"], episodes: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " E"], Float[np.ndarray, " E"]]:
    finite: Bool[np.ndarray, " n"] = np.isfinite(values)
    names, index = np.unique(episodes[finite], return_inverse=True)
    sums = np.bincount(index, weights=values[finite], minlength=len(names))
    counts = np.bincount(index, minlength=len(names)).astype(float)
    return sums, counts
