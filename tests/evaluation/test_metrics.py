"""Metrics against numbers from other routes: scipy's correlation, and sums done by hand."""

import numpy as np
import pytest
from scipy import ndimage

from motus_jax.evaluation import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def whole(shape):
    return np.ones(shape, bool)


def reference_ssim(x, y):
    """Wang et al. 2004 written out with a dense window in float64, valid windows only; one channel."""
    axis = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window = np.outer(axis, axis) / axis.sum() ** 2

    def mean(image):
        return ndimage.correlate(image.astype(np.float64), window, mode="constant")[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * cxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_equals_the_published_formula(rng):
    real = rng.random((1, 2, 24, 20, 3)).astype(np.float32)
    predicted = np.clip(real + rng.normal(0, 0.1, real.shape), 0, 1).astype(np.float32)
    expected = np.mean(
        [[reference_ssim(p[..., c], r[..., c]) for c in range(3)] for p, r in zip(predicted[0], real[0])]
    )
    np.testing.assert_allclose(metrics.ssim(predicted, real, whole((1, 24, 20))), [expected], rtol=1e-4)
    np.testing.assert_allclose(metrics.ssim(real, real, whole((1, 24, 20))), [1.0], rtol=1e-5)


def test_ssim_does_not_see_padding(rng):
    real = rng.random((1, 1, 30, 20, 3)).astype(np.float32)
    predicted = np.clip(real + rng.normal(0, 0.1, real.shape), 0, 1).astype(np.float32)
    cropped = metrics.ssim(predicted[:, :, :24], real[:, :, :24], whole((1, 24, 20)))
    picture = whole((1, 30, 20))
    picture[:, 24:] = False
    predicted[:, :, 24:] = 1.0
    np.testing.assert_allclose(metrics.ssim(predicted, real, picture), cropped, rtol=1e-4)


def test_ssim_of_a_picture_smaller_than_a_window(rng):
    flat = np.full((1, 1, 8, 8, 3), 0.5, np.float32)
    # Constant pictures have no variance: only the luminance term is left.
    expected = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    np.testing.assert_allclose(metrics.ssim(flat, flat / 2, whole((1, 8, 8))), [expected], rtol=1e-3)


def test_psnr_counts_masked_pixels_only():
    real = np.zeros((2, 1, 4, 4, 3), np.float32)
    predicted = real.copy()
    predicted[0, 0, 0, 0] = 0.1
    predicted[0, 0, 3] = 1.0
    mask = np.zeros((2, 1, 4, 4), bool)
    mask[:, :, 0, :2] = True
    # Two pixels, one of them wrong by 0.1: mean squared error 0.005.
    np.testing.assert_allclose(metrics.psnr(predicted, real, mask), [-10 * np.log10(0.005), metrics.PSNR_LIMIT])
    assert np.isnan(metrics.psnr(predicted, real, mask, least_pixels=3)).all()


def test_moving_mask_is_where_the_real_video_moves():
    frames = np.full((1, 3, 9, 20, 3), 100, np.uint8)
    frames[0, 2, 4, 10, 2] += 16
    frames[0, 1, 4, 2] -= 15
    picture = whole((1, 9, 20))
    picture[:, :3] = False
    mask = metrics.moving_mask(frames, picture)
    expected = np.zeros((9, 20), bool)
    expected[3:7, 8:13] = True
    assert not mask[0, 0].any()
    np.testing.assert_array_equal(mask[0, 1], expected)


def test_picture_mask_finds_the_padding_of_each_layout():
    frames = np.zeros((3, 2, 4, 4, 3), np.uint8)
    frames[0, 1, :2, :, 1] = 9
    frames[1, 0, 2, 0, 0] = 1
    frames[2, :, :, 3] = 200
    mask = metrics.picture_mask(frames, np.array([0, 0, 5]))
    assert mask[0].sum() == 9
    np.testing.assert_array_equal(mask[0], mask[1])
    assert mask[2].sum() == 4


def test_action_errors_use_existing_values_only():
    real = np.zeros((2, 2, 2))
    predicted = np.array([[[1.0, 2.0], [3.0, 100.0]], [[0.5, 0.0], [0.0, 0.0]]])
    mask = np.array([[[True, True], [True, False]], [[False, False], [False, False]]])
    np.testing.assert_allclose(metrics.normalised_mse(predicted, real, mask), [14 / 3, np.nan])
    np.testing.assert_allclose(metrics.joint_errors(predicted, real, mask), [[2.0, 2.0], [np.nan, np.nan]])
