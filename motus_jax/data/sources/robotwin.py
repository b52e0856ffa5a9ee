"""Reader of RoboTwin 2.0's raw episodes (HDF5).

Layout, `TASK/CONFIG/`: `data/episodeN.hdf5` with `joint_action`, `endpose` and JPEG pictures of each camera, and
`instructions/episodeN.json` with the instructions of that episode. Source: RoboTwin-Platform/RoboTwin
`envs/_base_task.py` (`get_obs`), `envs/utils/pkl2hdf5.py`, `description/utils/generate_episode_instructions.py`.
"""

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from motus_jax.data import file_index, hdf5, pictures, source, storage
from motus_jax.data.source import BrokenData, Rows, broken
from motus_jax.errors import UserError

QUANTITIES = ("joint", "endpose")
WORDS = ("seen", "unseen", "both")
POSE = ("x", "y", "z", "qw", "qx", "qy", "qz")
ARMS = ("left", "right")
ALOHA_JOINTS = (6, 6)
"""Joints of the arms of an ALOHA, of which `joint_names` is made where the data do not say."""
DEPTH = 2
"""Folders between the given one and that of a config: the root of all tasks is two above."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      file: HDF5 file.
      task: its folder's name.
      cameras: those that it has.
      texts: instructions.
    """

    file: storage.Path
    task: str
    cameras: tuple[str, ...]
    texts: tuple[str, ...]


class RoboTwinDataset(source.Source):
    """Episodes of RoboTwin 2.0: the folder of one config, of a task, or of all tasks, in order of task, config, number.

    Options:
      quantity: "joint", the joints and grippers of `joint_action/vector`, as many as the robots have; or "endpose",
        position, quaternion (w first) and gripper of each hand, 16 numbers.
      texts: "seen", the instructions meant for training, "unseen", those for evaluation, or "both".
      colours: "rgb_encoded_as_bgr", as RoboTwin writes (it hands RGB arrays to `cv2.imencode`, so that ordinary readers
        see red and blue swapped), or "standard", for files that another program wrote.
      fps: rows a second. RoboTwin saves every 15th step of 1/250 s, 16.7 rows per second of the simulated world, but
        writes its videos at 30, as Motus's converter does, and the public weights count in these units (an action every
        third row is called 10 Hz). So 30 by default; 250 / 15 mixes with other robots in real seconds.
      robot: its name.
      tasks, configs: names of folders to take; all where empty.

    State and action are the measured positions of the same row: RoboTwin stores no commands.
    """

    OPTIONS: Mapping[str, Any] = {
        "quantity": "joint",
        "texts": "seen",
        "colours": "rgb_encoded_as_bgr",
        "fps": 30.0,
        "robot": "aloha-agilex",
        "tasks": (),
        "configs": (),
    }
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the episodes; the first time looks into every file for its length, width and cameras.

        Raises:
          UserError: nothing there, an unknown option, or robots that differ in width.
        """
        super().__init__(path, options)
        for option, known in (("quantity", QUANTITIES), ("texts", WORDS), ("colours", pictures.COLOURS)):
            source.check_choice(self.path, option, self.options[option], known)
        self.format = "RoboTwin 2.0"
        self.fps, self.robot = source.positive_rate(self.path, self.options["fps"]), str(self.options["robot"])
        files = [file for folder in self._configs() for file in _episode_files(folder)]
        if not files:
            raise UserError(f"{self.path}: expected folders TASK/CONFIG/data with episodeN.hdf5; found none")
        facts = file_index.facts_of(self.path, files, f"robotwin 1, {self.options['quantity']}", self._facts)
        whole = [(file, fact) for file, fact in zip(files, facts) if "fault" not in fact]
        faults = [fact["fault"] for fact in facts if "fault" in fact]
        self.left_out = [k for k, fact in enumerate(facts) if "fault" in fact]
        if faults:
            _log.warning("%s: %d episodes left out that cannot be read; first: %s", self.path, len(faults), faults[0])
        if not whole:
            raise UserError(f"{self.path}: expected episodes; found none that can be read: {faults[0]}")
        self.state_names = self.action_names = self._names(whole)
        self.cameras = source.join_cameras(fact["cameras"] for _, fact in whole)
        self.episodes = [self._episode(k, file, fact) for k, (file, fact) in enumerate(whole)]

    def size_bytes(self) -> int:
        return file_index.total_bytes(episode.file for episode in self.episodes)

    def has_camera(self, index: int, camera: str) -> bool:
        """Whether an episode has a camera: configs may leave the wrist cameras out."""
        return self.camera_key(camera) in self.episode(index).cameras

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for text in episode.texts})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        return self.episode(index).texts

    def read_rows(self, index: int) -> Rows:
        episode = self.episode(index)
        with hdf5.opened(episode.file, index) as content:
            columns = [
                hdf5.matrix(content, episode.file, index, name, episode.length, width)
                for name, width in self._columns(self.state_dim)
            ]
        state = np.concatenate(columns, axis=1)
        return source.positions(self.fps, state, state)

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        episode, name = self.episode(index), f"observation/{camera}/rgb"
        with hdf5.opened(episode.file, index) as content:
            found = hdf5.dataset(content, episode.file, index, name)
            size, colours = self.cameras[camera], self.options["colours"]
            return hdf5.read_pictures(found, rows, size, episode.file, index, name, colours)

    def _columns(self, width: int) -> list[tuple[str, int]]:
        """(dataset, width) of what makes up a state."""
        if self.options["quantity"] == "joint":
            return [("joint_action/vector", width)]
        return [item for arm in ARMS for item in ((f"endpose/{arm}_endpose", 7), (f"endpose/{arm}_gripper", 1))]

    def _facts(self, file: storage.Path) -> dict[str, Any]:
        """Length, joints of each arm, width and cameras of an episode; or why it cannot be read."""
        try:
            with hdf5.opened(file, file.stem) as content:
                first = self._columns(0)[0][0]
                table = hdf5.dataset(content, file, file.stem, first)
                if table.ndim != 2 or not len(table):
                    raise broken(file, file.stem, first, "rows of numbers", f"shape {table.shape}")
                views = content.get("observation") or {}
                cameras = {
                    name: hdf5.picture_size(view["rgb"], file, file.stem, f"observation/{name}/rgb")
                    for name, view in views.items()
                    if "rgb" in view
                }
                arms = [content.get(f"joint_action/{arm}_arm") for arm in ARMS]
                joints = [0 if arm is None else int(arm.shape[-1]) for arm in arms]
                return {"length": len(table), "width": table.shape[1], "joints": joints, "cameras": cameras}
        except BrokenData as error:
            return {"fault": str(error)}

    def _names(self, whole: Sequence[tuple[storage.Path, Mapping[str, Any]]]) -> tuple[str, ...]:
        """A name per number of the state, which must be the same in all episodes."""
        if self.options["quantity"] == "endpose":
            return tuple(f"{arm} {name}" for arm in ARMS for name in (*POSE, "gripper"))
        (first, fact), width = whole[0], whole[0][1]["width"]
        for file, other in whole:
            if other["width"] != width:
                raise UserError(
                    f"{self.path}: expected robots of one width; found {width} in {first} and {other['width']} in "
                    f"{file}: open them as two sources"
                )
        return joint_names(fact["joints"], width)

    def _episode(self, index: int, file: storage.Path, fact: Mapping[str, Any]) -> Episode:
        texts = _instructions(file.parent.parent / "instructions" / f"{file.stem}.json", self.options["texts"], index)
        return Episode(index, fact["length"], file, file.parent.parent.parent.name, tuple(fact["cameras"]), texts)

    def _configs(self) -> Iterator[storage.Path]:
        """Folders of configs, sorted, as far as the options take them."""
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder of RoboTwin episodes; found nothing there")
        tasks, configs = (_names_of(self.options[option]) for option in ("tasks", "configs"))
        for folder in _folders_with_data(self.path, DEPTH):
            if (not tasks or folder.parent.name in tasks) and (not configs or folder.name in configs):
                yield folder


def joint_names(joints: Sequence[int], width: int) -> tuple[str, ...]:
    """Names of the numbers of `joint_action/vector`: joints and gripper of each arm; numbered if that does not add up.

    Args:
      joints: of the left and of the right arm.
      width: numbers.
    """
    if sum(joints) + len(ARMS) != width:
        return tuple(f"joint {k}" for k in range(width))
    groups = zip(ARMS, joints)
    return tuple(f"{arm} {name}" for arm, n in groups for name in (*(f"joint {k}" for k in range(n)), "gripper"))


def _names_of(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _folders_with_data(folder: storage.Path, depth: int) -> Iterator[storage.Path]:
    """Folders that hold `data` with episodes: this one, or those below it."""
    if _episode_files(folder):
        yield folder
    elif depth:
        for below in sorted(folder.iterdir()):
            if below.is_dir():
                yield from _folders_with_data(below, depth - 1)


def _episode_files(folder: storage.Path) -> list[storage.Path]:
    """HDF5 files of a config by number: episode10 comes after episode2."""
    if not (folder / "data").is_dir():
        return []
    numbered = [(re.fullmatch(r"episode(\d+)\.hdf5", file.name), file) for file in (folder / "data").iterdir()]
    return [file for _, file in sorted((int(match[1]), file) for match, file in numbered if match)]


def _instructions(file: storage.Path, words: str, episode: int) -> tuple[str, ...]:
    """Instructions of an episode; none where it has no such file.

    Raises:
      BrokenData: the file is there and is not what it should be.
    """
    if not file.is_file():
        return ()
    try:
        content = json.loads(file.read_text())
        kinds = ("seen", "unseen") if words == "both" else (words,)
        found = [text.strip() for kind in kinds for text in content[kind]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken(file, episode, "instructions", '{"seen": [...], "unseen": [...]}', repr(error)) from error
    return tuple(dict.fromkeys(text for text in found if text))
