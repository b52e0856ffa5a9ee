"""What is planned, tick by tick, and how a new chunk joins it."""

from collections.abc import Callable

import numpy as np

ENSEMBLE_DECAY = 0.01
"""Of the weights of temporal ensembling, a prediction: ACT's (Zhao et al. 2023, algorithm 2)."""


def latest(counts: np.ndarray) -> np.ndarray:
    """The new chunk takes over at once."""
    return np.ones(len(counts))


def blend(counts: np.ndarray) -> np.ndarray:
    """A linear cross-fade over the overlap."""
    return np.arange(1, len(counts) + 1) / (len(counts) + 1)


def average(counts: np.ndarray) -> np.ndarray:
    """Temporal ensembling: the mean of all predictions of a tick, the i-th weighing exp(-0.01 i), the oldest most."""
    new = np.exp(-ENSEMBLE_DECAY * counts)
    old = (1 - new) / (1 - np.exp(-ENSEMBLE_DECAY))
    return new / (old + new)


Fusion = Callable[[np.ndarray], np.ndarray]

FUSIONS: dict[str, Fusion] = {"latest": latest, "blend": blend, "average": average}
"""Name -> (how many chunks each tick of the overlap has seen, int [n], at least 1) -> share of the new chunk [n]."""


def get_fusion(name: str) -> Fusion:
    """The row called `name`.

    Raises:
      ValueError: no such row.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion: expected one of {', '.join(FUSIONS)}; found {name!r}")
    return FUSIONS[name]


class Plan:
    """Targets [A] by tick, and of how many chunks each is made."""

    def __init__(self) -> None:
        self._targets: dict[int, np.ndarray] = {}
        self._counts: dict[int, int] = {}

    def __contains__(self, tick: int) -> bool:
        return tick in self._targets

    def __getitem__(self, tick: int) -> np.ndarray:
        return self._targets[tick]

    def join(self, begins: int, actions: np.ndarray, first: int, fusion: Fusion) -> bool:
        """Joins a chunk; what was planned before `first` stays.

        Args:
          begins: tick of the chunk's first action.
          actions: [T, A].
          first: tick from which the chunk counts.
          fusion: a row of `FUSIONS`.

        Returns:
          Whether anything of it was left.

        Raises:
          ValueError: targets of another width than before.
        """
        ticks = range(max(begins, first), begins + len(actions))
        overlap = [tick for tick in ticks if tick in self]
        if overlap and actions.shape[1] != len(self[overlap[0]]):
            raise ValueError(f"answer: expected targets of {len(self[overlap[0]])} numbers; found {actions.shape[1]}")
        share = dict(zip(overlap, fusion(np.array([self._counts[tick] for tick in overlap]))))
        for tick in ticks:
            new, of_new = actions[tick - begins], share.get(tick, 1.0)
            self._targets[tick] = np.float32(new if of_new == 1 else of_new * new + (1 - of_new) * self[tick])
            self._counts[tick] = self._counts.get(tick, 0) + 1
        return bool(len(ticks))

    def held(self, first: int, count: int) -> np.ndarray:
        """What will be commanded at `count` ticks from `first`, which is planned: beyond the plan its last target."""
        targets = [self[first]]
        for tick in range(first + 1, first + count):
            targets.append(self._targets.get(tick, targets[-1]))
        return np.stack(targets)

    def after(self, first: int) -> list[np.ndarray]:
        """What is planned from tick `first` on, without a gap."""
        targets = []
        while first + len(targets) in self:
            targets.append(self[first + len(targets)])
        return targets

    def forget(self, tick: int) -> None:
        """Drops what is planned for `tick` and before: it is past."""
        for past in [other for other in self._targets if other <= tick]:
            del self._targets[past], self._counts[past]
