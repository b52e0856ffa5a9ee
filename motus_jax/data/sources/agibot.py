"""Reader of AgiBot World (alpha and beta).

Layout below the root, with the release's archives unpacked in place: `task_info/task_T.json` lists the episodes of a
task with their words; `observations/T/E/videos/CAMERA.mp4`; `proprio_stats/T/E/proprio_stats.h5` with
`state/GROUP/position` and `action/GROUP/position`. 30 rows and frames a second. Source: the dataset's card (units:
joints in rad, hands in m with quaternions x, y, z, w; grippers in mm as states, but 0 open to 1 closed as commands) and
OpenDriveLab/AgiBot-World `scripts/convert_to_lerobot.py` (names of groups and files).
"""

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data import file_index, hdf5, source, storage, video
from motus_jax.data.source import BrokenData, Rows, broken
from motus_jax.errors import UserError

FPS = 30.0
WORDS = ("segments", "task")
ACTIONS = ("commands", "states")
GRIPPERS = ("effector", "pose")
"""Groups whose commands are in other units than their states."""
PARTS = {
    "end": ("end/position", "end/orientation"),
    "pose": ("end/position", "end/orientation", "effector/position"),
}
"""Datasets of a group; of others `GROUP/position` alone."""
SIDES = ("left", "right")
POSES = 16
THREADS = 8
HAND_NAMES = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper")
TABLE = "proprio_stats.h5"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      table: HDF5 file.
      videos: mp4 file of each camera that it has.
      task: name of the task.
      segments: (first row, beyond last, words) of its steps.
    """

    table: storage.Path
    videos: dict[str, storage.Path]
    task: str
    segments: tuple[tuple[int, int, str], ...]


class AgiBotDataset(source.Source):
    """Episodes of AgiBot World, in order of task and episode number.

    Options:
      groups: groups of `state` that make up state and action, in this order. "joint" are the 14 joints of both arms,
        "effector" the grippers (2 numbers, or 12 of dexterous hands), "end" both hands' positions, then quaternions as
        stored, "head" and "waist" what the names say; "pose" is of each hand position, quaternion (w first) and
        gripper, 16 numbers, as action space end_effector wants them.
      actions: "commands", or "states", for actions in the units of the states (action space delta subtracts them).
      words: "segments", the words of the step that a row belongs to, the task's name outside of all steps; or "task",
        the task's name everywhere.
      tasks: numbers of tasks to take; all where empty.

    An action is the command of its row, to be reached at the next. Some episodes have no commands of a group: then the
    state of the next row stands for it, which is what was reached; but not of grippers where other episodes have
    commands, since numbers of two units would be mixed.
    """

    OPTIONS: Mapping[str, Any] = {
        "groups": ("joint", "effector"), "actions": "commands", "words": "segments", "tasks": (),
    }  # fmt: skip
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the episodes; the first time looks into every table for its length and widths.

        Raises:
          UserError: nothing there, an unknown option, or groups that differ in width between episodes.
        """
        super().__init__(path, options)
        source.check_choice(self.path, "words", self.options["words"], WORDS)
        source.check_choice(self.path, "actions", self.options["actions"], ACTIONS)
        self.format, self.robot, self.fps = "AgiBot World", "agibot g1", FPS
        listed = self._listed()
        tables = [self._table(task, record) for task, record in listed]
        with ThreadPoolExecutor(THREADS) as pool:
            present = [table for table, found in zip(tables, pool.map(lambda table: table.is_file(), tables)) if found]
        facts = dict(zip(present, file_index.facts_of(
            self.path, present, f"agibot 2, {list(self.options['groups'])}", self._facts)))  # fmt: skip
        whole, faults, self.left_out = [], [], []
        for place, ((task, record), table) in enumerate(zip(listed, tables)):
            fact = facts.get(table, {"fault": f"{table}: expected this file; found no such file"})
            try:
                segments = _segments(record)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                fact = {"fault": f"{table}: label_info in task_info: expected steps with frames; found {error!r}"}
            if "fault" in fact:
                faults.append(fact["fault"])
                self.left_out.append(place)
            else:
                whole.append(((task, record, segments), fact))
        if faults:
            _log.warning("%s: %d episodes left out that cannot be read; first: %s", self.path, len(faults), faults[0])
        if not whole:
            raise UserError(f"{self.path}: expected episodes; found none that can be read: {faults[0]}")
        self._widths = self._common_widths(whole)
        self._commanded = {group for _, fact in whole for group in fact["commands"]}
        self.state_names = self.action_names = _names(self._widths)
        self.episodes = [self._episode(k, *item, fact) for k, (item, fact) in enumerate(whole)]
        names = sorted({name for episode in self.episodes for name in episode.videos})
        self.cameras = dict.fromkeys(names)

    def size_bytes(self) -> int:
        return file_index.total_bytes(episode.table for episode in self.episodes)

    def has_camera(self, index: int, camera: str) -> bool:
        """Whether an episode has the video of a camera."""
        return self.camera_key(camera) in self.episode(index).videos

    def all_texts(self) -> list[str]:
        segments = {words for episode in self.episodes for _, _, words in episode.segments}
        return sorted(({episode.task for episode in self.episodes} | segments) - {""})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        episode = self.episode(index)
        for first, beyond, words in episode.segments:
            if first <= row < beyond:
                return (words,)
        return (episode.task,) if episode.task else ()

    def read_rows(self, index: int) -> Rows:
        episode = self.episode(index)
        with hdf5.opened(episode.table, index) as content:
            states = {group: _group(content, episode, "state", group, self._widths[group]) for group in self._widths}
            actions = [self._actions(content, episode, group, state) for group, state in states.items()]
        return source.commands(FPS, np.concatenate(list(states.values()), 1), np.concatenate(actions, 1))

    def _actions(
        self, content: h5py.File, episode: Episode, group: str, state: Float[np.ndarray, "n D"]
    ) -> Float[np.ndarray, "n D"]:
        """The commands of a group, or the states that are reached one row later."""
        if self.options["actions"] == "commands":
            if _has_rows(content, "action", group):
                return _group(content, episode, "action", group, self._widths[group])
            if group in GRIPPERS and group in self._commanded:
                expected = "commands, as other episodes have; or option actions=states"
                raise broken(episode.table, episode.index, f"action/{group}", expected, "none")
        return np.concatenate([state[1:], state[-1:]])

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        episode = self.episode(index)
        if camera not in episode.videos:
            raise broken(self.path, index, camera, "a video of this camera", ", ".join(episode.videos) or "none")
        file = episode.videos[camera]
        return video.read_frames(file, np.asarray(rows), FPS, 0.0, None, f"episode {index}")

    def _listed(self) -> list[tuple[int, Mapping[str, Any]]]:
        """(task, record of an episode) of all episodes, sorted."""
        folder = self.path / "task_info"
        if not folder.is_dir():
            raise UserError(f"{self.path}: expected a folder task_info with task_T.json; found none")
        numbers = {int(match[1]): file for file in folder.iterdir()
                   if (match := re.fullmatch(r"task_(\d+)\.json", file.name))}  # fmt: skip
        wanted = {int(task) for task in self.options["tasks"]} or set(numbers)
        if not wanted or wanted - set(numbers):
            raise UserError(f"{folder}: expected tasks {sorted(wanted) or 'task_T.json'}; found {sorted(numbers)}")
        found = []
        for task in sorted(wanted):
            try:
                records = json.loads(numbers[task].read_text())
                found += [(task, record) for record in sorted(records, key=lambda record: int(record["episode_id"]))]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{numbers[task]}: expected episodes, each with episode_id; found {error!r}") from error
        return found

    def _table(self, task: int, record: Mapping[str, Any]) -> storage.Path:
        return self.path / "proprio_stats" / str(task) / str(record["episode_id"]) / TABLE

    def _facts(self, file: storage.Path) -> dict[str, Any]:
        """Rows and width of each group; or why the table cannot be read."""
        label = f"{file.parent.parent.name}/{file.parent.name}"
        try:
            with hdf5.opened(file, label) as content:
                shapes = {group: [part.shape for part in _parts(content, "state", group)]
                          for group in self.options["groups"]}  # fmt: skip
                for group, parts in shapes.items():
                    if not parts or any(not shape or not shape[0] for shape in parts):
                        raise broken(file, label, f"state/{group}", "rows of numbers", parts or "no such group")
                widths = {group: sum(int(np.prod(shape[1:])) for shape in parts) for group, parts in shapes.items()}
                if widths.get("pose", POSES) != POSES:
                    raise broken(file, label, "state/pose", f"{POSES} numbers a row, with grippers", shapes["pose"])
                commands = [group for group in shapes if _has_rows(content, "action", group)]
                return {"length": next(iter(shapes.values()))[0][0], "widths": widths, "commands": commands}
        except BrokenData as error:
            return {"fault": str(error)}

    def _common_widths(self, whole: Sequence[tuple[tuple, Mapping[str, Any]]]) -> dict[str, int]:
        ((task, record, _), first), *others = whole
        for (other_task, other, _), fact in others:
            if fact["widths"] != first["widths"]:
                raise UserError(
                    f"{self.path}: expected one robot, with {first['widths']} as in episode "
                    f"{task}/{record['episode_id']}; found {fact['widths']} in {other_task}/{other['episode_id']}: "
                    "choose options tasks or groups"
                )
        return dict(first["widths"])

    def _episode(
        self, index: int, task: int, record: Mapping[str, Any], segments: tuple, fact: Mapping[str, Any]
    ) -> Episode:
        folder = self.path / "observations" / str(task) / str(record["episode_id"]) / "videos"
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        videos = {file.stem: file for file in files if file.suffix == ".mp4"}
        segments = segments if self.options["words"] == "segments" else ()
        table = self._table(task, record)
        return Episode(index, fact["length"], table, videos, str(record.get("task_name") or "").strip(), segments)


def _segments(record: Mapping[str, Any]) -> tuple[tuple[int, int, str], ...]:
    """(first row, beyond last, words) of an episode's steps; those without words are left out."""
    steps = (record.get("label_info") or {}).get("action_config") or []
    worded = ((step, str(step.get("action_text") or "").strip()) for step in steps)
    return tuple((int(step["start_frame"]), int(step["end_frame"]), text) for step, text in worded if text)


def _names(widths: Mapping[str, int]) -> tuple[str, ...]:
    """Names of the dims of all groups."""
    names = {"pose": [f"{side} {name}" for side in SIDES for name in HAND_NAMES]}
    return tuple(name for group, width in widths.items()
                 for name in names.get(group, [f"{group} {k}" for k in range(width)]))  # fmt: skip


def _parts(content: h5py.File, side: str, group: str) -> list[h5py.Dataset]:
    """Datasets of a group of "state" or "action": positions and, of hands, orientations. None where one lacks."""
    names = PARTS.get(group, (f"{group}/position",))
    found = [content.get(f"{side}/{name}") for name in names]
    return found if all(isinstance(part, h5py.Dataset) for part in found) else []


def _has_rows(content: h5py.File, side: str, group: str) -> bool:
    parts = _parts(content, side, group)
    return bool(parts) and all(part.shape and part.shape[0] for part in parts)


def _group(
    content: h5py.File, episode: Episode, side: str, group: str, width: int
) -> Float[np.ndarray, "n D"]:
    """The numbers of a group, float32; both arms behind one another in a row."""
    parts = [np.asarray(part[()], np.float32) for part in _parts(content, side, group)]
    shapes = [part.shape for part in parts]
    if {shape[0] for shape in shapes} != {episode.length}:
        expected = f"{episode.length} rows, as state has"
        raise broken(episode.table, episode.index, f"{side}/{group}", expected, shapes)
    if sum(part[0].size for part in parts) != width:
        raise broken(episode.table, episode.index, f"{side}/{group}", f"{width} numbers a row", shapes)
    if group == "pose":
        place, turn, grip = (part.reshape(episode.length, len(SIDES), -1) for part in parts)
        parts = [np.concatenate([place, np.roll(turn, 1, axis=-1), grip], axis=-1)]  # x, y, z, w -> w, x, y, z
    return np.concatenate([part.reshape(episode.length, -1) for part in parts], axis=1)
