"""Statistics of states and actions over the training episodes, and the normalisation made from them.

Computed by `motus_jax.data.statistics_pass`. Kept in `statistics.json` beside the dataset, one entry per combination
of settings that the numbers depend on, so that two experiments never share wrong ones.
"""

import dataclasses
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from motus_jax.data import moments, statistics_pass, storage
from motus_jax.data.action_space import CHANGES
from motus_jax.data.contract import Affine
from motus_jax.data.moments import Moments
from motus_jax.data.sampling import Timing
from motus_jax.data.source import Source
from motus_jax.errors import UserError

FILE = "statistics.json"
FORMAT = 3
NORMALISATIONS = ("meanstd", "quantile", "none")

# A dimension that moves less than this share of the most moving one is treated as constant: dividing by its own
# spread would blow noise of a still joint up to the size of a motion.
FLOOR = 0.01

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of a dataset's training split.

    Attributes:
      settings: what the numbers depend on: chunk, action_hz, horizon, episodes of the split,
        rows and size of the tables (which tell a dataset that was recorded anew).
      state: of the states at chunk starts.
      actions: per action space, pooled over the chunk's steps.
    """

    settings: dict[str, Any]
    state: Moments
    actions: dict[str, Moments]

    def affine(self, quantity: Moments, normalisation: str) -> Affine:
        """Offset and scale of a normalisation: "meanstd", "quantile" (q01..q99 -> -1..1) or "none".

        The scale never falls below `FLOOR` times the largest spread of the quantity, and a quantile range never below
        the standard deviation (a gripper that is open 99 % of the time has no range at all).

        Raises:
          UserError: unknown normalisation.
        """
        if normalisation not in NORMALISATIONS:
            raise UserError(f"data.normalisation: expected one of {', '.join(NORMALISATIONS)}; found {normalisation!r}")
        mean, std = np.array(quantity.mean), np.array(quantity.std)
        if normalisation == "none" or not len(mean):
            return Affine((0.0,) * len(mean), (1.0,) * len(mean))
        spread = np.maximum(std, FLOOR * std.max() or 1.0)
        if normalisation == "meanstd":
            return Affine(tuple(mean.tolist()), tuple(spread.tolist()))
        low, high = np.array(quantity.q01), np.array(quantity.q99)
        return Affine(tuple(((low + high) / 2).tolist()), tuple(np.maximum((high - low) / 2, spread).tolist()))

    def near_constant(self, quantity: Moments) -> list[int]:
        """Dimensions whose standard deviation lies below the floor."""
        std = np.array(quantity.std)
        if not len(std):
            return []
        return np.flatnonzero(std < (FLOOR * std.max() or 1.0)).tolist()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON of one entry of the file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Statistics":
        """The entry that `to_json` wrote."""
        moments = {name: _moments(values) for name, values in record["actions"].items()}
        return cls(record["settings"], _moments(record["state"]), moments)


def _moments(values: dict[str, Any]) -> Moments:
    return Moments(**{key: _tuples(item) for key, item in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def settings_of(dataset: Source, timing: Timing, space: str = "") -> dict[str, Any]:
    """What the statistics depend on; also the key under which they are stored."""
    return {
        "format": FORMAT,
        "options": {name: _plain(value) for name, value in sorted(dataset.options.items())},
        "chunk": timing.chunk,
        "action_hz": float(timing.action_hz),
        "seconds": timing.seconds,
        "starts": timing.starts_at,
        "train": dataset.split_ranges("train"),
        "frames": dataset.total_frames,
        "table_bytes": dataset.size_bytes(),
    } | ({"changes": space} if space in CHANGES else {})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value


def merged(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of several sources of one embodiment together, each weighing as many as its rows.

    Action spaces that not all of them have are left out.

    Raises:
      UserError: their states or actions differ in width.
    """
    first = parts[0]
    spaces = [name for name in first.actions if all(name in part.actions for part in parts)]
    quantities = {"state": [part.state for part in parts]} | {
        name: [part.actions[name] for part in parts] for name in spaces
    }
    for name, found in quantities.items():
        widths = sorted({len(each.mean) for each in found})
        if len(widths) > 1:
            raise UserError(f"statistics of one embodiment: expected {name} of one width; found {widths}")
    together = {name: moments.merged(found) for name, found in quantities.items()}
    return Statistics({"merged": [part.settings for part in parts]}, together.pop("state"), together)


def load(path: storage.Path, settings: dict[str, Any]) -> Statistics | None:
    """The stored statistics for these settings, or None.

    Raises:
      UserError: the file is there and is not what `save` writes.
    """
    if not path.exists():
        return None
    try:
        entries = json.loads(path.read_text())
        found = entries.get(_key(settings))
        return None if found is None else Statistics.from_json(found)
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected statistics written by this program; found {error!r}; delete the file"
        ) from error


def save(path: storage.Path, statistics: Statistics) -> None:
    """Adds the statistics to the file, atomically; entries with other settings stay.

    Raises:
      OSError: the folder is read-only.
    """
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[_key(statistics.settings)] = statistics.to_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(entries)
    if "://" in str(path):
        path.write_text(text)  # objects of a bucket appear as a whole or not at all
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    pathlib.Path(temporary).chmod(0o644)
    os.replace(temporary, path)


def file_of(dataset: Source) -> storage.Path:
    """Where a source's statistics are kept: in its folder, or beside its file."""
    if dataset.path.is_dir():
        return dataset.path / FILE
    return dataset.path.parent / f"{dataset.path.name}.{FILE}"


def compute(dataset: Source, timing: Timing, threads: int = 0, space: str = "") -> Statistics:
    """Statistics over the training split, from every chunk start; only the tables are read.

    Args:
      dataset: the source.
      timing: rates and chunk length.
      threads: that read and sum; 0: one for each core, 16 at most. The result is the same, to the bit.
      space: the action space that is wanted. Those that take the source's actions as changes are not computed unasked.

    Raises:
      UserError: no readable episode.
    """
    state, actions = statistics_pass.run(dataset, timing, threads, space)
    return Statistics(settings_of(dataset, timing, space), state, actions)


def load_or_compute(
    dataset: Source, timing: Timing, path: "storage.Path | None" = None, space: str = ""
) -> Statistics:
    """Stored statistics, or fresh ones that are then stored where the folder allows it.

    Args:
      dataset: the source.
      timing: rates and chunk length.
      path: the file; beside the dataset when None.
      space: see `compute`.
    """
    file = path or file_of(dataset)
    settings = settings_of(dataset, timing, space)
    found = load(file, settings)
    if found is not None:
        return found
    statistics = compute(dataset, timing, space=space)
    try:
        save(file, statistics)
    except OSError as error:
        _log.warning("statistics not stored (%s); they are computed again next time", error)
    return statistics


def _key(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
