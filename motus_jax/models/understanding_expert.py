"""Understanding expert: hidden states of a vision-language model through an adapter and plain pre-norm layers.

Source: the release's `models/und_expert.py`. No timestep, no gates, no positions of its own. Nothing reads this stream
after the last layer, so that layer's output projection and MLP never receive a gradient; they exist because the public
checkpoints hold them and because the layers are one scanned stack.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from motus_jax.models.config import UnderstandingExpertConfig
from motus_jax.models.layers import Dtype, FeedForward, Mlp, layer_norm
from motus_jax.models.small_block import NarrowAttention


class UnderstandingBlock(nn.Module):
    """One layer of the understanding expert."""

    config: UnderstandingExpertConfig
    heads: int
    head_dim: int
    dtype: Dtype

    def setup(self) -> None:
        c = self.config
        self.attention = NarrowAttention(c.width, self.heads, self.head_dim, c.eps, self.dtype)
        self.ffn = FeedForward(c.mlp, self.dtype)

    def qkv(self, x: Float[Array, "B S D"]) -> tuple[Array, Array, Array]:
        return self.attention.qkv(layer_norm(x, self.config.eps))

    def after_attention(self, x: Array, out: Float[Array, "B S N K"]) -> Float[Array, "B S D"]:
        return x + self.attention.output(out)

    def feed_forward(self, x: Array) -> Float[Array, "B S D"]:
        return x + self.ffn(layer_norm(x, self.config.eps))


class UnderstandingExpert(nn.Module):
    """Everything of the understanding expert outside the scanned layers: the adapter."""

    config: UnderstandingExpertConfig
    dtype: Dtype

    def setup(self) -> None:
        self.adapter = Mlp((self.config.width,) * 3, self.dtype)

    def embed(self, states: Float[Array, "B U E"]) -> Float[Array, "B U D"]:
        return self.adapter(states).astype(jnp.float32)
