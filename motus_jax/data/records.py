"""Datasets as large files of short clips, for training from remote storage; `python -m motus_jax.data convert` writes.

  index.json           facts, episodes, texts, splits; written last
  plan.json            what is converted how, and which episodes lie in which shard
  shards/00000.frames  ArrayRecord: one record a segment of an episode (about two seconds, all cameras)
  shards/00000.tables  ArrayRecord: one record an episode: its table, and where its segments lie
  shards/00000.json    of a finished shard: its episodes, sizes and checksums

A record is eight bytes that name its kind and version, the length of a header (uint32, little-endian), the header
(JSON, UTF-8) and raw bytes. Of a segment the header has `episode`, `first` (row), `rows` and per camera `size` (height,
width) and `packets` (bytes of each frame); the bytes are the packets of the cameras one after another
(`motus_jax.data.clip`). Of a table the header has `episode`, `rows` and per array `name`, `dtype` and `shape`; the
bytes are the arrays, little-endian, in that order: the fields of `motus_jax.data.source.Rows`, and `segments`, three
uint64 a segment: offset, length and crc32c of its record (`motus_jax.data.array_record_layout`). Every record is read
by one ranged read and compared with its checksum.
"""

import base64
import dataclasses
import itertools
import json
import pathlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Float, Int, Shaped

from motus_jax.data import array_record_layout, storage
from motus_jax.data.array_record_layout import Span
from motus_jax.errors import UserError

FORMAT = 2
INDEX, PLAN, SHARDS = "index.json", "plan.json", "shards"
FRAMES, TABLES, DONE = ".frames", ".tables", ".json"
SEGMENT_MAGIC, TABLE_MAGIC = b"MOTUSEG1", b"MOTUTAB1"


class Damaged(Exception):
    """The bytes of a record are not what they must be."""


class Place(NamedTuple):
    """A record in a shard: where it lies, and the crc32c of its bytes."""

    offset: int
    length: int
    crc32c: int

    @property
    def span(self) -> Span:
        return Span(self.offset, self.length)


class Clip(NamedTuple):
    """A camera's part of a segment: (height, width) in pixels, and a packet a row."""

    size: tuple[int, int]
    packets: Sequence[bytes | memoryview]


class Segment(NamedTuple):
    """Rows `first` to `first + rows` of an episode, by camera."""

    first: int
    rows: int
    clips: Mapping[str, Clip]


def pack_segment(episode: int, segment: Segment) -> bytes:
    """The record of a segment."""
    cameras = {
        name: {"size": list(clip.size), "packets": [len(packet) for packet in clip.packets]}
        for name, clip in segment.clips.items()
    }
    header = {"episode": episode, "first": segment.first, "rows": segment.rows, "cameras": cameras}
    return _pack(SEGMENT_MAGIC, header, [packet for clip in segment.clips.values() for packet in clip.packets])


def unpack_segment(record: bytes) -> Segment:
    """A segment out of its record; packets are views of it.

    Raises:
      Damaged: it is none.
    """
    header, body = _unpack(SEGMENT_MAGIC, record)
    clips, offset = {}, 0
    try:
        for name, camera in header["cameras"].items():
            ends = np.cumsum([offset, *camera["packets"]]).tolist()
            clips[name] = Clip(tuple(camera["size"]), [body[a:b] for a, b in itertools.pairwise(ends)])
            offset = ends[-1]
        found = Segment(int(header["first"]), int(header["rows"]), clips)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"a header without {error}") from error
    if offset != len(body) or any(len(clip.packets) != found.rows for clip in clips.values()):
        raise Damaged(f"{len(body)} bytes of packets where the header says {offset}")
    return found


def pack_table(episode: int, rows: int, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """The record of a table."""
    arrays = {name: np.ascontiguousarray(value, value.dtype.newbyteorder("<")) for name, value in arrays.items()}
    described = [{"name": k, "dtype": v.dtype.str, "shape": list(v.shape)} for k, v in arrays.items()]
    header = {"episode": episode, "rows": rows, "arrays": described}
    return _pack(TABLE_MAGIC, header, [value.tobytes() for value in arrays.values()])


def unpack_table(record: bytes) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The arrays of a table out of its record.

    Raises:
      Damaged: it is none.
    """
    header, body = _unpack(TABLE_MAGIC, record)
    found, offset = {}, 0
    try:
        for array in header["arrays"]:
            dtype, count = np.dtype(array["dtype"]), int(np.prod(array["shape"], dtype=np.int64))
            if dtype.hasobject:
                raise Damaged(f"an array of {dtype}")
            values = np.frombuffer(body, dtype, count, offset).reshape(array["shape"])
            found[array["name"]] = values.astype(dtype.newbyteorder("="))
            offset += count * dtype.itemsize
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"a header or arrays that do not fit: {error}") from error
    if offset != len(body):
        raise Damaged(f"{len(body)} bytes of arrays where the header says {offset}")
    return found


def _pack(magic: bytes, header: Mapping[str, Any], parts: Iterable[bytes | memoryview]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return b"".join([magic, len(text).to_bytes(4, "little"), text, *parts])


def _unpack(magic: bytes, record: bytes) -> tuple[dict[str, Any], memoryview]:
    if record[: len(magic)] != magic:
        raise Damaged(f"a record that begins with {record[: len(magic)]!r}, not {magic!r}")
    begin = len(magic) + 4
    end = begin + int.from_bytes(record[len(magic) : begin], "little")
    try:
        return json.loads(record[begin:end]), memoryview(record)[end:]
    except ValueError as error:
        raise Damaged(f"a header that is no JSON: {error}") from error


def pack_times(times: Float[np.ndarray, "n"]) -> str:
    """Seconds of rows since the first, to the microsecond, as text."""
    return base64.b64encode(zlib.compress(np.diff(_microseconds(times)).astype("<i8").tobytes(), 9)).decode()


def unpack_times(steps: str) -> Float[np.ndarray, "n"]:
    """The seconds that `pack_times` packed.

    Raises:
      Damaged: they are none.
    """
    try:
        found = np.frombuffer(zlib.decompress(base64.b64decode(steps, validate=True)), "<i8")
    except (ValueError, zlib.error) as error:
        raise Damaged(f"times that are none: {error}") from error
    return np.concatenate([[0], np.cumsum(found)]) / 1e6


def round_times(times: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Seconds as `unpack_times` gives them back."""
    return _microseconds(times) / 1e6


def _microseconds(times: Float[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    return np.round((times - times[0]) * 1e6).astype(np.int64)


def read_record(file: storage.Path, place: Place) -> bytes:
    """One record by one ranged read; of a remote file twice if its checksum is wrong.

    Raises:
      Damaged: it is not what was written.
      FileNotFoundError: no such file.
      RemoteError: the storage does not give it.
    """
    for _ in range(2 if storage.is_remote(file) else 1):
        record = array_record_layout.extract(place.span, storage.read_range(file, place.offset, place.span.extent))
        if len(record) == place.length and google_crc32c.value(record) == place.crc32c:
            return record
    what = "another checksum" if len(record) == place.length else f"{len(record)} bytes"
    raise Damaged(f"{what} at offset {place.offset}")


class Writer:
    """An ArrayRecord file of records of a known number of bytes each, written in their order."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        self._writer = array_record_module.ArrayRecordWriter(str(file), array_record_layout.OPTIONS)
        self._written: list[tuple[int, int]] = []

    def add(self, record: bytes) -> int:
        """Writes a record and returns its number."""
        self._writer.write(record)
        self._written.append((len(record), google_crc32c.value(record)))
        return len(self._written) - 1

    def close(self) -> list[Place]:
        """Ends the file; where each record lies.

        Raises:
          RuntimeError: the file is not what was written.
        """
        self._writer.close()
        spans = array_record_layout.locate(self.file, len(self._written))
        if [span.length for span in spans] != [length for length, _ in self._written]:
            raise RuntimeError(f"{self.file}: expected records of other lengths: its layout is not the one we know")
        return [Place(*span, crc) for span, (_, crc) in zip(spans, self._written)]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Sizes of a shard's files in bytes."""

    frames: int
    tables: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """An episode in the index.

    Attributes:
      length: rows.
      shard: its number.
      table: where its table lies: offset, length, crc32c.
      texts: (first row, numbers of texts) of the rows from there on, rising.
      steps: of rows that are not at the constant rate, the microseconds between them (`pack_times`): who opens the
        dataset needs the times of all episodes, and must not read a table of each; empty where the rate is constant.
      origin: its index in the source.
      lacks: cameras that it has no pictures of.
    """

    length: int
    shard: int
    table: Place
    texts: tuple[tuple[int, tuple[int, ...]], ...]
    steps: str
    origin: int
    lacks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Index:
    """`index.json`.

    Attributes:
      robot, fps, state_names, action_names, latent_dim: as of a source.
      cameras: (height, width) by name; None where sizes differ.
      splits: ranges of episodes by name.
      texts: all instructions.
      segment_rows: rows of every segment but an episode's last.
      shards, episodes: in order of their number.
      dropped: broken episodes of the source: (index there, what is wrong).
      origin: kind, format and facts of the source.
    """

    robot: str
    fps: float
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    latent_dim: int
    cameras: dict[str, tuple[int, int] | None]
    splits: dict[str, str]
    texts: tuple[str, ...]
    segment_rows: int
    shards: tuple[Shard, ...]
    episodes: tuple[Entry, ...]
    dropped: tuple[tuple[int, str], ...]
    origin: dict[str, Any]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Index":
        """The index that `to_json` made."""
        plain = {name: record[name] for name in ("robot", "fps", "latent_dim", "splits", "segment_rows", "origin")}
        return cls(
            **plain,
            state_names=tuple(record["state_names"]),
            action_names=tuple(record["action_names"]),
            cameras={name: None if size is None else tuple(size) for name, size in record["cameras"].items()},
            texts=tuple(record["texts"]),
            shards=tuple(Shard(**shard) for shard in record["shards"]),
            episodes=tuple(_entry(entry) for entry in record["episodes"]),
            dropped=tuple((index, reason) for index, reason in record["dropped"]),
        )


def _entry(record: Mapping[str, Any]) -> Entry:
    texts = tuple((first, tuple(numbers)) for first, numbers in record["texts"])
    return Entry(**{**record, "table": Place(*record["table"]), "texts": texts, "lacks": tuple(record["lacks"])})


def read_index(folder: storage.Path) -> Index:
    """The index of a folder.

    Raises:
      UserError: there is none, it is of another format or contradicts the files beside it.
    """
    file = folder / INDEX
    try:
        record = json.loads(file.read_text())
        if record["format"] != FORMAT:
            raise UserError(f"{file}: expected records of format {FORMAT}; found {record['format']}")
        index = Index.from_json(record)
    except FileNotFoundError as error:
        begun = (folder / PLAN).exists()
        found = "a conversion that was not finished: run it again with --resume" if begun else "no index there"
        raise UserError(f"{file}: expected records (python -m motus_jax.data convert); found {found}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: expected an index of records; found {' '.join(str(error).split())}") from error
    _check_files(folder, index)
    return index


def _check_files(folder: storage.Path, index: Index) -> None:
    try:
        found = {file.name: file for file in (folder / SHARDS).iterdir()}
    except FileNotFoundError:
        found = {}
    for number, shard in enumerate(index.shards):
        for suffix, size in ((FRAMES, shard.frames), (TABLES, shard.tables)):
            name = f"{number:05}{suffix}"
            length = found[name].stat().length if name in found else "no such file"
            if length != size:
                raise UserError(f"{folder / SHARDS / name}: expected {size} bytes, as {INDEX} says; found {length}")


def shard_file(folder: storage.Path, shard: int, suffix: str) -> storage.Path:
    return folder / SHARDS / f"{shard:05}{suffix}"
