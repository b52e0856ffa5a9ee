"""Reader of the record files that `python -m motus_jax.data convert` writes (`motus_jax.data.records`).

A chunk needs the segments that its frames lie in, mostly two, and of these the packets from a key frame to the last
wanted frame. Tables lie in files of their own, which are copied whole from a remote storage. Segments of remote files
are fetched one by one, ahead of need (`expect`), or with the option `remote=files` with the whole file around them,
which is better where the dataset is read many times and fits the disk (`benchmarks/storage.py`).
"""

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
from jaxtyping import Float, Int, UInt8

from motus_jax.data import clip, clock, records, source, storage
from motus_jax.data.fetcher import Fetcher
from motus_jax.data.records import Damaged, Place
from motus_jax.data.source import Rows, broken
from motus_jax.errors import UserError

REMOTE = ("ranges", "files")
SEGMENTS_KEPT = 256 << 20
"""Bytes of segments in memory, those on their way among them: about a thousand of three cameras of 224x224."""


class RecordsDataset(source.Source):
    """A converted dataset.

    Attributes:
      index: `index.json`.
    """

    OPTIONS: Mapping[str, Any] = {"remote": "ranges"}

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens a dataset; reads its index and lists its files.

        Raises:
          UserError: there is none, it is not complete, or files have another size than the index says.
        """
        super().__init__(path, options)
        if self.options["remote"] not in REMOTE:
            raise UserError(f"{path}: option remote: expected {' or '.join(REMOTE)}; found {self.options['remote']!r}")
        self.index = index = records.read_index(self.path)
        self.format = f"records {index.format} of {index.origin.get('format', 'an unknown format')}"
        self.robot, self.fps, self.latent_dim = index.robot, index.fps, index.latent_dim
        self.cameras = dict(index.cameras)
        self.state_names, self.action_names = index.state_names, index.action_names
        self.episodes = [source.Episode(k, entry.length) for k, entry in enumerate(index.episodes)]
        self.fetches_ahead = storage.is_remote(self.path) and self.options["remote"] == "ranges"
        self._segments = source.ByteCache(source.ROWS_CACHE // 4)
        self._fetcher = Fetcher(self._fetch, SEGMENTS_KEPT)

    def camera_key(self, name: str) -> str:
        """The camera of a full name, or of its last part after a dot ("top" for "observation.images.top").

        Raises:
          UserError: no such camera.
        """
        short = [key for key in self.cameras if key.rpartition(".")[2] == name]
        return short[0] if name not in self.cameras and len(short) == 1 else super().camera_key(name)

    def named_splits(self) -> Mapping[str, str]:
        return self.index.splits

    def size_bytes(self) -> int:
        return sum(s.tables if self.state_dim or self.action_dim else s.frames for s in self.index.shards)

    def all_texts(self) -> list[str]:
        return sorted(self.index.texts)

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        entry = self._entry(index)
        found = bisect.bisect_right(entry.texts, row, key=lambda text: text[0]) - 1
        return tuple(self.index.texts[number] for number in entry.texts[found][1])

    def times(self, index: int) -> Float[np.ndarray, "n"]:
        if not (steps := self._entry(index).steps):
            return super().times(index)
        file, length = self.path / records.INDEX, self.episode(index).length
        try:
            found = records.unpack_times(steps)
        except Damaged as error:
            raise broken(file, index, "steps", "packed times", error) from error
        if len(found) != length:
            raise broken(file, index, "steps", f"times of {length} rows", len(found))
        return found

    def has_camera(self, index: int, camera: str) -> bool:
        return camera not in self._entry(index).lacks

    def read_rows(self, index: int) -> Rows:
        arrays = self._read_table(index)
        self._segments.get(index, lambda: arrays["segments"])
        missing = [field for field in Rows._fields if field not in arrays]
        if missing:
            raise broken(self._file(index, records.TABLES), index, "table", f"an array {missing[0]!r}", list(arrays))
        return Rows(*(arrays[field] for field in Rows._fields))

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        wanted, places = np.unique(np.asarray(rows), return_inverse=True)
        self._check_rows(index, camera, wanted)
        numbers = np.unique(wanted // self.index.segment_rows).tolist()
        if self.fetches_ahead and len(numbers) > 1:
            self.expect(index, wanted)
        found: list[np.ndarray] = []
        for number in numbers:
            first = number * self.index.segment_rows
            found += self._decode(index, camera, number, wanted[wanted // self.index.segment_rows == number] - first)
        return np.stack(found)[places]

    def expect(self, index: int, rows: Sequence[int]) -> None:
        if not self.fetches_ahead:
            return
        try:
            places = self._places(index)
        except UserError:
            return  # told to who asks for the frames
        for number in np.unique(np.asarray(rows) // self.index.segment_rows).tolist():
            if number < len(places):
                self._fetcher.expect((index, number), int(places[number, 1]))

    def _entry(self, index: int) -> records.Entry:
        self.episode(index)
        return self.index.episodes[index]

    def _file(self, index: int, suffix: str) -> storage.Path:
        return records.shard_file(self.path, self._entry(index).shard, suffix)

    def _check_rows(self, index: int, camera: str, wanted: Int[np.ndarray, "n"]) -> None:
        length = self.episode(index).length
        if len(wanted) and not (wanted[0] >= 0 and wanted[-1] < length):
            outside = int(wanted[0] if wanted[0] < 0 else wanted[-1])
            raise broken(self.path, index, camera, f"rows 0 to {length - 1}", f"row {outside}")

    def _read_table(self, index: int) -> dict[str, np.ndarray]:
        file = self._file(index, records.TABLES)
        try:
            with storage.local(file) as local:
                return records.unpack_table(records.read_record(storage.path(local), self._entry(index).table))
        except (Damaged, FileNotFoundError) as error:
            raise broken(file, index, "table", "the record that was written", error) from error

    def _places(self, index: int) -> Int[np.ndarray, "S 3"]:
        """Where the segments of an episode lie: offset, length, crc32c."""
        return self._segments.get(index, lambda: self._read_table(index)["segments"])

    def _fetch(self, key: tuple[int, int]) -> bytes:
        index, number = key
        place = Place(*map(int, self._places(index)[number]))
        file = self._file(index, records.FRAMES)
        if self.options["remote"] == "files":
            with storage.local(file) as local:
                return records.read_record(storage.path(local), place)
        return records.read_record(file, place)

    def _segment(self, index: int, number: int) -> records.Segment:
        file = self._file(index, records.FRAMES)
        try:
            places = self._places(index)
            if number >= len(places):
                raise Damaged(f"{len(places)} segments")
            key = index, number
            ahead = self.fetches_ahead
            record = self._fetcher.get(key, int(places[number, 1])) if ahead else self._fetch(key)
            return records.unpack_segment(record)
        except (Damaged, FileNotFoundError) as error:
            raise broken(file, index, f"segment {number}", "the record that was written", error) from error

    def _decode(
        self, index: int, camera: str, number: int, wanted: Int[np.ndarray, "n"]
    ) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Frames of a segment by their number in it."""
        with clock.timed("read"):
            found = self._segment(index, number)
        file = self._file(index, records.FRAMES)
        if camera not in found.clips:
            raise broken(file, index, f"segment {number}", f"camera {camera!r}", ", ".join(found.clips) or "none")
        size, packets = found.clips[camera]
        if self.cameras[camera] not in (None, size):
            raise broken(file, index, camera, f"pictures of (height, width) {self.cameras[camera]}", size)
        try:
            frames = clip.decode(packets, wanted.tolist(), size)
        except av.FFmpegError as error:
            raise broken(file, index, camera, f"frames that can be decoded in segment {number}", error) from error
        missing = [int(row) for row in wanted if int(row) not in frames]
        if missing:
            raise broken(file, index, camera, f"frame {missing[0]} of segment {number}", "no such frame")
        return [frames[int(row)] for row in wanted]
