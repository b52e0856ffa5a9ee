"""Planning with the model's own imagination: the one of several chunks of actions whose imagined video fits best.

One compiled call does what four modes do: draw candidates, imagine the video that each leads to, recover the actions
from that video, and imagine what the instruction alone leads one to expect.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from motus_jax.errors import UserError
from motus_jax.flow_matching import Plan
from motus_jax.models.system import System
from motus_jax.modes import get_mode
from motus_jax.sampling import precision
from motus_jax.sampling.denoise import denoise, make_plan, noise_levels
from motus_jax.sampling.jobs import Planning
from motus_jax.sampling.sampler import Sampler
from motus_jax.sampling.settings import Settings

FORWARD, INVERSE, EXPECT = "world_model", "inverse_dynamics", "video"


def planning_function(system: System, sampling: Any, planning: Planning) -> Sampler:
    """Drawing, imagining and judging, to be compiled.

    Args:
      sampling: as `sampler.sampling_function` takes it, without an action-only tail; every mode takes its own number of
        steps.

    Returns:
      `plan(params, frozen, batch, keys)`, as a sampler, with one key a row. The result holds the best candidate's
      `actions` [B, T, A], the `video` [B, 1+Nf, H, W, 3] that is imagined of it, and `errors` [B, N, 2].

      All candidates of a row are imagined and inverted from the same noise, so that they differ by their actions alone.

    Raises:
      UserError: the model was not made for one of the modes, or `sampling` has a tail.
    """
    count, settings = planning.candidates, Settings.of(sampling)
    if settings.action_tail:
        raise UserError(f"planning: expected sampling.action_tail 0; found {settings.action_tail}")
    system = precision.in_dtype(system, settings)
    runs = {mode: _denoiser(system, mode, settings) for mode in (planning.source, FORWARD, INVERSE, EXPECT)}
    levels = [np.unique(np.concatenate(each)) for each in zip(*(noise_levels(_schedule(m, settings)) for m in runs))]

    def plan(params: Mapping, frozen: Mapping, batch: Mapping[str, Array], keys: PRNGKeyArray) -> dict[str, Array]:
        condition = system.encode_video(frozen, batch["frames"][:, :1])
        context = system.context(params, frozen, batch, cache=True)
        context = system.with_time_cache(params, context, *levels)
        seen = (params, condition, system.state(batch), batch.get("state_mask"), context)
        shapes = (system.latent_shape, batch["actions"].shape[1:])

        def noise(first: Array | int) -> tuple[Array, Array]:
            return tuple(_normal(keys, first + i, shape) for i, shape in enumerate(shapes))

        # The first axis of what follows counts candidates; the first candidate is what the source's sampler would draw.
        video, actions = jax.vmap(noise)(2 * jnp.arange(count))
        same_video, same_actions = noise(2 * count)
        _, drawn = jax.vmap(lambda v, a: runs[planning.source](seen, v, a))(video, actions)
        imagined, _ = jax.vmap(lambda a: runs[FORWARD](seen, same_video, a))(drawn)
        _, recovered = jax.vmap(lambda v: runs[INVERSE](seen, v, same_actions))(imagined)
        expected, _ = jax.vmap(lambda v, a: runs[EXPECT](seen, v, a))(video, actions)
        errors = errors_of(drawn, recovered, imagined, expected, batch["action_mask"])
        best = jnp.argmin(scores_of(errors, planning), axis=0)
        rows = jnp.arange(len(condition))
        return {
            "actions": drawn[best, rows],
            "video": system.decode_video(frozen, imagined[best, rows], batch),
            "errors": jnp.moveaxis(errors, 0, 1),
        }

    return plan


def errors_of(
    drawn: Float[Array, "N B T A"],
    recovered: Float[Array, "N B T A"],
    imagined: Float[Array, "N B F h w C"],
    expected: Float[Array, "N B F h w C"],
    mask: Bool[Array, "B T A"],
) -> Float[Array, "N B 2"]:
    """What speaks against each candidate.

    With a_n the candidate's actions, v_n the latents that the world model imagines of them (future frames), and u_m the
    latents of as many videos that the instruction alone leads to:

      errors[n, 0] = mean over real steps and dims of (inverse_dynamics(v_n) - a_n)^2
      errors[n, 1] = mean over latents of (v_n - mean_m u_m)^2

    The first is large where the actions do not show in the video: where they leave what the model knows, or cannot be
    carried out. The second is large where the video does not lead where the instruction does.
    """
    real = jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)
    inverse = jnp.sum(jnp.square(recovered - drawn) * mask, axis=(2, 3)) / real
    distance = jnp.square(imagined - expected.mean(axis=0))[:, :, 1:]
    return jnp.stack([inverse, distance.mean(axis=tuple(range(2, distance.ndim)))], axis=-1)


def scores_of(errors: Float[Array, "N B 2"], planning: Planning) -> Float[Array, "N B"]:
    """The less, the better: the weighted sum of both errors, each divided by its mean over the candidates.

      score[n] = inverse * errors[n, 0] / mean_m errors[m, 0] + expected * errors[n, 1] / mean_m errors[m, 1]

    Divided, because latents have no unit: the weights mean the same for every encoder.
    """
    relative = errors / jnp.maximum(errors.mean(axis=0), 1e-12)
    return relative @ jnp.array([planning.inverse, planning.expected])


def _normal(keys: PRNGKeyArray, stream: Array | int, shape: tuple[int, ...]) -> Float[Array, "B ..."]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32))(keys)


def _schedule(mode: str, sampling: Settings) -> Plan:
    return make_plan(get_mode(mode), sampling.video_steps, sampling.action_steps, sampling.grid_shift)


def _denoiser(system: System, mode: str, sampling: Settings) -> Any:
    """One mode's loop: (what is seen, video [B, F, h, w, C], actions [B, T, A]) -> both at tau = 0."""
    if mode not in system.supported_modes:
        raise UserError(f"planning: expected a model that can do {mode}; found {', '.join(system.supported_modes)}")
    schedule, only_actions = _schedule(mode, sampling), not get_mode(mode).returns_video

    def run(seen: tuple, video: Array, actions: Array) -> tuple[Array, Array]:
        params, condition, state, known, context = seen

        def field(video: Array, actions: Array, tau_video: Array, tau_action: Array) -> tuple[Array, Array]:
            return system.velocities(
                params, video, actions, state, tau_video, tau_action, context, known, only_actions=only_actions
            )

        return denoise(field, video, actions, condition, schedule, sampling.solver, sampling.reuse)

    return run
