"""From sources on disk to batches: `make_iterator`, `eval_batches`.

The order of the data depends on seed, weights and step only: never on hosts, workers, threads or timing. Each row of
the batch of step k draws its source from a random number made from (seed, k); the n-th draw of a source is the n-th
chunk of that source in an order that is shuffled anew every epoch. The state of an iterator is the step and, by name,
the draws of each source so far. So weights may change, sources may join or leave and the number of hosts may be another
one: each source goes on where it was. Each host takes its own block of rows, so that the blocks side by side are the
same global batch whatever the number of hosts.
"""

import dataclasses
import json
import sys
import threading
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Int

from motus_jax.data import clock, worker
from motus_jax.data.contract import Contract
from motus_jax.data.dataset import Dataset
from motus_jax.data.example import Example
from motus_jax.data.features import Features
from motus_jax.data.mixture import Mixture, make_mixture
from motus_jax.data.source import BrokenData
from motus_jax.errors import UserError

NOTE, NOTE_BYTES = "_note", 1024
"""Field of an example that says, in at most so many bytes, why another was put into quarantine in its place."""
SECONDS = "_seconds"
"""Field of an example that says where the time went that it took, by `motus_jax.data.clock.PARTS`."""
ATTEMPTS = 20
"""Chunks of one source in a row that may be broken."""
PLANS_KEPT = 64
"""Steps whose draws a loader remembers, besides twice those that are under way: some lag behind the others."""
BATCHES_AHEAD = 2
"""Batches, after the one that is being assembled, whose pictures remote sources begin to fetch."""
LEAST_BROKEN = 10
"""Broken examples below which no share of them stops training."""

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stream:
    """What decides a host's examples.

    Attributes:
      seed: of the order.
      batch_size: examples of the whole batch, over all hosts.
      host, hosts: this host's index and their number.
      step: the first batch.
      drawn: draws of each source before it.
    """

    seed: int
    batch_size: int
    host: int
    hosts: int
    step: int
    drawn: tuple[int, ...]

    @property
    def local(self) -> int:
        """Rows of this host in a batch."""
        return self.batch_size // self.hosts


@dataclasses.dataclass(frozen=True)
class Opening:
    """What another process needs to open the same mixture."""

    settings: Mapping[str, Any]
    split: str
    contracts: Mapping[str, dict[str, Any]]
    features: Mapping[str, tuple[Any, ...]]

    def __call__(self) -> Mixture:
        contracts = {name: Contract.from_json(record) for name, record in self.contracts.items()}
        features = {name: Features(*arguments) for name, arguments in self.features.items()}
        # What does not fit in memory is decoded when asked for; every worker having its own copy would be too much.
        return make_mixture(self.settings, self.split, contracts=contracts, features=features)


class Loader:
    """Place in a host's stream -> example; a pure function of the place, also in another process."""

    def __init__(self, opening: Opening, stream: Stream, mixture: Mixture | None = None):
        self._opening, self._stream, self._mixture = opening, stream, mixture
        self._lock = threading.Lock()
        self._plans: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._frontier = stream.step, np.array(stream.drawn, np.int64)
        self._orders: list[grain.MapDataset] | None = None
        self._announced: deque[int] = deque(maxlen=PLANS_KEPT)
        threads, workers, prefetch = (int(opening.settings[name]) for name in ("threads", "workers", "prefetch"))
        self._plans_kept = PLANS_KEPT + 2 * max(prefetch + workers, threads * max(workers, 1))

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        return Loader, (self._opening, self._stream)

    def __call__(self, place: int) -> Example:
        """The example at a place: row `place % local` of this host's part of batch `place // local`."""
        stream = self._stream
        step, row = divmod(place, stream.local)
        if row == 0:
            self._announce(step)
        sources, numbers = self._plan(stream.step + step)
        row += stream.host * stream.local
        source, number = int(sources[row]), int(numbers[row])
        clock.take()
        with clock.timed("assemble"):
            example = self._example(self._opened().datasets[self._names[source]], source, number)
        example[SECONDS] = np.float32(clock.take())
        return example

    def _announce(self, step: int) -> None:
        """Tells remote sources which examples come next: those of this batch and of the next of this worker."""
        if not any(dataset.source.fetches_ahead for dataset in self._opened().datasets.values()):
            return
        datasets = list(self._opened().datasets.values())
        workers = max(1, int(self._opening.settings["workers"]))
        for number in range(step, step + BATCHES_AHEAD * workers + 1, workers):
            with self._lock:
                if number in self._announced:
                    continue
                self._announced.append(number)
            sources, numbers = self._plan(self._stream.step + number)
            begin = self._stream.host * self._stream.local
            for row in range(begin, begin + self._stream.local):
                source = int(sources[row])
                chunk = int(self._orders[source][int(numbers[row])])
                datasets[source].expect(*datasets[source].place(chunk))

    def _opened(self) -> Mixture:
        with self._lock:
            if self._mixture is None:
                self._mixture = self._opening()
            if self._orders is None:
                self._names = list(self._mixture.datasets)
                self._orders = [
                    grain.MapDataset.range(len(dataset)).shuffle(seed=self._stream.seed % 2**32).repeat()
                    for dataset in self._mixture.datasets.values()
                ]
            return self._mixture

    def _example(self, dataset: Dataset, source: int, number: int) -> Example:
        """Draw `number` of a source; in place of a broken chunk another one of the same source."""
        note = b""
        chunk = int(self._orders[source][number])
        key = [self._stream.seed & (2**64 - 1), number]
        # By name: the source's number changes when another one joins.
        name = zlib.crc32(self._names[source].encode())
        random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, name, 1]))
        for _ in range(ATTEMPTS):
            try:
                example = dataset.example(*dataset.place(chunk), random)
            except BrokenData as error:
                note, last = note or str(error).encode()[:NOTE_BYTES], error
                chunk = int(random.integers(len(dataset)))
                continue
            example[NOTE] = np.array(note, f"S{NOTE_BYTES}")
            return example
        raise UserError(f"{dataset.source.path}: {ATTEMPTS} chunks in a row are broken, the last one: {last}")

    def _plan(self, step: int) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """(source, number of the draw in that source) of every row of a step's batch."""
        mixture, stream = self._opened(), self._stream
        with self._lock:
            if step in self._plans:
                return self._plans[step]
            begun, drawn = self._frontier
            if step < begun:
                begun, drawn = stream.step, np.array(stream.drawn, np.int64)
            for number in range(begun, step + 1):
                sources = mixture.draw(stream.seed, number, stream.batch_size)
                self._plans[number] = sources, drawn[sources] + _rank(sources)
                drawn = drawn + np.bincount(sources, minlength=len(drawn))
                while len(self._plans) > self._plans_kept:
                    self._plans.popitem(last=False)
            self._frontier = step + 1, drawn
            return self._plans[step]


class Batches(grain.DatasetIterator):
    """This host's part of the batches of a run: endless, and checkpointable by Orbax.

    Attributes:
      drawn: draws of each source so far, over all hosts.
      broken: examples put into quarantine so far, on this host, by source.
      seconds: that threads and workers have spent on this host's batches since it was opened, by `clock.PARTS`.
    """

    def __init__(self, opening: Opening, mixture: Mixture, stream: Stream):
        super().__init__()
        self._opening, self._mixture, self._first = opening, mixture, stream
        self._names = list(mixture.datasets)
        self.step, self.drawn, self.broken = stream.step, dict.fromkeys(self._names, 0), dict.fromkeys(self._names, 0)
        self.seconds = dict.fromkeys(clock.PARTS, 0.0)
        self._retired: dict[str, int] = {}
        self._notes: list[str] = []
        self._running: list[grain.DatasetIterator] = []
        # Also when this object is dropped or the program ends: processes and shared memory outlive both.
        weakref.finalize(self, _end, self._running)

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          UserError: too much is broken (`config.data.broken_limit`).
        """
        self._assert_not_closed()
        begins = not self._running
        if begins:
            self._running.append(self._start())
        batch = self._take(begins)
        notes, seconds = batch.pop(NOTE), batch.pop(SECONDS).sum(0, dtype=np.float64)
        self.seconds = {part: self.seconds[part] + more for part, more in zip(clock.PARTS, seconds.tolist())}
        counts = np.bincount(self._draw(), minlength=len(self._names)).tolist()
        self.drawn = {name: self.drawn[name] + count for name, count in zip(self._names, counts)}
        self.step += 1
        for row in np.flatnonzero(notes != b""):
            self._quarantine(self._names[int(batch["source"][row])], notes[row].decode(errors="replace"))
        return batch

    def take_notes(self) -> list[str]:
        """Why examples were put into quarantine since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def get_state(self) -> dict[str, Any]:
        return {"step": self.step, "drawn": {**self._retired, **self.drawn}, "broken": self.broken}

    def set_state(self, state: Mapping[str, Any]) -> None:
        _end(self._running)
        self.step = int(state["step"])
        self.drawn = {name: int(state["drawn"].get(name, 0)) for name in self._names}
        self.broken = {name: int(state["broken"].get(name, 0)) for name in self._names}
        self._retired = {name: int(count) for name, count in state["drawn"].items() if name not in self.drawn}

    async def load(self, directory: epath.Path) -> Awaitable[None]:
        """As grain's own, but for the number of hosts, which may be another one: all of them have the same state."""
        own = epath.Path(directory) / f"process_{self._first.host}-of-{self._first.hosts}.json"
        file = own if own.exists() else next(iter(epath.Path(directory).glob("process_0-of-*.json")), None)
        if file is None:
            raise FileNotFoundError(f"{directory}: expected the state of the data; found none")
        state = json.loads(file.read_text())

        async def load() -> None:
            self.set_state(state)

        return load()

    def close(self) -> None:
        """Ends the threads and processes that assemble batches."""
        if not self._closed:
            _end(self._running)
            super().close()

    def _take(self, begins: bool) -> Batch:
        workers, running = int(self._mixture.settings["workers"]), self._running[0]
        try:
            batch = worker.shelter(running.__next__) if begins and workers else next(running)
        except RuntimeError as error:
            if not workers or "Worker process" not in str(error):
                raise
            raise UserError(
                f"config.data.workers: expected {workers} processes that run on; found: {error} Killed for memory? Set "
                "fewer workers or a smaller config.data.prefetch"
            ) from error
        # What workers send lies in shared memory, which is small on many machines and must be given back.
        return {key: np.array(value) for key, value in batch.items()} if workers else dict(batch)

    def _draw(self) -> Int[np.ndarray, "B"]:
        return self._mixture.draw(self._first.seed, self.step, self._first.batch_size)

    def _quarantine(self, name: str, note: str) -> None:
        self.broken[name] += 1
        self._notes.append(f"{name}: {note}")
        broken, limit = sum(self.broken.values()), float(self._mixture.settings["broken_limit"])
        seen = sum(self.drawn.values()) // self._first.hosts
        if broken >= LEAST_BROKEN and broken > limit * seen:
            raise UserError(
                f"{broken} of {seen} examples are broken, more than config.data.broken_limit={limit:g}; the last one: "
                f"{note}"
            )

    def _start(self) -> grain.DatasetIterator:
        settings = self._mixture.settings
        stream = dataclasses.replace(self._first, step=self.step, drawn=tuple(self.drawn.values()))
        loader = Loader(self._opening, stream, self._mixture)
        # Batches are made before threads and workers fan out: whole batches travel, in order.
        places = grain.MapDataset.range(sys.maxsize // stream.batch_size * stream.local)
        batches = places.map(loader).batch(stream.local, drop_remainder=True)
        threads, workers = int(settings["threads"]), int(settings["workers"])
        # The batches ahead are shared among the workers, each of which keeps its threads busy.
        prefetch = max(-(-int(settings["prefetch"]) // max(workers, 1)), threads)
        batches = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch))
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers)
            batches = batches.mp_prefetch(options, worker_init_fn=worker.begin)
        return iter(batches)


def _end(running: list[grain.DatasetIterator]) -> None:
    while running:
        running.pop().close()


def make_iterator(mixture: Mixture, batch_size: int, seed: int, *, host: int = 0, hosts: int = 1) -> Batches:
    """Endless shuffled batches of this host's share, as a grain iterator that Orbax can checkpoint.

    Without workers the videos are decoded into memory first, as far as they fit (`Mixture.preload`).

    Args:
      mixture: usually of the "train" split.
      batch_size: examples of the whole batch, over all hosts.
      seed: of the order.
      host: this host's index.
      hosts: number of hosts; must divide `batch_size`.

    Raises:
      UserError: `hosts` does not divide `batch_size`.
    """
    if batch_size < 1 or batch_size % hosts:
        raise UserError(f"config.batch_size: expected a positive multiple of the {hosts} hosts; found {batch_size}")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads its own flags; outside an absl app nobody has parsed them
    if not mixture.settings["workers"]:
        mixture.preload()
    stream = Stream(seed, batch_size, host, hosts, 0, (0,) * len(mixture.datasets))
    features = {name: dataset.features.arguments for name, dataset in mixture.datasets.items() if dataset.features}
    return Batches(Opening(mixture.settings, mixture.split, mixture.contracts(), features), mixture, stream)


def _rank(values: Int[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    """How many earlier entries have the same value."""
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    first = np.searchsorted(sorted_values, sorted_values, side="left")
    ranks = np.empty(len(values), np.int64)
    ranks[order] = np.arange(len(values)) - first
    return ranks


def eval_batches(dataset: Dataset, batch_size: int, limit: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Fixed batches for evaluation, spread evenly over the split's episodes and within each over time.

    Besides the keys of a batch they carry `raw_state` [B, Pr] and `raw_actions` [B, T, Ar] in the robot's units, and
    `valid` [B]: the last batch is filled up with repeats that are not to be counted.

    Args:
      dataset: usually the "test" split.
      batch_size: examples in every batch.
      limit: examples in all; fewer when the split has fewer chunks.
      seed: of the choice; the same seed always gives the same examples in the same order.
    """
    chosen = _spread(dataset, limit, np.random.default_rng(seed))
    touched = sorted({episode for episode, _ in chosen})
    rows = sum(dataset.source.episode(episode).length for episode in touched)
    if len(chosen) * dataset.timing.seconds * dataset.source.fps >= rows:
        dataset.preload(touched)  # whole episodes are less work than that many clips
    batches = []
    for begin in range(0, len(chosen), batch_size):
        places = chosen[begin : begin + batch_size]
        filled = places + [places[0]] * (batch_size - len(places))
        examples = [_with_raw(dataset, episode, frame) for episode, frame in filled]
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        batch["valid"] = np.arange(batch_size) < len(places)
        batches.append(batch)
    return batches


def _with_raw(dataset: Dataset, episode: int, frame: int) -> Example:
    example = dataset.example(episode, frame)
    example["raw_state"] = dataset.raw_state(episode, frame)
    example["raw_actions"] = dataset.raw_actions(episode, frame)
    return example


def _spread(dataset: Dataset, limit: int, random: np.random.Generator) -> list[tuple[int, int]]:
    """Up to `limit` (episode, row) pairs: as many from each episode as from any other, evenly spaced in each."""
    lengths = dataset.chunks_by_episode
    order = random.permutation(len(lengths))
    quota = np.zeros(len(lengths), int)
    left = min(limit, sum(lengths))
    while left:
        open_episodes = [k for k in order if quota[k] < lengths[k]][:left]
        quota[open_episodes] += 1
        left -= len(open_episodes)
    chosen = []
    for episode, length, count in zip(dataset.episodes, lengths, quota):
        rows = np.floor((np.arange(count) + random.random()) * length / max(count, 1)).astype(int)
        chosen += [(episode, int(row)) for row in rows]
    return [chosen[k] for k in random.permutation(len(chosen))]
