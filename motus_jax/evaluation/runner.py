"""Runs each mode on the held-out chunks and sets it against its baselines.

`Evaluator.run` gives one entry of `metrics.json`; `Evaluator.cycle` closes the circle actions -> video -> actions. The
model is any callable `predict(mode, batch, key)`, so that tests use an oracle or a cheat in its place.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from motus_jax.evaluation import baselines, metrics
from motus_jax.evaluation.comparison import all_primary_beaten, compare, difference, estimate_dict
from motus_jax.evaluation.held_out import OPEN_FRACTION, RADIANS, ActionUnits, HeldOut, from_other_episodes, mean_over
from motus_jax.evaluation.intervals import mean_interval
from motus_jax.modes import MODES, Role, get_mode

Batch = Mapping[str, np.ndarray]
Prediction = Mapping[str, np.ndarray]
Predict = Callable[[str, Batch, PRNGKeyArray], Prediction]
"""(mode, batch of the fixed size, key) -> `video` float [B, 1+F, H, W, 3] in [0, 1] and/or `actions` [B, T, A]."""

Say = Callable[[str], None]


def mode_with(video: Role, action: Role) -> str:
    """The mode of the table in which the modalities have these roles."""
    return next(name for name, row in MODES.items() if (row.video, row.action) == (video, action))


# Metrics that must get worse when a model that is given actions gets those of another episode.
LISTENS = ("psnr", "moving_psnr")

# The two modes that lead from actions to video and back.
FORWARD = mode_with(video=Role.DENOISED, action=Role.GIVEN)
INVERSE = mode_with(video=Role.GIVEN, action=Role.DENOISED)

# Appended to a mode's name where it is fed the actions of another episode.
OTHER_ACTIONS = "_other_actions"


@dataclasses.dataclass
class Evaluator:
    """Everything a mode is measured with.

    Attributes:
      predict: the model.
      held_out: the chunks, whose real future is the answer.
      memory: what the baselines know of the training split.
      units: of the actions.
      batch_size: of every call of `predict`.
      seed: of noise, pairs and intervals.
      say: takes progress lines.
      keep: chunks whose pictures are kept for the report.
    """

    predict: Predict
    held_out: HeldOut
    memory: baselines.TrainMemory
    units: ActionUnits
    batch_size: int
    seed: int = 0
    say: Say = print
    keep: Int[np.ndarray, " k"] = dataclasses.field(default_factory=lambda: np.arange(0))
    kept: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self._action_scores: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        self._imagined: np.ndarray | None = None

    def run(self, mode: str) -> dict[str, Any]:
        """One mode against its baselines.

        Returns:
          `compare`'s tables, `joints` (per dimension, for modes that act), `actions_of_another_episode` (for modes that
          are given actions), `beats_baselines` and the seconds it took.
        """
        row, started = get_mode(mode), time.monotonic()
        model, videos, joints = self._measure_model(mode)
        rivals = self._rivals(mode)
        entry = compare(model, {name: scores for name, (scores, _) in rivals.items()}, self._episodes, self.seed)
        beats = all_primary_beaten(entry["comparisons"])
        if row.returns_actions:
            entry["joints"] = self._joint_table({"model": joints, **{name: own for name, (_, own) in rivals.items()}})
            self._action_scores[mode] = {"model": model, **{name: scores for name, (scores, _) in rivals.items()}}
        if row.action is Role.GIVEN:
            entry["actions_of_another_episode"] = self._listens(mode, model)
            beats = beats and entry["actions_of_another_episode"]["gets_worse"]
            self._imagined = videos
        entry = {"beats_baselines": beats, "seconds": round(time.monotonic() - started, 2), **entry}
        self.say(f"{mode}: {'beats' if beats else 'DOES NOT BEAT'} its baselines ({entry['seconds']:.1f} s)")
        return entry

    def cycle(self) -> dict[str, Any]:
        """Actions -> imagined video -> recovered actions, against the actions it began with.

        Needs `run(FORWARD)` and `run(INVERSE)` first. `beats_baselines` compares with the mean chunk;
        `inverse_dynamics_on_real_video` says what the imagination costs.
        """
        started = time.monotonic()
        model, _, _ = self._measure_model(INVERSE, "cycle", frames=self._imagined)
        known = self._action_scores[INVERSE]
        entry = compare(model, {"predict_the_mean": known["predict_the_mean"]}, self._episodes, self.seed)
        real = known["model"]["normalised_mse"]
        return {
            "beats_baselines": all_primary_beaten(entry["comparisons"]),
            "seconds": round(time.monotonic() - started, 2),
            **entry,
            "inverse_dynamics_on_real_video": estimate_dict(mean_interval(real, self._episodes, self.seed), ""),
            "difference_to_real_video": difference(
                "normalised_mse", model["normalised_mse"], real, self._episodes, self.seed
            ),
        }

    @property
    def _episodes(self) -> Int[np.ndarray, " n"]:
        return self.held_out.episodes

    def _sweep(self, mode: str, label: str, **replaced: np.ndarray) -> Iterator[tuple[slice, Batch, Prediction]]:
        """Predictions for all chunks, batch by batch; the noise depends on the seed and the batch only."""
        started, total = time.monotonic(), len(self.held_out)
        for number, (where, batch) in enumerate(self.held_out.batches(self.batch_size, **replaced)):
            key = jax.random.fold_in(jax.random.key(self.seed), number)
            count = where.stop - where.start
            prediction = {name: np.asarray(value)[:count] for name, value in self.predict(mode, batch, key).items()}
            yield where, {name: value[:count] for name, value in batch.items()}, prediction
            if where.stop == total or number % max(total // self.batch_size // 4, 1) == 0:
                self.say(f"{label}: {where.stop}/{total} chunks, {time.monotonic() - started:.1f} s")

    def _measure_model(
        self, mode: str, label: str | None = None, **replaced: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Scores per chunk, the predicted videos (uint8) and the joint errors of one sweep."""
        row, label = get_mode(mode), label or mode
        parts, videos, actions = [], [], []
        for where, batch, prediction in self._sweep(mode, label, **replaced):
            if row.returns_video:
                parts.append(self._video_scores(where, prediction["video"][:, 1:]))
                condition = batch["frames"][:, :1]
                future = np.round(np.clip(prediction["video"][:, 1:], 0, 1) * 255).astype(np.uint8)
                videos.append(np.concatenate([condition, future], axis=1))
            if row.returns_actions:
                actions.append(prediction["actions"])
        scores, joints = _concatenate(parts), np.zeros((len(self.held_out), 0))
        video = np.concatenate(videos) if videos else np.zeros((len(self.held_out), 0), np.uint8)
        if actions:
            action_scores, joints = self._action_scores_of(np.concatenate(actions))
            scores = {**scores, **action_scores}
        self._keep(label, video, np.concatenate(actions) if actions else None)
        return scores, video, joints

    def _keep(self, label: str, video: np.ndarray, actions: np.ndarray | None) -> None:
        kept = {}
        if video.shape[1]:
            kept["video"] = video[self.keep]
        if actions is not None:
            kept["actions"] = self.units.denormalise(actions[self.keep], self.held_out.chunks["raw_state"][self.keep])
        self.kept[label] = kept

    def _video_scores(self, where: slice, future: Float[np.ndarray, "B F H W 3"]) -> dict[str, np.ndarray]:
        real = metrics.to_float(self.held_out.chunks["frames"][where])
        picture, moving = self.held_out.picture[where], self.held_out.moving[where]
        everywhere = np.broadcast_to(picture[:, None], moving.shape)
        return {
            "psnr": metrics.psnr(future, real[:, 1:], everywhere),
            "moving_psnr": metrics.psnr(future, real[:, 1:], moving, metrics.MOVING_LEAST_PIXELS),
            "ssim": metrics.ssim(future, real[:, 1:], picture),
        }

    def _action_scores_of(
        self, actions: Float[np.ndarray, "n T A"]
    ) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "n A"]]:
        chunks = self.held_out.chunks
        mask, state = chunks["action_mask"], chunks["raw_state"]
        joints = metrics.joint_errors(
            self.units.denormalise(actions, state), chunks["raw_actions"], mask[..., : len(self.units.names)]
        )
        scores = {
            "normalised_mse": metrics.normalised_mse(actions, chunks["actions"], mask),
            "joint_error": mean_over(joints, self.units.dimensions(RADIANS)),
            "gripper_error": mean_over(joints, self.units.dimensions(OPEN_FRACTION)),
        }
        return scores, joints

    def _rivals(self, mode: str) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
        """Scores and joint errors of the baselines of a mode; one that returns both modalities has those of both."""
        row, rivals = get_mode(mode), {}
        if row.returns_video:
            rivals |= {name: (scores, np.zeros((0, 0))) for name, scores in self._video_rivals.items()}
        if row.returns_actions:
            rivals |= self._action_rivals(sees_future=row.video is Role.GIVEN)
        return rivals

    @functools.cached_property
    def _video_rivals(self) -> dict[str, dict[str, np.ndarray]]:
        parts: dict[str, list] = {"copy_last": [], "train_mean_residual": []}
        for where, batch in self.held_out.batches(self.batch_size):
            frames = batch["frames"][: where.stop - where.start]
            parts["copy_last"].append(self._video_scores(where, baselines.copy_last(frames)))
            residual = baselines.train_mean_residual(frames, self.memory)
            parts["train_mean_residual"].append(self._video_scores(where, residual))
        return {name: _concatenate(own) for name, own in parts.items()}

    def _action_rivals(self, sees_future: bool) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
        chunks = self.held_out.chunks
        blocks = ("state", "picture", "motion") if sees_future else ("state", "picture")
        answers = {
            "predict_the_mean": baselines.predict_the_mean(chunks, self.memory),
            "nearest_neighbour": baselines.NearestNeighbour(self.memory, blocks).predict(chunks),
        }
        if self.units.hold is not None:
            answers["hold_the_state"] = self.units.hold(chunks["raw_state"])
        return {name: self._action_scores_of(actions) for name, actions in answers.items()}

    def _joint_table(self, joints: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Per action dimension: its name, unit, and the mean absolute error of the model and of each baseline."""
        table = []
        for index, (name, unit) in enumerate(zip(self.units.names, self.units.units)):
            errors = {
                who: estimate_dict(mean_interval(own[:, index], self._episodes, self.seed), unit)
                for who, own in joints.items()
                if own.shape[1]
            }
            table.append({"name": name, "unit": unit, "mean_absolute_error": errors})
        return table

    def _listens(self, mode: str, model: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The same model and noise, fed the actions of another episode: it must get worse."""
        partner = from_other_episodes(self.held_out, self.seed)
        given = {name: self.held_out.chunks[name][partner] for name in ("actions", "action_mask")}
        swapped, _, _ = self._measure_model(mode, mode + OTHER_ACTIONS, **given)
        differences = {
            name: difference(name, model[name], swapped[name], self._episodes, self.seed) for name in swapped
        }
        return {
            "metrics": {
                name: estimate_dict(mean_interval(values, self._episodes, self.seed), differences[name]["unit"])
                for name, values in swapped.items()
            },
            "differences": differences,
            "gets_worse": all(differences[name]["beats"] for name in LISTENS),
        }


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
