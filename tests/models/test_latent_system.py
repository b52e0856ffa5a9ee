"""The latent-action model: what its loss counts, that it falls, what is frozen, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import latent_action
from motus_jax import flow_picture
from motus_jax.errors import UserError
from motus_jax.models.flow_network import VARIANTS, FlowNetwork
from motus_jax.models.latent_action import LatentAction, LatentActionConfig, divergence, sample
from motus_jax.models.latent_system import LatentActionSystem

COUNT = 16


def settings(**changes):
    config = latent_action.get_config()
    config.data.sources = config.data.layers = {}
    config.data.update({"image_size": (16, 16)})
    config.model.flow_autoencoder.variant = "debug"
    config.model.latent_action.hidden = 32
    config.update_from_flattened_dict(changes)
    return config


def make_batch(seed=0):
    """Pictures that move as a whole; the first two real actions are that motion."""
    random = np.random.default_rng(seed)
    motion = random.normal(size=(COUNT, 2)).astype(np.float32)
    actions = np.zeros((COUNT, 1, 14), np.float32)
    actions[:, 0, :2] = motion
    return {
        "flow": np.tile(motion[:, None, None], (1, 16, 16, 1)),
        "actions": actions,
        "action_mask": np.ones((COUNT, 1, 14), bool),
        "episode": np.arange(COUNT, dtype=np.int32),
        "source": np.zeros(COUNT, np.int32),
    }


@pytest.fixture(scope="module")
def trained():
    """(system, parameters at the start and at the end, metrics of every step)."""
    system, optimizer = LatentActionSystem(settings()), optax.adam(3e-3)
    start = params = jax.jit(system.init)(jax.random.key(0))
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def step(params, state, batch, key):
        grads, metrics = jax.grad(system.loss, has_aux=True)(params, {}, batch, key)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, metrics

    curve = []
    for i in range(120):
        params, state, metrics = step(params, state, make_batch(i), jax.random.key(i))
        curve.append({name: float(value) for name, value in metrics.items()})
    return system, start, params, curve


def test_everything_falls(trained):
    *_, curve = trained
    parts = curve[:5], curve[-5:]
    first, last = ({name: np.mean([row[name] for row in part]) for name in curve[0]} for part in parts)
    for name in ("total", "picture", "action", "autoencoder"):
        assert last[f"loss/{name}"] < 0.6 * first[f"loss/{name}"], name
    assert last["psnr"] > first["psnr"] + 2


def test_the_latent_carries_the_motion(trained):
    """Another example's latent action paints another picture, and the mean reads as the real action."""
    system, _, params, _ = trained
    batch = make_batch(999)
    mean, _ = jax.jit(system.encode)(params, {}, batch)
    paint = jax.jit(system.paint)
    picture, painted = system.picture(batch["flow"]), paint(params, {}, mean)
    shuffled = paint(params, {}, jnp.roll(mean, 1, axis=0))
    own, other = (float(jnp.abs(found - picture).mean()) for found in (painted, shuffled))
    assert own < 0.7 * other
    assert np.corrcoef(np.asarray(mean[:, 0]), batch["actions"][:, 0, 0])[0, 1] > 0.8
    np.testing.assert_allclose(picture, 2 * flow_picture.to_picture(batch["flow"]) - 1)


def test_only_labelled_numbers_count(trained):
    system, _, params, _ = trained
    batch, key = make_batch(5), jax.random.key(0)
    loss = jax.jit(system.loss)
    masked = {**batch, "action_mask": batch["action_mask"].copy(), "actions": batch["actions"].copy()}
    masked["action_mask"][:8] = masked["action_mask"][:, :, 12:] = False
    other = {**masked, "actions": masked["actions"].copy()}
    other["actions"][:8], other["actions"][:, :, 12:] = 9.0, -9.0
    assert loss(params, {}, masked, key)[0] == loss(params, {}, other, key)[0]
    none = {**batch, "action_mask": np.zeros_like(batch["action_mask"])}
    total, metrics = loss(params, {}, none, key)
    assert np.isfinite(total) and np.isnan(metrics["loss/action"])
    mean, _ = jax.jit(system.encode)(params, {}, masked)
    squares = np.square(np.asarray(mean) - masked["actions"][:, 0])[8:, :12]
    np.testing.assert_allclose(loss(params, {}, masked, key)[1]["loss/action"], squares.mean(), rtol=1e-4)


def test_a_frozen_autoencoder_is_no_parameter(trained):
    _, start, *_ = trained
    system = LatentActionSystem(settings(**{"model.flow_autoencoder.tuned": False}))
    params = jax.jit(system.init)(jax.random.key(0))
    shapes = system.frozen_shapes()
    assert set(params) == {"latent_action"} and set(shapes) == {"flow_autoencoder"}
    frozen = {"flow_autoencoder": start["flow_autoencoder"]}
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, frozen)
    grads, metrics = jax.jit(jax.grad(system.loss, has_aux=True))(params, frozen, make_batch(), jax.random.key(1))
    assert "loss/autoencoder" not in metrics
    used = {name: grads["latent_action"][name] for name in ("encoder", "decoder")}
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(used))


@pytest.mark.heavy
def test_a_network_estimates_the_flow_inside_the_step(trained):
    """From the frames of the batch, with its frozen weights."""
    _, _, params, _ = trained
    system = LatentActionSystem(settings(**{"data.flow": "", "model.flow_network": "debug"}))
    network = FlowNetwork(VARIANTS["debug"])
    frozen = {"flow_network": network.init(jax.random.key(0))}
    assert jax.tree.map(jnp.shape, system.frozen_shapes()) == jax.tree.map(jnp.shape, frozen)
    assert "flow_network" not in system.init(jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (COUNT, 2, 16, 16, 3), np.uint8)
    batch = {name: value for name, value in make_batch().items() if name != "flow"} | {"frames": frames}
    flow = network.estimate(frozen["flow_network"], *np.float32(frames / 255).swapaxes(0, 1))
    assert np.abs(flow).max() > 0.01
    found = jax.jit(system.loss)(params, frozen, batch, jax.random.key(1))[0]
    given = LatentActionSystem(settings()).loss(params, {}, {**batch, "flow": flow}, jax.random.key(1))[0]
    np.testing.assert_allclose(found, given, rtol=1e-3)


def test_heads_and_forms():
    model = LatentAction(LatentActionConfig(dim=6, tokens=2, width=3, hidden=8, action_dim=4))
    params = jax.jit(model.init)(jax.random.key(0))
    mean, log_variance = model.encode(params, jnp.ones((5, 2, 3)))
    assert mean.shape == log_variance.shape == (5, 6)
    assert model.decode(params, mean).shape == (5, 2, 3) and model.act(params, mean).shape == (5, 4)
    drawn = sample(jnp.zeros((4000, 1)), jnp.full((4000, 1), 2 * np.log(3.0)), jax.random.key(0))
    assert abs(float(drawn.std()) - 3) < 0.15
    np.testing.assert_allclose(divergence(jnp.zeros((1, 2)), jnp.zeros((1, 2))), 0)
    np.testing.assert_allclose(divergence(jnp.ones((1, 2)), jnp.full((1, 2), np.log(4.0))), 4 - np.log(4), rtol=1e-6)
    system = LatentActionSystem(settings(**{"loss.head": "linear", "model.latent_action.dim": 6, "loss.form": "l2"}))
    params = jax.eval_shape(system.init, jax.random.key(0))
    assert jax.eval_shape(system.act, params, jnp.zeros((2, 6))).shape == (2, 14)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.chunk": 2}, r"config\.data\.chunk: expected 1, .* found 2"),
        ({"data.action_hz": 10.0}, r"config\.data\.action_hz: expected 5 as video_hz.* found 10"),
        ({"data.flow": ""}, r"an estimator of optical flow in one of config\.data\.flow.*flow_network.*found none"),
        ({"model.flow_network": "dpflow"}, r"in one of config\.data\.flow .* found both"),
        ({"model.flow_network": "raft", "data.flow": ""}, r"flow_network: expected one of dpflow, debug, found 'raft'"),
        ({"loss.form": "l3"}, r"config\.loss\.form: expected one of l1, l2, found 'l3'"),
        ({"loss.head": "tail"}, r"config\.loss\.head: expected one of mean, sample, linear, found 'tail'"),
        ({"model.latent_action.dim": 6}, r"config\.loss\.head: expected linear for latent actions of 6 numbers"),
        ({"data.image_size": (18, 16)}, "18x16: expected sides divisible by 4"),
        ({"model.flow_autoencoder.variant": "vae"}, r"variant: expected one of f128c512, .* found 'vae'"),
        ({"model.latent_action.hidden": 0}, r"config\.model\.latent_action\.hidden: expected at least 1, found 0"),
    ],
)
def test_refusals(changes, message):
    with pytest.raises(UserError, match=message):
        LatentActionSystem(settings(**changes))
