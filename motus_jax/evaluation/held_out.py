"""The chunks an evaluation runs on, and what is known of their units."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from jaxtyping import Bool, Float, Int

from motus_jax.data.action_space import ACTION_SPACES
from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.evaluation.metrics import moving_mask, picture_mask

Batch = Mapping[str, np.ndarray]

RADIANS = "rad"
OPEN_FRACTION = "open fraction"


@dataclasses.dataclass(frozen=True)
class ActionUnits:
    """From normalised actions to the robot's own units.

    Attributes:
      names: one per action dimension of the robot (Ar; the model's A may be larger).
      units: `RADIANS` or `OPEN_FRACTION` (0 closed, 1 open) per dimension.
      denormalise: (normalised actions [B, T, A], raw states [B, Pr]) -> absolute targets [B, T, Ar] in `units`.
      hold: raw states [B, Pr] -> normalised actions [B, T, A] that keep the robot where it is; None where nobody knows
        them: latent actions, changes with a gripper's target among them, a state shorter than the action.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    denormalise: Callable[[np.ndarray, np.ndarray], np.ndarray]
    hold: Callable[[np.ndarray], np.ndarray] | None

    @classmethod
    def of(cls, contract: Contract) -> "ActionUnits":
        """The units of a contract: a dimension with "gripper" in its name is a gripper, every other one a joint."""
        count, space = contract.raw_action_dim, ACTION_SPACES[contract.action_space]
        names = contract.action_names or tuple(f"dimension {index}" for index in range(count))

        def hold(raw_state: np.ndarray) -> np.ndarray:
            if space.changes:
                targets = np.zeros((len(raw_state), contract.chunk, count), np.float32)
            else:
                targets = np.repeat(raw_state[:, None, :count], contract.chunk, axis=1)
            return contract.normalise_actions(targets, raw_state)

        unknown = space.latent or (space.targets if space.changes else contract.robot_state_dim < count)
        return cls(
            names=names,
            units=tuple(OPEN_FRACTION if "gripper" in name.lower() else RADIANS for name in names),
            denormalise=contract.denormalise_actions,
            hold=None if unknown else hold,
        )

    def dimensions(self, unit: str) -> Bool[np.ndarray, " A"]:
        """True for the dimensions measured in `unit`."""
        return np.array([own == unit for own in self.units])


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """n held-out chunks in memory, in the order of their episodes.

    Attributes:
      chunks: the batch dictionary with n as its leading axis.
      picture: True on camera pixels, False on padding, [n, H, W].
      moving: True on pixels of the real future frames that differ from the condition frame, [n, F, H, W].
      episodes: one number per chunk, equal within an episode [n].
    """

    chunks: dict[str, np.ndarray]
    picture: Bool[np.ndarray, "n H W"]
    moving: Bool[np.ndarray, "n F H W"]
    episodes: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, chunks: Batch) -> "HeldOut":
        """Wraps chunks already in memory.

        Raises:
          UserError: fewer than two episodes, for which no interval exists.
        """
        episodes = np.unique(np.stack([chunks["source"], chunks["episode"]]), axis=1, return_inverse=True)[1].ravel()
        if len(episodes) == 0 or episodes.max() < 1:
            raise UserError(
                f"evaluation needs chunks of at least 2 held-out episodes, found {len(np.unique(episodes))}: "
                "record more episodes or hold out a larger share"
            )
        picture = picture_mask(chunks["frames"], chunks["embodiment"])
        return cls(dict(chunks), picture, moving_mask(chunks["frames"], picture), episodes)

    def __len__(self) -> int:
        return len(self.episodes)

    def batches(self, size: int, **replaced: np.ndarray) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Batches of one fixed size (so that a sampler compiles once) and the chunks each stands for.

        The last batch is filled up with repeats of its last chunk; `slice` covers the real ones only.

        Args:
          replaced: arrays [n, ...] that take the place of those of the same name.
        """
        source = {**self.chunks, **replaced}
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            index = np.minimum(np.arange(start, start + size), stop - 1)
            yield slice(start, stop), {key: value[index] for key, value in source.items()}


def from_other_episodes(held_out: HeldOut, seed: int) -> Int[np.ndarray, " n"]:
    """For each chunk the index of a chunk of another episode of the same robot; each is used exactly once.

    Sorted by episode, every chunk takes the one as many places further on as the largest episode has chunks: that is
    another episode whenever no episode holds more than half of the chunks.

    Raises:
      UserError: some robot has one episode with more than half of its chunks.
    """
    rng = np.random.default_rng(seed)
    partner = np.empty(len(held_out), int)
    robots = held_out.chunks["embodiment"]
    for robot in np.unique(robots):
        members = rng.permutation(np.flatnonzero(robots == robot))
        names, counts = np.unique(held_out.episodes[members], return_counts=True)
        rank = np.empty(held_out.episodes.max() + 1, int)
        rank[rng.permutation(names)] = np.arange(len(names))
        members = members[np.argsort(rank[held_out.episodes[members]], kind="stable")]
        if 2 * counts.max() > len(members):
            raise UserError(
                f"embodiment {robot}: one of {len(names)} held-out episodes holds {counts.max()} of {len(members)} "
                "chunks; actions of another episode need at most half in any one (hold out more episodes)"
            )
        partner[members] = np.roll(members, -counts.max())
    return partner


def spread(count: int, available: int) -> Int[np.ndarray, " m"]:
    """At most `count` indices, evenly spread over `available` in order."""
    return np.unique(np.linspace(0, available - 1, min(count, available)).round().astype(int))


def mean_over(errors: Float[np.ndarray, "n A"], chosen: Bool[np.ndarray, " A"]) -> Float[np.ndarray, " n"]:
    """Mean over the chosen dimensions that have a value; NaN where none has."""
    kept = errors[:, chosen]
    count = np.isfinite(kept).sum(axis=1)
    return np.where(count > 0, np.nansum(kept, axis=1) / np.maximum(count, 1), np.nan)
