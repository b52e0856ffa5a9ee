"""Reader of EgoDex: people's hands filmed from the head, with poses of all finger joints.

Layout below the root, in folders `TASK` or `PART/TASK`: pairs `N.mp4` (30 frames a second) and `N.hdf5` with
`transforms/JOINT` [n, 4, 4] in the world of the headset, optionally `confidences/JOINT` [n], and the attributes
`llm_type`, `llm_description`, `llm_description2` and `which_llm_description`. Source: apple/ml-egodex (README and
`simple_dataset.py`, names of groups and attributes).
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data import file_index, hdf5, source, storage, video
from motus_jax.data.source import BrokenData, Rows, broken
from motus_jax.errors import UserError

FPS = 30.0
CAMERA = "video"
FRAMES = ("start", "world")
SIDES = ("left", "right")
FINGERS = ("Thumb", "IndexFinger", "MiddleFinger", "RingFinger", "LittleFinger")
NAMES = tuple(
    f"{side} {name}"
    for side in SIDES
    for name in (
        *(f"wrist {axis}" for axis in "xyz"),
        *(f"wrist rotation {k}" for k in range(6)),
        *(f"{finger} tip {axis}" for finger in FINGERS for axis in "xyz"),
    )
)
"""48 numbers: of each hand the wrist's position (m) and first two columns of its rotation, and five fingertips (m)."""
WORDS = ("llm_type", "llm_description", "llm_description2", "which_llm_description")
DEPTH = 2

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      table, film: HDF5 and mp4 file.
      descriptions: its texts.
    """

    table: storage.Path
    film: storage.Path
    descriptions: tuple[str, ...]


class EgoDexDataset(source.Source):
    """Episodes of EgoDex, in order of part, task and number.

    Options:
      hands: whether the hands' poses are read as state and action (48 numbers; the action is the measured position of
        its own row). Without, an episode is a video with words, as the paper uses it.
      frame: of the poses. "start", the camera at the episode's first row: the world's origin is where somebody switched
        the headset on, and means nothing. "world": as stored.
      confidence: episodes in which a wrist or fingertip is ever less certain are broken; 0 takes all. Only where the
        file has confidences.
    """

    OPTIONS: Mapping[str, Any] = {"hands": False, "frame": "start", "confidence": 0.0}
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the episodes; the first time looks into every table for its length and words.

        Raises:
          UserError: nothing there, or an unknown option.
        """
        super().__init__(path, options)
        source.check_choice(self.path, "frame", self.options["frame"], FRAMES)
        self.format, self.robot, self.fps, self.cameras = "EgoDex", "human", FPS, {CAMERA: None}
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder of EgoDex; found nothing there")
        pairs = list(_pairs(self.path, DEPTH))
        if not pairs:
            raise UserError(f"{self.path}: expected folders with N.hdf5 and N.mp4; found none")
        tables = [table for table, film in pairs if film is not None]
        facts = dict(zip(tables, file_index.facts_of(self.path, tables, "egodex 2", _facts)))
        whole = [(pair, facts[pair[0]]) for pair in pairs if "fault" not in facts.get(pair[0], {"fault": ""})]
        faults = [facts[table]["fault"] if film else f"{table}: expected an mp4 of this name beside it; found none"
                  for table, film in pairs if film is None or "fault" in facts[table]]  # fmt: skip
        self.left_out = [k for k, (table, film) in enumerate(pairs) if film is None or "fault" in facts[table]]
        if faults:
            _log.warning("%s: %d episodes left out that cannot be read; first: %s", self.path, len(faults), faults[0])
        if not whole:
            raise UserError(f"{self.path}: expected episodes; found none that can be read: {faults[0]}")
        self.state_names = self.action_names = NAMES if self.options["hands"] else ()
        self.episodes = [
            Episode(k, fact["length"], *pair, tuple(fact["texts"])) for k, (pair, fact) in enumerate(whole)
        ]

    def size_bytes(self) -> int:
        return file_index.total_bytes(episode.table for episode in self.episodes)

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for text in episode.descriptions})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        return self.episode(index).descriptions

    def read_rows(self, index: int) -> Rows:
        episode = self.episode(index)
        if not self.options["hands"]:
            return source.pictures_only(self.times(index))
        with hdf5.opened(episode.table, index) as content:
            hands = np.concatenate([self._hand(content, episode, side) for side in SIDES], axis=1)
        return source.positions(FPS, hands, hands)

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        film = self.episode(index).film
        return video.read_frames(film, np.asarray(rows), FPS, 0.0, None, f"episode {index}")

    def _hand(self, content: h5py.File, episode: Episode, side: str) -> Float[np.ndarray, "n 24"]:
        wrist = self._poses(content, episode, f"{side}Hand")
        tips = [self._poses(content, episode, f"{side}{finger}Tip")[:, :3, 3] for finger in FINGERS]
        rotation = wrist[:, :3, :2].transpose(0, 2, 1).reshape(-1, 6)
        return np.concatenate([wrist[:, :3, 3], rotation, *tips], axis=1)

    def _poses(self, content: h5py.File, episode: Episode, joint: str) -> Float[np.ndarray, "n 4 4"]:
        """Poses of a joint in the wanted frame."""
        found = _transforms(content, episode, joint)
        certain = content.get(f"confidences/{joint}")
        if certain is not None and np.min(certain[()], initial=1.0) < float(self.options["confidence"]):
            expected = f"a confidence of at least {self.options['confidence']}"
            raise broken(episode.table, episode.index, joint, expected, f"{np.min(certain[()]):.2f}")
        if self.options["frame"] == "world":
            return found
        start = _transforms(content, episode, "camera")[0]
        return np.linalg.solve(start, found)


def _facts(file: storage.Path) -> dict[str, Any]:
    """Rows and words; or why the episode cannot be read."""
    label = f"{file.parent.name}/{file.stem}"
    try:
        with hdf5.opened(file, label) as content:
            camera = hdf5.dataset(content, file, label, "transforms/camera")
            if not camera.ndim or not len(camera):
                raise broken(file, label, "transforms/camera", "a pose a row", f"shape {camera.shape}")
            words = {key: hdf5.text(content.attrs[key]) for key in WORDS if key in content.attrs}
            return {"length": len(camera), "texts": _texts(words)}
    except BrokenData as error:
        return {"fault": str(error)}


def _transforms(content: h5py.File, episode: Episode, joint: str) -> Float[np.ndarray, "n 4 4"]:
    name = f"transforms/{joint}"
    found = hdf5.dataset(content, episode.table, episode.index, name)
    if found.shape != (episode.length, 4, 4):
        raise broken(episode.table, episode.index, name, f"shape {(episode.length, 4, 4)}", found.shape)
    return np.asarray(found[()], np.float64)


def _texts(words: Mapping[str, str]) -> list[str]:
    """The description that fits the direction in which a reversible task was done; other tasks have one only."""
    reversible = words.get("llm_type", "reversible").strip() == "reversible"
    second = reversible and words.get("which_llm_description", "1").strip() == "2"
    text = " ".join(words.get("llm_description2" if second else "llm_description", "").split())
    return [text] if text else []


def _pairs(folder: storage.Path, depth: int) -> Iterator[tuple[storage.Path, storage.Path | None]]:
    """(table, film or None where it lacks) by folder, then number."""
    entries = {entry.name: entry for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)}
    own = [entry for entry in entries.values() if entry.suffix == ".hdf5"]
    for file in sorted(own, key=lambda file: (int(file.stem) if file.stem.isdigit() else 0, file.stem)):
        yield file, entries.get(f"{file.stem}.mp4")
    for entry in entries.values():
        if depth and entry.suffix not in (".hdf5", ".mp4") and entry.is_dir():
            yield from _pairs(entry, depth - 1)
