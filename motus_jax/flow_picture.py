"""Optical flow as an RGB picture and back: hue is direction, saturation magnitude, white is no motion.

The colours are the standard wheel of optical flow (Baker et al., "A Database and Evaluation Methodology for Optical
Flow", IJCV 2011, section 4.1.3), closed to a circle. That paper divides magnitudes by the largest in the picture, which
loses them; here saturation is m / (m + half), so that every picture means the same pixels and none is cut off.

Works on NumPy and JAX arrays alike.
"""

import math
from typing import Any

SEGMENTS = (15, 6, 4, 11, 13, 6)
"""Lengths of the wheel's ramps: red to yellow, to green, to cyan, to blue, to magenta, to red."""
LENGTH = sum(SEGMENTS)
STARTS = tuple(sum(SEGMENTS[:k]) for k in range(6))
HALF_SHARE = 1 / 32
"""Motion that is half saturated, as a share of the picture's width: 8 pixels in 256, a quick arm at 5 frames/s."""
MOST = 1 - 1 / 256
"""Saturation beyond which a picture's motion is taken as this: an 8-bit picture says no more."""

Array = Any


def half_of(width: int) -> float:
    """The magnitude in pixels that a picture of this width shows half saturated."""
    return HALF_SHARE * width


def to_picture(flow: Array, half: float | None = None) -> Array:
    """Flow [..., H, W, 2] in pixels (right, down) -> RGB [..., H, W, 3] in [0, 1].

    Args:
      half: magnitude in pixels that is half saturated; of the picture's width by default (`half_of`).
    """
    xp = flow.__array_namespace__()
    half = half_of(flow.shape[-2]) if half is None else half
    u, v = flow[..., 0], flow[..., 1]
    magnitude = xp.sqrt(u * u + v * v)
    saturation = magnitude / (magnitude + half)
    place = (xp.atan2(-v, -u) / math.pi + 1) / 2 * LENGTH
    ramps = [xp.clip((place - start) / length, 0, 1) for start, length in zip(STARTS, SEGMENTS)]
    to_yellow, to_green, to_cyan, to_blue, to_magenta, to_red = ramps
    hue = xp.stack([1 - to_green + to_magenta, to_yellow - to_blue, to_cyan - to_red], axis=-1)
    return 1 - saturation[..., None] * (1 - hue)


def from_picture(picture: Array, half: float | None = None) -> Array:
    """RGB [..., H, W, 3] in [0, 1] -> flow [..., H, W, 2] in pixels: the inverse of `to_picture`.

    A colour that is not on the wheel, as a network paints it, counts as the one with its hue and smallest channel.
    """
    xp = picture.__array_namespace__()
    half = half_of(picture.shape[-2]) if half is None else half
    lowest, highest = xp.min(picture, axis=-1), xp.max(picture, axis=-1)
    saturation = xp.clip(1 - lowest, 0, MOST)
    spread = highest - lowest
    hue = (picture - lowest[..., None]) / xp.where(spread > 0, spread, 1)[..., None]
    red, green, blue = hue[..., 0], hue[..., 1], hue[..., 2]
    is_red, is_blue = (red >= green) & (red >= blue), (blue > red) & (blue >= green)
    warm = blue <= green  # of the two ramps that meet in the highest channel, the one towards yellow
    ramp = xp.where(
        is_red,
        xp.where(warm, 0, 5),
        xp.where(is_blue, xp.where(red >= green, 4, 3), xp.where(red >= blue, 1, 2)),
    )
    shares = xp.stack([green, 1 - red, blue, 1 - green, red, 1 - blue], axis=-1)
    share = xp.sum(xp.where(ramp[..., None] == xp.arange(6), shares, 0), axis=-1)
    start = xp.sum(xp.where(ramp[..., None] == xp.arange(6), xp.asarray(STARTS), 0), axis=-1)
    length = xp.sum(xp.where(ramp[..., None] == xp.arange(6), xp.asarray(SEGMENTS), 0), axis=-1)
    angle = ((start + share * length) / LENGTH * 2 - 1) * math.pi
    magnitude = xp.where(spread > 0, saturation / (1 - saturation) * half, 0)
    return xp.stack([-magnitude * xp.cos(angle), -magnitude * xp.sin(angle)], axis=-1).astype(picture.dtype)
