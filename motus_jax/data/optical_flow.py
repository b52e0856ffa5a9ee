"""Optical flow between two pictures, by any estimator of the table.

A flow is float32 [..., H, W, 2]: by how many pixels what stands in a place of the first picture has moved to the right
and down in the second. `motus_jax.robots.true_flow` gives the simulator's own, for tests.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.errors import UserError

SMALLEST = 16
"""Pixels that a picture must have each way: OpenCV's pyramid needs them."""
PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class Estimator(Protocol):
    """Flow of pairs of pictures."""

    def __call__(
        self, first: UInt8[np.ndarray, "n H W 3"], second: UInt8[np.ndarray, "n H W 3"]
    ) -> Float[np.ndarray, "n H W 2"]: ...


class Dis:
    """Dense inverse search (Kroeger et al., ECCV 2016) of OpenCV: needs no weights, runs on CPU; safe to share between
    threads.

    Args:
      preset: "ultrafast", "fast" or "medium", the most exact one.
    """

    def __init__(self, preset: str = "medium"):
        if preset not in PRESETS:
            raise UserError(f"flow preset: expected one of {', '.join(PRESETS)}; found {preset!r}")
        self._preset = PRESETS[preset]
        self._own = threading.local()

    def __reduce__(self):
        return Dis, (next(name for name, preset in PRESETS.items() if preset == self._preset),)

    def __call__(
        self, first: UInt8[np.ndarray, "n H W 3"], second: UInt8[np.ndarray, "n H W 3"]
    ) -> Float[np.ndarray, "n H W 2"]:
        """Flow of each pair.

        Raises:
          UserError: pictures of other sizes than each other, or too small.
        """
        check_pairs(first, second)
        if not hasattr(self._own, "search"):
            self._own.search = cv2.DISOpticalFlow_create(self._preset)
        found = np.empty((*first.shape[:3], 2), np.float32)
        for k, pair in enumerate(zip(first, second)):
            grey = [cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY) for picture in pair]
            found[k] = self._own.search.calc(*grey, None)
        return found


def check_pairs(first: np.ndarray, second: np.ndarray) -> None:
    """Refuses what no estimator takes.

    Raises:
      UserError: pictures of other sizes than each other, not RGB, or too small.
    """
    if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
        raise UserError(f"flow: expected two stacks of RGB pictures [n, H, W, 3]; found {first.shape}, {second.shape}")
    if min(first.shape[1:3]) < SMALLEST:
        raise UserError(
            f"flow: expected pictures of at least {SMALLEST}x{SMALLEST} pixels; found {first.shape[1]}x{first.shape[2]}"
        )


ESTIMATORS: Mapping[str, Callable[[], Estimator]] = {
    "dis": Dis,
    "dis_fast": functools.partial(Dis, "fast"),
    "dis_ultrafast": functools.partial(Dis, "ultrafast"),
}
"""Name -> what makes the estimator, of those that run on the host while data are read."""


def make_estimator(name: str) -> Estimator:
    """The estimator of this name.

    Raises:
      UserError: unknown name.
    """
    if name not in ESTIMATORS:
        raise UserError(f"flow estimator: expected one of {', '.join(ESTIMATORS)}; found {name!r}")
    return ESTIMATORS[name]()
