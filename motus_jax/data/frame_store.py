"""Tiled pictures of episodes: decoded once into memory while they fit, decoded when asked beyond that."""

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from motus_jax.data import clock
from motus_jax.data.cameras import MAX_CAMERAS, tile_cameras
from motus_jax.data.source import BrokenData, Source, broken
from motus_jax.errors import UserError

MISSING_CAMERAS = ("refuse", "black")
"""What becomes of an episode that lacks a camera: it is broken, or that camera's cell is black."""
# Seconds between progress lines of a preload.
_REPORT_EVERY = 5.0


class FrameStore:
    """Pictures of a dataset, cameras tiled, uint8 [n, H, W, 3].

    Thread-safe. An episode in memory costs rows * H * W * 3 bytes: 60 rows of 112x96 are 1.9 MB.
    """

    def __init__(
        self,
        dataset: Source,
        cameras: Sequence[str],
        image_size: tuple[int, int],
        cache_bytes: int,
        missing_cameras: str = "refuse",
    ):
        """Opens a store.

        Args:
          dataset: the source.
          cameras: names, main camera first.
          image_size: (H, W) of the picture.
          cache_bytes: memory for decoded episodes.
          missing_cameras: one of `MISSING_CAMERAS`.

        Raises:
          UserError: an unknown policy or camera, no camera or too many, or a picture without size.
        """
        if not 1 <= len(cameras) <= MAX_CAMERAS:
            raise UserError(f"data.cameras: expected one to {MAX_CAMERAS} cameras; found {len(cameras)}")
        if len(image_size) != 2 or min(image_size) < 1:
            raise UserError(f"data.image_size: expected (height, width) in pixels; found {tuple(image_size)}")
        if missing_cameras not in MISSING_CAMERAS:
            known = ", ".join(MISSING_CAMERAS)
            raise UserError(f"data.missing_cameras: expected one of {known}; found {missing_cameras!r}")
        self._missing = missing_cameras
        self._dataset = dataset
        self._cameras = [dataset.camera_key(name) for name in cameras]
        self._size = (int(image_size[0]), int(image_size[1]))
        self._free = int(cache_bytes)
        self._kept: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def frames(self, episode: int, rows: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n H W 3"]:
        """Pictures of the given rows of an episode, from memory or freshly decoded.

        Raises:
          BrokenData: the episode's video is missing, broken or too short.
        """
        kept = self._kept.get(episode)
        return kept[rows] if kept is not None else self._decode(episode, rows)

    def unseen(self, episode: int) -> Float[np.ndarray, "3 4"]:
        """Places of the cameras that an episode lacks, in order of the cameras: (top, left, bottom, right) as shares of
        the picture's height and width; zeros for those that it has.

        Raises:
          BrokenData: the episode lacks a camera and may not, or the size of one that it has cannot be read.
        """
        found = np.zeros((MAX_CAMERAS, 4), np.float32)
        missing = self._missing_of(episode)
        if missing:
            cells = self._cells(episode, np.arange(1))
            for place, key in enumerate(self._cameras):
                if key in missing:
                    alone = [np.full_like(cell, 255 * (k == place)) for k, cell in enumerate(cells)]
                    found[place] = _extent(tile_cameras(alone, self._size)[0, :, :, 0] > 0)
        return found

    def expect(self, episode: int, rows: Int[np.ndarray, "n"]) -> None:
        """Says that pictures of these rows will be asked for soon (`Source.expect`)."""
        if episode not in self._kept:
            self._dataset.expect(episode, rows)

    def preload(self, episodes: Sequence[int], threads: int = 2) -> None:
        """Decodes episodes into memory until the limit is reached; those that do not fit are decoded when asked for,
        and so are those that cannot be decoded: the error is for who asks.

        Shows progress on stderr. Episodes that are in memory already cost nothing.
        """
        todo = [episode for episode in episodes if episode not in self._kept and self._reserve(episode)]
        if not todo:
            return
        begun = reported = time.monotonic()
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for done, (episode, frames) in enumerate(zip(todo, pool.map(self._try_all, todo)), start=1):
                if frames is not None:
                    self._kept[episode] = frames
                if time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    left = (reported - begun) / done * (len(todo) - done)
                    _say(f"decoding videos: {done} of {len(todo)} episodes, {left:.0f} s left")
        made = [self._kept[episode] for episode in todo if episode in self._kept]
        size, seconds = sum(frames.nbytes for frames in made), time.monotonic() - begun
        _say(f"decoded {len(made)} of {len(episodes)} episodes into {size / 1e6:.0f} MB in {seconds:.1f} s")

    def keep_only(self, episodes: Sequence[int], threads: int = 2) -> None:
        """Lets go of all other episodes and decodes those of the given ones that fit; says nothing.

        For a walk through a dataset that is larger than the memory. No other thread may read meanwhile.

        Raises:
          BrokenData: the first broken video met.
        """
        for episode in self._kept.keys() - set(episodes):
            self._free += self._kept.pop(episode).nbytes
        todo = [episode for episode in episodes if episode not in self._kept and self._reserve(episode)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            self._kept |= zip(todo, pool.map(self._decode_all, todo))

    def _reserve(self, episode: int) -> bool:
        """Takes the episode's memory from what is free; False when it does not fit."""
        need = self._dataset.episode(episode).length * self._size[0] * self._size[1] * 3
        with self._lock:
            if need > self._free:
                return False
            self._free -= need
            return True

    def _try_all(self, episode: int) -> UInt8[np.ndarray, "n H W 3"] | None:
        try:
            return self._decode_all(episode)
        except BrokenData:
            return None

    def _decode_all(self, episode: int) -> UInt8[np.ndarray, "n H W 3"]:
        return self._decode(episode, np.arange(self._dataset.episode(episode).length))

    def _decode(self, episode: int, rows: Int[np.ndarray, "n"]) -> UInt8[np.ndarray, "n H W 3"]:
        with clock.timed("decode"):
            cells = self._cells(episode, rows)
        return tile_cameras(cells, self._size)

    def _cells(self, episode: int, rows: Int[np.ndarray, "n"]) -> list[UInt8[np.ndarray, "n h w 3"]]:
        """Frames of each camera. What stands for a missing one is as large as the source says, else as the first that
        is there."""
        missing = self._missing_of(episode)
        found = {key: self._dataset.frames(episode, key, rows) for key in self._cameras if key not in missing}
        for key in missing:
            size = self._dataset.cameras[key] or next(iter(found.values())).shape[1:3]
            found[key] = np.zeros((len(rows), *size, 3), np.uint8)
        return [found[key] for key in self._cameras]

    def _missing_of(self, episode: int) -> list[str]:
        """Cameras that an episode lacks.

        Raises:
          BrokenData: it lacks one and may not, or all.
        """
        missing = [key for key in self._cameras if not self._dataset.has_camera(episode, key)]
        if missing and (self._missing == "refuse" or len(missing) == len(self._cameras)):
            where, wanted = self._dataset.path, ", ".join(self._cameras)
            remedy = "" if len(missing) == len(self._cameras) else '; data.missing_cameras="black" shows it black'
            raise broken(where, episode, "cameras", wanted, f"no pictures of {', '.join(missing)}{remedy}")
        return missing


def _extent(shown: Bool[np.ndarray, "H W"]) -> tuple[float, ...]:
    """Top, left, bottom and right of what is shown, as shares of height and width."""
    (top, bottom), (left, right) = (
        (seen[0], seen[-1] + 1) for seen in (np.flatnonzero(shown.any(axis)) for axis in (1, 0))
    )
    height, width = shown.shape
    return top / height, left / width, bottom / height, right / width


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
