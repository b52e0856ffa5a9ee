"""Latent actions of a dataset's episodes, kept apart from it: what `python -m motus_jax.data label` writes.

  labels.json              the index: of which data, by which model, mean and spread; written last
  blocks/00000.safetensors latent actions of consecutive episodes: `latent.EPISODE` [n, D] float32, `known.EPISODE` [n]

Row r holds the latent action of the motion from the frame of row r to the frame `seconds` later. It is known where both
frames are there and differ; what is not known is zero and marked as such, and no loss sees it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.numpy import load, save

from motus_jax.data import storage
from motus_jax.data.source import Source, broken
from motus_jax.errors import UserError

FORMAT = 1
INDEX, BLOCKS = "labels.json", "blocks"
KEPT_BLOCKS = 8

Rows = tuple[Float[np.ndarray, "n D"], Bool[np.ndarray, "n"]]


@dataclasses.dataclass(frozen=True)
class Index:
    """`labels.json`.

    Attributes:
      dataset: facts of the source (`motus_jax.data.source.Source.facts`).
      model: fingerprint of the latent-action model's parameters.
      seconds: from a motion's first frame to its second.
      dim: numbers of a latent action.
      mean, std: of the known ones, per number.
      block: episodes in a file, but for the last.
      episodes: how many.
      known: rows with a latent action.
      rows: rows of all episodes.
      unknown: why other rows have none -> how many, by reason.
      dropped: (episode, why it could not be read).
      settings: what else the numbers hang on: cameras, picture size, flow estimator.
    """

    dataset: Mapping[str, Any]
    model: str
    seconds: float
    dim: int
    mean: Sequence[float]
    std: Sequence[float]
    block: int
    episodes: int
    known: int
    rows: int
    unknown: Mapping[str, int]
    dropped: Sequence[tuple[int, str]]
    settings: Mapping[str, Any]
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def block_file(folder: storage.Path, number: int) -> storage.Path:
    return folder / BLOCKS / f"{number:05}.safetensors"


def pack_block(rows: Mapping[int, Rows], unknown: Mapping[str, int], dropped: Sequence[tuple[int, str]]) -> bytes:
    """The file of these episodes; `unknown` and `dropped` as in the index, of these alone."""
    arrays: dict[str, np.ndarray] = {}
    for episode, (latent, known) in rows.items():
        arrays[f"latent.{episode}"] = np.ascontiguousarray(latent, np.float32)
        arrays[f"known.{episode}"] = np.ascontiguousarray(known, bool)
    return save(arrays, {"facts": json.dumps({"unknown": dict(unknown), "dropped": list(dropped)})})


def unpack_block(data: bytes) -> tuple[dict[int, Rows], dict[str, int], list[tuple[int, str]]]:
    """What `pack_block` packed.

    Raises:
      ValueError: it is none.
    """
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["facts"])
        episodes = sorted(int(name.partition(".")[2]) for name in arrays if name.startswith("latent."))
        rows = {episode: (arrays[f"latent.{episode}"], arrays[f"known.{episode}"]) for episode in episodes}
        return rows, facts["unknown"], [(episode, reason) for episode, reason in facts["dropped"]]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"no file of latent actions: {error}") from error


def read_index(folder: storage.Path) -> Index:
    """The index of a folder.

    Raises:
      UserError: there is none, or of another format.
    """
    file = folder / INDEX
    try:
        record = json.loads(file.read_text())
        if record["format"] != FORMAT:
            raise UserError(f"{file}: expected latent actions of format {FORMAT}; found {record['format']}")
        return Index(**record)
    except FileNotFoundError as error:
        begun = (folder / BLOCKS).exists()
        found = "labelling that was not finished: run it again" if begun else "no index there"
        raise UserError(f"{file}: expected latent actions (python -m motus_jax.data label); found {found}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: expected an index of latent actions; found {error!r}") from error


class Labels:
    """Latent actions of a source's episodes: `labels(episode)`; safe to share between threads.

    Attributes:
      index: the folder's.
      dim: numbers of a latent action.
      name: tells them from other labels.
    """

    def __init__(self, folder: storage.Path, source: Source):
        """Opens a folder.

        Raises:
          UserError: there is none, or it is of other data.
        """
        self._folder = folder
        self.index = index = read_index(folder)
        facts = source.facts()
        other = sorted(key for key in facts if facts[key] != index.dataset.get(key))
        if other:
            key = other[0]
            raise UserError(f"{folder}: expected latent actions of {source.path}, with {key} {facts[key]}; found those "
                            f"of data with {index.dataset.get(key)}; label it anew")  # fmt: skip
        self.dim = index.dim
        self.name = hashlib.sha256(json.dumps(index.to_json(), sort_keys=True).encode()).hexdigest()[:16]
        self._dropped = dict(index.dropped)
        self._blocks: dict[int, dict[int, Rows]] = {}

    def __call__(self, episode: int) -> Rows:
        """(latent actions, which of them are known) of an episode's rows.

        Raises:
          BrokenData: they could not be made, or cannot be read.
        """
        if episode in self._dropped:
            raise broken(self._folder, episode, "latent actions", "a film that can be read", self._dropped[episode])
        number = episode // self.index.block
        block = self._blocks.get(number)
        if block is None:
            file = block_file(self._folder, number)
            try:
                block, *_ = unpack_block(file.read_bytes())
            except (FileNotFoundError, ValueError) as error:
                raise broken(file, episode, "latent actions", "a file of them", error) from error
            kept = list(self._blocks.items())[-(KEPT_BLOCKS - 1) :]
            self._blocks = {**dict(kept), number: block}  # replaced as a whole: other threads may be reading
        if episode not in block:
            raise broken(block_file(self._folder, number), episode, "latent actions", "this episode", sorted(block))
        return block[episode]
