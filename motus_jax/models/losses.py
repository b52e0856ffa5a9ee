"""Losses of flow matching: squared error between predicted and true velocity, per example and masked."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.errors import UserError

VIDEO_AVERAGES = ("future", "all")


def video_loss(
    prediction: Float[Array, "B F H W C"],
    target: Float[Array, "B F H W C"],
    average: str = "future",
    seen: Bool[Array, "B H W"] | None = None,
) -> Float[Array, " B"]:
    """Mean squared error over the future frames; the condition frame carries none.

    Args:
      seen: False where the picture shows no camera: no loss there.
      average: `future` divides by the future frames; `all` divides by all frames, as the public release does, which
        scales the loss by (F - 1) / F.
    """
    if average not in VIDEO_AVERAGES:
        raise UserError(f"unknown video loss average {average!r}: expected one of {', '.join(VIDEO_AVERAGES)}")
    frames = prediction.shape[1]
    squares = jnp.square(prediction[:, 1:] - target[:, 1:])
    if seen is None:
        error = jnp.mean(squares, axis=(1, 2, 3, 4))
    else:
        by_place = jnp.mean(squares, axis=(1, 4))
        error = jnp.sum(by_place * seen, axis=(1, 2)) / jnp.maximum(jnp.sum(seen, axis=(1, 2)), 1)
    return error * ((frames - 1) / frames) if average == "all" else error


def seen_places(unseen: Float[Array, "B 3 4"], height: int, width: int) -> Bool[Array, "B H W"]:
    """Which places of a grid over the picture show cameras only (`motus_jax.data.example.Example.unseen`)."""
    top, left, bottom, right = jnp.moveaxis(unseen[..., None], 2, 0)
    row, column = jnp.arange(height), jnp.arange(width)
    rows = (top * height < row + 1) & (bottom * height > row)
    columns = (left * width < column + 1) & (right * width > column)
    return ~jnp.any(rows[..., :, None] & columns[..., None, :], axis=1)


def action_loss(
    prediction: Float[Array, "B T A"], target: Float[Array, "B T A"], mask: Bool[Array, "B T A"] | None = None
) -> Float[Array, " B"]:
    """Mean squared error over the real numbers of the chunk; `mask` is False at padding."""
    error = jnp.square(prediction - target)
    if mask is None:
        return jnp.mean(error, axis=(1, 2))
    return jnp.sum(error * mask, axis=(1, 2)) / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)
