"""The three phases as experiments choose them: one expert alone, the action-only form, all; and how they hand over."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from test_encoders import make_batch

from experiments import debug
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.sampling.sampler import make_sampler

pytestmark = pytest.mark.thorough

ACTION_ONLY = {"action": {"state_dim": None, "registers": 0}}


def system_of(mode="joint", **overrides):
    config = debug.get_config()
    with config.unlocked():
        config.mode, config.data.chat_length = mode, 8  # the batch has a chat too, which nobody reads
        chosen = {**config.model.overrides.to_dict(), "depth": 1, **overrides}
        config.model.overrides = ml_collections.ConfigDict(chosen)
    return System(config), config


def started(system, seed=0):
    """Parameters whose heads do not start at zero; drawn by numpy, since the initialisation takes long to compile."""
    rng, shapes = np.random.default_rng(seed), jax.eval_shape(system.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.1, leaf.shape), leaf.dtype), shapes)


def loss_and_grads(system, config):
    key, batch = jax.random.key(0), jax.tree.map(jnp.asarray, make_batch(config))
    params = started(system)
    rng = np.random.default_rng(1)
    frozen = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), system.fitted_shapes())
    (_, metrics), grads = jax.jit(jax.value_and_grad(system.loss, has_aux=True))(params, frozen, batch, key)
    return params, metrics, grads


def test_phase_1_moves_the_video_expert_alone():
    system, config = system_of("video", video_only=True)
    _, metrics, grads = loss_and_grads(system, config)
    assert np.isfinite(metrics["loss/video"]) and system.supported_modes == ("video",)
    norms = {name: max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads["motus"]["layers"][name]))
             for name in ("video", "action", "understanding")}
    assert norms["video"] > 0 and norms["action"] == norms["understanding"] == 0
    with pytest.raises(UserError, match="mode vla: expected one of video, which this model can do"):
        make_sampler(system, "vla", config.sampling)


def test_the_video_expert_alone_hears_no_other():
    """Its velocity is the same whatever actions, state and picture it is shown."""
    system, config = system_of("video", video_only=True)
    params = started(system, seed=1)
    batch = jax.tree.map(jnp.asarray, make_batch(config))
    latents = jax.random.normal(jax.random.key(2), (2, *system.latent_shape))

    @jax.jit
    def velocity(params, latents, batch):
        context, times = system.context(params, {}, batch), jnp.full(2, 0.3)
        return system.velocities(params, latents, batch["actions"], batch["state"], times, times, context)[0]

    other = batch | {"frames": 255 - batch["frames"], "actions": -3 * batch["actions"], "state": batch["state"] + 1}
    np.testing.assert_array_equal(velocity(params, latents, batch), velocity(params, latents, other))


def test_a_video_only_model_takes_no_other_mode():
    with pytest.raises(UserError, match=r"config\.mode: expected video for a model that is video_only, found 'vla'"):
        system_of("vla", video_only=True)


def test_phase_2_has_neither_state_nor_registers():
    system, config = system_of("unified", **ACTION_ONLY)
    params, metrics, _ = loss_and_grads(system, config)
    assert np.isfinite(metrics["loss/action"])
    assert not {"state_encoder", "registers"} & params["motus"]["action"].keys()
    phase_3 = system_of("unified")[0]
    shapes = jax.eval_shape(phase_3.init, jax.random.key(0))["motus"]["action"]
    assert shapes.keys() - params["motus"]["action"].keys() == {"state_encoder", "registers"}


def test_sizes_of_actions_are_said_once():
    with pytest.raises(UserError, match=r"action\.action_dim: expected config\.data\.action_dim = 14, found 7"):
        system_of(action={"action_dim": 7})
