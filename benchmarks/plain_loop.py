"""The straightforward sampler, as the public release's loop has it: what the compiled one is measured against.

Every step is a call of its own from Python, and encodes picture, instruction and context again. The result is the same.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from motus_jax import compiler, flow_matching
from motus_jax.models.system import System
from motus_jax.modes import Role, get_mode
from motus_jax.sampling.denoise import make_plan, with_condition
from motus_jax.sampling.sampler import Sampler, draw_noise
from motus_jax.sampling.settings import Settings


def make_plain_sampler(system: System, mode: str, sampling: Any) -> Sampler:
    """`motus_jax.sampling.sampler.make_sampler` without its savings; Euler steps."""
    row, settings, options = get_mode(mode), Settings.of(sampling), compiler.options()
    plan = make_plan(row, settings.video_steps, settings.action_steps, settings.grid_shift)

    def step(params: Mapping, frozen: Mapping, batch: Mapping, noisy: tuple, condition: Array, now: Any) -> tuple:
        video, actions = with_condition(noisy[0], condition), noisy[1]
        context = system.context(params, frozen, batch)
        taus = (jnp.broadcast_to(tau, (len(video),)) for tau in (now.tau_video, now.tau_action))
        known = batch.get("state_mask")
        velocities = system.velocities(params, video, actions, system.state(batch), *taus, context, known)
        return flow_matching.advance((video, actions), velocities, now)

    one_step = jax.jit(step, compiler_options=options)
    encode = jax.jit(system.encode_video, compiler_options=options)
    decode = jax.jit(system.decode_video, compiler_options=options)

    def sample(params: Mapping, frozen: Mapping, batch: Mapping[str, Array], key: PRNGKeyArray) -> dict[str, Array]:
        latents = encode(frozen, batch["frames"] if row.video is Role.GIVEN else batch["frames"][:, :1])
        shape = (len(latents), *system.latent_shape)
        noisy = (
            latents if row.video is Role.GIVEN else draw_noise(key, 0, shape),
            batch["actions"] if row.action is Role.GIVEN else draw_noise(key, 1, batch["actions"].shape),
        )
        for i in range(len(plan.tau_video)):
            now = jax.tree.map(lambda levels, i=i: levels[i], plan)
            noisy = one_step(params, frozen, batch, noisy, latents[:, :1], now)
        result = {"actions": noisy[1]} if row.returns_actions else {}
        if row.returns_video:
            result["video"] = decode(frozen, with_condition(noisy[0], latents[:, :1]), batch)
        return result

    return sample
