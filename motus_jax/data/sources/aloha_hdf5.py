"""Reader of ALOHA's HDF5 episodes: ACT, Mobile ALOHA, and RDT's fine-tuning sets.

One file an episode: `action`, `observations/qpos` and `observations/images/CAMERA`, raw or as JPEG bytes padded to one
length. Source: tonyzhaozh/act and MarkFzp/mobile-aloha `record_episodes.py`; thu-ml/RoboticsDiffusionTransformer
`data/hdf5_vla_dataset.py`.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
from jaxtyping import UInt8

from motus_jax.data import file_index, hdf5, pictures, source, storage
from motus_jax.data.source import BrokenData, Rows, broken
from motus_jax.data.sources.robotwin import ALOHA_JOINTS, joint_names
from motus_jax.errors import UserError

STATE, ACTION, BASE, IMAGES = "observations/qpos", "action", "base_action", "observations/images"
OWN_WORDS = ("language_instruction", "instruction")
"""Attributes or datasets of a file that may hold its instruction."""
SIDECARS = ("{stem}.json", "instruction.json", "instructions.json", "expanded_instruction_gpt-4-turbo.json")
"""Files beside an episode that may hold it, in this order; the last is RDT's."""
KEYS = (*OWN_WORDS, "instructions", "simplified_instruction", "expanded_instruction")
"""Entries of such a file: a text each, or a list of texts in equal right."""
DEPTH = 3
"""Folders between the given one and the files."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      file: HDF5 file.
      cameras: those that it has.
      texts: instructions.
    """

    file: storage.Path
    cameras: tuple[str, ...]
    texts: tuple[str, ...]


class AlohaDataset(source.Source):
    """Every HDF5 file of a folder and of those below it, in order of folders and numbers.

    Options:
      fps: rows a second, which the files do not say. 50 by default: ACT and Mobile ALOHA record every DT = 0.02 s
        (`constants.py`); RDT's AgileX robots record at 25.
      instruction: a text, or several in equal right, for all episodes; otherwise each episode's own, from an attribute
        or dataset `language_instruction` or `instruction`, or from a JSON file beside it.
      colours: of compressed pictures. "rgb_encoded_as_bgr" by default: the recorders hand RGB arrays to `cv2.imencode`,
        and their readers take what `cv2.imdecode` gives as RGB; "standard" for files of other writers. No file says
        which it is: look at the pictures. Raw pictures are RGB.
      base_action: True appends `base_action`, the velocities of a mobile base, to the actions.
      robot: its name.

    Actions are commands (positions of the leader arms), in the robot's own units: grippers are not rescaled.
    """

    OPTIONS: Mapping[str, Any] = {
        "fps": 50.0,
        "instruction": "",
        "colours": "rgb_encoded_as_bgr",
        "base_action": False,
        "robot": "aloha",
    }
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the episodes; the first time looks into every file for its length, widths and cameras.

        Raises:
          UserError: nothing there, an unknown option, or robots that differ in width.
        """
        super().__init__(path, options)
        source.check_choice(self.path, "colours", self.options["colours"], pictures.COLOURS)
        self.format = "ALOHA HDF5"
        self.fps, self.robot = source.positive_rate(self.path, self.options["fps"]), str(self.options["robot"])
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder of ALOHA episodes; found nothing there")
        files = list(_files(self.path, DEPTH))
        if not files:
            raise UserError(f"{self.path}: expected HDF5 files of episodes; found none")
        facts = file_index.facts_of(self.path, files, "aloha_hdf5 1", _facts)
        whole = [(file, fact) for file, fact in zip(files, facts) if "fault" not in fact]
        faults = [fact["fault"] for fact in facts if "fault" in fact]
        self.left_out = [k for k, fact in enumerate(facts) if "fault" in fact]
        if faults:
            _log.warning("%s: %d episodes left out that cannot be read; first: %s", self.path, len(faults), faults[0])
        if not whole:
            raise UserError(f"{self.path}: expected episodes; found none that can be read: {faults[0]}")
        self._columns = {name: self._width(whole, name) for name in (STATE, ACTION, BASE)}
        self.state_names = _names(self._columns[STATE])
        self.action_names = _names(self._columns[ACTION])
        if self.options["base_action"]:
            if not self._columns[BASE]:
                raise UserError(f"{self.path}: option base_action: expected {BASE} in the files; found none")
            self.action_names += tuple(f"base {k}" for k in range(self._columns[BASE]))
        self.cameras = source.join_cameras(fact["cameras"] for _, fact in whole)
        self.episodes = [
            Episode(index, fact["length"], file, tuple(fact["cameras"]), self._instructions(file, fact, index))
            for index, (file, fact) in enumerate(whole)
        ]

    def size_bytes(self) -> int:
        return file_index.total_bytes(episode.file for episode in self.episodes)

    def has_camera(self, index: int, camera: str) -> bool:
        """Whether an episode has a camera."""
        return self.camera_key(camera) in self.episode(index).cameras

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for text in episode.texts})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        return self.episode(index).texts

    def read_rows(self, index: int) -> Rows:
        file, length = self.episode(index).file, self.episode(index).length
        with hdf5.opened(file, index) as content:

            def table(name: str) -> np.ndarray:
                width = self._columns[name]
                if not width:
                    return np.zeros((length, 0), np.float32)
                return hdf5.matrix(content, file, index, name, length, width)

            state, action = table(STATE), table(ACTION)
            if self.options["base_action"]:
                action = np.concatenate([action, table(BASE)], axis=1)
        return source.commands(self.fps, state, action)

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        file, name = self.episode(index).file, f"{IMAGES}/{camera}"
        with hdf5.opened(file, index) as content:
            found = hdf5.dataset(content, file, index, name)
            return hdf5.read_pictures(found, rows, self.cameras[camera], file, index, name, self.options["colours"])

    def _width(self, whole: Sequence[tuple[storage.Path, Mapping[str, Any]]], name: str) -> int:
        """Numbers a row of a table, which must be the same in all episodes; 0 where none has it."""
        first, width = whole[0][0], whole[0][1]["widths"][name]
        for file, fact in whole:
            if fact["widths"][name] != width:
                raise UserError(
                    f"{self.path}: expected {name} of one width; found {width} numbers in {first} and "
                    f"{fact['widths'][name]} in {file}: open them as two sources"
                )
        return width

    def _instructions(self, file: storage.Path, fact: Mapping[str, Any], index: int) -> tuple[str, ...]:
        given = self.options["instruction"]
        if given:
            return _unique([given] if isinstance(given, str) else given)
        return _unique(fact["texts"]) or _sidecar(file, index)


def _facts(file: storage.Path) -> dict[str, Any]:
    """Length, widths, cameras and instruction of an episode; or why it cannot be read."""
    try:
        with hdf5.opened(file, file.stem) as content:
            widths = {name: _table_width(content, file, name) for name in (STATE, ACTION, BASE)}
            main = STATE if widths[STATE] else ACTION
            length = len(hdf5.dataset(content, file, file.stem, main))
            if not length:
                raise broken(file, file.stem, main, "rows of numbers", "none")
            views = content.get(IMAGES) or {}
            cameras = {
                name: hdf5.picture_size(view, file, file.stem, f"{IMAGES}/{name}") for name, view in views.items()
            }
            return {"length": length, "widths": widths, "cameras": cameras, "texts": _own_texts(content)}
    except BrokenData as error:
        return {"fault": str(error)}


def _table_width(content: h5py.File, file: storage.Path, name: str) -> int:
    """Numbers a row; 0 where the file has no such table."""
    if name not in content:
        return 0
    found = hdf5.dataset(content, file, file.stem, name)
    if found.ndim != 2:
        raise broken(file, file.stem, name, "rows of numbers", f"shape {found.shape}")
    return int(found.shape[1])


def _own_texts(content: h5py.File) -> list[str]:
    """The instruction that a file holds."""
    for name in OWN_WORDS:
        value = content.attrs.get(name)
        if value is None and isinstance(content.get(name), h5py.Dataset):
            value = content[name][()]
        if value is not None:
            return [hdf5.text(item) for item in np.asarray(value).ravel()] if np.ndim(value) else [hdf5.text(value)]
    return []


def _sidecar(file: storage.Path, episode: int) -> tuple[str, ...]:
    """Instructions from a JSON file beside the episode; none where there is no such file.

    Raises:
      BrokenData: it is there and holds no instruction.
    """
    for name in SIDECARS:
        place = file.parent / name.format(stem=file.stem)
        if not place.is_file():
            continue
        try:
            content = json.loads(place.read_text())
        except ValueError as error:
            raise broken(place, episode, "instruction", "JSON", error) from error
        texts = _unique(_json_texts(content))
        if not texts:
            raise broken(
                place, episode, "instruction", f"a text, a list of texts, or one of {', '.join(KEYS)}", content
            )
        return texts
    return ()


def _json_texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        yield from (item for item in content if isinstance(item, str))
    elif isinstance(content, dict):
        for key in KEYS:
            yield from _json_texts(content.get(key, []))


def _unique(texts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _names(width: int) -> tuple[str, ...]:
    return joint_names(ALOHA_JOINTS, width)


def _files(folder: storage.Path, depth: int) -> Iterator[storage.Path]:
    """HDF5 files of a folder, then of those below it; episode_10 comes after episode_2."""
    below = sorted(folder.iterdir(), key=lambda entry: _parts(entry.name))
    yield from (entry for entry in below if entry.suffix in (".hdf5", ".h5") and entry.is_file())
    if depth:
        for entry in below:
            if entry.is_dir():
                yield from _files(entry, depth - 1)


def _parts(name: str) -> list[tuple[int, str]]:
    """A name cut into words and numbers, to be sorted by."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
