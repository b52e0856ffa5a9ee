"""Mean, deviation, extremes and quantiles of rows of numbers, in pieces that are put together afterwards."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SAMPLE = 1 << 18
"""Rows from which quantiles are taken: all below this number, above it one of each of so many equal strata.

The share of rows below a reported quantile q is then off by sqrt(q (1 - q) / SAMPLE) at most: 0.0002 for the 1st and
the 99th percentile.
"""
LEVELS = np.unique(np.concatenate([np.linspace(0, 1, 101), [0.001, 0.002, 0.005, 0.995, 0.998, 0.999]]))
"""Shares of rows whose quantiles are kept, so that those of several sources together can be found."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Per-dimension statistics, in the robot's units; `count` rows went in.

    `quantiles` holds those of `LEVELS`, [level][dim]; empty where nobody is to merge them.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int
    quantiles: tuple[tuple[float, ...], ...] = ()


class Piece(NamedTuple):
    """Sums over rows that add up to those of more rows; float64 [D] each.

    Attributes:
      count: rows.
      mean: of them.
      square: sum of squared distances from the mean.
      low, high: extremes.
    """

    count: int
    mean: Float[np.ndarray, "D"]
    square: Float[np.ndarray, "D"]
    low: Float[np.ndarray, "D"]
    high: Float[np.ndarray, "D"]


def nothing(width: int) -> Piece:
    """The piece of no rows."""
    return Piece(0, np.zeros(width), np.zeros(width), np.full(width, np.inf), np.full(width, -np.inf))


def piece(rows: Float[np.ndarray, "N D"]) -> Piece:
    """Sums over some rows, at least one."""
    values = rows.astype(np.float64)
    mean = values.mean(0)
    values -= mean
    return Piece(len(rows), mean, np.einsum("nd,nd->d", values, values), rows.min(0), rows.max(0))


def weighted_piece(rows: Float[np.ndarray, "N D"], times: Int[np.ndarray, "N"]) -> Piece:
    """As `piece` of rows that appear so many times each, zero included, without making the copies."""
    kept = times > 0
    if not kept.any():
        return nothing(rows.shape[1])
    rows, weight = rows[kept], times[kept].astype(np.float64)
    values, count = rows.astype(np.float64), int(weight.sum())
    mean = np.einsum("nd,n->d", values, weight) / count
    values -= mean
    square = np.einsum("nd,nd,n->d", values, values, weight)
    return Piece(count, mean, square, rows.min(0), rows.max(0))


def add(one: Piece, other: Piece) -> Piece:
    """Sums over the rows of both: Chan, Golub and LeVeque's update."""
    count = one.count + other.count
    if not other.count or not one.count:
        return one if one.count else other
    shift = other.mean - one.mean
    mean = one.mean + shift * (other.count / count)
    square = one.square + other.square + shift**2 * (one.count * (other.count / count))
    return Piece(count, mean, square, np.minimum(one.low, other.low), np.maximum(one.high, other.high))


def finish(sums: Piece, sample: Float[np.ndarray, "n D"]) -> Moments:
    """Statistics of rows, their quantiles from a sample of them."""
    quantiles = np.quantile(sample, LEVELS, axis=0) if sample.size else np.zeros((len(LEVELS), sample.shape[1]))
    return _moments(sums, quantiles)


def strata(total: int, limit: int | None = None) -> Int[np.ndarray, "n"]:
    """Which of so many rows make the sample, rising: all of them, or a random one of each of `limit` equal strata.

    The choice hangs on the two numbers alone.
    """
    limit = SAMPLE if limit is None else limit
    if total <= limit:
        return np.arange(total)
    places = (np.arange(limit) + np.random.default_rng(0).random(limit)) * (total / limit)
    return np.minimum(places.astype(np.int64), total - 1)


def merged(parts: Sequence[Moments]) -> Moments:
    """Statistics of the rows of all parts together.

    Mean, deviation and extremes are exact. Quantiles are where the parts' distributions together reach the level; in
    between two of its `LEVELS` a part counts as even.
    """
    sums = nothing(len(parts[0].mean))
    for part in parts:
        mean, std, low, high = (np.array(values, np.float64) for values in (part.mean, part.std, part.min, part.max))
        sums = add(sums, Piece(part.count, mean, std**2 * part.count, low, high))
    counts = np.array([part.count for part in parts], np.float64)
    grids = np.array([part.quantiles for part in parts])
    columns = [_mixed(grids[:, :, dim], counts / counts.sum()) for dim in range(len(sums.mean))]
    return _moments(sums, np.stack(columns, 1) if columns else np.zeros((len(LEVELS), 0)))


def _mixed(grids: Float[np.ndarray, "S n"], shares: Float[np.ndarray, "S"]) -> Float[np.ndarray, "n"]:
    """Quantiles of a mixture from those of its parts, one dimension."""
    values = np.unique(grids)
    # At a jump (many equal values) the share of rows below a value is not one number: the curve has both ends.
    below = sum(share * _share(grid, values, "left") for grid, share in zip(grids, shares))
    upto = sum(share * _share(grid, values, "right") for grid, share in zip(grids, shares))
    return np.interp(LEVELS, np.stack([below, upto], 1).ravel(), np.repeat(values, 2))


def _share(grid: Float[np.ndarray, "n"], values: Float[np.ndarray, "m"], side: str) -> Float[np.ndarray, "m"]:
    """Share of rows below each value ("left") or up to it ("right")."""
    first = np.searchsorted(grid, values, "left")
    last = np.searchsorted(grid, values, "right") - 1
    here = last >= first
    found = LEVELS[np.clip(first if side == "left" else last, 0, len(LEVELS) - 1)]
    return np.where(here, found, np.interp(values, grid, LEVELS, left=0.0, right=1.0))


def _moments(sums: Piece, quantiles: Float[np.ndarray, "n D"]) -> Moments:
    std = np.sqrt(sums.square / max(sums.count, 1))
    q01, q99 = (quantiles[int(np.argmin(np.abs(LEVELS - level)))] for level in (0.01, 0.99))
    columns = (_tuple(values) for values in (sums.mean, std, sums.low, sums.high, q01, q99))
    # Seven digits are more than a sample of rows knows, and keep the file small.
    grid = tuple(tuple(float(f"{value:.7g}") for value in level) for level in quantiles.tolist())
    return Moments(*columns, count=sums.count, quantiles=grid)


def _tuple(values: Float[np.ndarray, "D"]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
