"""What a model must beat: predictions that need no model, fitted on the training split only.

Pictures: repeat the condition frame (`copy_last`), or add to it the mean change of the training chunks
(`train_mean_residual`). Actions: the mean training chunk (`predict_the_mean`), stay where the robot is
(`hold_the_state`), or the chunk of the most similar training example (`nearest_neighbour`).
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from motus_jax.evaluation.metrics import to_float

Batch = Mapping[str, np.ndarray]

# Pictures are compared at this reduction in each direction: enough to tell where arms and objects are.
REDUCTION = 16

# Relative weights tried for each block of features; only ratios matter, so that the largest is 1 in every trial.
WEIGHTS = (0.0, 1 / 16, 1 / 4, 1.0)

# Training chunks that serve as queries when the weights are chosen.
TUNING_QUERIES = 512

# Added to the distance, so that a neighbour has the same robot wherever the training split has one.
OTHER_EMBODIMENT = 1e9

# The same for another instruction, tried beside 0: where the picture shows the task, paraphrases had better not count.
OTHER_INSTRUCTION = (0.0, 1e6)

_CHUNK_KEYS = ("actions", "action_mask", "instruction", "episode", "source", "embodiment")


@dataclasses.dataclass(frozen=True)
class TrainMemory:
    """What the baselines remember of the training split.

    Attributes:
      features: blocks `state` [n, P], `picture` and `motion` [n, features], as `features_of` makes them.
      chunks: the arrays of `_CHUNK_KEYS` for the same n chunks.
      mean_chunk: mean normalised action of each step [T, A]; 0 where no training chunk has a value.
      mean_residual: mean change of the picture from the condition frame [F, H, W, 3] in [-1, 1].
    """

    features: dict[str, np.ndarray]
    chunks: dict[str, np.ndarray]
    mean_chunk: Float[np.ndarray, "T A"]
    mean_residual: Float[np.ndarray, "F H W 3"]


def remember(batches: Iterable[Batch]) -> TrainMemory:
    """Reads training batches once; pictures are reduced to features as they pass."""
    features: list[dict[str, np.ndarray]] = []
    chunks: list[dict[str, np.ndarray]] = []
    residual, seen = 0.0, 0
    for batch in batches:
        features.append(features_of(batch))
        chunks.append({key: np.asarray(batch[key]) for key in _CHUNK_KEYS})
        frames = batch["frames"].astype(np.int16)
        residual = residual + (frames[:, 1:] - frames[:, :1]).sum(axis=0, dtype=np.int64)
        seen += len(frames)
    chunk_arrays = _concatenate(chunks)
    mask = chunk_arrays["action_mask"]
    total = np.where(mask, chunk_arrays["actions"], 0.0).sum(axis=0)
    mean_chunk = (total / np.maximum(mask.sum(axis=0), 1)).astype(np.float32)
    mean_residual = (residual / (255.0 * seen)).astype(np.float32)
    return TrainMemory(_concatenate(features), chunk_arrays, mean_chunk, mean_residual)


def features_of(batch: Batch) -> dict[str, Float[np.ndarray, "B features"]]:
    """Blocks for the nearest neighbour: state, the condition picture reduced, and the reduced changes after it."""
    reduced = _reduce(batch["frames"])
    size = len(reduced)
    return {
        "state": np.asarray(batch["state"], np.float32),
        "picture": reduced[:, 0].reshape(size, -1),
        "motion": (reduced[:, 1:] - reduced[:, :1]).reshape(size, -1),
    }


def copy_last(frames: UInt8[np.ndarray, "B 1+F H W 3"]) -> Float[np.ndarray, "B F H W 3"]:
    """The condition frame, the last one seen, for every future frame."""
    return np.repeat(to_float(frames[:, :1]), frames.shape[1] - 1, axis=1)


def train_mean_residual(
    frames: UInt8[np.ndarray, "B 1+F H W 3"], memory: TrainMemory
) -> Float[np.ndarray, "B F H W 3"]:
    """The condition frame plus the mean change of the training chunks, clipped to [0, 1]."""
    return np.clip(to_float(frames[:, :1]) + memory.mean_residual, 0.0, 1.0)


def predict_the_mean(batch: Batch, memory: TrainMemory) -> Float[np.ndarray, "B T A"]:
    """The mean normalised training chunk for every example: what an answer without looking is worth."""
    return np.repeat(memory.mean_chunk[None], len(batch["actions"]), axis=0)


class NearestNeighbour:
    """Returns the actions of the most similar training chunk.

    Distance: a weighted sum of squared distances of blocks, each brought to unit mean square norm on the training
    split. The weights, and whether the instruction counts, are chosen on the training split: the grid point with the
    least normalised MSE when every query may only look at other episodes.
    """

    def __init__(self, memory: TrainMemory, blocks: tuple[str, ...]):
        """Args: `blocks` names the features used: without `motion` the future frames are not looked at."""
        self._memory = memory
        self._scale = {block: _Scale.fit(memory.features[block]) for block in blocks}
        self._train = {block: scale(memory.features[block]) for block, scale in self._scale.items()}
        self.weights, self.other_instruction = self._choose_weights()

    def predict(self, batch: Batch) -> Float[np.ndarray, "B T A"]:
        """Normalised actions; looks at state, frames, instruction and embodiment of the batch only."""
        features = features_of(batch)
        distances = {
            block: _squared_distances(scale(features[block]), self._train[block])
            for block, scale in self._scale.items()
        }
        barred = self.other_instruction * self._other_words(batch) + OTHER_EMBODIMENT * self._other_robot(batch)
        nearest = (_weighted(distances, self.weights) + barred).argmin(axis=1)
        return self._memory.chunks["actions"][nearest]

    def _choose_weights(self) -> tuple[dict[str, float], float]:
        chunks = self._memory.chunks
        n = len(chunks["episode"])
        query = np.unique(np.linspace(0, n - 1, TUNING_QUERIES).astype(int))
        asked = {key: value[query] for key, value in chunks.items()}
        distances = {block: _squared_distances(train[query], train) for block, train in self._train.items()}
        own_episode = _episode_names(asked)[:, None] == _episode_names(chunks)
        barred = np.where(own_episode, np.inf, OTHER_EMBODIMENT * self._other_robot(asked))
        other_words = self._other_words(asked)
        mask = asked["action_mask"]

        def error(choice: tuple[tuple[float, ...], float]) -> float:
            weights, penalty = choice
            total = _weighted(distances, dict(zip(distances, weights))) + barred + penalty * other_words
            wrong = np.square(chunks["actions"][total.argmin(axis=1)] - asked["actions"])
            return float((wrong * mask).sum() / max(mask.sum(), 1))

        grid = [weights for weights in itertools.product(WEIGHTS, repeat=len(distances)) if max(weights) == 1.0]
        weights, penalty = min(itertools.product(grid, OTHER_INSTRUCTION), key=error)
        return dict(zip(distances, weights)), penalty

    def _other_words(self, batch: Batch) -> Bool[np.ndarray, "B n"]:
        return (batch["instruction"][:, None] != self._memory.chunks["instruction"]).any(axis=-1)

    def _other_robot(self, batch: Batch) -> Bool[np.ndarray, "B n"]:
        return batch["embodiment"][:, None] != self._memory.chunks["embodiment"]


@dataclasses.dataclass(frozen=True)
class _Scale:
    """Brings one block of features to zero mean and unit mean square norm."""

    mean: np.ndarray
    norm: float

    @classmethod
    def fit(cls, features: Float[np.ndarray, "n features"]) -> "_Scale":
        mean = features.mean(axis=0)
        norm = float(np.sqrt(np.square(features - mean).sum(axis=1).mean()))
        return cls(mean, max(norm, 1e-6))

    def __call__(self, features: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n features"]:
        return (features - self.mean) / self.norm


def _episode_names(chunks: Batch) -> Int[np.ndarray, " n"]:
    """One number per (source, episode): two sources may number their episodes alike."""
    return chunks["source"].astype(np.int64) * 2**32 + chunks["episode"]


def _reduce(frames: UInt8[np.ndarray, "B F H W 3"]) -> Float[np.ndarray, "B F h w 3"]:
    """Area means over squares of `REDUCTION` pixels."""
    batch, count, height, width, _ = frames.shape
    size = (max(width // REDUCTION, 1), max(height // REDUCTION, 1))
    flat = frames.reshape(-1, height, width, 3)
    small = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in flat])
    return to_float(small).reshape(batch, count, size[1], size[0], 3)


def _squared_distances(a: Float[np.ndarray, "q d"], b: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "q n"]:
    return np.maximum(np.square(a).sum(1)[:, None] - 2 * a @ b.T + np.square(b).sum(1), 0.0)


def _weighted(distances: dict[str, np.ndarray], weights: dict[str, float]) -> Float[np.ndarray, "q n"]:
    return sum(weights[block] * distance for block, distance in distances.items())


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
