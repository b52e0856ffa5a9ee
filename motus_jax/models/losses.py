"""Losses of flow matching: squared error between predicted and true velocity, per example and masked."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.errors import UserError

VIDEO_AVERAGES = ("future", "all")


def video_loss(
    prediction: Float[Array, "B F H W C"], target: Float[Array, "B F H W C"], average: str = "future"
) -> Float[Array, " B"]:
    """Mean squared error over the future frames; the condition frame carries none.

    Args:
      average: `future` divides by the future frames; `all` divides by all frames, as the public release does, which
        scales the loss by (F - 1) / F.
    """
    if average not in VIDEO_AVERAGES:
        raise UserError(f"unknown video loss average {average!r}: expected one of {', '.join(VIDEO_AVERAGES)}")
    frames = prediction.shape[1]
    error = jnp.mean(jnp.square(prediction[:, 1:] - target[:, 1:]), axis=(1, 2, 3, 4))
    return error * ((frames - 1) / frames) if average == "all" else error


def action_loss(
    prediction: Float[Array, "B T A"], target: Float[Array, "B T A"], mask: Bool[Array, "B T A"] | None = None
) -> Float[Array, " B"]:
    """Mean squared error over the real numbers of the chunk; `mask` is False at padding."""
    error = jnp.square(prediction - target)
    if mask is None:
        return jnp.mean(error, axis=(1, 2))
    return jnp.sum(error * mask, axis=(1, 2)) / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)
