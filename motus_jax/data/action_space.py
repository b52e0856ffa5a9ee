"""What the numbers of an action mean: absolute targets, changes from the state at the chunk's start, poses of hands
relative to where they are, changes from step to step, or latent actions, one by one or added up."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from motus_jax.errors import UserError

Actions = Float[np.ndarray, "*B T A"]
State = Float[np.ndarray, "*B P"]

POSE = 8
"""Raw numbers of a hand: position (m), unit quaternion (w, x, y, z), gripper."""
RELATIVE = 10
"""Encoded numbers of a hand: translation (m) and first two columns of the rotation, both seen from the hand at the
chunk's start, and the gripper as it is."""


class ActionSpace(NamedTuple):
    """A pair of functions, inverse to each other, and what they need.

    Attributes:
      from_absolute: (actions [..., T, A] in the robot's units, state [..., P]) -> encoded actions [..., T, E].
      to_absolute: back.
      needs_state: the encoding is relative to a state of the same layout as the actions.
      latent: of the source's latent actions instead of its actions.
      added_up: each holds those before it in the chunk too, and cannot be told where one of them is missing.
      raw, encoded: E / A, as a fraction.
      targets: where the source's actions are changes from row to row, so that another rate adds them up or cuts them:
        how many of the last dims are targets all the same. None: all are targets.
    """

    from_absolute: Callable[[Actions, State], Actions]
    to_absolute: Callable[[Actions, State], Actions]
    needs_state: bool
    latent: bool = False
    added_up: bool = False
    raw: int = 1
    encoded: int = 1
    targets: int | None = None

    @property
    def changes(self) -> bool:
        """Whether the source's actions are changes from row to row."""
        return self.targets is not None

    def known(self, each: Bool[np.ndarray, "*B T"]) -> Bool[np.ndarray, "*B T"]:
        """Which encoded latent actions can be told, from which of the source's are there."""
        return np.logical_and.accumulate(each, axis=-1) if self.added_up else each

    def encoded_width(self, raw: int) -> int:
        """E of A numbers."""
        return raw // self.raw * self.encoded

    def raw_width(self, encoded: int) -> int:
        """A of E numbers."""
        return encoded // self.encoded * self.raw


def _same(actions: Actions, state: State) -> Actions:
    del state
    return actions


def _subtract(actions: Actions, state: State) -> Actions:
    return actions - state[..., None, : actions.shape[-1]]


def _add(actions: Actions, state: State) -> Actions:
    return actions + state[..., None, : actions.shape[-1]]


def _add_up(actions: Actions, state: State) -> Actions:
    del state
    return np.cumsum(actions, axis=-2)


def _differences(actions: Actions, state: State) -> Actions:
    del state
    return np.diff(actions, axis=-2, prepend=np.zeros_like(actions[..., :1, :]))


def _to_hand(actions: Actions, state: State) -> Actions:
    """Poses in the world -> poses seen from where each hand is."""
    found = []
    for start, end in _hands(state, actions):
        turn = _rotation(start).inv()
        place = turn.apply((end[..., :3] - start[..., :3]).reshape(-1, 3)).reshape(*end.shape[:-1], 3)
        matrix = (turn * _rotation(end)).as_matrix()
        columns = matrix[..., :2].swapaxes(-1, -2).reshape(*end.shape[:-1], 6)
        found.append(np.concatenate([place, columns, end[..., 7:]], axis=-1))
    return np.concatenate(found, axis=-1).astype(np.float32)


def _from_hand(actions: Actions, state: State) -> Actions:
    """Back; columns that are not quite orthonormal, as a network predicts them, are made so (Gram-Schmidt)."""
    found = []
    for hand in range(actions.shape[-1] // RELATIVE):
        part = actions[..., hand * RELATIVE : (hand + 1) * RELATIVE].astype(np.float64)
        own = np.asarray(state[..., None, hand * POSE : (hand + 1) * POSE], np.float64)
        start = np.broadcast_to(own, (*part.shape[:-1], POSE))
        turn = _rotation(start)
        place = turn.apply(part[..., :3].reshape(-1, 3)).reshape(*part.shape[:-1], 3) + start[..., :3]
        first = part[..., 3:6] / np.linalg.norm(part[..., 3:6], axis=-1, keepdims=True).clip(1e-9)
        second = part[..., 6:9] - (first * part[..., 6:9]).sum(-1, keepdims=True) * first
        second /= np.linalg.norm(second, axis=-1, keepdims=True).clip(1e-9)
        matrix = np.stack([first, second, np.cross(first, second)], axis=-1).reshape(-1, 3, 3)
        quaternion = (turn * Rotation.from_matrix(matrix)).as_quat(canonical=True, scalar_first=True)
        found.append(np.concatenate([place, quaternion.reshape(*part.shape[:-1], 4), part[..., 9:]], axis=-1))
    return np.concatenate(found, axis=-1).astype(np.float32)


def _hands(state: State, actions: Actions) -> list[tuple[np.ndarray, np.ndarray]]:
    """(pose at the chunk's start, repeated over its steps, poses of the steps) of each hand, float64."""
    pairs = []
    for first in range(0, actions.shape[-1], POSE):
        end = np.asarray(actions[..., first : first + POSE], np.float64)
        start = np.asarray(state[..., None, first : first + POSE], np.float64)
        pairs.append((np.broadcast_to(start, end.shape), end))
    return pairs


def _rotation(poses: Float[np.ndarray, "*B 8"]) -> Rotation:
    return Rotation.from_quat(poses[..., 3:7].reshape(-1, 4), scalar_first=True)


# "delta" subtracts per dimension, grippers too, so state dim k must be the measured value of action dim k. "steps" is
# for sources whose actions are changes already, "steps_gripper" for those whose last dim is a gripper's target all the
# same, as in most of Open X-Embodiment; angles are added up too, which is right for small ones. "latent_delta" is to
# "latent" what "delta" is to changes: the motion since the chunk's start, as the targets of a later phase with "delta".
ACTION_SPACES: dict[str, ActionSpace] = {
    "absolute": ActionSpace(_same, _same, needs_state=False),
    "delta": ActionSpace(_subtract, _add, needs_state=True),
    "end_effector": ActionSpace(_to_hand, _from_hand, needs_state=True, raw=POSE, encoded=RELATIVE),
    "steps": ActionSpace(_same, _same, needs_state=False, targets=0),
    "steps_gripper": ActionSpace(_same, _same, needs_state=False, targets=1),
    "latent": ActionSpace(_same, _same, needs_state=False, latent=True),
    "latent_delta": ActionSpace(_add_up, _differences, needs_state=False, latent=True, added_up=True),
}


CHANGES = frozenset(name for name, space in ACTION_SPACES.items() if space.changes)
"""Spaces that take the source's actions as changes."""


def action_space(name: str, state_dim: int, action_dim: int) -> ActionSpace:
    """The action space called `name` for a robot with these dims.

    Raises:
      UserError: unknown name, a space relative to the state while the robot's state is shorter than its action, or one
        of hands while the actions are not poses.
    """
    if name not in ACTION_SPACES:
        raise UserError(f"data.action_space: expected one of {', '.join(ACTION_SPACES)}; found {name!r}")
    space = ACTION_SPACES[name]
    if space.needs_state and state_dim < action_dim:
        raise UserError(
            f"data.action_space={name!r}: expected a state at least as wide as the action ({action_dim}); found "
            f"{state_dim} dims; use data.action_space='absolute'"
        )
    if action_dim % space.raw:
        raise UserError(
            f"data.action_space={name!r}: expected {space.raw} numbers a hand (position, quaternion w x y z, gripper); "
            f"found {action_dim} dims"
        )
    return space
