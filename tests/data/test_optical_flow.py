"""Estimators of optical flow on motions that are known."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest

from motus_jax.data.optical_flow import ESTIMATORS, Dis, make_estimator
from motus_jax.errors import UserError

SIZE = (96, 128)


@pytest.fixture(scope="module")
def texture():
    noise = np.random.default_rng(0).integers(0, 256, (240, 280, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip((soft - soft.mean()) * 4 + 128, 0, 255).astype(np.uint8)


def moved(texture, right, down):
    """Pictures between which everything moves by that many pixels."""
    first = texture[60 : 60 + SIZE[0], 60 : 60 + SIZE[1]]
    return first, texture[60 - down : 60 - down + SIZE[0], 60 - right : 60 - right + SIZE[1]]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_shifts_are_found(texture, name):
    shifts = [(3, 0), (0, -4), (-6, 2), (0, 0)]
    pairs = [moved(texture, *shift) for shift in shifts]
    flow = make_estimator(name)(*(np.stack(side) for side in zip(*pairs)))
    assert flow.shape == (4, *SIZE, 2) and flow.dtype == np.float32
    inside = flow[:, 16:-16, 16:-16]
    error = np.linalg.norm(inside - np.array(shifts)[:, None, None], axis=-1)
    assert error.mean((1, 2)).max() < (0.6 if "fast" in name else 0.15), "a part of a pixel; the direction too"
    assert not flow[3].any()


def test_threads_and_processes_give_the_same(texture):
    first, second = (picture[None] for picture in moved(texture, 5, 3))
    estimator = Dis()
    expected = estimator(first, second)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: estimator(first, second), range(12)))
    assert all(np.array_equal(one, expected) for one in found)
    assert np.array_equal(pickle.loads(pickle.dumps(estimator))(first, second), expected)
    assert not np.array_equal(Dis("ultrafast")(first, second), expected)


def test_refusals(texture):
    first, second = (picture[None] for picture in moved(texture, 1, 0))
    for pair, words in (
        ((first, second[:, 1:]), r"expected two stacks of RGB pictures .* found \(1, 96, 128, 3\), \(1, 95, 128, 3\)"),
        ((first[..., 0], second[..., 0]), "expected two stacks of RGB pictures"),
        ((first[:, :8], second[:, :8]), "expected pictures of at least 16x16 pixels; found 8x128"),
    ):
        with pytest.raises(UserError, match=words):
            Dis()(*pair)
    with pytest.raises(UserError, match=r"flow estimator: expected one of dis, .*; found 'eyes'"):
        make_estimator("eyes")
    with pytest.raises(UserError, match="flow preset: expected one of ultrafast, fast, medium; found 'best'"):
        Dis("best")
