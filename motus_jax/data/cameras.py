"""Several cameras tiled into one picture, in the layout of the public release.

The first camera stands on top at full width; the second and third stand below it, each at half its size, side by side.
The whole is then resized with its aspect kept and centred on black.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8

from motus_jax.errors import UserError

LAYOUT = "first_on_top_others_half_below"
MAX_CAMERAS = 3

Video = UInt8[np.ndarray, "n h w 3"]


def resize_with_padding(frames: Video, size: tuple[int, int]) -> Video:
    """Resizes RGB frames [n, h, w, 3] to `size` (H, W), aspect kept, centred on black.

    Shrinking averages areas and enlarging is bilinear (at factors 1/2, 1 and above this equals the public release,
    which is bilinear throughout). Frames that already fit are copied exactly.
    """
    count, height, width, _ = frames.shape
    if (height, width) == tuple(size):
        return frames
    scale = min(size[0] / height, size[1] / width)
    new = (max(1, int(height * scale + 1e-9)), max(1, int(width * scale + 1e-9)))
    top, left = (size[0] - new[0]) // 2, (size[1] - new[1]) // 2
    out = np.zeros((count, *size, 3), np.uint8)
    inside = out[:, top : top + new[0], left : left + new[1]]
    if new == (height, width):
        inside[...] = frames
        return out
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    for target, frame in zip(inside, frames):
        target[...] = cv2.resize(frame, (new[1], new[0]), interpolation=method)
    return out


def tile_cameras(cameras: Sequence[Video], image_size: tuple[int, int]) -> Video:
    """One picture from one to three cameras.

    Args:
      cameras: RGB frames uint8 [n, h, w, 3] per camera, the main camera first; sizes may differ.
      image_size: (H, W) of the picture.

    Returns:
      uint8 [n, H, W, 3]. Cameras of 96x72, 48x36 and 48x36 pixels (width x height) meet no resampling at all: they
      fill 96x108, centred on black.

    Raises:
      UserError: no camera or more than three.
    """
    if not 1 <= len(cameras) <= MAX_CAMERAS:
        raise UserError(f"data.cameras: expected one to {MAX_CAMERAS} cameras; found {len(cameras)}")
    main, others = cameras[0], cameras[1:]
    if not others:
        return resize_with_padding(main, image_size)
    count, height, width, _ = main.shape
    cell = (height // 2, width // 2)
    canvas = np.zeros((count, height + cell[0], width, 3), np.uint8)
    canvas[:, :height] = main
    for column, frames in enumerate(others):
        canvas[:, height:, column * cell[1] : (column + 1) * cell[1]] = resize_with_padding(frames, cell)
    return resize_with_padding(canvas, image_size)
