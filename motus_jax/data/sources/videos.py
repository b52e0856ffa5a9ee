"""Reader of plain videos with captions: web and egocentric video (pyramid layers 1 and 2).

A folder, up to `DEPTH` levels deep, of video files. Captions stand in `CLIP.txt` beside a file, a line for each of
several in equal right, or in `captions.jsonl`, `captions.csv` or `captions.tsv` in the given folder with the columns
`file` and `text` and optionally `start` and `end` (seconds since the first frame). A span of such a table is an episode
of its own, so that narrations of one long film are many episodes; rows of the same span are in equal right.
"""

import csv
import dataclasses
import functools
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from motus_jax.data import file_index, source, storage, video
from motus_jax.data.source import BrokenData, Rows, broken
from motus_jax.errors import UserError

SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
TABLES = ("captions.jsonl", "captions.csv", "captions.tsv")
DEPTH = 3
CAMERA = "video"

Span = tuple[float | None, float | None]
"""Start and end in seconds; None where the film's own."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Film:
    """A video file.

    Attributes:
      file: the file.
      base: seconds of a unit of its timestamps.
      stamps: timestamps of its frames, rising: a range where they are evenly spaced (most films, so that a million of
        them fit into memory), an array where they are not.
    """

    file: storage.Path
    base: float
    stamps: range | Int[np.ndarray, "n"]

    def seconds(self, first: int = 0, beyond: int | None = None) -> Float[np.ndarray, "n"]:
        """Of some frames, in the file's own time."""
        return np.asarray(self.stamps[first:beyond]) * self.base

    @functools.cached_property
    def tolerance(self) -> float:
        """Seconds by which the time of a frame may be taken for another: half of the shortest gap."""
        if len(self.stamps) == 1:
            return 1.0
        shortest = self.stamps.step if isinstance(self.stamps, range) else int(np.diff(self.stamps).min())
        return shortest * self.base / 2

    @property
    def fps(self) -> float:
        """Frames per second, on average; 0 of a single one."""
        return (len(self.stamps) - 1) / (max(1, int(self.stamps[-1] - self.stamps[0])) * self.base)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """A film, or a span of one.

    Attributes:
      film: which.
      first: its first frame.
      captions: what it shows.
    """

    film: Film
    first: int
    captions: tuple[str, ...]


class VideoFolder(source.Source):
    """Videos without states and actions; a row is a frame, at the time that the file gives it.

    Options:
      robot: who moves: "none", or "human" for egocentric video.
    """

    OPTIONS: Mapping[str, Any] = {"robot": "none"}
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens the films; the first time reads the timestamps of each, without decoding anything.

        Raises:
          UserError: nothing there, or captions that name a file, a span or a column that does not exist.
        """
        super().__init__(path, options)
        self.format, self.robot = "videos", str(self.options["robot"])
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected a folder of videos; found nothing there")
        files = sorted(_videos(self.path, DEPTH), key=str)
        if not files:
            raise UserError(f"{self.path}: expected videos ({', '.join(SUFFIXES)}); found none")
        facts = file_index.facts_of(self.path, files, "videos 1", _facts)
        films = {self._name(file): _film(file, fact) for file, fact in zip(files, facts) if "fault" not in fact}
        faults = [fact["fault"] for fact in facts if "fault" in fact]
        if faults:
            listed = "\n  ".join(faults)
            _log.warning("%s: %d videos left out that cannot be read:\n  %s", self.path, len(faults), listed)
        if not films:
            raise UserError(f"{self.path}: expected videos; found none that can be read: {faults[0]}")
        sizes = {tuple(fact["size"]) for fact in facts if "fault" not in fact}
        self.cameras = {CAMERA: next(iter(sizes)) if len(sizes) == 1 else None}
        self.left_out = []
        spans = self._spans(films, [self._name(file) for file in files])
        self.episodes = [Episode(k, length, *rest) for k, (length, *rest) in enumerate(spans)]
        rates = [film.fps for film in films.values() if film.fps]
        self.fps = round(float(np.median(rates)), 3) if rates else 1.0

    def times(self, index: int) -> Float[np.ndarray, "n"]:
        episode = self.episode(index)
        seconds = episode.film.seconds(episode.first, episode.first + episode.length)
        return seconds - seconds[0]

    def size_bytes(self) -> int:
        return file_index.total_bytes({episode.film.file for episode in self.episodes})

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for text in episode.captions})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        return self.episode(index).captions

    def read_rows(self, index: int) -> Rows:
        return source.pictures_only(self.times(index))

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        episode = self.episode(index)
        film, rows = episode.film, np.asarray(rows)
        if rows.min() < 0 or rows.max() >= episode.length:
            raise broken(film.file, index, camera, f"rows 0 to {episode.length - 1}", int(rows.max()))
        seconds = film.seconds(episode.first, episode.first + episode.length)
        return video.read_at(film.file, seconds[rows], film.tolerance, None, f"episode {index}")

    def _name(self, file: storage.Path) -> str:
        """A file's path below the folder."""
        return str(file)[len(str(self.path)) :].lstrip("/")

    def _spans(
        self, films: Mapping[str, Film], names: Sequence[str]
    ) -> Iterator[tuple[int, Film, int, tuple[str, ...]]]:
        """(frames, film, first frame, captions) of every episode, in order of files, then of the table; notes those of
        files that cannot be read."""
        table, place = self._table(set(names)), 0
        for name in names:
            rows, film = table.get(name), films.get(name)
            before, place = place, place + len(rows or (None,))
            if film is None:
                self.left_out.extend(range(before, place))
                continue
            rows = rows or {(None, None): _sidecar(film.file)}
            ends = film.seconds() - film.seconds(0, 1) if len(rows) > 1 or (None, None) not in rows else None
            for (start, end), words in rows.items():
                first, beyond = 0, len(film.stamps)
                if (start, end) != (None, None):
                    first, beyond = np.searchsorted(ends, [start or 0.0, np.inf if end is None else end])
                    if first >= beyond:
                        raise UserError(
                            f"{self.path}: captions of {name}: expected a span inside its {ends[-1]:.2f} s; found "
                            f"{start} to {end}"
                        )
                yield int(beyond - first), film, int(first), tuple(words)

    def _table(self, known: set[str]) -> dict[str, dict[Span, list[str]]]:
        """Captions by file and span."""
        present = [self.path / name for name in TABLES if (self.path / name).is_file()]
        if len(present) > 1:
            raise UserError(f"{self.path}: expected one table of captions; found {', '.join(p.name for p in present)}")
        found: dict[str, dict[Span, list[str]]] = {}
        for number, row in enumerate(_rows(present[0]) if present else (), start=1):
            where = f"{present[0]}, row {number}"
            if not isinstance(row, dict) or not {"file", "text"} <= row.keys():
                raise UserError(f"{where}: expected the columns file and text; found {row}")
            if row["file"] not in known:
                raise UserError(f"{where}: expected a video below {self.path}; found no {row['file']!r}")
            try:
                start, end = (float(row[key]) if row.get(key) not in (None, "") else None for key in ("start", "end"))
            except (TypeError, ValueError) as error:
                raise UserError(f"{where}: expected start and end in seconds; found {row}") from error
            words, text = found.setdefault(row["file"], {}).setdefault((start, end), []), str(row["text"] or "").strip()
            if text and text not in words:
                words.append(text)
        return found


def _videos(folder: storage.Path, depth: int) -> Iterator[storage.Path]:
    for entry in folder.iterdir():
        if entry.suffix.lower() in SUFFIXES:
            yield entry
        elif depth > 1 and not entry.suffix and entry.is_dir():
            yield from _videos(entry, depth - 1)


def _facts(file: storage.Path) -> dict[str, Any]:
    """Size and timestamps of a film, three numbers where they are evenly spaced; or why it cannot be read."""
    try:
        base, size, stamps = video.list_timestamps(file)
    except BrokenData as error:
        return {"fault": str(error)}
    step = int(stamps[1] - stamps[0]) if len(stamps) > 1 else 1
    even = bool((np.diff(stamps) == step).all())
    return {
        "size": size,
        "base": [base.numerator, base.denominator],
        "stamps": {"first": int(stamps[0]), "step": step, "count": len(stamps)} if even else stamps.tolist(),
    }


def _film(file: storage.Path, fact: Mapping[str, Any]) -> Film:
    stamps, base = fact["stamps"], float(Fraction(*fact["base"]))
    if isinstance(stamps, dict):
        first, step = stamps["first"], stamps["step"]
        return Film(file, base, range(first, first + step * stamps["count"], step))
    return Film(file, base, np.asarray(stamps, np.int64))


def _sidecar(file: storage.Path) -> tuple[str, ...]:
    """Captions from the text file beside a video; none without one."""
    beside = file.parent / f"{file.stem}.txt"
    lines = beside.read_text().splitlines() if beside.is_file() else []
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _rows(table: storage.Path) -> list[dict[str, Any]]:
    text = table.read_text().removeprefix("\ufeff")  # as some spreadsheets write it
    if table.suffix == ".jsonl":
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise UserError(f"{table}: expected one JSON object a line; found {error}") from error
    try:
        mark = "\t" if table.suffix == ".tsv" else ","
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True))
    except csv.Error as error:
        raise UserError(f"{table}: expected a table with closed quotes; found {error}") from error
