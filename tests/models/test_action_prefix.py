"""Prefixes in training: what is drawn, what the network is shown, what carries the loss, and that off is off."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from test_encoders import make_batch

from experiments import debug
from motus_jax import compiler, modes
from motus_jax.errors import UserError
from motus_jax.models.action_prefix import Prefixes
from motus_jax.models.config import get_variant
from motus_jax.models.motus import Motus
from motus_jax.models.system import System

KEY = jax.random.key(3)


def test_lengths_are_uniform_and_only_where_actions_are_denoised():
    denoised = jnp.arange(40_000) % 2 == 0
    shown = np.asarray(Prefixes(0.5, 3).draw(KEY, denoised, chunk=5))
    length = shown.sum(1)
    assert (shown == (np.arange(5) < length[:, None])).all(), "the first ones"
    assert (length[1::2] == 0).all()
    share = np.bincount(length[::2], minlength=6) / 20_000
    np.testing.assert_allclose(share, [0.5, 1 / 6, 1 / 6, 1 / 6, 0, 0], atol=0.02)


def test_settings():
    assert not Prefixes.of(ml_collections.ConfigDict({"video": 1}), 8).trained, "of before there was the field"
    assert Prefixes.of({"prefix": {"probability": 0.5, "longest": 7}}, 8).trained
    for probability in (-0.1, 1.1):
        with pytest.raises(UserError, match=r"config\.noise\.prefix\.probability: expected 0 to 1; found"):
            Prefixes.of({"prefix": {"probability": probability, "longest": 1}}, 8)
    for longest in (0, 8):
        with pytest.raises(UserError, match=rf"config\.noise\.prefix\.longest: expected 1 to 7, .* found {longest}"):
            Prefixes.of({"prefix": {"probability": 0.5, "longest": longest}}, 8)


def settings(mode="vla", **prefix):
    config = debug.get_config()
    config.mode, config.model.overrides.depth, config.data.chat_length = mode, 1, 8
    config.noise.prefix.update(prefix)
    return config


class Linear(System):
    """Two numbers in the place of the network: velocity = a x + b tau, token by token."""

    def context(self, *_, **__):
        return None

    def velocities(self, params, video, actions, state, tau_video, tau_action, context, state_mask=None):
        assert tau_action.shape == actions.shape[:2]
        return video, params["a"] * actions + params["b"] * tau_action[..., None]


def test_loss_and_gradients_are_those_written_out_by_hand():
    config, count = settings(probability=0.7, longest=3), 8
    system, batch = Linear(config), make_batch(config, count)
    batch["action_mask"][:, :, -2:] = False
    params = {"a": jnp.float32(0.7), "b": jnp.float32(-0.4)}
    batch["latents"] = np.zeros((count, *system.latent_shape), np.float32)
    step = jax.jit(jax.value_and_grad(system.loss, has_aux=True), compiler_options=compiler.options())
    (loss, metrics), grads = step(params, {}, batch, KEY)

    keys = jax.random.split(KEY, 5)
    tau = system._draw_tau(keys[1], "action", count)
    carries = np.asarray(modes.draw(keys[4], modes.weights("vla"), tau, tau)["action_loss"])
    length = np.asarray(system.prefixes.draw(jax.random.fold_in(keys[4], 1), carries, 8).sum(1))
    assert set(length.tolist()) >= {0, 1, 3}, "some with, some without"
    tau, noise = np.float64(tau), np.float64(jax.random.normal(keys[3], batch["actions"].shape))
    rows = []
    for row, first in enumerate(length):
        actions, drawn = batch["actions"][row, first:, :12], noise[row, first:, :12]
        noisy = (1 - tau[row]) * actions + tau[row] * drawn
        error = 0.7 * noisy - 0.4 * tau[row] - (drawn - actions)
        means = np.mean([error**2, 2 * error * noisy, 2 * error * tau[row]], axis=(1, 2))
        rows.append(1.5 * tau[row] ** 2 * means * carries[row])
    np.testing.assert_allclose([loss, grads["a"], grads["b"]], np.mean(rows, axis=0), rtol=1e-5)
    assert metrics["loss/action"] > 0


def test_off_is_the_same_program_as_without_the_field():
    off, without, on = settings(), settings(), settings(probability=0.5, longest=3)
    with without.unlocked():
        del without.noise.prefix
    programs = []
    for config in (off, without, on):
        system = System(config)
        shapes = jax.eval_shape(system.init, KEY), system.fitted_shapes(), make_batch(config), KEY
        programs.append(str(jax.make_jaxpr(system.loss)(*shapes)))
    assert programs[0] == programs[1] != programs[2]


@pytest.fixture(scope="module")
def network():
    config = get_variant("debug", {"depth": 1})
    rng = np.random.default_rng(1)
    inputs = {
        "video": rng.normal(size=(2, 2, 4, 4, 8)), "actions": rng.normal(size=(2, 6, 14)),
        "state": rng.normal(size=(2, 14)), "t_video": np.array([900.0, 100.0]), "t_action": np.array([30.0, 500.0]),
        "text_states": rng.normal(size=(2, 5, 16)), "text_mask": np.ones((2, 5), bool),
        "vlm_states": rng.normal(size=(2, 7, 16)), "vlm_mask": np.ones((2, 7), bool),
    }  # fmt: skip
    inputs = {name: value if value.dtype == bool else np.float32(value) for name, value in inputs.items()}
    shapes = jax.eval_shape(lambda: Motus(config).init(KEY, **inputs)["params"])
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)
    apply = jax.jit(Motus(config).apply, compiler_options=compiler.options())
    return inputs, lambda **changes: apply({"params": params}, **inputs | changes)


def test_a_time_for_each_action(network):
    inputs, apply = network
    same = np.repeat(inputs["t_action"][:, None], 6, axis=1)
    for found, expected in zip(apply(t_action=same), apply()):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    first = same.copy()
    first[:, 0] = 0
    assert np.abs(apply(t_action=first)[1] - apply()[1]).max() > 1e-3
