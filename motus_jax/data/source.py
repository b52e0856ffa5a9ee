"""What every source of episodes gives, whatever its format; `motus_jax.data.sources` has one file a format.

A source knows rows, frames, texts and splits of its episodes in their own units and rates. It knows nothing of the
model: rates, action spaces, normalisation and tiling are the business of `motus_jax.data.dataset`.
"""

import abc
import bisect
import dataclasses
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from motus_jax.data import clock, storage
from motus_jax.errors import UserError

HELD_OUT = 0.1
"""Share of episodes held out where a source names only a "train" split."""
ROWS_CACHE = 256 << 20
"""Bytes of tables kept by a source: about two million rows of a 14-dim robot."""


class BrokenData(UserError):
    """One episode cannot be read: training may put it into quarantine and go on."""


def broken(file: Any, episode: int | str, field: str, expected: str, found: Any) -> BrokenData:
    """The error for a fault inside an episode: names file, episode, field, expected and found."""
    text = " ".join(str(found).split())[:300]
    return BrokenData(f"{field} of episode {episode} in {file}: expected {expected}; found {text}")


class Rows(NamedTuple):
    """The table of one episode: n rows in order of time, in the robot's units.

    Attributes:
      times: seconds since the episode's first row, rising.
      state: P numbers a row; no columns where the source has no states.
      action: A numbers a row; no columns where it has no actions.
      action_times: the second at which each row's action is to be reached: that of the next row where actions are
        commands, that of its own row where they are measured positions.
      latent: latent action of the motion from each row's frame on; no columns where there is none.
      has_latent: whether a row's latent action is one; not where its motion could not be seen.
    """

    times: Float[np.ndarray, "n"]
    state: Float[np.ndarray, "n P"]
    action: Float[np.ndarray, "n A"]
    action_times: Float[np.ndarray, "n"]
    latent: Float[np.ndarray, "n D"]
    has_latent: Bool[np.ndarray, "n"]


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode of a source; formats add where it lies.

    Attributes:
      index: its number, from 0.
      length: rows.
    """

    index: int
    length: int


Labels = Callable[[int], tuple[Float[np.ndarray, "n D"], Bool[np.ndarray, "n"]]]


class Source(abc.ABC):
    """A dataset in some format.

    Attributes:
      path: its folder or file, local or gs://.
      format: the format's name, for people.
      robot: what moves: name of a robot, "human", "none".
      fps: rows per second; the usual rate where it varies.
      cameras: (height, width) in pixels of each camera by name; None where sizes differ between episodes.
      state_names, action_names: a name per dim; empty where there are no states or actions.
      latent_dim: width of the latent actions; 0 where there are none.
      episodes: all episodes, in order of their index.
      left_out: places, among all episodes that were looked for, of those that could not be read, rising: the default
        split stays where it was when a file goes bad.
      fetches_ahead: whether `expect` does anything.
    """

    OPTIONS: Mapping[str, Any] = {}
    """What `options` may hold, with defaults."""

    path: storage.Path
    format: str
    robot: str
    fps: float
    cameras: dict[str, tuple[int, int] | None]
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    latent_dim: int = 0
    fetches_ahead: bool = False
    episodes: Sequence[Episode]
    left_out: Sequence[int] = ()

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Remembers path and options; formats go on from here.

        Raises:
          UserError: unknown option.
        """
        self.path = storage.path(path)
        unknown = sorted(set(options or {}) - set(self.OPTIONS))
        if unknown:
            known = ", ".join(self.OPTIONS) or "none"
            raise UserError(f"{path}: unknown option {unknown[0]!r} of a source; expected one of: {known}")
        self.options = {**self.OPTIONS, **(options or {})}
        self._tables: ByteCache = ByteCache(ROWS_CACHE)
        self._labels: Labels | None = None

    def attach(self, labels: "Labels", latent_dim: int, name: str) -> None:
        """Takes the latent actions from somewhere else.

        Args:
          labels: episode -> (latent actions [n, D], which of them are ones [n]); may raise `BrokenData`.
          latent_dim: D.
          name: tells these labels from others.
        """
        self._labels, self.latent_dim = labels, latent_dim
        self.options["latents"] = name

    @abc.abstractmethod
    def read_rows(self, index: int) -> Rows:
        """Reads the table of an episode, uncached.

        Raises:
          BrokenData: the table is missing, truncated, of another shape, or has numbers that are not finite.
        """

    @abc.abstractmethod
    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        """RGB frames of the given rows, any order, repeats allowed; `camera` is a key of `cameras`.

        Raises:
          BrokenData: missing, broken or truncated pictures, or another size than promised.
        """

    @abc.abstractmethod
    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        """The instructions that describe a row, in equal right; none where the source has no words for it."""

    @abc.abstractmethod
    def all_texts(self) -> list[str]:
        """Every instruction that `texts` can give, sorted."""

    @abc.abstractmethod
    def size_bytes(self) -> int:
        """Size on disk of what holds states and actions (or the videos where there are none): tells a source from
        itself written anew.

        Raises:
          UserError: a file is missing.
        """

    def times(self, index: int) -> Float[np.ndarray, "n"]:
        """Seconds of an episode's rows since its first; here at the constant rate `fps`."""
        return np.arange(self.episode(index).length) / self.fps

    def has_camera(self, index: int, camera: str) -> bool:
        """Whether an episode has pictures of a camera; here every episode has all of them."""
        return True

    def expect(self, index: int, rows: Sequence[int]) -> None:  # noqa: B027  (most sources have nothing to do)
        """Says that frames of these rows will be asked for soon; a remote source begins to fetch them and returns."""

    def named_splits(self) -> Mapping[str, str]:
        """Splits that the source itself names, as "first:beyond,..." ranges of episode indices."""
        return {"train": f"0:{len(self.episodes)}"}

    @property
    def state_dim(self) -> int:
        return len(self.state_names)

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def total_frames(self) -> int:
        """Rows of all episodes together."""
        return sum(episode.length for episode in self.episodes)

    def rows(self, index: int) -> Rows:
        """The table of an episode, read-only, cached.

        Raises:
          BrokenData: it cannot be read, or is not what a table must be (`check_rows`).
        """
        return self._tables.get(index, lambda: self._read_checked(index))

    def frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        """RGB frames of rows by the camera's name (`camera_key`)."""
        return self.read_frames(index, self.camera_key(camera), rows)

    def instruction(self, index: int, row: int = 0, choice: int = 0) -> str:
        """One of the texts of a row, `choice` taken modulo their number; "" where there is none."""
        texts = self.texts(index, row)
        return texts[choice % len(texts)] if texts else ""

    def facts(self) -> dict[str, Any]:
        """Rate, size and what `options` change, which tell this source from others and from itself written anew."""
        size = {"episodes": len(self.episodes), "rows": self.total_frames, "table_bytes": self.size_bytes()}
        options = {name: value for name, value in self.options.items() if value != self.OPTIONS.get(name)}
        return {"fps": self.fps, "options": json.loads(json.dumps(options, default=list)), **size}

    def camera_key(self, name: str) -> str:
        """The camera that `name` means; formats may know short forms.

        Raises:
          UserError: no such camera; the message lists those that exist.
        """
        if name in self.cameras:
            return name
        known = ", ".join(self.cameras) or "none"
        raise UserError(f"camera {name!r} in {self.path}: expected one of {known}; found no such video feature")

    def episode(self, index: int) -> Episode:
        """The episode with this index.

        Raises:
          UserError: out of range.
        """
        if not 0 <= index < len(self.episodes):
            last = len(self.episodes) - 1
            raise UserError(f"episode {index} in {self.path}: expected 0 to {last}; found no such episode")
        return self.episodes[index]

    def split_ranges(self, name: str) -> list[list[int]]:
        """The split as [first, beyond last] ranges of episode indices; see `split`."""
        named = self.named_splits()
        if name not in named and name == "test" and "val" in named:
            name = "val"
        if set(named) == {"train"} and len(self.episodes) > 1:
            ((first, last),) = self._parse_split(named["train"])
            listed = last - first + len(self.left_out)
            middle = listed - max(1, round(HELD_OUT * listed))
            middle += first - bisect.bisect_left(self.left_out, middle)
            named = {"train": f"{first}:{middle}", "test": f"{middle}:{last}"}
        if name not in named:
            raise UserError(f"split {name!r} in {self.path}: expected one of {', '.join(named)}; found no such split")
        return self._parse_split(named[name])

    def split(self, name: str) -> list[int]:
        """Episode indices of a split.

        A source that names only "train" (LeRobot's default) holds out its last tenth as "test", counted with those
        that cannot be read.

        Raises:
          UserError: no such split, or it names episodes that do not exist.
        """
        return [index for first, last in self.split_ranges(name) for index in range(first, last)]

    def _read_checked(self, index: int) -> Rows:
        with clock.timed("read"):
            rows = self.read_rows(index)
            if self._labels is not None:
                latent, known = self._labels(index)
                rows = rows._replace(latent=latent, has_latent=known)
            return check_rows(self, index, rows)

    def _parse_split(self, text: str) -> list[list[int]]:
        try:
            ranges = [[int(end) for end in part.split(":")] for part in str(text).split(",")]
            ((_, _), *_) = ranges
        except ValueError as error:
            raise UserError(f"{self.path}: expected a split like '0:150'; found {text!r}") from error
        for first, last in ranges:
            if not 0 <= first <= last <= len(self.episodes):
                raise UserError(f"{self.path}: split {text!r}; expected ranges inside 0:{len(self.episodes)}")
        return ranges


def commands(fps: float, state: np.ndarray, action: np.ndarray, latent: np.ndarray | None = None) -> Rows:
    """Rows at a constant rate whose actions are commands, to be reached at the next row."""
    times = np.arange(len(state)) / fps
    return _rows(times, state, action, times + 1.0 / fps, latent)


def positions(fps: float, state: np.ndarray, action: np.ndarray, latent: np.ndarray | None = None) -> Rows:
    """Rows at a constant rate whose actions are measured positions: each is reached at its own row."""
    times = np.arange(len(state)) / fps
    return _rows(times, state, action, times, latent)


def pictures_only(times: Float[np.ndarray, "n"]) -> Rows:
    """Rows of a video without states and actions."""
    nothing = np.zeros((len(times), 0), np.float32)
    return _rows(times, nothing, nothing, times, None)


def join_cameras(found: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, tuple[int, int] | None]:
    """`Source.cameras` from the (height, width) of each camera in each episode; None where they differ."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    for cameras in found:
        for name, (height, width) in cameras.items():
            sizes.setdefault(name, set()).add((int(height), int(width)))
    return {name: next(iter(seen)) if len(seen) == 1 else None for name, seen in sizes.items()}


def check_choice(path: Any, option: str, found: Any, known: Sequence[str]) -> None:
    """An option that is one of a few words.

    Raises:
      UserError: another word.
    """
    if found not in known:
        raise UserError(f"{path}: option {option}: expected one of {', '.join(known)}; found {found!r}")


def positive_rate(path: Any, fps: Any) -> float:
    """A rate as a number; `path` is what states it.

    Raises:
      UserError: not a number above 0.
    """
    try:
        if float(fps) > 0:
            return float(fps)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{path}: option fps: expected rows per second, above 0; found {fps!r}")


def _rows(times, state, action, action_times, latent) -> Rows:
    latent = np.zeros((len(times), 0), np.float32) if latent is None else latent
    return Rows(times, np.asarray(state, np.float32), np.asarray(action, np.float32), action_times,
                np.asarray(latent, np.float32), np.full(len(times), latent.shape[1] > 0))  # fmt: skip


def check_rows(source: Source, index: int, rows: Rows) -> Rows:
    """The rows, read-only, after a check of lengths, widths and numbers.

    Raises:
      BrokenData: names what is wrong.
    """
    length = source.episode(index).length
    widths = {"state": source.state_dim, "action": source.action_dim, "latent": source.latent_dim}
    for field in rows._fields:
        values = getattr(rows, field)
        shape = (length, widths[field]) if field in widths else (length,)
        if values.shape != shape:
            raise broken(source.path, index, field, f"the shape {shape}", values.shape)
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise broken(source.path, index, field, "finite numbers", f"NaN or inf in row {row}")
        values.flags.writeable = False  # shared by the cache
    if (np.diff(rows.times) <= 0).any():
        raise broken(source.path, index, "times", "rising seconds", f"row {int(np.argmin(np.diff(rows.times))) + 1}")
    return rows


class ByteCache:
    """Keeps what was made last, up to a number of bytes; safe to share between threads."""

    def __init__(self, limit: int):
        self._limit, self._used = limit, 0
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `key`: kept, or made (arrays, or tuples of arrays)."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        value = make()
        size = sum(part.nbytes for part in value) if isinstance(value, tuple) else value.nbytes
        with self._lock:
            if key not in self._kept:
                self._kept[key] = (value, size)
                self._used += size
            while self._used > self._limit and len(self._kept) > 1:
                self._used -= self._kept.popitem(last=False)[1][1]
        return value
