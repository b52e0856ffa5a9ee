"""The sampler of all five modes: one compiled call from a batch of observations to video and actions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from motus_jax import compiler
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.modes import Role, get_mode
from motus_jax.sampling import precision
from motus_jax.sampling.denoise import denoise, make_plan, noise_levels
from motus_jax.sampling.prefix import inpaint, longest, takes_prefix
from motus_jax.sampling.settings import Settings
from motus_jax.sampling.tail import Fields, denoise_with_tail

Sampler = Callable[[Mapping, Mapping, Mapping[str, Array], PRNGKeyArray], dict[str, Array]]


def make_sampler(system: System, mode: str, sampling: Any, prefix: str = "") -> Sampler:
    """`sampling_function` as one compiled call."""
    return jax.jit(sampling_function(system, mode, sampling, prefix), compiler_options=compiler.options())


def sampling_function(system: System, mode: str, sampling: Any, prefix: str = "") -> Sampler:
    """Encoding and denoising loop of one mode, to be compiled.

    Args:
      mode: a row of `motus_jax.modes.MODES`.
      sampling: has the fields of `sampling.settings.Settings`, or those of them that are no default.
      prefix: a row of `motus_jax.sampling.prefix.METHODS` by which the chunk goes on from committed actions; `batch`
        then also has `prefix.overlap_fields`.

    Returns:
      `sample(params, frozen, batch, key)`; `batch` follows `motus_jax.data.example`. Of its future frames and actions
      only what the mode is given is read; the rest is overwritten with noise. The result holds what the mode returns:
      `video` float32 [B, 1+Nf, H, W, 3] in [0, 1], condition frame first, and `actions` float32 [B, T, A], normalised.
      `key` is one for the batch, or an array of one a row [B]: a row's noise then depends on its own key only. The same
      key gives the same result.

    Raises:
      UserError: no such mode or method, or the model was not made for it.
    """
    row = get_mode(mode)
    if mode not in system.supported_modes:
        raise UserError(f"mode {mode}: expected one of {', '.join(system.supported_modes)}, which this model can do")
    settings = Settings.of(sampling)
    if prefix:
        longest(system, prefix)
        if not takes_prefix(mode):
            raise UserError(f"prefix={prefix}: expected a mode that makes actions; found {mode}")
        if settings.action_tail:
            raise UserError(f"prefix={prefix}: expected sampling.action_tail 0; found {settings.action_tail}")
    system = precision.in_dtype(system, settings)
    plan = make_plan(row, settings.video_steps, settings.action_steps, settings.grid_shift)
    levels = noise_levels(plan)
    with_tail = row.action is Role.DENOISED and 0 < settings.action_tail < len(plan.tau_action)

    def sample(params: Mapping, frozen: Mapping, batch: Mapping[str, Array], key: PRNGKeyArray) -> dict[str, Array]:
        # A video that is not given has only its first frame to encode.
        given = batch["frames"] if row.video is Role.GIVEN else batch["frames"][:, :1]
        latents, state = system.encode_video(frozen, given), system.state(batch)
        context = system.context(params, frozen, batch, cache=True)
        context = system.with_time_cache(params, context, *levels)
        shape = (len(latents), *system.latent_shape)
        video = latents if row.video is Role.GIVEN else draw_noise(key, 0, shape)
        actions = batch["actions"] if row.action is Role.GIVEN else draw_noise(key, 1, batch["actions"].shape)

        def field(*noisy: Array, remember: bool = False) -> tuple:
            video, actions, *taus = noisy
            return system.velocities(
                params, video, actions, state, *taus, context, batch.get("state_mask"),
                only_actions=row.video is not Role.DENOISED, remember=remember,
            )  # fmt: skip

        def actions_alone(actions: Array, tau: Array, memory: Any) -> Array:
            return system.action_velocities(params, actions, state, tau, context, memory)

        start, finish = (video, actions, latents[:, :1], plan), None
        if with_tail:
            fields = Fields(field, functools.partial(field, remember=True), actions_alone)
            video, actions = denoise_with_tail(fields, *start, settings.action_tail, settings.reuse)
        else:
            velocities = field
            if prefix:
                velocities, finish = inpaint(prefix, field, batch, actions)
            video, actions = denoise(velocities, *start, settings.solver, settings.reuse)
        result = {}
        if row.returns_video:
            result["video"] = system.decode_video(frozen, video, batch)
        if row.returns_actions:
            result["actions"] = finish(actions) if finish else actions
        return result

    return sample


def draw_noise(key: PRNGKeyArray, stream: int, shape: tuple[int, ...]) -> Array:
    """What the video (`stream` 0) or the actions (1) start from, from one key for the batch or one a row."""
    if key.ndim:
        return jax.vmap(lambda own: draw_noise(own, stream, shape[1:]))(key)
    return jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32)
