"""Public weights -> `workdir/imported/SUBTREE`, tensor by tensor into sharded arrays.

Names, shapes and types are checked before anything is read, aliases and stored tables while reading, and only a
complete import becomes visible. In memory are the arrays of the subtree at hand and two public tensors.
"""

import collections
import concurrent.futures
import datetime
import itertools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from motus_jax.data.run_path import Home, absolute, for_orbax
from motus_jax.errors import UserError
from motus_jax.weights import tree
from motus_jax.weights.kinds import Leaf, Part
from motus_jax.weights.matching import Match
from motus_jax.weights.name_map import LAYOUTS
from motus_jax.weights.stored import Buffer

FORMAT = 1
"""Version of `report.json`."""
REPORT = "report.json"
SOURCE_DTYPE = "source"
"""The `dtype` that keeps each leaf in the type it has in the source."""
DTYPES = (SOURCE_DTYPE, "float32", "bfloat16")

TILE = 128
"""Rows per step of a transposed copy: the strip stays in the cache, six times faster than in one piece."""
READ_BYTES = 256 << 20
"""Data under way from the disk at one time, unless a single leaf is larger."""
ALIGNMENT = 64
"""XLA on CPU takes over a host buffer that is aligned so, instead of copying it."""

Place = Callable[[tree.Tree], tree.Tree]
"""From a tree of `jax.ShapeDtypeStruct` to the same tree of shardings."""


class Progress:
    """One moving line on stderr; a log file gets a line for every tenth."""

    def __init__(self, word: str, total: int) -> None:
        self._word, self._total, self._done, self._start = word, max(total, 1), 0, time.monotonic()

    def add(self, nbytes: int) -> None:
        before, self._done = self._done, self._done + nbytes
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        line = f"{self._word} {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB, {rate / 1e6:.0f} MB/s"
        if sys.stderr.isatty():
            print(f"\r{line}   ", end="" if self._done < self._total else "\n", file=sys.stderr, flush=True)
        elif 10 * before // self._total < 10 * self._done // self._total:
            print(line, file=sys.stderr, flush=True)


def import_weights(
    matched: Match, parts: Sequence[Part], workdir: pathlib.Path, place: Place, dtype: str | None = None,
    description: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Reads, converts and saves every part of a matched source.

    Args:
      matched: from `matching.match` with the same parts.
      workdir: gets `imported/SUBTREE` (Orbax) for every part, and `imported/report.json`.
      place: shardings of a subtree.
      dtype: a row of `DTYPES`; None is each part's own.
      description: goes into the report, e.g. kind and variant.

    Returns:
      This import's record in the report: `description`, the source, its layout, every subtree's leaves with shape and
      dtype, and for every key of the source what became of it.

    Raises:
      UserError: a subtree is already there, an alias or a stored table differs, or layers of one leaf differ in type.
        Nothing is left behind.
    """
    root = imported_directory(workdir)
    for part in parts:
        if (root / part.subtree).exists():
            raise UserError(f"{root / part.subtree} exists: expected a workdir without it; use another --workdir")
    partial = root / "partial"
    created = not root.exists()
    shutil.rmtree(partial, ignore_errors=True)
    start, source = time.monotonic(), matched.source
    # Names that share one storage are read once.
    total = sum(stored.nbytes for stored in {source.tensors[name] for name in matched.used()})
    progress = Progress("imported", total)
    record = {
        **(description or {}),
        "source": str(source.path),
        "files": {file.name: file.stat().st_size for file in source.files},
        "layout": matched.layout,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "subtrees": {},
        "keys": _keys(matched, parts),
    }
    try:
        for part in parts:
            record["subtrees"][part.subtree] = _import_part(matched, part, partial, place, dtype, progress)
        for part in parts:
            (partial / part.subtree).rename(root / part.subtree)
    except BaseException:
        shutil.rmtree(root if created else partial, ignore_errors=True)
        raise
    partial.rmdir()
    record |= {"bytes": total, "seconds": round(time.monotonic() - start, 3)}
    _append(root / REPORT, record)
    return record


def load_imported(workdir: Home, targets: Mapping[str, tree.Tree]) -> dict[str, Any]:
    """Imported subtrees, laid out as asked; each device reads its own part.

    Args:
      workdir: of the import.
      targets: subtree name -> tree of `jax.ShapeDtypeStruct` with shardings. It may hold a part of the leaves; values
        are cast to its types.

    Raises:
      UserError: a subtree was not imported, or does not have a leaf of that shape.
    """
    stored = imported_leaves(workdir)
    for subtree, target in targets.items():
        if subtree not in stored:
            raise UserError(f"{workdir}: expected an imported {subtree!r}, found {', '.join(stored) or 'none'}")
        for path, leaf in tree.flatten(target).items():
            found = stored[subtree].get(path, {"shape": None})["shape"]
            if found is None or tuple(found) != leaf.shape:
                place = f"imported leaf {subtree}/{path} in {workdir}"
                raise UserError(f"{place}: expected shape {leaf.shape}, found {found or 'no such leaf'}")
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    # A chunk on disk is what one device held at the import: at most a leaf. Orbax wants more than that as a limit.
    sizes = [row["bytes"] for leaves in stored.values() for row in leaves.values()]
    context.memory.read_concurrent_bytes = max(READ_BYTES, max(sizes) + 1)
    with context:
        root = imported_directory(workdir)
        return {name: ocp.load(for_orbax(root / name), target) for name, target in targets.items()}


def imported_leaves(workdir: Home) -> dict[str, dict[str, Any]]:
    """Subtree -> leaf path -> `{"shape", "dtype", "bytes"}` of everything imported into `workdir`."""
    records = read_report(workdir)
    return {name: entry["leaves"] for record in records for name, entry in record["subtrees"].items()}


def read_report(workdir: Home) -> list[dict[str, Any]]:
    """The records of all imports into `workdir`, oldest first.

    Raises:
      UserError: nothing was imported, or the report is of another format.
    """
    path = imported_directory(workdir) / REPORT
    if not path.exists():
        raise UserError(f"{path} does not exist: import weights first (motus_jax.convert import --workdir=...)")
    report = json.loads(path.read_text())
    if report["format"] != FORMAT:
        raise UserError(f"{path}: expected format {FORMAT}, found {report['format']}")
    return report["imports"]


def imported_directory(workdir: Home) -> Home:
    return absolute(workdir) / "imported"


def _read(matched: Match, name: str, buffer: Buffer, other: Buffer, progress: Progress) -> np.ndarray:
    """A tensor under the source's name, in `buffer`, after comparing its aliases with it byte by byte.

    Raises:
      UserError: an alias differs.
    """
    stored = matched.source.tensors[name]
    x = stored.read(buffer)
    progress.add(stored.nbytes)
    for alias in matched.aliases.get(name, ()):
        again = matched.source.tensors[alias]
        if again == stored:  # one storage under two names
            continue
        found = again.read(other)
        if found.dtype != x.dtype or not np.array_equal(_bytes(found), _bytes(x)):
            raise UserError(
                f"{matched.source.path}: tensor {alias!r} must equal {name!r}, of which it is another name; expected"
                f" {_sketch(x)}, found {_sketch(found)}: keep the right one and remove the other"
            )
        progress.add(again.nbytes)
    return x


def _read_ahead(matched: Match, names: Sequence[str], progress: Progress) -> Iterator[np.ndarray]:
    """The tensors in order, each valid until the next; that one is read while the caller works on the one before."""
    buffers, other = (Buffer(), Buffer()), Buffer()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting: collections.deque[concurrent.futures.Future[np.ndarray]] = collections.deque()
        for i, name in enumerate(names):
            waiting.append(pool.submit(_read, matched, name, buffers[i % 2], other, progress))
            if len(waiting) == len(buffers):
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _bytes(x: np.ndarray) -> np.ndarray:
    """NaNs and signed zeros count as what they are."""
    return x.reshape(-1).view(np.uint8)


def _sketch(x: np.ndarray) -> str:
    return f"{x.dtype.name} with mean {x.astype(np.float32).mean():.6g} and first entry {x.flat[0]:.6g}"


def _import_part(
    matched: Match, part: Part, directory: pathlib.Path, place: Place, dtype: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Builds and saves one subtree; its record."""
    entry = _computed(matched, part, progress)
    abstract = part.abstract({leaf.path: _leaf_dtype(matched, leaf, dtype or part.dtype) for leaf in part.leaves})
    targets, shardings = tree.flatten(abstract), tree.flatten(place(abstract))
    tensors = _read_ahead(matched, [matched.names[name] for leaf in part.leaves for name in leaf.names], progress)
    arrays = {}
    for leaf in part.leaves:
        arrays[leaf.path] = _build(leaf, tensors, targets[leaf.path], shardings[leaf.path])
    context = ocp.Context()
    # Weights hardly get smaller, and compressed or rechunked arrays would be copied in memory on their way.
    context.array.saving.use_compression = False
    with context:
        ocp.save(directory / part.subtree, tree.unflatten(arrays))
    leaves = {
        path: {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "bytes": leaf.size * leaf.dtype.itemsize}
        for path, leaf in targets.items()
    }
    return {**entry, "parameters": sum(leaf.size for leaf in targets.values()), "leaves": leaves}


def _computed(matched: Match, part: Part, progress: Progress) -> dict[str, Any]:
    """Checks the stored table of a part, if there is one; what it tells about the model."""
    name = matched.names.get(part.buffer.name) if part.buffer else None
    if name is None:
        return {}
    stored = _read(matched, name, Buffer(), Buffer(), progress)
    return {"chunk": part.buffer.chunk(stored, matched.source.path)}


def _leaf_dtype(matched: Match, leaf: Leaf, dtype: str) -> np.dtype:
    if dtype != SOURCE_DTYPE:
        return jax.numpy.dtype(dtype)
    found = {matched.source.tensors[matched.names[name]].dtype: matched.names[name] for name in leaf.names}
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise UserError(f"tensors {first!r} is {one.name} and {second!r} is {other.name}: name one with --dtype")
    return next(iter(found))


def _build(
    leaf: Leaf, tensors: Iterator[np.ndarray], target: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding
) -> jax.Array:
    """One leaf, filled from the next public tensors, one after the other, into buffers of this process's devices."""
    indices = sharding.addressable_devices_indices_map(target.shape).values()
    buffers = {key: _aligned(key, target.dtype) for key in {_bounds(index, target.shape) for index in indices}}
    for layer, x in enumerate(itertools.islice(tensors, len(leaf.names))):
        x = LAYOUTS[leaf.layout].ours(x)
        for bounds, buffer in buffers.items():
            if not leaf.stacked:
                assign(buffer, x[_slices(bounds)])
            elif bounds[0][0] <= layer < bounds[0][1]:
                assign(buffer[layer - bounds[0][0]], x[_slices(bounds[1:])])
    return jax.make_array_from_callback(target.shape, sharding, lambda index: buffers[_bounds(index, target.shape)])


Bounds = tuple[tuple[int, int], ...]
"""(first, one past the last) per dimension."""


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))


def _slices(bounds: Bounds) -> tuple[slice, ...]:
    return tuple(slice(*pair) for pair in bounds)


def _aligned(bounds: Bounds, dtype: np.dtype) -> np.ndarray:
    """An uninitialised buffer that XLA can take over."""
    shape = [stop - start for start, stop in bounds]
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + nbytes].view(dtype).reshape(shape)


def assign(target: np.ndarray, x: np.ndarray) -> None:
    """`target[...] = x` with a cast, in strips where `x` is a transposed matrix."""
    if x.ndim != 2 or x.strides[0] >= x.strides[1]:
        target[...] = x
        return
    for start in range(0, x.shape[1], TILE):
        columns = slice(start, start + TILE)
        target[:, columns] = x[:, columns].T.astype(target.dtype).T


def _keys(matched: Match, parts: Sequence[Part]) -> dict[str, dict[str, Any]]:
    """What becomes of every key of the source."""
    tensors, keys = matched.source.tensors, {}
    for part in parts:
        for leaf in part.leaves:
            for layer, name in enumerate(leaf.names):
                where = f"{part.subtree}/{leaf.path}" + (f"[{layer}]" if leaf.stacked else "")
                keys[matched.names[name]] = {"becomes": where}
        if part.buffer and part.buffer.name in matched.names:
            keys[matched.names[part.buffer.name]] = {"becomes": "checked against the table that the model computes"}
    for first, others in matched.aliases.items():
        keys |= {alias: {"becomes": f"equal to {first}"} for alias in others}
    keys |= {name: {"becomes": "skipped (--allow)"} for name in matched.skipped}
    keys |= {name: {"becomes": "counter (nothing is computed from it)"} for name in matched.counters}
    return {
        name: {**keys[name], "shape": list(stored.shape), "dtype": stored.dtype.name}
        for name, stored in tensors.items()
    }


def _append(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    imports = json.loads(path.read_text())["imports"] if path.exists() else []
    path.write_text(json.dumps({"format": FORMAT, "imports": [*imports, record]}, indent=1))
