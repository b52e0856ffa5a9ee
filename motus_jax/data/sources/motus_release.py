"""Readers of the layouts that the public Motus code trains from: robot episodes, and videos with latent actions.

Robot episodes, `{clean,randomized}/TASK/`: `videos/N.mp4` (three views in one T-shaped picture), `qpos/N.pt` (float32
[frames, joints]), `metas/N.txt` (an instruction a line), `umt5_wan/N.pt` (what an encoder made of each line). Videos
with latent actions, in any folder: `videos`, `metas` and `latent_action_dim14/N.pt` ([frames - 1, 14]). Source:
thu-ml/Motus `data/robotwin2/robotwin_agilex_dataset.py`, `data/robotwin2/robotwin_data_convert/robotwin_converter.py`.
"""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data import file_index, source, storage, video, video_facts
from motus_jax.data.prompt import TEMPLATES
from motus_jax.data.source import Rows, broken
from motus_jax.data.sources.robotwin import ALOHA_JOINTS, joint_names
from motus_jax.errors import UserError
from motus_jax.weights.torch_file import read_tensors

CAMERA = "tiled"
VIDEOS, TEXTS, EMBEDDINGS = "videos", "metas", "umt5_wan"
PREFIXES = ("strip", "keep")
SCENE = TEMPLATES["scene"].removesuffix("{instruction}")
"""What the release puts before every instruction of a robot episode."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      video, table: its files.
      fps: rows a second.
      header_fps: pictures a second, as the video's header says: they are found by these times.
      size: (height, width) of its pictures.
      texts: instructions.
    """

    video: storage.Path
    table: storage.Path
    fps: float
    header_fps: float
    size: tuple[int, int]
    texts: tuple[str, ...]


class MotusLayout(source.Source):
    """What both layouts share: folders of numbered videos with a table of numbers and texts beside each.

    An episode counts if all its files are there and can be read; others are left out with one warning that counts
    them. It has as many rows as the shorter of video and table gives, with one warning that counts such episodes.

    Options:
      fps: rows a second; 0 takes that of each video's header.
      robot: what moves.
      prefix: "strip" takes off the words that the release puts before every instruction of a robot episode, which
        `config.data.prompt_template` "scene" puts back; "keep" leaves the lines as they are.
      check_embeddings: whether the number of stored text embeddings, which are not used, is compared with that of the
        texts; turn it off where files are remote, since they are large.
    """

    TABLE: str
    """Folder of the tables."""
    SHORTER: int
    """Rows that a table has less than its video."""
    DEPTH: int
    """Folders between the given one and that of the episodes."""
    OPTIONS: Mapping[str, Any] = {"fps": 0.0, "robot": "unknown", "prefix": "strip", "check_embeddings": True}
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the episodes; the first time looks into every file for its length.

        Raises:
          UserError: nothing there, an unknown option, or tables that differ in width.
        """
        super().__init__(path, options)
        source.check_choice(self.path, "prefix", self.options["prefix"], PREFIXES)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder of the Motus layout; found nothing there")
        self.robot = str(self.options["robot"])
        if self.options["fps"]:
            source.positive_rate(self.path, self.options["fps"])
        leaves = list(_leaves(self.path, (VIDEOS, self.TABLE), self.DEPTH))
        if not leaves:
            raise UserError(f"{self.path}: expected folders with {VIDEOS} and {self.TABLE}; found none")
        whole = self._whole(leaves)
        self.width = self._one_width(whole)
        self.episodes = self._episodes(whole)
        self.fps = Counter(episode.fps for episode in self.episodes).most_common(1)[0][0]
        self.cameras = source.join_cameras({CAMERA: (item.video["height"], item.video["width"])} for item in whole)

    def size_bytes(self) -> int:
        return file_index.total_bytes(episode.table for episode in self.episodes)

    def times(self, index: int) -> Float[np.ndarray, "n"]:
        episode = self.episode(index)
        return np.arange(episode.length) / episode.fps

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for text in episode.texts})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        return self.episode(index).texts

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        episode = self.episode(index)
        return video.read_frames(
            episode.video, np.asarray(rows), episode.header_fps, 0.0, episode.size, f"episode {index}"
        )

    def _table(self, index: int) -> Float[np.ndarray, "n D"]:
        """The table of an episode, as far as it has rows."""
        episode = self.episode(index)
        try:
            with storage.local(episode.table) as local:
                (tensor,) = read_tensors(local)
                values = tensor.read()
        except FileNotFoundError as error:
            raise broken(episode.table, index, self.TABLE, "this file", "no such file") from error
        except (UserError, OSError, ValueError) as error:
            raise broken(episode.table, index, self.TABLE, "one tensor", error) from error
        if values.ndim != 2 or values.shape[1] != self.width or len(values) < episode.length:
            expected = f"at least {episode.length} rows of {self.width} numbers"
            raise broken(episode.table, index, self.TABLE, expected, f"shape {values.shape}")
        return values[: episode.length].astype(np.float32)

    def _whole(self, leaves: Sequence[storage.Path]) -> list["_Found"]:
        """The episodes whose files are all there and can be read, by folder and number."""
        listed = _listed(leaves, self.TABLE)
        complete = [files for files, lacks in listed if not lacks]
        facts = {
            name: file_index.facts_of(self.path, [files[name] for files in complete], f"motus {name} 1", read)
            for name, read in ((self.TABLE, _table_facts), (VIDEOS, _video_facts))
        }
        texts = self._texts(complete)
        found = [
            _Found(files, table, pictures, words)
            for files, table, pictures, words in zip(complete, facts[self.TABLE], facts[VIDEOS], texts)
        ]
        faults_of = iter([item.faults(self.SHORTER) for item in found])
        faults = [[lacks] if lacks else next(faults_of) for _, lacks in listed]
        whole = [item for item in found if not item.faults(self.SHORTER)]
        self.left_out = [place for place, found in enumerate(faults) if found]
        first = next((found[0] for found in faults if found), "no files")
        if self.left_out:
            _log.warning(
                "%s: %d episodes left out, whose files are missing or broken; first: %s",
                self.path,
                len(self.left_out),
                first,
            )
        if not whole:
            raise UserError(f"{self.path}: expected episodes; found none that is whole: {first}")
        if self.options["check_embeddings"]:
            self._compare_embeddings(whole)
        return whole

    def _texts(self, complete: Sequence[Mapping[str, storage.Path]]) -> list[list[str]]:
        """The lines of each episode's text file."""
        files = [item[TEXTS] for item in complete if TEXTS in item]
        lines = dict(zip(files, file_index.facts_of(self.path, files, f"motus {TEXTS} 1", _lines)))
        return [lines[item[TEXTS]] if TEXTS in item else [] for item in complete]

    def _compare_embeddings(self, whole: Sequence["_Found"]) -> None:
        """Says that stored embeddings are not used, and whether there are as many as texts."""
        stored = [item for item in whole if EMBEDDINGS in item.files]
        if not stored:
            return
        _log.info("%s: stored text embeddings are not used; texts are encoded here", self.path)
        counts = file_index.facts_of(
            self.path, [item.files[EMBEDDINGS] for item in stored], f"motus {EMBEDDINGS} 1", _count
        )
        other = [(item, count) for item, count in zip(stored, counts) if count != len(item.lines)]
        if other:
            item, count = other[0]
            _log.warning(
                "%s: %d episodes whose embeddings are not one for each line of text; first: %s: expected %d, found %s",
                self.path, len(other), item.files[EMBEDDINGS], len(item.lines), count,
            )  # fmt: skip

    def _one_width(self, whole: Sequence["_Found"]) -> int:
        """Numbers a row, which must be the same in all episodes."""
        first, width = whole[0].files[self.TABLE], whole[0].table["width"]
        for item in whole:
            if item.table["width"] != width:
                raise UserError(
                    f"{self.path}: expected tables of one width; found {width} numbers in {first} and "
                    f"{item.table['width']} in {item.files[self.TABLE]}: open them as two sources"
                )
        return width

    def _episodes(self, whole: Sequence["_Found"]) -> list[Episode]:
        episodes, uneven = [], []
        for index, item in enumerate(whole):
            frames, rows = item.video["frames"], item.table["rows"]
            if rows != frames - self.SHORTER:
                uneven.append(f"{item.files[self.TABLE]}: expected {frames - self.SHORTER} rows, found {rows}")
            texts = tuple(dict.fromkeys(self._bare(line) for line in item.lines))
            fps = float(self.options["fps"]) or item.video["fps"]
            size = (item.video["height"], item.video["width"])
            files = item.files
            length = min(frames - self.SHORTER, rows)
            episodes.append(
                Episode(index, length, files[VIDEOS], files[self.TABLE], fps, item.video["fps"], size, texts)
            )
        if uneven:
            _log.warning(
                "%s: %d episodes whose video and %s differ in length take the shorter; first: %s",
                self.path, len(uneven), self.TABLE, uneven[0],
            )  # fmt: skip
        return episodes

    def _bare(self, line: str) -> str:
        return line.removeprefix(SCENE) if self.options["prefix"] == "strip" else line


class MotusDataset(MotusLayout):
    """Robot episodes: the root, or the folder of "clean", of "randomized", or of one task.

    State and action are the measured joint positions of the same row. The camera "tiled" shows three views: head above,
    left and right wrist below. Instructions are the lines of `metas`.
    """

    TABLE, SHORTER, DEPTH = "qpos", 0, 2
    OPTIONS: Mapping[str, Any] = MotusLayout.OPTIONS | {"robot": "aloha-agilex"}

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        super().__init__(path, options)
        self.format = "Motus robot episodes"
        self.state_names = self.action_names = joint_names(ALOHA_JOINTS, self.width)

    def read_rows(self, index: int) -> Rows:
        table = self._table(index)
        return source.positions(self.episode(index).fps, table, table)


class MotusLatentDataset(MotusLayout):
    """Videos with latent actions: any folder whose subfolders, at most `DEPTH` deep, hold them.

    Row k is frame k with the latent action of the motion from it to the next frame, so the last frame, from which
    nothing moves on, is no row. There are no states and no actions.
    """

    TABLE, SHORTER, DEPTH = "latent_action_dim14", 1, 4

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        super().__init__(path, options)
        self.format = "Motus latent actions"
        self.latent_dim = self.width

    def read_rows(self, index: int) -> Rows:
        latent = self._table(index)
        nothing = np.zeros((len(latent), 0), np.float32)
        return source.commands(self.episode(index).fps, nothing, nothing, latent)


@dataclasses.dataclass(frozen=True)
class _Found:
    """Files of an episode and what was found in them.

    Attributes:
      files: by folder.
      table: "rows" and "width", or "fault".
      video: "frames", "fps", "height", "width", or "fault".
      lines: texts.
    """

    files: Mapping[str, storage.Path]
    table: Mapping[str, Any]
    video: Mapping[str, Any]
    lines: Sequence[str]

    def faults(self, shorter: int) -> list[str]:
        """Why it cannot be used; nothing if it can."""
        found = [facts["fault"] for facts in (self.table, self.video) if "fault" in facts]
        if not found and self.video["frames"] <= shorter:
            found = [f"{self.files[VIDEOS]}: expected more than {shorter} frames; found {self.video['frames']}"]
        return found


def _leaves(folder: storage.Path, names: Sequence[str], depth: int) -> Iterator[storage.Path]:
    """Folders that hold all these subfolders: this one, or those below it, in order of their names."""
    if all((folder / name).is_dir() for name in names):
        yield folder
    elif depth:
        for below in sorted(folder.iterdir()):
            if below.is_dir():
                yield from _leaves(below, names, depth - 1)


def _listed(leaves: Sequence[storage.Path], table: str) -> list[tuple[dict[str, storage.Path], str]]:
    """The files of each episode and what it lacks, if anything, in order of folders and numbers.

    Texts are needed where the folder has any; embeddings are taken along where they are there.
    """
    listed = []
    ends = {VIDEOS: ".mp4", table: ".pt", TEXTS: ".txt", EMBEDDINGS: ".pt"}
    for leaf in leaves:
        there = {folder: _stems(leaf / folder, end) for folder, end in ends.items()}
        needed = [VIDEOS, table] + [TEXTS] * bool(there[TEXTS])
        for name in sorted(there[VIDEOS] | there[table], key=_number):
            files = {folder: leaf / folder / f"{name}{end}" for folder, end in ends.items() if name in there[folder]}
            lacks = [str(leaf / folder / f"{name}{ends[folder]}") for folder in needed if folder not in files]
            listed.append((files, f"{lacks[0]}: no such file" if lacks else ""))
    return listed


def _stems(folder: storage.Path, end: str) -> set[str]:
    return {file.stem for file in folder.iterdir() if file.suffix == end} if folder.is_dir() else set()


def _number(name: str) -> tuple[bool, int, str]:
    """Numbers in their order, then other names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _table_facts(file: storage.Path) -> dict[str, Any]:
    try:
        with storage.local(file) as local:
            tensors = read_tensors(local)
        if len(tensors) != 1 or len(tensors[0].shape) != 2 or not tensors[0].size:
            return {
                "fault": f"{file}: expected one tensor of rows; found shapes {[item.shape for item in tensors][:3]}"
            }
        return {"rows": tensors[0].shape[0], "width": tensors[0].shape[1]}
    except UserError as error:
        return {"fault": str(error)}


def _video_facts(file: storage.Path) -> dict[str, Any]:
    try:
        return dataclasses.asdict(video_facts.read(file))
    except ValueError as error:
        return {"fault": f"{file}: expected a video; found {error}"}


def _lines(file: storage.Path) -> list[str]:
    return [line.strip() for line in file.read_text().splitlines() if line.strip()]


def _count(file: storage.Path) -> int | str:
    """Tensors in a file of embeddings, or why it cannot be read."""
    try:
        with storage.local(file) as local:
            return len(read_tensors(local))
    except UserError as error:
        return f"a broken file ({error})"
