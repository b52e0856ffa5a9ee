"""How far a predicted chunk is from the real one: pictures and actions, one number per chunk.

Pictures are float in [0, 1] and channel-last; black padding around and between the tiled cameras never counts
(`picture_mask`). Every function returns one value per chunk, so that intervals can be formed afterwards from the
episodes the chunks belong to (`motus_jax.evaluation.intervals`).
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

# A perfect prediction has no finite PSNR; a mean over chunks needs one. 8-bit rounding alone sits at 59 dB.
PSNR_LIMIT = 60.0

# A pixel moves when any channel of the real frame is this far (of 1) from the condition frame: 15 of 255 grey
# levels, above what h264 at the quality of the recorded episodes adds to a still scene.
MOVING_THRESHOLD = 15 / 255

# The moving region grows by this many pixels, so that the edge of an arm counts whole, with what it uncovers.
MOVING_DILATION = 2

# Fewer moving pixels than this in a whole chunk is noise: such a chunk has no PSNR over moving pixels (NaN).
MOVING_LEAST_PIXELS = 32

# Structural similarity as published (Wang et al. 2004): 11 x 11 Gaussian of 1.5 pixels, constants for a range of 1.
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = 0.01**2
SSIM_C2 = 0.03**2


def to_float(frames: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """uint8 in 0..255 to float32 in [0, 1]."""
    return np.divide(frames, 255.0, dtype=np.float32)


def picture_mask(
    frames: UInt8[np.ndarray, "B F H W 3"], layout: Int[np.ndarray, " B"] | None = None
) -> Bool[np.ndarray, "B H W"]:
    """True on pixels of a camera, False on black padding.

    A pixel is padding when it is exactly black in every frame of every chunk that shares a camera layout.

    Args:
      frames: real frames of all chunks.
      layout: a number per chunk, equal for chunks whose cameras are tiled alike; None = all alike.
    """
    seen = np.stack([chunk.any(axis=(0, 3)) for chunk in frames])
    layout = np.zeros(len(frames), int) if layout is None else layout
    for value in np.unique(layout):
        seen[layout == value] = seen[layout == value].any(axis=0)
    return seen


def moving_mask(
    frames: UInt8[np.ndarray, "B 1+F H W 3"], picture: Bool[np.ndarray, "B H W"]
) -> Bool[np.ndarray, "B F H W"]:
    """True where the real future frame differs from the condition frame by more than `MOVING_THRESHOLD`, dilated."""
    kernel = np.ones((2 * MOVING_DILATION + 1,) * 2, np.uint8)

    def grown(condition: UInt8[np.ndarray, "H W 3"], future: UInt8[np.ndarray, "H W 3"]) -> np.ndarray:
        changed = (cv2.absdiff(condition, future) > 255 * MOVING_THRESHOLD).any(axis=-1)
        return cv2.dilate(changed.astype(np.uint8), kernel)

    moving = np.stack([[grown(chunk[0], future) for future in chunk[1:]] for chunk in frames])
    return moving.astype(bool) & picture[:, None]


def psnr(
    predicted: Float[np.ndarray, "B F H W 3"],
    real: Float[np.ndarray, "B F H W 3"],
    mask: Bool[np.ndarray, "B F H W"],
    least_pixels: int = 1,
) -> Float[np.ndarray, " B"]:
    """Peak signal-to-noise ratio in dB over the masked pixels of all future frames of a chunk.

    Returns:
      At most `PSNR_LIMIT`; NaN for a chunk with fewer than `least_pixels` masked pixels.
    """
    difference = predicted - real
    error = np.einsum("bfhwc,bfhwc->bfhw", difference, difference) / 3
    count = mask.sum(axis=(1, 2, 3))
    mse = np.einsum("bfhw,bfhw->b", error, mask.astype(error.dtype)) / np.maximum(count, 1)
    value = -10 * np.log10(np.maximum(mse, 10 ** (-PSNR_LIMIT / 10)))
    return np.where(count >= least_pixels, value, np.nan)


def ssim(
    predicted: Float[np.ndarray, "B F H W 3"],
    real: Float[np.ndarray, "B F H W 3"],
    picture: Bool[np.ndarray, "B H W"],
) -> Float[np.ndarray, " B"]:
    """Structural similarity, the mean over channels, future frames and windows that lie wholly on the picture.

    Windows that reach over the border or onto padding do not count (as in the original and in scikit-image). A picture
    smaller than one window is measured with windows cut at its border instead.
    """
    return np.array([_chunk_ssim(*chunk) for chunk in zip(predicted, real, picture)])


def _chunk_ssim(
    predicted: Float[np.ndarray, "F H W 3"], real: Float[np.ndarray, "F H W 3"], picture: Bool[np.ndarray, "H W"]
) -> float:
    weight = picture.astype(np.float32)
    inside = _blur(weight) > 1 - 1e-4
    if not inside.any():
        inside = picture
    if not inside.any():
        return float("nan")
    share = np.maximum(_blur(weight), 1e-6)[..., None]
    values = [
        _ssim_map(p * weight[..., None], r * weight[..., None], share)[inside].mean() for p, r in zip(predicted, real)
    ]
    return float(np.mean(values))


def _ssim_map(
    x: Float[np.ndarray, "H W 3"], y: Float[np.ndarray, "H W 3"], share: Float[np.ndarray, "H W 1"]
) -> Float[np.ndarray, "H W 3"]:
    """The similarity of every window; `share` is the part of the window's weight that lies on the picture."""
    mean_x, mean_y = _blur(x) / share, _blur(y) / share
    var_x = _blur(x * x) / share - mean_x**2
    var_y = _blur(y * y) / share - mean_y**2
    covariance = _blur(x * y) / share - mean_x * mean_y
    return ((2 * mean_x * mean_y + SSIM_C1) * (2 * covariance + SSIM_C2)) / (
        (mean_x**2 + mean_y**2 + SSIM_C1) * (var_x + var_y + SSIM_C2)
    )


def _blur(image: Float[np.ndarray, "H W ..."]) -> Float[np.ndarray, "H W ..."]:
    """Gaussian of the SSIM window; outside the image counts as zero."""
    return cv2.GaussianBlur(image, (SSIM_WINDOW,) * 2, SSIM_SIGMA, borderType=cv2.BORDER_CONSTANT)


def normalised_mse(
    predicted: Float[np.ndarray, "B T A"], real: Float[np.ndarray, "B T A"], mask: Bool[np.ndarray, "B T A"]
) -> Float[np.ndarray, " B"]:
    """Mean squared error of normalised actions over the values that exist; NaN for a chunk without any."""
    count = mask.sum(axis=(1, 2))
    total = np.square(np.where(mask, predicted - real, 0.0)).sum(axis=(1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def joint_errors(
    predicted: Float[np.ndarray, "B T A"], real: Float[np.ndarray, "B T A"], mask: Bool[np.ndarray, "B T A"]
) -> Float[np.ndarray, "B A"]:
    """Mean absolute error of each dimension over the steps of a chunk, in the units of the arguments (radians)."""
    count = mask.sum(axis=1)
    total = np.abs(np.where(mask, predicted - real, 0.0)).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
