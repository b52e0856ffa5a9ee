"""Reader of RLDS datasets (Open X-Embodiment and anything that TensorFlow Datasets wrote), without TensorFlow.

One record is one episode: a `tf.train.Example` whose keys "steps/..." hold the values of all steps, one after the
other. Layout: tensorflow_datasets `core/features/dataset_feature.py` and `core/example_serializer.py`; what the steps
mean: google-research/rlds. Records lie in TFRecord or ArrayRecord files, which `dataset_info.json` names.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data import file_index, pictures, rlds_records, source, storage, tf_example, tfds_info
from motus_jax.data.oxe_rates import RATES
from motus_jax.data.source import Rows, broken
from motus_jax.data.tfds_info import NUMBER, PICTURE, TEXT, Feature
from motus_jax.data.tfrecord import Place, RecordError
from motus_jax.errors import UserError

AUTO = "auto"
STATES = ("observation/state", "observation/proprio")
TEXTS = ("language_instruction", "natural_language_instruction", "observation/natural_language_instruction")
"""Where `AUTO` looks, in this order; the first that exists is taken."""
RECORDS_CACHE = 64 << 20
"""Bytes of records kept: pictures stay compressed, so that these are several episodes."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Episode(source.Episode):
    """Where one episode lies.

    Attributes:
      file: shard.
      place: of the record in it.
      runs: (first row, texts) of each stretch of rows that say the same.
    """

    file: storage.Path
    place: Place
    runs: tuple[tuple[int, tuple[str, ...]], ...]


class RldsDataset(source.Source):
    """An RLDS dataset: the folder of one version, or of a dataset with one version.

    Options (paths are those of features below "steps", "observation/image"):
      state: path of a numeric feature, or several to join; "auto"; "" for none.
      action: likewise; where the action is a dictionary its parts must be listed, since their order is a choice.
      text: path of the instruction, or several in equal right; "auto"; "" for none. A path below
        "episode_metadata" says something of all steps.
      fps: steps a second, which RLDS does not store; 0 looks the dataset up in `motus_jax.data.oxe_rates`.
      robot: its name.
      partial: True leaves out shards that are not there (a dataset copied in part); otherwise they are an error.

    Actions are commands: each is reached at the next step. Pictures without three channels (depth) are no cameras.

    Attributes:
      info: what the dataset says of itself.
    """

    OPTIONS: Mapping[str, Any] = {
        "state": AUTO,
        "action": "action",
        "text": AUTO,
        "fps": 0.0,
        "robot": "unknown",
        "partial": False,
    }
    episodes: Sequence[Episode]

    def __init__(self, path: str, options: Mapping[str, Any] | None = None):
        """Opens a dataset; the first time reads every shard once, to learn where episodes lie and how long they are.

        Raises:
          UserError: missing or damaged files, an unknown feature, or a rate that must be given.
        """
        super().__init__(path, options)
        if not self.path.is_dir():
            raise UserError(f"{self.path}: expected the folder of an RLDS dataset; found nothing there")
        self.path = tfds_info.find(self.path)
        self.info = tfds_info.load(self.path)
        self.format = f"RLDS in {self.info.file_format}"
        self.robot = str(self.options["robot"])
        self.fps = self._rate()
        steps = self.info.steps
        self.cameras = {
            path.removeprefix("observation/"): leaf.shape[:2] if leaf.width else None  # type: ignore[misc]
            for path, leaf in steps.items()
            if leaf.kind == PICTURE and path.startswith("observation/")
        }
        self._state = self._numeric("state", next((path for path in STATES if path in steps), ""))
        self._action = self._numeric("action", "action")
        self.state_names, self.action_names = self._names(self._state), self._names(self._action)
        self._fields = rlds_records.Fields(steps, self._texts())
        self._records = source.ByteCache(RECORDS_CACHE)
        self.episodes, self._splits = self._read_index()

    def size_bytes(self) -> int:
        return file_index.total_bytes(dict.fromkeys(episode.file for episode in self.episodes))

    def named_splits(self) -> Mapping[str, str]:
        return self._splits

    def all_texts(self) -> list[str]:
        return sorted({text for episode in self.episodes for _, texts in episode.runs for text in texts})

    def texts(self, index: int, row: int = 0) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for first, texts in self.episode(index).runs:
            if first <= row:
                found = texts
        return found

    def read_rows(self, index: int) -> Rows:
        return source.commands(self.fps, self._matrix(index, self._state), self._matrix(index, self._action))

    def read_frames(self, index: int, camera: str, rows: Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        path, episode = f"observation/{camera}", self.episode(index)
        found = self._list(index, path, tf_example.byte_strings)
        if len(found) != episode.length:
            raise broken(episode.file, index, path, f"{episode.length} pictures, one a step", len(found))
        return pictures.decode_rows(
            found,
            rows,
            self.cameras[camera],
            lambda expected, text: broken(episode.file, index, path, expected, text),
        )

    def _rate(self) -> float:
        fps = float(self.options["fps"]) or RATES.get(self.info.name, 0.0)
        if fps <= 0:
            raise UserError(
                f"{self.path}: expected the option fps, since RLDS stores no rate and that of {self.info.name!r} is "
                f"not known; found {self.options['fps']!r}"
            )
        return float(fps)

    def _numeric(self, option: str, automatic: str) -> tuple[str, ...]:
        """Paths of the numeric features that an option names."""
        paths = _paths(automatic if self.options[option] == AUTO else self.options[option])
        for path in paths:
            leaf = self.info.steps.get(path)
            below = [other for other in self.info.steps if other.startswith(f"{path}/")]
            if leaf is None and below:
                raise UserError(
                    f"{self.path}: option {option}: expected a numeric feature; found that {path!r} is a dictionary: "
                    f"list its parts in the order to join them in: {', '.join(below)}"
                )
            if leaf is None or leaf.kind != NUMBER or not leaf.width:
                found = "no such feature" if leaf is None else f"a {leaf.kind} of shape {leaf.shape}"
                numeric = [other for other, item in self.info.steps.items() if item.kind == NUMBER and item.width]
                raise UserError(
                    f"{self.path}: option {option}, {path!r}: expected one of {', '.join(numeric)}; found {found}"
                )
        return paths

    def _names(self, paths: tuple[str, ...]) -> tuple[str, ...]:
        """A name per number: the feature's last word, numbered where it has several."""
        names = []
        for path in paths:
            word, width = path.rpartition("/")[2], self.info.steps[path].width
            names += [word] if not self.info.steps[path].shape else [f"{word} {k}" for k in range(width)]
        return tuple(names)

    def _texts(self) -> tuple[str, ...]:
        """Paths of the instructions."""
        steps, others = self.info.steps, self.info.others
        if self.options["text"] == AUTO:
            return tuple(path for path in TEXTS if _is_text(steps.get(path)))[:1]
        paths = _paths(self.options["text"])
        for path in paths:
            leaf = steps.get(path, others.get(path))
            codes = path in steps and leaf.kind == NUMBER and leaf.dtype.startswith(("int", "uint"))
            if not (_is_text(leaf) or codes):
                known = [other for other, item in {**steps, **others}.items() if _is_text(item)]
                found = "no such feature" if leaf is None else f"a {leaf.kind}"
                raise UserError(
                    f"{self.path}: option text, {path!r}: expected one of {', '.join(known) or 'none'}; found {found}"
                )
        return paths

    def _read_index(self) -> tuple[list[Episode], dict[str, str]]:
        """The episodes in order of splits, shards and records, and the splits' ranges."""
        shards = [(split, self.path / name, n) for split in self.info.splits for name, n in _shards(split)]
        if self.options["partial"]:
            present = [shard for shard in shards if shard[1].is_file()]
            if len(present) < len(shards):
                _log.warning("%s: %d of %d shards are there", self.path, len(present), len(shards))
            shards = present
        reader = f"rlds 1, texts {', '.join(self._fields.texts)}"
        found = file_index.facts_of(
            self.path,
            [file for _, file, _ in shards],
            reader,
            lambda file: rlds_records.index(file, self.info.file_format, self._fields),
        )
        episodes: list[Episode] = []
        faults: list[str] = []
        self.left_out = []
        beyond = {split.name: 0 for split in self.info.splits}
        for (split, file, count), facts in zip(shards, found):
            if len(facts["steps"]) != count:
                found_count = len(facts["steps"])
                raise UserError(f"{file}: expected {count} records, as dataset_info.json says; found {found_count}")
            place = len(episodes) + len(self.left_out)
            episodes += _episodes(len(episodes), file, facts)
            self.left_out += sorted(place + int(record) for record in facts["faults"])
            faults += [f"record {record} of {file}: {why}" for record, why in facts["faults"].items()]
            beyond[split.name] = len(episodes)
        if faults:
            _log.warning("%s: %d records left out that are no episodes; first: %s", self.path, len(faults), faults[0])
        if not episodes:
            raise UserError(f"{self.path}: expected episodes; found {'; '.join(faults[:1]) or 'no records'}")
        return episodes, _ranges(beyond)

    def _features(self, index: int) -> "_Record":
        """The record of an episode, parsed, from the cache where it is there."""
        episode = self.episode(index)

        def make() -> _Record:
            return _Record(rlds_records.read(episode.file, self.info.file_format, episode.place))

        try:
            return self._records.get(index, make)
        except RecordError as error:
            raise broken(episode.file, index, "record", error.expected, error.found) from error

    def _list(self, index: int, path: str, values: Callable[[tf_example.Feature], Any]) -> Any:
        """The values of one feature of an episode, all steps together."""
        features, file = self._features(index).features, self.episode(index).file
        if f"steps/{path}" not in features:
            raise broken(file, index, path, "this feature in the record", f"{len(features)} others")
        try:
            return values(features[f"steps/{path}"])
        except RecordError as error:
            raise broken(file, index, path, error.expected, error.found) from error

    def _matrix(self, index: int, paths: tuple[str, ...]) -> Float[np.ndarray, "n D"]:
        length = self.episode(index).length
        columns = [np.zeros((length, 0), np.float32)]
        for path in paths:
            numbers, width = self._list(index, path, tf_example.numbers), self.info.steps[path].width
            if numbers.size != length * width:
                expected = f"{length} steps of {width} numbers, as features.json says"
                raise broken(self.episode(index).file, index, path, expected, f"{numbers.size} numbers")
            columns.append(numbers.reshape(length, width).astype(np.float32))
        return np.concatenate(columns, axis=1)


class _Record:
    """The bytes of an episode and its lists; pictures are decoded only when they are asked for."""

    def __init__(self, data: bytes):
        self.nbytes = len(data)
        self.features = tf_example.parse(memoryview(data))


def _paths(given: Any) -> tuple[str, ...]:
    """One path or several, as options give them."""
    paths = (given,) if isinstance(given, str) else tuple(given)
    return tuple(str(path).removeprefix("steps/") for path in paths if path)


def _is_text(leaf: Feature | None) -> bool:
    return leaf is not None and leaf.kind == TEXT and not leaf.shape


def _shards(split: tfds_info.Split) -> list[tuple[str, int]]:
    return list(zip(split.files, split.records))


def _episodes(first: int, file: storage.Path, facts: Mapping[str, Any]) -> list[Episode]:
    """The episodes of a shard, without records that are none."""
    episodes = []
    for place, steps, runs in zip(facts["places"], facts["steps"], facts["runs"]):
        if steps:
            texts = tuple((row, tuple(facts["texts"][k] for k in numbers)) for row, numbers in runs)
            episodes.append(Episode(first + len(episodes), steps, file, Place(*place), texts))
    return episodes


def _ranges(beyond: Mapping[str, int]) -> dict[str, str]:
    """Splits as "first:beyond" ranges, from the number of episodes up to the end of each; empty ones are left out."""
    ranges, first = {}, 0
    for name, last in beyond.items():
        if last > first:
            ranges[name] = f"{first}:{last}"
            first = last
    return ranges
