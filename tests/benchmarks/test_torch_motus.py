"""The PyTorch model that the benchmark compares with computes what ours computes."""

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.heavy
pytest.importorskip("torch", reason="the benchmark needs PyTorch: pip install torch==2.13.0")

from benchmarks import experts, torch_step  # noqa: E402
from experiments import debug  # noqa: E402
from motus_jax.weights import motus as names  # noqa: E402
from motus_jax.weights.name_map import to_tree  # noqa: E402


def test_velocities_loss_and_gradients_agree():
    config = debug.get_config()
    config.batch_size = 2
    config.model.overrides.video.places = True
    batch, ours = experts.make_batch(config), experts.Experts(config)
    noisy = jax.jit(lambda key: jax.tree.map(
        # The heads start at zero and would hide everything.
        lambda x: x + 0.05 * jax.random.normal(jax.random.fold_in(key, x.size), x.shape), ours.init(key)
    ))
    params = noisy(jax.random.key(0))
    model, tensors = torch_step.load(ours.system.motus_config, params), torch_step.to_torch(batch)
    video, actions = torch_step.velocities(model, tensors)
    found_video, found_actions = jax.jit(ours.velocities)(params, batch)
    np.testing.assert_allclose(found_video, video.detach().permute(0, 2, 3, 4, 1), atol=5e-6)
    np.testing.assert_allclose(found_actions, actions.detach(), atol=5e-6)

    loss = torch_step.loss(model, tensors)
    loss.backward()
    found, gradients = jax.jit(jax.value_and_grad(lambda p: ours.loss(p, {}, batch, None)[0]))(params)
    np.testing.assert_allclose(found, loss.detach(), rtol=1e-5)
    public = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in model.named_parameters()
    }
    places = public.pop("video_model.wan_model.places")
    expected = to_tree(public, names.rules(ours.system.motus_config), ours.system.motus_config.depth)
    of_places = gradients["video"].pop("places")["embedding"]
    np.testing.assert_allclose(of_places.reshape(places.shape), places, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradients, expected)
