"""Any source -> record files (`motus_jax.data.records`), shard by shard.

Which episodes lie in which shard follows from the plan alone, and the encoder runs in one thread with fixed settings:
so hosts may share the work, and a conversion that was killed goes on at the first missing shard with the same bytes.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from motus_jax.data import clip, records, storage
from motus_jax.data.records import DONE, FRAMES, TABLES, Clip, Entry, Index, Place, Segment, Shard
from motus_jax.data.source import BrokenData, Source
from motus_jax.errors import UserError

EVEN = 1e-6
"""Seconds by which rows may miss the constant rate and still count as even."""
BYTES_PER_PIXEL = 0.03
"""What a pixel of a clip is guessed to cost, to choose the number of shards."""
REPORT_EVERY = 5.0
"""Seconds between two lines about the progress."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is converted how.

    Attributes:
      cameras: names as of the source; none: all.
      fps: rows and frames per second that are kept, at most the source's; 0: all.
      size: (height, width) in pixels that larger pictures are made to fit, proportions kept; None: as they are.
      segment_seconds: length of a segment.
      crf: quality of the clips, 0 (lossless) to 51.
      shards: their number; 0: as many as have about `shard_mb` each.
      shard_mb: megabytes.
    """

    cameras: tuple[str, ...] = ()
    fps: float = 0.0
    size: tuple[int, int] | None = None
    segment_seconds: float = 2.0
    crf: int = 20
    shards: int = 0
    shard_mb: float = 256.0


@dataclasses.dataclass(frozen=True)
class Work:
    """How the work is done, which changes no byte of the result.

    Attributes:
      workers: episodes at a time.
      resume: goes on with what lies in the folder.
      host, hosts: shard s of all is written by host s % hosts.
      say: takes lines about the progress.
    """

    workers: int = 1
    resume: bool = False
    host: int = 0
    hosts: int = 1
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """`plan.json`.

    Attributes:
      origin: kind, format and facts of the source.
      cameras: by name, (height, width) in the source and in the records; None where sizes differ.
      fps: rows per second that are kept.
      segment_rows: rows of a segment.
      size, crf: as in `Settings`.
      shards: [first, beyond last] episodes of each.
    """

    origin: dict[str, Any]
    cameras: dict[str, tuple[int, int] | None]
    fps: float
    segment_rows: int
    size: tuple[int, int] | None
    crf: int
    shards: tuple[tuple[int, int], ...]

    def text(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self) | {"format": records.FORMAT}, indent=1) + "\n"

    @property
    def digest(self) -> str:
        """Tells a shard of this plan from those of others."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:32]


def make_plan(source: Source, kind: str, settings: Settings) -> Plan:
    """What the settings mean for a source.

    Raises:
      UserError: an unknown camera, a rate above the source's, or other settings that make no sense.
    """
    names = [source.camera_key(name) for name in settings.cameras] or list(source.cameras)
    for name, value, lowest in (("fps", settings.fps, 0), ("shards", settings.shards, 0), ("crf", settings.crf, 0)):
        if value < lowest:
            raise UserError(f"--{name}: expected at least {lowest}; found {value}")
    if settings.fps > source.fps * (1 + EVEN):
        raise UserError(f"--fps: expected at most the source's {source.fps:g}; found {settings.fps:g}")
    if settings.size is not None and min(settings.size) < 2:
        raise UserError(f"--size: expected HEIGHTxWIDTH of at least 2 pixels; found {settings.size}")
    if not settings.segment_seconds > 0 or not settings.shard_mb > 0 or settings.crf > 51:
        raise UserError("expected --segment_seconds and --shard_mb above 0 and --crf at most 51")
    sizes = {name: source.cameras[name] for name in names}
    cameras = {name: None if size is None else clip.fitted_size(size, settings.size) for name, size in sizes.items()}
    fps = settings.fps or source.fps
    origin = {"kind": kind, "format": source.format, **source.facts()}
    return Plan(
        origin=json.loads(json.dumps(origin)),
        cameras=cameras,
        fps=fps,
        segment_rows=max(1, round(settings.segment_seconds * fps)),
        size=settings.size,
        crf=settings.crf,
        shards=_shards(source, settings, cameras, fps),
    )


def _shards(
    source: Source, settings: Settings, cameras: Mapping[str, Any], fps: float
) -> tuple[tuple[int, int], ...]:
    """Episodes in a row, about as many rows in each shard."""
    ends = np.cumsum([episode.length for episode in source.episodes])
    pixels = sum(height * width for height, width in (size or (480, 640) for size in cameras.values()))
    total = ends[-1] * fps / source.fps * (pixels * BYTES_PER_PIXEL + 4 * (source.state_dim + source.action_dim) + 16)
    count = min(settings.shards or max(1, round(total / 1e6 / settings.shard_mb)), len(ends))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count).tolist()
    edges = sorted({0, len(ends), *(cut + 1 for cut in cuts if cut + 1 < len(ends))})
    return tuple(itertools.pairwise(edges))


def convert(source: Source, kind: str, out: storage.Path, settings: Settings, work: Work | None = None) -> Index | None:
    """Writes what is missing of this host's shards, and the index once all shards of all hosts are there.

    Args:
      source: opened.
      kind: of the source, for the record.
      out: folder, local or gs://.

    Returns:
      The index; None where other hosts have not finished.

    Raises:
      UserError: settings that make no sense, `out` holds something else or is not to be resumed, or no episode can be
        read.
      RemoteError: the storage does not take or give something.
    """
    work = work or Work()
    if not 0 <= work.host < work.hosts or work.workers < 1:
        raise UserError(f"--host, --hosts, --workers: expected 0 <= host < hosts and workers >= 1; found {work.host}, "
                        f"{work.hosts}, {work.workers}")  # fmt: skip
    plan = make_plan(source, kind, settings)
    _begin(out, plan, work.resume or work.hosts > 1)
    scratch = _scratch(out, work.host)
    own = [shard for shard in range(len(plan.shards)) if shard % work.hosts == work.host]
    todo = [shard for shard in own if _done(out, plan, shard) is None]
    if len(todo) < len(own):
        work.say(f"{out}: {len(own) - len(todo)} of {len(own)} shards are there already")
    progress = _Progress(sum(plan.shards[shard][1] - plan.shards[shard][0] for shard in todo), work.say)
    with ThreadPoolExecutor(work.workers) as pool:
        for shard in todo:
            _write_shard(source, plan, shard, out, scratch, pool, work.workers, progress)
    if scratch is not None:
        scratch.rmdir()
    found = [_done(out, plan, shard) for shard in range(len(plan.shards))]
    missing = [shard for shard, record in enumerate(found) if record is None]
    if missing:
        work.say(f"{out}: {len(missing)} of {len(found)} shards are other hosts' and not there yet; the last host that "
                 "ends writes the index")  # fmt: skip
        return None
    index = _index(source, plan, found)
    storage.write_text(out / records.INDEX, json.dumps(index.to_json()) + "\n")
    return index


def _begin(out: storage.Path, plan: Plan, resume: bool) -> None:
    file = out / records.PLAN
    if not file.exists():
        if out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise UserError(f"--out={out}: expected a new or empty folder; found other files there")
        out.mkdir(parents=True, exist_ok=True)
        storage.write_text(file, plan.text())
        return
    if not resume:
        raise UserError(f"--out={out}: expected a new folder; found a conversion there: give --resume to go on with it")
    text = file.read_text()
    if text != plan.text():
        try:
            theirs, ours = json.loads(text), json.loads(plan.text())
            name = next((key for key in ours if theirs.get(key) != ours[key]), "")
        except ValueError as error:
            raise UserError(f"{file}: expected the plan of a conversion; found {error}") from error
        raise UserError(f"--out={out}: expected a conversion with {name} {_short(ours[name])}; found "
                        f"{_short(theirs.get(name))}; use another folder")  # fmt: skip


def _scratch(out: storage.Path, host: int) -> pathlib.Path | None:
    """Where a host's unfinished files lie: on the disk of a local `out`, and nothing there of a run that was killed."""
    if storage.is_remote(out):
        return None
    (out / records.SHARDS).mkdir(exist_ok=True)
    scratch = pathlib.Path(out) / f".partial-{host}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return scratch


def _short(value: Any) -> str:
    return json.dumps(value)[:200]


def _done(out: storage.Path, plan: Plan, shard: int) -> dict[str, Any] | None:
    """What a finished shard says of itself; None where it is to be written."""
    try:
        record = json.loads(records.shard_file(out, shard, DONE).read_text())
        sizes = [records.shard_file(out, shard, suffix).stat().length for suffix in (FRAMES, TABLES)]
    except (FileNotFoundError, ValueError):
        return None
    whole = record.get("plan") == plan.digest and sizes == [record["frames"], record["tables"]]
    return record if whole else None


def _write_shard(
    source: Source, plan: Plan, shard: int, out: storage.Path, scratch: pathlib.Path | None, pool: ThreadPoolExecutor,
    workers: int, progress: "_Progress",
) -> None:  # fmt: skip
    """Encodes a shard elsewhere and moves it to its place; its JSON last, which says that it is finished."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        files = {suffix: pathlib.Path(folder) / f"shard{suffix}" for suffix in (FRAMES, TABLES, DONE)}
        record = _encode_shard(source, plan, shard, files, pool, workers, progress)
        files[DONE].write_text(json.dumps(record) + "\n")
        for suffix, file in files.items():
            storage.place(file, records.shard_file(out, shard, suffix))


def _encode_shard(
    source: Source, plan: Plan, shard: int, files: Mapping[str, pathlib.Path], pool: ThreadPoolExecutor, workers: int,
    progress: "_Progress",
) -> dict[str, Any]:  # fmt: skip
    frames, tables = records.Writer(files[FRAMES]), records.Writer(files[TABLES])
    episodes: list[dict[str, Any]] = []
    dropped: list[tuple[int, str]] = []
    waiting: list[tuple[_Encoded, list[int]]] = []
    for index, found in zip(range(*plan.shards[shard]), _ahead(source, plan, shard, pool, workers)):
        if isinstance(found, str):
            dropped.append((index, found))
        else:
            numbers = [frames.add(segment) for segment in found.segments]
            waiting.append((dataclasses.replace(found, segments=[]), numbers))
        progress.count(isinstance(found, str))
    places = frames.close()
    for found, numbers in waiting:
        segments = np.array([places[number] for number in numbers], np.uint64).reshape(-1, 3)
        number = tables.add(records.pack_table(found.index, found.length, {**found.arrays, "segments": segments}))
        episodes.append({"origin": found.index, "length": found.length, "steps": found.steps, "table": number,
                         "texts": found.texts, "lacks": found.lacks})  # fmt: skip
    where = tables.close()
    for episode in episodes:
        episode["table"] = where[episode["table"]]
    sizes = {"frames": files[FRAMES].stat().st_size, "tables": files[TABLES].stat().st_size}
    return {"plan": plan.digest, **sizes, "episodes": episodes, "dropped": dropped}


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """An episode: packed times, table, texts by their first row, cameras that it lacks, records of its segments."""

    index: int
    length: int
    steps: str
    arrays: dict[str, np.ndarray]
    texts: list[tuple[int, tuple[str, ...]]]
    lacks: list[str]
    segments: list[bytes]


def _ahead(
    source: Source, plan: Plan, shard: int, pool: ThreadPoolExecutor, workers: int
) -> Iterator["_Encoded | str"]:
    """The episodes of a shard in order, a few more of them at work: encoded ones, or why they are broken."""
    waiting: list[Future] = []
    for index in range(*plan.shards[shard]):
        waiting.append(pool.submit(_try_encode, source, plan, index))
        if len(waiting) > workers:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _try_encode(source: Source, plan: Plan, index: int) -> "_Encoded | str":
    try:
        return _encode(source, plan, index)
    except BrokenData as error:
        return str(error)


def _encode(source: Source, plan: Plan, index: int) -> _Encoded:
    rows = source.rows(index)
    kept = kept_rows(rows.times, source.fps, plan.fps)
    times = rows.times[kept]
    even_times = np.arange(len(kept)) / plan.fps
    even = bool(np.abs(times - even_times).max(initial=0.0) < EVEN)
    arrays = {name: getattr(rows, name)[kept] for name in rows._fields}
    arrays["times"] = even_times if even else records.round_times(times)
    steps = "" if even else records.pack_times(times)
    texts = []
    for row, source_row in enumerate(kept.tolist()):
        found = tuple(source.texts(index, source_row))
        if not texts or texts[-1][1] != found:
            texts.append((row, found))
    lacks = [camera for camera in plan.cameras if not source.has_camera(index, camera)]
    segments = [_segment(source, plan, index, kept, first) for first in range(0, len(kept), plan.segment_rows)]
    return _Encoded(index, len(kept), steps, arrays, texts, lacks, segments)


def _segment(source: Source, plan: Plan, index: int, kept: Int[np.ndarray, "n"], first: int) -> bytes:
    rows, clips = kept[first : first + plan.segment_rows], {}
    for camera in plan.cameras:
        if not source.has_camera(index, camera):
            continue
        frames = clip.fitted(source.read_frames(index, camera, rows.tolist()), plan.size)
        clips[camera] = Clip(frames.shape[1:3], clip.encode(frames, plan.fps, plan.crf))
    return records.pack_segment(index, Segment(first, len(rows), clips))


def kept_rows(times: Float[np.ndarray, "n"], source_fps: float, fps: float) -> Int[np.ndarray, "m"]:
    """The rows nearest to moments `1 / fps` apart, from the first row to the last; all where no rate is given up."""
    if fps >= source_fps * (1 - EVEN):
        return np.arange(len(times))
    moments = np.arange(int((times[-1] + EVEN) * fps) + 1) / fps
    high = np.clip(np.searchsorted(times, moments - EVEN), 0, len(times) - 1)
    low = np.maximum(high - 1, 0)
    return np.unique(np.where(times[high] - moments <= moments - times[low] + EVEN, high, low))


def _index(source: Source, plan: Plan, shards: Sequence[Mapping[str, Any]]) -> Index:
    """The index of all shards.

    Raises:
      UserError: no episode could be read.
    """
    dropped = tuple((index, reason) for shard in shards for index, reason in shard["dropped"])
    texts = sorted({text for shard in shards for episode in shard["episodes"] for _, found in episode["texts"]
                    for text in found})  # fmt: skip
    numbers = {text: number for number, text in enumerate(texts)}
    episodes = tuple(
        _entry(episode, number, numbers) for number, shard in enumerate(shards) for episode in shard["episodes"]
    )
    if not episodes:
        raise UserError(f"{source.path}: expected an episode that can be read; found {dropped[0][1]}")
    return Index(
        robot=source.robot,
        fps=plan.fps,
        state_names=tuple(source.state_names),
        action_names=tuple(source.action_names),
        latent_dim=source.latent_dim,
        cameras=plan.cameras,
        splits=_splits(source, [episode.origin for episode in episodes]),
        texts=tuple(texts),
        segment_rows=plan.segment_rows,
        shards=tuple(Shard(shard["frames"], shard["tables"]) for shard in shards),
        episodes=episodes,
        dropped=dropped,
        origin=plan.origin,
    )


def _entry(episode: Mapping[str, Any], shard: int, numbers: Mapping[str, int]) -> Entry:
    texts = tuple((first, tuple(numbers[text] for text in found)) for first, found in episode["texts"])
    return Entry(episode["length"], shard, Place(*episode["table"]), texts, episode["steps"], episode["origin"],
                 tuple(episode["lacks"]))  # fmt: skip


def _splits(source: Source, origins: Sequence[int]) -> dict[str, str]:
    """The source's splits, a held-out one among them, in the numbers of the episodes that were kept."""
    names = set(source.named_splits())
    if names == {"train"} and len(source.episodes) > 1:
        names.add("test")
    found = {}
    for name in sorted(names):
        ranges = [np.searchsorted(origins, ends).tolist() for ends in source.split_ranges(name)]
        found[name] = ",".join(f"{first}:{beyond}" for first, beyond in ranges)
    return found


class _Progress:
    """A line now and then: how many episodes are done, how fast, how many were broken and how long the rest takes."""

    def __init__(self, total: int, say: Callable[[str], None]):
        self._total, self._say, self._done, self._broken = total, say, 0, 0
        self._begun, self._told = time.monotonic(), 0.0

    def count(self, broken: bool) -> None:
        """One more episode."""
        self._done += 1
        self._broken += broken
        passed = time.monotonic() - self._begun
        if passed - self._told > REPORT_EVERY or self._done == self._total:
            self._told = passed
            rate = self._done / max(passed, 1e-9)
            left = (self._total - self._done) / rate
            self._say(f"converted {self._done} of {self._total} episodes ({self._broken} broken), {rate:.2g} a second, "
                      f"{left:.0f} s left")  # fmt: skip
