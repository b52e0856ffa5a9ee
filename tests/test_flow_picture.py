"""Flow pictures: the standard wheel, and every flow comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax import flow_picture


def wheel():
    """The 55 colours of the standard table, by its own rule."""
    colours = np.zeros((55, 3))
    place = 0
    for full, ramp, rising, length in ((0, 1, True, 15), (1, 0, False, 6), (1, 2, True, 4), (2, 1, False, 11),
                                       (2, 0, True, 13), (0, 2, False, 6)):  # fmt: skip
        share = np.floor(255 * np.arange(length) / length) / 255
        colours[place : place + length, full] = 1
        colours[place : place + length, ramp] = share if rising else 1 - share
        place += length
    return colours


def test_directions_have_the_colours_of_the_table():
    places = np.arange(55)
    angles = (places / 55 * 2 - 1) * np.pi
    flow = np.stack([-np.cos(angles), -np.sin(angles)], -1)[None] * 1e9  # full saturation
    np.testing.assert_allclose(flow_picture.to_picture(flow, 1.0)[0], wheel(), atol=1 / 255 + 1e-6)


def test_known_motions():
    flow = np.float32([[[8, 0], [0, 0], [-8, 0], [0, 24]]])
    picture = flow_picture.to_picture(flow, 8.0)
    np.testing.assert_allclose(picture[0, 1], 1)  # no motion is white
    assert picture[0, 0].argmax() == 0 and picture[0, 2].argmin() == 0  # to the right is red, to the left is not
    np.testing.assert_allclose(1 - picture[0].min(-1), [0.5, 0, 0.5, 0.75], atol=1e-6)
    assert flow_picture.half_of(256) == 8 and flow_picture.to_picture(flow).shape == (1, 4, 3)


@pytest.mark.parametrize("kind", [np, jnp])
def test_there_and_back(kind):
    random = np.random.default_rng(0)
    flow = (random.normal(size=(2, 40, 64, 2)) * np.exp(random.normal(size=(2, 40, 64, 1)) * 2)).astype(np.float32)
    flow[0, 0] = 0
    flow[0, 1, :, 1] = 0
    back = flow_picture.from_picture(flow_picture.to_picture(kind.asarray(flow)))
    assert isinstance(back, jax.Array) == (kind is jnp) and back.dtype == np.float32
    back, most = np.asarray(back), flow_picture.half_of(64) * 255
    inside = np.linalg.norm(flow, axis=-1) < 0.9 * most
    scale = 1 + np.linalg.norm(flow, axis=-1, keepdims=True) ** 2 / 2  # saturation flattens out: rounding grows
    assert inside.mean() > 0.99 and (np.abs(back - flow) / scale)[inside].max() < 1e-5


def test_eight_bits_cost_little():
    flow = np.random.default_rng(1).normal(size=(1, 64, 256, 2)).astype(np.float32) * 6
    picture = np.round(flow_picture.to_picture(flow) * 255) / 255
    error = np.linalg.norm(flow_picture.from_picture(picture.astype(np.float32)) - flow, axis=-1)
    assert np.median(error) < 0.12 and error.mean() < 0.2  # pixels, of motions of 7.5 on average


def test_colours_off_the_wheel_have_a_flow():
    picture = np.random.default_rng(2).random((1, 16, 16, 3)).astype(np.float32)
    flow = flow_picture.from_picture(picture)
    assert np.isfinite(flow).all()
    again = flow_picture.from_picture(flow_picture.to_picture(flow))
    np.testing.assert_allclose(again, flow, rtol=1e-2, atol=1e-3)
    assert not flow_picture.from_picture(np.full((2, 2, 3), 0.5, np.float32)).any()  # grey has no direction
