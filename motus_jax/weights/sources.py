"""Public checkpoints on disk as tables of tensors that are read one at a time.

A source is a file (.safetensors, or what `torch.save` writes), an index (`*.index.json`) or a folder with one of these.
"""

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Callable

import ml_dtypes
import numpy as np

from motus_jax.errors import UserError
from motus_jax.weights.stored import Stored
from motus_jax.weights.torch_file import read_torch

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}

DEEPSPEED = "mp_rank_00_model_states.pt"
"""What DeepSpeed calls the weights, in the checkpoint's folder or in `pytorch_model/` under it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint on disk.

    Attributes:
      path: what the user named.
      tensors: name -> tensor.
      files: the files that hold them.
    """

    path: pathlib.Path
    tensors: dict[str, Stored]
    files: tuple[pathlib.Path, ...]


def open_source(path: pathlib.Path) -> Source:
    """Reads the headers of a checkpoint; no tensor is read.

    Raises:
      UserError: nothing there, several checkpoints in one folder, a missing shard, a truncated or an unknown file.
    """
    if not path.exists():
        raise UserError(f"--source={path} does not exist")
    found = _find(path) if path.is_dir() else path
    if found.name.endswith(".index.json"):
        return _open_index(path, found)
    if found.is_dir():
        return _open_shards(path, sorted(found.glob("*.safetensors")))
    return _open_shards(path, [found])


def _find(folder: pathlib.Path) -> pathlib.Path:
    """The one checkpoint in a folder: an index, a DeepSpeed file, all `.safetensors` (the folder), or one file."""
    indices = sorted(folder.glob("*.index.json"))
    indices = [path for path in indices if "safetensors" in path.name] or indices
    if len(indices) == 1:
        return indices[0]
    deepspeed = [place for place in (folder / DEEPSPEED, folder / "pytorch_model" / DEEPSPEED) if place.exists()]
    if deepspeed:
        return deepspeed[0]
    if not indices and any(folder.glob("*.safetensors")):
        return folder
    files = indices or sorted(path for path in folder.iterdir() if path.suffix in READERS)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise UserError(f"--source={folder}: expected one checkpoint in the folder, found {names}; name the file")
    return files[0]


def _open_index(path: pathlib.Path, index: pathlib.Path) -> Source:
    """A Hugging Face index: `weight_map` says which file holds which tensor."""
    try:
        where: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index}: expected a JSON index with a 'weight_map' ({type(error).__name__})") from error
    files = [index.parent / name for name in sorted(set(where.values()))]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise UserError(f"{index}: {len(missing)} of {len(files)} shards missing, the first of them {missing[0]!r}")
    source = _open_shards(path, files)
    lost = sorted(set(where) ^ set(source.tensors))
    if lost:
        side = "the index, not in the shards" if lost[0] in where else "the shards, not in the index"
        raise UserError(f"{index}: {len(lost)} tensors are only in {side}, the first of them {lost[0]!r}")
    return source


def _open_shards(path: pathlib.Path, files: list[pathlib.Path]) -> Source:
    tensors: dict[str, Stored] = {}
    for file in files:
        if file.suffix not in READERS:
            raise UserError(f"{file}: unknown file type; expected one of {', '.join(READERS)} or an *.index.json")
        shard = READERS[file.suffix](file)
        twice = sorted(set(shard) & set(tensors))
        if twice:
            raise UserError(f"{file}: tensor {twice[0]!r} is also in {tensors[twice[0]].path}; name one checkpoint")
        tensors |= shard
    if not tensors:
        raise UserError(f"--source={path} holds no tensors")
    return Source(path, tensors, tuple(files))


def read_safetensors(path: pathlib.Path) -> dict[str, Stored]:
    """The tensors of a .safetensors file.

    Raises:
      UserError: truncated, too long, an unreadable header, or an unknown dtype.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise UserError(f"{path}: expected a safetensors header, found {size} bytes: truncated or not safetensors")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        rows = {name: (row["dtype"], tuple(row["shape"]), *row["data_offsets"]) for name, row in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its safetensors header cannot be read ({type(error).__name__})") from error
    expected = 8 + length + max((end for *_, end in rows.values()), default=0)
    if size != expected:
        word = "truncated" if size < expected else "damaged"
        raise UserError(f"{path}: expected {expected} bytes, found {size}: {word}; copy it again")
    return {name: _row(path, name, 8 + length, *row) for name, row in rows.items()}


def _row(path: pathlib.Path, name: str, start: int, word: str, shape: tuple[int, ...], begin: int, end: int) -> Stored:
    if word not in SAFETENSORS_DTYPES:
        raise UserError(f"{path}: tensor {name!r} has dtype {word}, expected one of {', '.join(SAFETENSORS_DTYPES)}")
    dtype = SAFETENSORS_DTYPES[word]
    if begin < 0 or end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path}: tensor {name!r} of shape {shape} and dtype {word} occupies {end - begin} bytes")
    return Stored(path, start + begin, dtype, shape)


READERS: dict[str, Callable[[pathlib.Path], dict[str, Stored]]] = {
    ".safetensors": read_safetensors,
    ".pt": read_torch,
    ".pth": read_torch,
    ".ckpt": read_torch,
    ".bin": read_torch,
}
"""File suffix -> reader."""
