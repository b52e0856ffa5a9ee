"""The denoising loop of every mode: one compiled scan over the noise levels, in float32."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from motus_jax import flow_matching
from motus_jax.errors import UserError
from motus_jax.flow_matching import Pair, Plan
from motus_jax.modes import Mode, Role
from motus_jax.sampling import caching

Velocities = Callable[[Array, Array, Array, Array], Pair]
"""(video [B, F, H, W, C], actions [B, T, A], tau_video [B], tau_action [B]) -> velocities of both."""


def make_plan(mode: Mode, video_steps: int, action_steps: int, grid_shift: float = 1.0) -> Plan:
    """Noise levels and steps of both modalities; as numpy's, so that they are known while a sampler is traced.

    Args:
      video_steps, action_steps: steps of each modality where it is denoised. If they differ, the one with fewer waits
        at its noise level while the other goes on.
      grid_shift: see `flow_matching.time_grid`.
    """
    counts = {"video": video_steps, "action": action_steps}
    roles = {"video": mode.video, "action": mode.action}
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"sampling.{name}_steps: expected at least 1, found {count}")
    total = max(counts[name] for name, role in roles.items() if role is Role.DENOISED)
    rows = []
    for name, role in roles.items():
        if role is Role.DENOISED:
            rows += flow_matching.spread(flow_matching.time_grid(counts[name], grid_shift), total)
        else:
            rows += flow_matching.pinned(0.0 if role is Role.GIVEN else 1.0, total)
    return Plan(*rows)


def noise_levels(plan: Plan) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " M"]]:
    """Every level at which a plan evaluates the video and the actions, and 0, where a condition frame may be."""
    pairs = ((plan.tau_video, plan.delta_video), (plan.tau_action, plan.delta_action))
    return tuple(np.unique(np.concatenate([tau, tau + delta, np.zeros(1, np.float32)])) for tau, delta in pairs)


def with_condition(video: Float[Array, "B F H W C"], condition: Float[Array, "B 1 H W C"]) -> Array:
    """Latents with frame 0 replaced by the clean condition frame (teacher forcing)."""
    return jnp.concatenate([condition, video[:, 1:]], axis=1)


def denoise(
    velocities: Velocities,
    video: Float[Array, "B F H W C"],
    actions: Float[Array, "B T A"],
    condition: Float[Array, "B 1 H W C"],
    plan: Plan,
    solver: str = "euler",
    reuse: float = 0.0,
) -> Pair:
    """Integrates from the noise (or the given data) in `video` and `actions` to tau = 0.

    `solver` and `reuse` are as `caching.get_solver` takes them. The condition frame is clean in every evaluation and in
    the result.
    """
    batch = video.shape[0]

    def field(x: Pair, tau_video: Array, tau_action: Array) -> Pair:
        tau_video, tau_action = (jnp.broadcast_to(tau, (batch,)) for tau in (tau_video, tau_action))
        return velocities(with_condition(x[0], condition), x[1], tau_video, tau_action)

    start = (video.astype(jnp.float32), actions.astype(jnp.float32))
    video, actions = caching.get_solver(solver, reuse)(field, start, plan)
    return with_condition(video, condition), actions
