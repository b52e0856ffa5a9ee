"""Per-feature statistics as LeRobot stores them: min, max, mean, std, count and quantiles."""

from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
LEVELS = np.arange(256) / 255


class FeatureStatistics:
    """Collects features piece by piece; all results are exact.

    Vectors and scalars are kept; of pictures, only the histogram of the 256 levels by channel.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[np.ndarray]] = {}
        self._levels: dict[str, np.ndarray] = {}
        self._frames: dict[str, int] = {}

    def add(self, key: str, values: Num[np.ndarray, "T ..."]) -> None:
        """Adds rows [T] or [T, D] of numbers, or pictures uint8 [T, H, W, 3]."""
        if values.ndim == 4:
            self._levels[key] = self._levels.get(key, 0) + _histogram(values)
            self._frames[key] = self._frames.get(key, 0) + len(values)
        else:
            self._values.setdefault(key, []).append(values.reshape(len(values), -1))

    def summary(self) -> dict[str, dict[str, Any]]:
        """Feature -> statistic -> lists: [D] for numbers, [3][1][1] in 0..1 for pictures; count is [rows or frames]."""
        named = {key: _of_numbers(np.concatenate(pieces)) for key, pieces in self._values.items()}
        for key, counts in self._levels.items():
            named[key] = _of_pictures(counts, self._frames[key])
        return named


def _histogram(pictures: UInt8[np.ndarray, "T H W 3"]) -> np.ndarray:
    return np.stack([np.bincount(pictures[..., channel].ravel(), minlength=256) for channel in range(3)])


def _of_numbers(values: np.ndarray) -> dict[str, Any]:
    values = values.astype(np.float64)
    named = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    named |= {name: np.quantile(values, q, axis=0) for name, q in QUANTILES.items()}
    return {name: value.tolist() for name, value in named.items()} | {"count": [len(values)]}


def _of_pictures(counts: np.ndarray, frames: int) -> dict[str, Any]:
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ LEVELS
    cumulative = share.cumsum(1)
    named = {
        "min": LEVELS[(counts > 0).argmax(1)],
        "max": LEVELS[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ LEVELS**2 - mean**2, 0)),
    }
    # The tolerance keeps a share that rounding left a hair below the quantile from moving it by a level.
    named |= {name: LEVELS[(cumulative >= q - 1e-12).argmax(1)] for name, q in QUANTILES.items()}
    return {name: value.reshape(3, 1, 1).tolist() for name, value in named.items()} | {"count": [frames]}
