"""umT5 encoder: text tokens in, states for the video expert's cross-attention out.

Source: Wan2.2 `modules/t5.py` (umT5-xxl: vocabulary 256384, width 4096, 64 heads x 64, gated MLP 10240, 24 layers).
Pre-RMSNorm, no biases, no attention scaling, a relative position bias in every layer. The demo trains a small one on
bytes; the public weights use the same code at full size.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motus_jax.models.layers import Dense, Dtype, RMSNorm


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes; `buckets` and `max_distance` are those of the relative position bias."""

    vocabulary: int
    width: int
    heads: int
    head_dim: int
    mlp: int
    depth: int
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6
    dtype: str = "float32"


XXL = TextEncoderConfig(
    vocabulary=256384, width=4096, heads=64, head_dim=64, mlp=10240, depth=24, dtype="bfloat16"
)
"""umT5-xxl as Wan2.2 uses it: 5,680,910,336 parameters."""


def position_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "length length"]:
    """Bucket of every (query row, key column): half for each direction, exact when near, logarithmic beyond."""
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half = buckets // 2
    near = half // 2
    size = np.abs(distance)
    ratio = np.log(np.maximum(size, 1) / near) / np.log(max_distance / near)
    far = np.minimum(near + (ratio * (half - near)).astype(np.int64), half - 1)
    return np.where(distance > 0, half, 0) + np.where(size < near, size, far)


class EncoderLayer(nn.Module):
    """Self-attention and gated MLP, both pre-norm."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B M D"], mask: Bool[Array, "B M"], buckets: Int[Array, "M M"]
    ) -> tuple[Float[Array, "B M D"], None]:
        c = self.config
        dense = _dense(c.dtype)
        y = RMSNorm(c.eps, name="norm_attention")(x)
        q, k, v = (dense(c.heads * c.head_dim, name)(y).reshape(*y.shape[:2], c.heads, c.head_dim) for name in "qkv")
        table = self.param("position_bias", nn.initializers.normal(0.02), (c.buckets, c.heads))
        bias = jnp.moveaxis(table[buckets], -1, 0)[None]
        out = jax.nn.dot_product_attention(q, k, v, bias=bias.astype(q.dtype), mask=mask[:, None, None], scale=1.0)
        x = x + dense(c.width, "o")(out.reshape(*y.shape[:2], -1))
        y = RMSNorm(c.eps, name="norm_mlp")(x)
        hidden = dense(c.mlp, "up")(y) * nn.gelu(dense(c.mlp, "gate")(y), approximate=True)
        return x + dense(c.width, "down")(hidden), None


def _dense(dtype: Dtype):
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    return lambda features, name: Dense(features, dtype, use_bias=False, kernel_init=init, name=name)


class TextEncoder(nn.Module):
    """Token ids to states."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B M"], mask: Bool[Array, "B M"]) -> Float[Array, "B M D"]:
        """Returns states after the final norm, zero at padding (`mask` False), as Wan feeds them."""
        c = self.config
        table = self.param("token_embedding", nn.initializers.normal(1.0), (c.vocabulary, c.width))
        buckets = jnp.asarray(position_buckets(tokens.shape[1], c.buckets, c.max_distance))
        scanned = nn.scan(
            EncoderLayer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=c.depth
        )
        x, _ = scanned(c, name="layers")(table[tokens].astype(c.dtype), mask, buckets)
        return RMSNorm(c.eps, name="norm")(x) * mask[..., None]
