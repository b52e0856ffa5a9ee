"""Tiling of cameras."""

import cv2
import numpy as np
import pytest

from motus_jax.data.cameras import resize_with_padding, tile_cameras
from motus_jax.errors import UserError


def random_video(height, width, count=2):
    return np.random.default_rng(height).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_matching_sizes_are_copied_exactly():
    top, left, right = random_video(72, 96), random_video(36, 48), random_video(36, 48)
    picture = tile_cameras([top, left, right], (112, 96))
    assert picture.shape == (2, 112, 96, 3)
    assert np.array_equal(picture[:, 2:74], top)
    assert np.array_equal(picture[:, 74:110, :48], left)
    assert np.array_equal(picture[:, 74:110, 48:], right)
    assert not picture[:, :2].any() and not picture[:, 110:].any()


def test_wrist_cameras_of_full_size_shrink_like_the_release():
    """240x320 heads with wrists of the same size: 360x320, in 384x320 with 12 black rows above and below."""
    head, left = random_video(240, 320, 1), random_video(240, 320, 1)
    picture = tile_cameras([head, left], (384, 320))
    assert np.array_equal(picture[:, 12:252], head)
    assert np.array_equal(picture[0, 252:372, :160], cv2.resize(left[0], (160, 120), interpolation=cv2.INTER_LINEAR))
    assert not picture[:, 252:, 160:].any() and not picture[:, 372:].any() and not picture[:, :12].any()


def test_one_camera_keeps_its_aspect():
    picture = resize_with_padding(np.full((1, 50, 100, 3), 200, np.uint8), (80, 80))
    assert (picture[0, 20:60] == 200).all() and not picture[0, :20].any() and not picture[0, 60:].any()
    same = random_video(80, 80)
    assert np.array_equal(tile_cameras([same], (80, 80)), same)


def test_number_of_cameras():
    for cameras in ([], [random_video(4, 4)] * 4):
        with pytest.raises(UserError, match=f"one to 3 cameras; found {len(cameras)}"):
            tile_cameras(cameras, (8, 8))
