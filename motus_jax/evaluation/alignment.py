"""How much of real motion latent actions carry: linear probes on held-out pairs, beside features of equal size."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

RIDGE = 1e-3
"""Added to the normal equations, as a share of the features' mean variance: keeps them solvable, changes no more."""

Rows = Float[np.ndarray, "n D"]


def explained(
    train: Rows, train_targets: Float[np.ndarray, "n A"], held_out: Float[np.ndarray, "m D"],
    targets: Float[np.ndarray, "m A"],
) -> Float[np.ndarray, "m"]:  # fmt: skip
    """Share of the variance of `targets` that the best linear reading of the features explains: the mean of the result.

    Fitted on the training pairs, measured on the held-out ones against the training pairs' mean; 1 is all of it, below
    0 is worse than that mean. One number a pair, so that two kinds of features can be compared pair by pair.
    """
    predicted = fit(train, train_targets)(held_out)
    spread = np.square(targets - train_targets.mean(0)).sum(-1).mean()
    return 1 - np.square(targets - predicted).sum(-1) / spread


def fit(features: Rows, targets: Float[np.ndarray, "n A"]) -> Callable[[Rows], Rows]:
    """Ridge regression with an offset: features -> targets."""
    mean, offset = features.mean(0, np.float64), targets.mean(0, np.float64)
    centred = features - mean
    gram = centred.T @ centred
    gram += RIDGE * np.trace(gram) / max(len(gram), 1) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))
    weights = np.linalg.solve(gram, centred.T @ (targets - offset))
    return lambda rows: (rows - mean) @ weights + offset


def principal(train: Rows, count: int) -> Callable[[Rows], Rows]:
    """Projection on the first principal components of the training rows: what so many numbers keep without labels."""
    mean = train.mean(0, np.float64)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    return lambda rows: (rows - mean) @ axes[:count].T


def flow_mean(flow: Float[np.ndarray, "n H W 2"]) -> Float[np.ndarray, "n 2"]:
    """Mean motion of the picture."""
    return flow.mean((1, 2))


def flow_cells(flow: Float[np.ndarray, "n H W 2"], side: int = 8) -> Float[np.ndarray, "n D"]:
    """Mean motion of each cell of a grid over the picture."""
    count, height, width, _ = flow.shape
    rows = np.linspace(0, height, min(side, height) + 1).astype(int)
    columns = np.linspace(0, width, min(side, width) + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(flow, rows[:-1], axis=1), columns[:-1], axis=2)
    sizes = np.diff(rows)[:, None] * np.diff(columns)
    return (sums / sizes[..., None]).reshape(count, -1)
