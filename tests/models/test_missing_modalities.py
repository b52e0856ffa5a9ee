"""What a source lacks is masked: no state, no actions, no words, in one batch with examples that have all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_encoders import make_batch

from experiments import debug
from motus_jax.models.losses import seen_places, video_loss
from motus_jax.models.system import System

LACKS = 1  # the row of the batch that has neither state, actions nor words


def with_sources(config):
    with config.unlocked():
        config.mode, config.data.chat_length = "joint:1,vla:1,inverse_dynamics:1", 8
        config.model.overrides.depth = 1
        config.data.sources = {"clips": {"layer": 1}, "robot": {"layer": 6}, "nobody": {"layer": 6, "weight": 0.0}}
    return config


@pytest.fixture(scope="module")
def found():
    """Losses and gradients of a batch and of the same with other numbers where it has none."""
    config = with_sources(debug.get_config())
    system, key = System(config), jax.random.key(0)
    batch = make_batch(config, count=4)
    batch["state_mask"] = np.ones(batch["state"].shape, bool)
    for name in ("state_mask", "action_mask", "instruction_mask"):
        batch[name][LACKS] = False
    for name in ("state", "actions", "instruction"):
        batch[name][LACKS] = 0
    batch |= {"source": np.int32([1, 0, 1, 1]), "layer": np.int32([6, 1, 6, 6])}
    batch["unseen"] = np.zeros((4, 3, 4), np.float32)
    # Drawn by numpy: compiling the initialisation would take as long as the test.
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(0.1, 0.1, leaf.shape)), jax.eval_shape(system.init, key))
    frozen = system.fit_frozen(batch["frames"].repeat(4, 0))
    assert jax.tree.map(jnp.shape, frozen) == jax.tree.map(jnp.shape, system.fitted_shapes())
    step = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    other = {name: value.copy() for name, value in batch.items()}
    other["state"][LACKS], other["actions"][LACKS] = 3.0, -2.0
    dark = {**batch, "unseen": batch["unseen"].copy()}
    dark["unseen"][LACKS, 1] = 0, 0, 1, 1
    return [step(params, frozen, jax.tree.map(jnp.asarray, one), key) for one in (batch, other, dark)]


def test_all_is_finite_and_nothing_that_is_missing_is_read(found):
    ((loss, _), grads), ((other_loss, _), other_grads), _ = found
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    for leaf, other in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads)):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)


def test_where_no_camera_is_there_is_no_loss(found):
    plain, dark = (one[0][1] for one in found[::2])
    assert dark["loss/video/source_clips"] == 0 < plain["loss/video/source_clips"]
    np.testing.assert_allclose(dark["loss/video/source_robot"], plain["loss/video/source_robot"], rtol=1e-6)


def test_places_and_their_mean():
    seen = seen_places(jnp.array([np.zeros((3, 4)), [[0, 0, 0, 0], [0.5, 0.25, 1, 0.5], [0.7, 0.5, 0.9, 1]]]), 4, 4)
    assert seen[0].all() and np.array_equal(seen[1], np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]]))
    error = np.random.default_rng(0).standard_normal((2, 3, 4, 4, 2)).astype(np.float32)
    losses = video_loss(jnp.asarray(error), jnp.zeros(error.shape), "future", seen)
    np.testing.assert_allclose(losses[0], np.square(error[0, 1:]).mean(), rtol=1e-5)
    np.testing.assert_allclose(losses[1], np.square(error[1, 1:])[:, np.asarray(seen[1])].mean(), rtol=1e-5)


def test_losses_by_source_and_layer(found):
    metrics = found[0][0][1]
    names = {f"loss/{name}/{group}" for name in ("video", "action")
             for group in ("source_clips", "source_robot", "layer_1", "layer_6")}  # fmt: skip
    assert names == {name for name in metrics if "source_" in name or "layer_" in name}
    assert metrics["loss/video/source_clips"] == metrics["loss/video/layer_1"] > 0
    assert np.isnan(metrics["loss/action/source_clips"]) and metrics["loss/action/source_robot"] > 0
    np.testing.assert_allclose(metrics["loss/action/layer_6"], metrics["loss/action"], rtol=1e-6)
