"""Latent actions for a dataset, by a trained latent-action model: `python -m motus_jax.data label`.

  python -m motus_jax.data label --workdir=runs/latent_action --path=datasets/aloha_sim --out=latents/aloha_sim
  python -m motus_jax.train      --config=experiments/phase2.py --workdir=runs/phase2 \\
      --config.data.path=datasets/aloha_sim --config.data.options.latents=latents/aloha_sim \\
      --config.data.action_space=latent

Every row of every episode gets the latent action of the motion from its frame to the one a step of the model later.
Videos shorter than that, pairs without any change and films that cannot be read get none; they are counted, listed and
never taken for standing still. Hosts share the work by blocks of episodes (`--host`, `--hosts`, or JAX's own), into one
folder, local or gs://; the same command goes on where it stopped.
"""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Bool, Float, Int, UInt8

from motus_jax import cli, train
from motus_jax.data import latent_labels, storage
from motus_jax.data.frame_store import FrameStore
from motus_jax.data.latent_labels import Index
from motus_jax.data.optical_flow import make_estimator
from motus_jax.data.source import BrokenData, Source
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.training import checkpoint
from motus_jax.weights.fingerprint import fingerprints

PIECE = 64
"""Pairs whose pictures are in memory at a time."""
LATE = 0.25
"""By how much of a step a frame may miss its moment."""
REPORT_EVERY = 10.0
"""Seconds between two lines about the progress."""
NO_FRAME, NO_CHANGE = "no frame a step later", "nothing changes between the frames"

Encode = Callable[[UInt8[np.ndarray, "n H W 3"], UInt8[np.ndarray, "n H W 3"]], Float[np.ndarray, "n D"]]


@dataclasses.dataclass(frozen=True)
class Labeller:
    """What labels one dataset.

    Attributes:
      source: the dataset.
      store: its pictures as the model sees them.
      seconds: from a motion's first frame to its second.
      encode: first and second frames to latent actions.
      dim: numbers of a latent action.
    """

    source: Source
    store: FrameStore
    seconds: float
    encode: Encode
    dim: int

    def episode(self, index: int) -> tuple[Float[np.ndarray, "n D"], Bool[np.ndarray, "n"], Counter]:
        """(latent actions, which rows have one, why others have none) of an episode.

        Raises:
          BrokenData: its film cannot be read.
        """
        length = self.source.episode(index).length
        first, second = pairs(self.source.times(index), self.seconds)
        latent, known = np.zeros((length, self.dim), np.float32), np.zeros(length, bool)
        why = Counter({NO_FRAME: length - len(first)})
        for begin in range(0, len(first), PIECE):
            rows = first[begin : begin + PIECE], second[begin : begin + PIECE]
            wanted, places = np.unique(np.concatenate(rows), return_inverse=True)
            frames = self.store.frames(index, wanted)
            one, other = frames[places[: len(rows[0])]], frames[places[len(rows[0]) :]]
            differs = (one != other).any(axis=(1, 2, 3))
            why[NO_CHANGE] += int((~differs).sum())
            if differs.any():
                latent[rows[0][differs]] = self.encode(one[differs], other[differs])
                known[rows[0][differs]] = True
        return latent, known, +why


def pairs(times: Float[np.ndarray, "n"], seconds: float) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """Rows with a frame `seconds` later, and the rows of these frames: the nearest in time, at most `LATE` of a step
    away and after the first."""
    moments = times + seconds
    high = np.clip(np.searchsorted(times, moments), 1, max(len(times) - 1, 1))
    low = high - 1
    if len(times) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    nearest = np.where(times[high] - moments <= moments - times[low], high, low)
    found = (np.abs(times[nearest] - moments) <= LATE * seconds) & (nearest > np.arange(len(times)))
    return np.flatnonzero(found), nearest[found]


def main(argv: Sequence[str]) -> None:
    """Parses the flags and labels.

    Raises:
      UserError: see `label`.
    """
    own = {"flag_values": flags.FlagValues()}
    texts = {
        "workdir": (None, "run of experiments/latent_action.py"),
        "path": (None, "the dataset, local or gs://"),
        "kind": ("lerobot", "its format (motus_jax.data.sources)"),
        "options": ("{}", "of that format, as JSON"),
        "cameras": ("", "names, the main one first, with commas; the model's own by default"),
        "out": (None, "folder of the latent actions, local or gs://"),
    }
    numbers = {
        "batch_size": (32, "pairs of a call of the model"),
        "block": (64, "episodes in a file"),
        "threads": (0, "that estimate flow; 0: as many as cores"),
        "host": (None, "number of this host, when several label by themselves"),
        "hosts": (None, "how many"),
    }
    given: dict[str, Any] = {name: flags.DEFINE_string(name, *row, **own) for name, row in texts.items()}
    given |= {name: flags.DEFINE_integer(name, *row, **own) for name, row in numbers.items()}
    left = cli.parse_flags(argv, __doc__, own["flag_values"])
    if len(left) > 1:
        raise UserError(f"unexpected argument {left[1]!r}: expected only flags (see --help)")
    values = {name: flag.value for name, flag in given.items()}
    for name in ("workdir", "path", "out"):
        if values[name] is None:
            raise UserError(f"--{name} is missing: expected e.g. --workdir=runs/latent_action --path=DATASET --out=DIR")
    for name in ("batch_size", "block"):
        if values[name] < 1:
            raise UserError(f"--{name}: expected at least 1, found {values[name]}")
    try:
        options = json.loads(values.pop("options"))
    except ValueError as error:
        raise UserError(f"--options: expected JSON; found {error}") from error
    train.set_up_jax("")
    source = open_source(values.pop("kind"), values.pop("path"), options)
    label(source=source, cameras=tuple(filter(None, values.pop("cameras").split(","))), **values)


def label(
    workdir: str, source: Source, out: str, *, cameras: Sequence[str] = (), batch_size: int = 32, block: int = 64,
    threads: int = 0, host: int | None = None, hosts: int | None = None,
) -> None:  # fmt: skip
    """Writes what is missing of a source's latent actions into `out`.

    Args:
      workdir: run of a latent-action model.
      cameras: of the source, the main one first; those that the model was trained on where none are given.
      host, hosts: block b is written by host b % hosts, the index by whoever finds all there; default: JAX's own.

    Raises:
      UserError: the run is of another kind of model, a camera is unknown, or `out` holds other latent actions.
    """
    host = jax.process_index() if host is None else host
    hosts = jax.process_count() if hosts is None else hosts
    folder = storage.path(out)
    labeller, plan = _open(workdir, source, cameras, batch_size, threads)
    plan |= {"block": block, "episodes": len(source.episodes)}
    if _is_done(folder, plan):
        print(f"{folder}: labelled before", flush=True)
        return
    numbers = range(-(-len(source.episodes) // block))
    mine = [number for number in numbers if number % hosts == host]
    progress = _Progress(sum(len(_block_episodes(source, number, block)) for number in mine))
    for number in mine:
        file, episodes = latent_labels.block_file(folder, number), _block_episodes(source, number, block)
        if file.exists():
            progress.skip(len(episodes))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(file, latent_labels.pack_block(*_label_block(labeller, episodes, progress)))
    missing = [number for number in numbers if not latent_labels.block_file(folder, number).exists()]
    if missing:
        print(f"{folder}: {len(missing)} of {len(numbers)} files are other hosts' work, and not there yet; the last "
              "one to be done writes the index", flush=True)  # fmt: skip
        return
    _finish(folder, plan, numbers, labeller)


def _open(
    workdir: str, source: Source, cameras: Sequence[str], batch_size: int, threads: int
) -> tuple[Labeller, dict[str, Any]]:
    loaded = checkpoint.load_for_inference(workdir)
    config = loaded.config
    if config.system != "latent_action":
        raise UserError(f"{workdir}: expected a run of a latent-action model, found config.system={config.system!r}")
    system, data = LatentActionSystem(config), config.data
    chosen = tuple(cameras) or tuple(data.cameras)
    store = FrameStore(source, chosen, tuple(data.image_size), 0, "black")
    encode = _encoder(system, loaded, batch_size, threads)
    seconds = 1 / float(data.video_hz)
    flow = data.flow or config.model.flow_network
    settings = {"cameras": list(chosen), "image_size": list(data.image_size), "flow": flow}
    parts = fingerprints({**loaded.params, **loaded.frozen})
    model = ", ".join(f"{name} {value}" for name, value in sorted(parts.items()))
    plan = {"dataset": source.facts(), "model": model, "seconds": seconds, "settings": settings}
    dim = system.latent_action.config.dim
    return Labeller(source, store, seconds, encode, dim), json.loads(json.dumps(plan))


def _encoder(system: LatentActionSystem, loaded: checkpoint.Loaded, batch_size: int, threads: int) -> Encode:
    estimator = make_estimator(loaded.config.data.flow) if loaded.config.data.flow else None
    pool = ThreadPoolExecutor(threads or None)

    @jax.jit
    def mean(batch: Mapping[str, Array]) -> Float[Array, "B D"]:
        return system.encode(loaded.params, loaded.frozen, batch)[0]

    def encode(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if estimator is None:
            seen = {"frames": np.stack([first, second], axis=1)}
        else:
            flows = pool.map(lambda k: estimator(first[k : k + 1], second[k : k + 1])[0], range(len(first)))
            seen = {"flow": np.stack(list(flows))}
        found = []
        for begin in range(0, len(first), batch_size):
            part = {name: rows[begin : begin + batch_size] for name, rows in seen.items()}
            short = batch_size - len(next(iter(part.values())))
            filled = {name: np.pad(rows, ((0, short), *((0, 0),) * (rows.ndim - 1))) for name, rows in part.items()}
            found.append(np.asarray(mean(filled))[: batch_size - short])
        return np.concatenate(found)

    return encode


PLAN = "labels.json.partial"


def _is_done(folder: storage.Path, plan: Mapping[str, Any]) -> bool:
    """Whether the folder is complete; notes the plan in a new one.

    Raises:
      UserError: it holds, or began to hold, other latent actions.
    """
    for name in (latent_labels.INDEX, PLAN):
        file = folder / name
        if file.exists():
            saved = json.loads(file.read_text())
            difference = checkpoint.first_difference({key: saved.get(key) for key in plan}, plan)
            if difference:
                key, theirs, ours = difference
                raise UserError(f"--out={folder}: expected latent actions with {key} {ours!r}, found {theirs!r}; use "
                                "another folder")  # fmt: skip
            return name == latent_labels.INDEX
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_text(folder / PLAN, json.dumps(plan))
    return False


def _block_episodes(source: Source, number: int, block: int) -> range:
    return range(number * block, min((number + 1) * block, len(source.episodes)))


def _label_block(
    labeller: Labeller, episodes: range, progress: "_Progress"
) -> tuple[dict[int, latent_labels.Rows], dict[str, int], list[tuple[int, str]]]:
    rows: dict[int, latent_labels.Rows] = {}
    unknown: Counter = Counter()
    dropped: list[tuple[int, str]] = []
    for episode in episodes:
        try:
            latent, known, why = labeller.episode(episode)
        except BrokenData as error:
            dropped.append((episode, str(error)))
            progress.count(0)
            continue
        rows[episode] = latent, known
        unknown += why
        progress.count(int(known.sum()))
    return rows, dict(unknown), dropped


def _finish(folder: storage.Path, plan: Mapping[str, Any], numbers: range, labeller: Labeller) -> None:
    """Writes the index, from what the files hold."""
    unknown: Counter = Counter()
    dropped: list[tuple[int, str]] = []
    total, square, known, rows = np.zeros(labeller.dim), np.zeros(labeller.dim), 0, 0
    for number in numbers:
        found, why, lost = latent_labels.unpack_block(latent_labels.block_file(folder, number).read_bytes())
        unknown += Counter(why)
        dropped += lost
        for latent, has in found.values():
            values = latent[has].astype(np.float64)
            total, square = total + values.sum(0), square + np.square(values).sum(0)
            known, rows = known + len(values), rows + len(latent)
    if not known:
        raise UserError(f"{folder}: expected motion in {labeller.source.path}; found no pair of frames that differ")
    mean = total / known
    index = Index(
        **plan, dim=labeller.dim, mean=mean.tolist(), std=np.sqrt(np.maximum(square / known - mean**2, 0)).tolist(),
        known=known, rows=rows, unknown=dict(unknown), dropped=dropped,
    )  # fmt: skip
    storage.write_text(folder / latent_labels.INDEX, json.dumps(index.to_json(), indent=1) + "\n")
    (folder / PLAN).unlink()
    print(f"{folder}: {known} of {rows} rows have a latent action", flush=True)
    for reason, count in sorted(unknown.items()):
        print(f"  {count} rows: {reason}", flush=True)
    for episode, reason in dropped:
        print(f"  episode {episode} left out: {reason}", flush=True)


class _Progress:
    """A line on stderr now and then."""

    def __init__(self, episodes: int):
        self._left, self._done, self._pairs = episodes, 0, 0
        self._begun = self._told = time.monotonic()

    def skip(self, episodes: int) -> None:
        self._left -= episodes

    def count(self, known: int) -> None:
        self._done, self._pairs, now = self._done + 1, self._pairs + known, time.monotonic()
        if now - self._told > REPORT_EVERY or self._done == self._left:
            self._told, passed = now, now - self._begun
            left = passed / self._done * (self._left - self._done)
            print(f"labelled {self._done} of {self._left} episodes, {self._pairs / passed:.1f} pairs a second, "
                  f"{left:.0f} s left", file=sys.stderr, flush=True)  # fmt: skip
