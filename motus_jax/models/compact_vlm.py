"""A compact vision-language encoder: the stand-in for Qwen3-VL until its weights are loaded.

It has the interface of the real one, picture and instruction in, hidden states of one sequence and its mask out, and
is small enough to be trained from scratch together with the experts. It is not Qwen3-VL's architecture.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from motus_jax.models.attention import attention
from motus_jax.models.layers import SMALL, Dense, FeedForward, LayerNorm


@dataclasses.dataclass(frozen=True)
class CompactVlmConfig:
    """Sizes. Pictures are cut into `patch` pixels; `bytes_per_token` neighbouring byte tokens become one text token."""

    vocabulary: int
    width: int
    heads: int
    mlp: int
    depth: int
    patch: int = 16
    bytes_per_token: int = 8
    eps: float = 1e-6
    dtype: str = "float32"


class CompactVlm(nn.Module):
    """Bidirectional pre-norm transformer over [picture patches | text groups]."""

    config: CompactVlmConfig

    @nn.compact
    def __call__(
        self, picture: Float[Array, "B H W 3"], tokens: Int[Array, "B L"], mask: Bool[Array, "B L"]
    ) -> tuple[Float[Array, "B U D"], Bool[Array, "B U"]]:
        """Last hidden states after the final norm and the mask of real tokens.

        Args:
          picture: the condition frame in [-1, 1].
          tokens, mask: byte tokens of the prompt; L is a multiple of `bytes_per_token`.
        """
        c = self.config
        x = jnp.concatenate([self._embed_picture(picture), self._embed_text(tokens)], axis=1)
        x = x + self.param("position", SMALL, x.shape[1:])
        pictures = x.shape[1] - tokens.shape[1] // c.bytes_per_token
        real = mask.reshape(mask.shape[0], -1, c.bytes_per_token).any(-1)
        real = jnp.concatenate([jnp.ones((len(mask), pictures), bool), real], axis=1)
        for layer in range(c.depth):
            y = LayerNorm(c.eps, name=f"norm_attention_{layer}")(x)
            qkv = Dense(3 * c.width, c.dtype, name=f"qkv_{layer}")(y)
            q, k, v = jnp.split(qkv.reshape(*y.shape[:2], 3 * c.heads, -1), 3, axis=2)
            x = x + Dense(c.width, c.dtype, name=f"o_{layer}")(attention(q, k, v, real).reshape(x.shape))
            x = x + FeedForward(c.mlp, c.dtype, name=f"ffn_{layer}")(LayerNorm(c.eps, name=f"norm_ffn_{layer}")(x))
        return LayerNorm(c.eps, name="norm")(x) * real[..., None], real

    def _embed_picture(self, picture: Float[Array, "B H W 3"]) -> Float[Array, "B U D"]:
        b, h, w, _ = picture.shape
        p = self.config.patch
        x = picture.reshape(b, h // p, p, w // p, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, p * p * 3)
        return Dense(self.config.width, self.config.dtype, name="patch_embedding")(x)

    def _embed_text(self, tokens: Int[Array, "B L"]) -> Float[Array, "B U D"]:
        c = self.config
        table = self.param("byte_embedding", nn.initializers.normal(1.0), (c.vocabulary, c.width // 4))
        x = table[tokens].reshape(len(tokens), -1, c.bytes_per_token * (c.width // 4))
        return Dense(c.width, c.dtype, name="text_projection")(x)
