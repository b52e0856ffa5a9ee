"""Embeddings, rotary positions and attention against plain float64 or library versions."""

import jax
import jax.numpy as jnp
import numpy as np

from motus_jax.models import layers
from motus_jax.models.attention import attention


def test_timestep_embedding_is_good_to_float32_up_to_1000():
    t = np.float32([0.0, 0.37, 4.98, 37.25, 499.99, 812.5, 999.0, 1000.0])
    angle = t.astype(np.float64)[:, None] * 10_000.0 ** (-np.arange(128) / 128)
    exact = np.concatenate([np.cos(angle), np.sin(angle)], -1)
    np.testing.assert_allclose(layers.timestep_embedding(jnp.asarray(t), 256), exact, atol=3e-7)


def test_rotary_axes_of_the_public_head():
    assert layers.rope_axis_dims(128) == (44, 42, 42)


def test_locality_bias_peaks_at_the_own_place_in_every_frame():
    grid, heads, head_dim = (2, 7, 6), 4, 32
    bias = layers.locality_bias(heads, head_dim, 6.0).reshape(1, 1, heads, head_dim)
    cos, sin = layers.rope_table(grid, head_dim)
    turned = layers.apply_rope(jnp.broadcast_to(bias, (1, 84, heads, head_dim)), cos, sin)
    scores = np.asarray(jnp.einsum("bsnk,bmnk->bnsm", turned, turned))[0, 0].reshape(*grid, *grid)
    own = scores[0, 3, 3]
    np.testing.assert_allclose(own[0], own[1], atol=1e-4)  # frames alike
    place = own[1].copy()
    assert np.unravel_index(place.argmax(), place.shape) == (3, 3)
    assert place[3, 3] > place[3, 4] > place[3, 5] and place[3, 3] > place[4, 3] > place[5, 3]
    assert np.abs(bias[0, 0, heads // 2 :]).max() == 0, "the other heads are free"


def test_attention_and_its_gradients_equal_the_library_with_padding():
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (2, 9 if i in (0, 3) else 7, 3, 8)) for i, key in enumerate(keys))
    mask = jnp.arange(7)[None] < jnp.array([[7], [4]])

    def ours(q, k, v):
        return jnp.sum(attention(q, k, v, mask) * g)

    def library(q, k, v):
        return jnp.sum(jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None]) * g)

    both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (ours, library)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *both)
    assert np.abs(both[0][1][1][1, 4:]).max() == 0, "padding gets no gradient"
