"""Training the video encoder alone: what the loss is, that it falls, what is refused."""

import jax
import ml_collections
import numpy as np
import optax
import pytest
from test_encoders import VAE

from experiments import demo_vae
from motus_jax.errors import UserError
from motus_jax.models.vae_system import VaeSystem

pytestmark = pytest.mark.thorough


def settings(**loss):
    config = demo_vae.get_config()
    with config.unlocked():
        config.data.image_size = (16, 24)
        config.model.overrides.video.latent_channels = 6
        config.model.video_codec = ml_collections.ConfigDict(VAE)
        config.loss = ml_collections.ConfigDict({"moments": 0.01, "crop": 8} | loss)
    return config


def batch():
    """Clips whose left half is dark and whose right half is bright."""
    frames = np.full((4, 3, 16, 24, 3), 30, np.uint8)
    frames[..., 12:, :] = 220
    return {"frames": frames}


@pytest.mark.heavy
def test_training_reconstructs_pixels():
    system, optimizer = VaeSystem(settings()), optax.adam(1e-2)
    params = system.init(jax.random.key(0))
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, key):
        grads, metrics = jax.grad(system.loss, has_aux=True)(params, {}, batch(), key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    curve = []
    for i in range(40):
        params, state, metrics = step(params, state, jax.random.key(i))
        curve.append({name: float(value) for name, value in metrics.items()})
    assert curve[-1]["loss/pixels"] < 0.5 * curve[0]["loss/pixels"]
    assert curve[-1]["loss/moments"] < curve[0]["loss/moments"]


def test_the_loss_sees_one_square_of_the_picture():
    system = VaeSystem(settings())
    params, seen, loss = jax.jit(system.init)(jax.random.key(0)), batch(), jax.jit(system.loss)
    losses = {key: float(loss(params, {}, seen, jax.random.key(key))[0]) for key in range(12)}
    assert len({round(loss, 6) for loss in losses.values()}) > 1, "the square is drawn"
    again = float(loss(params, {}, seen, jax.random.key(3))[0])
    assert again == losses[3]


@pytest.mark.parametrize("crop, message", [(32, "at most the picture's shorter side 16"), (6, "divisible by 4")])
def test_crops_that_do_not_fit_are_refused(crop, message):
    with pytest.raises(UserError, match=message):
        VaeSystem(settings(crop=crop))


def test_only_the_wan_kind_is_trained():
    config = settings()
    with config.unlocked():
        config.model.video_codec = ml_collections.ConfigDict({"kind": "linear", "patch": 8})
    with pytest.raises(UserError, match="kind: expected one of wan, found 'linear'"):
        VaeSystem(config)
