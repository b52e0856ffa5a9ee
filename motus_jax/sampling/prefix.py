"""Real-time chunking: a new chunk that goes on from the actions that are executed while it is computed.

The robot is committed to the first d actions of the new chunk: they are those of the former one that it will execute
until the answer is there. A row of `METHODS` inpaints the others. Lengths are data, not shapes: one program serves all.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.flow_matching import interpolate
from motus_jax.models.action_prefix import first
from motus_jax.models.system import System
from motus_jax.modes import MODES, Role
from motus_jax.sampling.denoise import Velocities

MOST_GUIDANCE = 5.0
"""Beta of 2506.07339: the weight of the guidance grows without limit at both ends of the path, where few steps of
integration would overshoot."""


class Overlap(NamedTuple):
    """What of the former chunk falls into the new one.

    Attributes:
      actions: normalised; those behind `known` are zero and not read.
      committed: how many will be executed whatever the answer, d.
      known: how many there are, d and those that the answer may change.
      real: False at padding.
    """

    actions: Float[Array, "B T A"]
    committed: Int[Array, " B"]
    known: Int[Array, " B"]
    real: Float[Array, "B T A"]

    @classmethod
    def of(cls, batch: Mapping[str, Array]) -> "Overlap":
        """Of a batch with the fields of `overlap_fields`."""
        return cls(batch["overlap_actions"], batch["committed"], batch["known"], batch["action_mask"])


def overlap_fields(
    contract: Contract,
    state: Float[np.ndarray, " Pr"],
    prefix: Float[np.ndarray, "d Ar"],
    previous: Float[np.ndarray, "n Ar"],
) -> dict[str, np.ndarray]:
    """What a batch of one has besides (`motus_jax.sampling.observation`), where it has an overlap.

    Args:
      state: of the new observation, in the robot's units: relative actions are made relative to it.
      prefix: the committed actions as absolute targets in the robot's units; the first is the new chunk's first.
      previous: what the former chunk has behind them.
    """
    known = np.concatenate([prefix, previous])
    actions = np.zeros((1, contract.chunk, contract.action_dim), np.float32)
    actions[:, : len(known)] = contract.normalise_actions(known[None], state[None])
    counts = {"committed": np.int32([len(prefix)]), "known": np.int32([len(known)])}
    return {"overlap_actions": actions, **counts}


def soft_mask(committed: Int[Array, " B"], known: Int[Array, " B"], chunk: int) -> Float[Array, "B T"]:
    """How firmly each action is held: 1 where committed, falling exponentially to the end of what is known, then 0
    (2506.07339, equation 5)."""
    place = jnp.arange(chunk)
    left = (known[:, None] - place) / (known - committed + 1)[:, None]
    fading = left * jnp.expm1(left) / (jnp.e - 1)
    return jnp.where(first(committed, chunk), 1.0, jnp.where(first(known, chunk), fading, 0.0))


def guidance_weight(tau: Float[Array, "..."]) -> Float[Array, "..."]:
    """(1 - tau') / (tau' r^2) of 2506.07339 with its tau' = 1 - tau, at most `MOST_GUIDANCE`."""
    clean = 1 - tau
    return jnp.minimum((clean**2 + tau**2) / (tau * clean), MOST_GUIDANCE)


def hard(field: Velocities, overlap: Overlap, noise: Float[Array, "B T A"]) -> Velocities:
    """Committed actions stand in every evaluation as they are at its noise level; the network is not told of them."""

    def replaced(video: Array, actions: Array, tau_video: Array, tau_action: Array) -> tuple[Array, Array]:
        actions = _with_committed(overlap, interpolate(overlap.actions, noise, tau_action), actions)
        return field(video, actions, tau_video, tau_action)

    return replaced


def guided(field: Velocities, overlap: Overlap, noise: Float[Array, "B T A"]) -> Velocities:
    """Velocities are bent towards samples whose clean data agree with the overlap, weighted by `soft_mask`: guidance
    through the pseudo-inverse, one backward pass an evaluation (2506.07339, equations 2 to 4)."""
    weights = soft_mask(overlap.committed, overlap.known, noise.shape[1])[..., None] * overlap.real

    def bent(video: Array, actions: Array, tau_video: Array, tau_action: Array) -> tuple[Array, Array]:
        tau = tau_action[:, None, None]

        def clean(actions: Array) -> tuple[Array, tuple[Array, Array]]:
            velocities = field(video, actions, tau_video, tau_action)
            return actions - tau * velocities[1], velocities

        estimate, pull_back, (of_video, of_actions) = jax.vjp(clean, actions, has_aux=True)
        (correction,) = pull_back(weights * (overlap.actions - estimate))
        return of_video, of_actions - guidance_weight(tau) * correction

    return bent


def conditioned(field: Velocities, overlap: Overlap, noise: Float[Array, "B T A"]) -> Velocities:
    """Committed actions are shown clean, at noise level 0, as in the training (2512.05964)."""
    held = first(overlap.committed, noise.shape[1])

    def shown(video: Array, actions: Array, tau_video: Array, tau_action: Array) -> tuple[Array, Array]:
        actions = _with_committed(overlap, overlap.actions, actions)
        return field(video, actions, tau_video, jnp.where(held, 0.0, tau_action[:, None]))

    return shown


class Method(NamedTuple):
    """A way to go on from committed actions.

    Attributes:
      field: (velocities, overlap, the actions' initial noise) -> velocities to integrate.
      exact: the answer begins with the committed actions as they were sent.
      soft: reads what is known behind the committed actions, too.
      trained: only for models whose training had prefixes, and no longer ones than these.
    """

    field: Callable[[Velocities, Overlap, Array], Velocities]
    exact: bool
    soft: bool = False
    trained: bool = False


METHODS: dict[str, Method] = {
    "hard": Method(hard, exact=True),
    "guided": Method(guided, exact=False, soft=True),
    "conditioned": Method(conditioned, exact=True, trained=True),
}


def get_method(name: str) -> Method:
    """The method called `name`; a `UserError` lists the table otherwise."""
    if name not in METHODS:
        raise UserError(f"prefix: expected one of {', '.join(METHODS)}; found {name!r}")
    return METHODS[name]


def takes_prefix(mode: str) -> bool:
    """Whether what one asks for can go on from committed actions: a mode that makes actions, planning not."""
    return mode in MODES and MODES[mode].action is Role.DENOISED


def longest(system: System, name: str) -> int:
    """Committed actions that a model goes on from by a method, at most.

    Raises:
      UserError: no such method, or the model was not trained for it.
    """
    if not get_method(name).trained:
        return system.config.data.chunk - 1
    if not system.prefixes.trained:
        raise UserError(
            f"prefix={name}: expected a model trained with prefixes (config.noise.prefix, experiments/realtime.py);"
            " found one without; guided and hard take any"
        )
    return system.prefixes.longest


def inpaint(
    name: str, field: Velocities, batch: Mapping[str, Array], noise: Float[Array, "B T A"]
) -> tuple[Velocities, Callable[[Array], Array]]:
    """The velocities to integrate, and what is done to the actions at the end.

    Args:
      name: a row of `METHODS`.
      field: velocities of the model.
      batch: with `overlap_fields`.
      noise: what the actions start from.
    """
    method, overlap = get_method(name), Overlap.of(batch)

    def finish(actions: Array) -> Array:
        return _with_committed(overlap, overlap.actions, actions) if method.exact else actions

    return method.field(field, overlap, noise), finish


def _with_committed(overlap: Overlap, committed: Array, actions: Array) -> Array:
    return jnp.where(first(overlap.committed, actions.shape[1])[..., None], committed, actions)
