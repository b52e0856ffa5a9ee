"""A folder of features on disk: its index, its files, one record by number (`motus_jax.data.features` reads it).

Written by `python -m motus_jax.data encode`:

  features.json            the index: of which data, by which weights, and which arrays; written last
  train/00000.array_record ...   blocks of consecutive chunk starts, one record each
  test/...                 the held-out ones
  texts/...                one record per instruction of the dataset
  fitted.safetensors       parameters of the encoders that were fitted to the data

A record is the bytes of its arrays, in the order of their names. A file that has its final name is complete.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from array_record.python import array_record_module
from safetensors import SafetensorError
from safetensors.numpy import load_file

from motus_jax.data import storage
from motus_jax.errors import UserError
from motus_jax.weights import tree

FORMAT = 1
"""Version of the layout above; a reader refuses another one."""
INDEX, PARTIAL, FITTED = "features.json", "features.json.partial", "fitted.safetensors"
SPLITS, TEXTS = ("train", "test"), "texts"
OPEN_FILES = 64
"""Files of a table that are open at a time; opening costs milliseconds, reading microseconds."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Spec:
    """Shape and type of one array of a record."""

    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Records of one kind.

    Attributes:
      rows: how many.
      digest: of what the rows stand for, in order: chunk starts (`digest`) or instructions.
      arrays: what a record holds.
    """

    rows: int
    digest: str
    arrays: Mapping[str, Spec]


@dataclasses.dataclass(frozen=True)
class Index:
    """What a folder holds.

    Attributes:
      contract: of the data, as JSON.
      dataset: size and rate of the dataset (`LeRobotDataset.facts`).
      encoders: frozen part -> its `config.model`, as JSON.
      fingerprints: frozen part -> fingerprint of its weights (`motus_jax.weights.fingerprint`).
      fitted: whether `FITTED` belongs to the folder.
      instructions: instruction -> digest of the tokens that were encoded, in the order of the table of texts.
      tables: name -> table: those of `SPLITS`, and `TEXTS` if there are text states.
      block: records in a file, but for a table's last one.
    """

    contract: dict[str, Any]
    dataset: dict[str, Any]
    encoders: dict[str, Any]
    fingerprints: dict[str, str]
    fitted: bool
    instructions: dict[str, str]
    tables: dict[str, Table]
    block: int
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, in which tuples are lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Index":
        """The index that `to_json` wrote."""
        tables = {
            name: Table(row["rows"], row["digest"],
                        {key: Spec(tuple(a["shape"]), a["dtype"]) for key, a in row["arrays"].items()})
            for name, row in record["tables"].items()
        }  # fmt: skip
        return cls(**{**record, "tables": tables})

    def blocks(self, folder: storage.Path) -> list[tuple[str, range, storage.Path]]:
        """(table, rows, file) of every block, in an order that everyone agrees on."""
        return [
            (name, range(first, min(first + self.block, table.rows)), block_file(folder, name, first // self.block))
            for name, table in self.tables.items()
            for first in range(0, table.rows, self.block)
        ]


class _Block:
    """An open file of features; a remote one as a copy, which the cache keeps as long as the file is open."""

    def __init__(self, file: storage.Path) -> None:
        self._copy = contextlib.ExitStack()
        if not file.exists():
            raise encode_again(file, "this file of features", "no such file")
        path = self._copy.enter_context(storage.local(file))
        # No reading ahead: the next record that is asked for lies in another file.
        options = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 1 << 15}
        self._reader = array_record_module.ArrayRecordReader(str(path), **options)

    def read(self, place: int) -> bytes:
        return self._reader.read([place])[0]

    def __del__(self) -> None:
        self._copy.close()


class Reader:
    """The records of one table by number; safe to share between threads.

    Args:
      wanted: the arrays to give out.
    """

    def __init__(self, folder: storage.Path, name: str, index: Index, wanted: Iterable[str]) -> None:
        self._folder, self._name, self._block = folder, name, index.block
        arrays = index.tables[name].arrays
        # Reading a record takes microseconds: what does not change is worked out once.
        self._bytes = record_bytes(arrays)
        self._fields = [field for field in _layout(arrays) if field[0] in frozenset(wanted)]
        self._open = functools.lru_cache(OPEN_FILES)(self._open_block)

    def _open_block(self, block: int) -> _Block:
        return _Block(block_file(self._folder, self._name, block))

    def __call__(self, row: int) -> Arrays:
        """The arrays of a record, read-only.

        Raises:
          UserError: its file is missing or damaged.
        """
        block, place = divmod(row, self._block)
        try:
            record = self._open(block).read(place)
        except (RuntimeError, ValueError, IndexError) as error:
            file = block_file(self._folder, self._name, block)
            raise encode_again(file, "whole records", " ".join(str(error).split())[:200]) from error
        if len(record) != self._bytes:
            file = block_file(self._folder, self._name, block)
            raise encode_again(file, f"records of {self._bytes} bytes", f"one of {len(record)}")
        return {
            name: np.frombuffer(record, dtype, count, offset).reshape(shape)
            for name, shape, dtype, count, offset in self._fields
        }


def write_block(file: pathlib.Path, arrays: Mapping[str, Spec], records: Iterable[Mapping[str, np.ndarray]]) -> None:
    """Writes one block; until it is complete, it has another name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    # States of texts are mostly padding; those of pictures hardly get smaller.
    packing = "zstd" if file.parent.name == TEXTS else "uncompressed"
    writer = array_record_module.ArrayRecordWriter(str(partial), f"group_size:1,{packing}")
    for record in records:
        writer.write(_pack(arrays, record))
    writer.close()
    _rename(partial, file)


def write_index(folder: pathlib.Path, index: Index) -> None:
    """Writes the index under the name that says: not complete yet."""
    folder.mkdir(parents=True, exist_ok=True)
    begun = folder / f"{PARTIAL}.new"
    begun.write_text(json.dumps(index.to_json(), indent=1) + "\n")
    _rename(begun, folder / PARTIAL)


def finish(folder: pathlib.Path) -> None:
    """Gives the index its final name."""
    _rename(folder / PARTIAL, folder / INDEX)


def read_index(folder: storage.Path, complete: bool = True) -> Index:
    """The index of a folder.

    Args:
      complete: False takes that of a folder that is being written, too.

    Raises:
      UserError: there is none, it is of another format, or the folder is not complete yet.
    """
    present = [folder / name for name in (INDEX, PARTIAL) if (folder / name).exists()]
    if not present:
        made_by = "python -m motus_jax.data encode --out=..."
        raise UserError(f"{folder}: expected a folder of features ({made_by}); found no {INDEX} there")
    if complete and present[0].name == PARTIAL:
        raise encode_again(folder, "all features", "an encoding that was not finished")
    again = "encode again, into another folder"
    try:
        record = json.loads(present[0].read_text())
        if record["format"] != FORMAT:
            raise UserError(f"{present[0]}: expected format {FORMAT}, found {record['format']}: {again}")
        return Index.from_json(record)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{present[0]}: expected an index of features; found {error}: {again}") from error


def load_fitted(folder: storage.Path) -> dict[str, Any]:
    """The tree in `FITTED`, as host arrays.

    Raises:
      UserError: the file is missing or damaged.
    """
    file = folder / FITTED
    try:
        with storage.local(file) as copy:
            return tree.unflatten(load_file(copy))
    except (SafetensorError, OSError) as error:
        raise encode_again(file, "the parameters of the fitted encoders", " ".join(str(error).split())) from error


def block_file(folder: storage.Path, table: str, block: int) -> storage.Path:
    return folder / table / f"{block:05}.array_record"


def digest(*arrays: np.ndarray) -> str:
    """32 hexadecimal digits that depend on every value."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(str((array.shape, array.dtype.name)).encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


def record_bytes(arrays: Mapping[str, Spec]) -> int:
    """Size of a record."""
    return sum(int(np.prod(a.shape, dtype=np.int64)) * jnp.dtype(a.dtype).itemsize for a in arrays.values())


def _pack(arrays: Mapping[str, Spec], record: Mapping[str, np.ndarray]) -> bytes:
    found = (np.ascontiguousarray(record[name], jnp.dtype(arrays[name].dtype)) for name in sorted(arrays))
    return b"".join(array.tobytes() for array in found)


def _layout(arrays: Mapping[str, Spec]) -> Iterator[tuple[str, tuple[int, ...], np.dtype, int, int]]:
    """Name, shape, type, count and first byte of each array of a record."""
    offset = 0
    for name in sorted(arrays):
        shape, dtype = arrays[name].shape, jnp.dtype(arrays[name].dtype)
        count = int(np.prod(shape, dtype=np.int64))
        yield name, shape, dtype, count, offset
        offset += count * dtype.itemsize


def _rename(partial: pathlib.Path, final: pathlib.Path) -> None:
    """After a crash of the machine, too, what has its final name must be whole."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, final)


def encode_again(place: storage.Path, expected: str, found: str) -> UserError:
    """The error of a folder that the same command would complete."""
    return UserError(
        f"{place}: expected {expected}; found {found}; remove it if it is a file, and run the same python -m"
        " motus_jax.data encode again: it does only what is missing"
    )
