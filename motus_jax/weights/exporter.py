"""Our trees -> sharded safetensors under public names, with an index and the model's contract in the metadata.

Tensors are written one after the other, so that no shard is ever in memory as a whole.
"""

import dataclasses
import json
import pathlib
import shutil
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from motus_jax.errors import UserError
from motus_jax.weights import tree
from motus_jax.weights.importer import Progress, assign
from motus_jax.weights.kinds import Leaf, Part
from motus_jax.weights.name_map import LAYOUTS
from motus_jax.weights.sources import SAFETENSORS_DTYPES

INDEX = "model.safetensors.index.json"
WORDS = {dtype: word for word, dtype in SAFETENSORS_DTYPES.items()}
DTYPES = ("stored", "float32", "bfloat16")
"""What an export may be written in; `stored` is each leaf's own type."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of an export: what the file says of it, and how to get it (in any dtype)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def export_weights(
    trees: Mapping[str, tree.Tree], parts: Sequence[Part], out: pathlib.Path, contract: Mapping[str, Any],
    chunk: int, shard_bytes: int, dtype: str = "stored",
) -> dict[str, str]:  # fmt: skip
    """Writes `out/model-0000I-of-0000N.safetensors` and the index.

    Args:
      trees: subtree name -> parameters, sharded or not.
      parts: the map of each subtree.
      contract: JSON that goes into every file's metadata as `motus_contract`.
      chunk: actions T, for the position table that the public files store.
      shard_bytes: no file's tensors exceed this, unless a single tensor does.
      dtype: a row of `DTYPES`.

    Returns:
      Public name -> file.

    Raises:
      UserError: `out` exists, no room in a file, or a leaf is missing, left over or of another shape.
    """
    if out.exists():
        raise UserError(f"--out={out} exists: expected a new folder")
    if shard_bytes < 1:
        raise UserError(f"the largest file must have at least one byte, found {shard_bytes}")
    found = [entry for part in parts for entry in entries(part, trees[part.subtree], chunk, dtype)]
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    metadata = {"format": "pt", "motus_contract": json.dumps(contract, sort_keys=True)}
    try:
        where = write_shards(found, partial, metadata, shard_bytes)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return where


def write_shards(
    found: Sequence[Entry], folder: pathlib.Path, metadata: Mapping[str, str], limit: int
) -> dict[str, str]:
    """Writes the files and their index into an existing folder; public name -> file."""
    where, total = {}, sum(entry.nbytes for entry in found)
    progress = Progress("exported", total)
    for file, shard in plan_shards(found, limit).items():
        with (folder / file).open("wb") as stream:
            write_header(stream, shard, metadata)
            for entry in shard:
                _write(stream, entry)
                progress.add(entry.nbytes)
        where |= dict.fromkeys((entry.name for entry in shard), file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=1))
    return where


def entries(part: Part, params: tree.Tree, chunk: int, dtype: str = "stored") -> list[Entry]:
    """What an export of one subtree holds, in the map's order; `params` may be `jax.ShapeDtypeStruct`s.

    Raises:
      UserError: a leaf is missing, left over or of another shape.
    """
    flat = tree.flatten(params)
    odd = sorted({leaf.path for leaf in part.leaves} ^ set(flat))
    if odd:
        side = "not expected" if odd[0] in flat else "missing"
        raise UserError(f"{len(odd)} leaves of {part.subtree!r} do not fit the map, the first {odd[0]!r} ({side})")
    found: dict[str, Entry] = {}
    for leaf in part.leaves:
        array = flat[leaf.path]
        if tuple(array.shape) != leaf.shape:
            raise UserError(f"leaf {part.subtree}/{leaf.path}: expected shape {leaf.shape}, found {array.shape}")
        kept = np.dtype(array.dtype) if dtype == "stored" else jax.numpy.dtype(dtype)
        found |= {name: Entry(name, leaf.public, kept, _maker(leaf, layer, array))
                  for layer, name in enumerate(leaf.names)}  # fmt: skip
    found |= {name: dataclasses.replace(found[first], name=name) for name, first in part.tied.items()}
    if part.buffer:
        kept = next(iter(found.values())).dtype
        table = part.buffer.values(chunk).astype(kept)
        found[part.buffer.name] = Entry(part.buffer.name, table.shape, kept, lambda: table)
    found |= {name: Entry(name, (), np.dtype(np.int64), lambda: np.zeros((), np.int64)) for name in part.counters}
    return list(found.values())


def plan_shards(found: Sequence[Entry], limit: int) -> dict[str, list[Entry]]:
    """File name -> tensors, in order, each file within `limit` bytes or with a single tensor."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in found:
        if shards[-1] and size + entry.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def write_header(stream: BinaryIO, shard: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """The header of a safetensors file whose tensors follow in order without gaps."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for entry in shard:
        start, end = end, end + entry.nbytes
        header[entry.name] = {"dtype": WORDS[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data
    stream.write(struct.pack("<Q", len(text)) + text)


def _maker(leaf: Leaf, layer: int, array: jax.Array) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        ours = np.asarray(array[layer] if leaf.stacked else array)
        return LAYOUTS[leaf.layout].public(ours, leaf.public)

    return make


def _write(stream: BinaryIO, entry: Entry) -> None:
    values = np.empty(entry.shape, entry.dtype)
    assign(values, entry.make())
    stream.write(values.reshape(-1).view(np.uint8).data)
