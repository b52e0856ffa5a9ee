"""The action-only tail: some joint steps, then the actions alone against what the other streams last were.

In the last joint step the keys and values of the video and the understanding stream are kept, of every layer; the
steps after it compute the action stream against them, a small part of the model. A video that was being denoised makes
the rest of its way in one step with its last velocity: it is the model's guess from there, more blurred than a whole
run's. Source of the idea: MotuBrain (arXiv:2604.27792), whose model was trained for it; ours was not, so look at the
distance from the whole run (`benchmarks/latency.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motus_jax.flow_matching import Pair, Plan, advance
from motus_jax.sampling.denoise import Velocities, denoise, with_condition


class Fields(NamedTuple):
    """The velocities of one sampling run, whole and in part.

    Attributes:
      joint: as `denoise` takes it.
      remembering: the same, and a memory.
      actions: (actions, tau_action [B], memory) -> velocity of the actions.
    """

    joint: Velocities
    remembering: Callable[[Array, Array, Array, Array], tuple[Array, Array, Any]]
    actions: Callable[[Array, Array, Any], Array]


def denoise_with_tail(
    fields: Fields,
    video: Float[Array, "B F H W C"],
    actions: Float[Array, "B T A"],
    condition: Float[Array, "B 1 H W C"],
    plan: Plan,
    joint_steps: int,
    reuse: float = 0.0,
) -> Pair:
    """As `denoise` with Euler steps, of which the first `joint_steps` (at least 1, fewer than all) are joint ones."""
    head, turn, rest = (
        jax.tree.map(lambda row, part=part: row[part], plan)
        for part in (slice(joint_steps - 1), joint_steps - 1, slice(joint_steps, None))
    )
    if joint_steps > 1:
        video, actions = denoise(fields.joint, video, actions, condition, head, reuse=reuse)
    batch = len(video)
    taus = (jnp.broadcast_to(tau, (batch,)) for tau in (turn.tau_video, turn.tau_action))
    *velocities, memory = fields.remembering(with_condition(video, condition), actions, *taus)
    # A pinned video has no way left; one that is denoised goes all of it.
    way = -turn.tau_video if np.any(plan.delta_video) else np.float32(0)
    video, actions = advance((video, actions), velocities, turn._replace(delta_video=way))

    def alone(video: Array, actions: Array, tau_video: Array, tau_action: Array) -> Pair:
        return jnp.zeros_like(video), fields.actions(actions, tau_action, memory)

    still = rest._replace(delta_video=np.zeros_like(rest.delta_video))
    return denoise(alone, video, actions, condition, still, reuse=reuse)
