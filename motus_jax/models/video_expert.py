"""Video expert: the Wan2.2-TI2V DiT, split into what happens before, in and after the joint attention.

Source: Wan2.2 `modules/model.py`; parameter names follow `motus_jax.weights.motus`.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.models.attention import attention
from motus_jax.models.config import VideoExpertConfig
from motus_jax.models.layers import (
    SMALL,
    ZEROS,
    Dense,
    Dtype,
    FeedForward,
    LayerNorm,
    Mlp,
    RMSNorm,
    apply_rope,
    gate,
    layer_norm,
    locality_bias,
    modulate,
    timestep_embedding,
)

MODULATION = nn.initializers.normal(0.02)


class TimeEmbedding(nn.Module):
    """Timestep -> (vector for the head, six modulation vectors for the blocks), float32.

    Shared by the video and the action expert: sinusoid, dense-SiLU-dense, SiLU-dense to 6 widths.
    """

    width: int
    frequencies: int

    @nn.compact
    def __call__(self, t: Float[Array, "B G"]) -> tuple[Float[Array, "B G D"], Float[Array, "B G 6 D"]]:
        wave = timestep_embedding(t, self.frequencies)
        head = Mlp((self.width, self.width), jnp.float32, kernel_init=SMALL, name="embedding")(wave)
        blocks = Dense(6 * self.width, jnp.float32, name="projection")(nn.silu(head))
        return head, blocks.reshape(*t.shape, 6, self.width)


class TimeCache(NamedTuple):
    """One expert's embeddings of N timesteps, float32.

    Attributes:
      t: the timesteps [N].
      head: for the head [N, D].
      blocks: six modulation vectors for the layers [N, 6, D].
    """

    t: Float[Array, " N"]
    head: Float[Array, "N D"]
    blocks: Float[Array, "N 6 D"]

    def at(self, t: Float[Array, "B G"]) -> tuple[Float[Array, "B G D"], Float[Array, "B G 6 D"]]:
        """What `TimeEmbedding` gives for timesteps of the cache; for another one, what it gives for the nearest."""
        place = jnp.argmin(jnp.abs(t[..., None] - self.t), axis=-1)
        return self.head[place], self.blocks[place]


class CrossAttention(nn.Module):
    """Attention of video tokens to text, q and k normalised over the whole width, no rotary embedding."""

    config: VideoExpertConfig
    dtype: Dtype
    kernel: str = "xla"

    def setup(self) -> None:
        width, eps = self.config.width, self.config.eps
        self.q, self.k, self.v, self.o = (Dense(width, self.dtype) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(eps), RMSNorm(eps)

    def heads(self, x: Float[Array, "B S D"]) -> Float[Array, "B S N K"]:
        return x.reshape(*x.shape[:-1], self.config.heads, self.config.head_dim)

    def keys_values(self, text: Float[Array, "B M D"]) -> tuple[Float[Array, "B M N K"], Float[Array, "B M N K"]]:
        """Keys and values of the text; they do not depend on the noise, so a sampler computes them once."""
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def __call__(
        self, x: Float[Array, "B S D"], keys_values: tuple[Array, Array], mask: Bool[Array, "B M"] | None
    ) -> Float[Array, "B S D"]:
        out = attention(self.heads(self.norm_q(self.q(x))), *keys_values, mask, self.kernel)
        return self.o(out.reshape(x.shape))


class SelfAttention(nn.Module):
    """Projections of the joint attention for video tokens (Wan `WanSelfAttention` without the softmax)."""

    config: VideoExpertConfig
    dtype: Dtype

    def setup(self) -> None:
        c, width, eps = self.config, self.config.width, self.config.eps
        local = nn.initializers.constant(locality_bias(c.heads, c.head_dim, c.locality))
        self.q, self.k = (Dense(width, self.dtype, bias_init=local) for _ in range(2))
        self.v, self.o = (Dense(width, self.dtype) for _ in range(2))
        self.norm_q, self.norm_k = RMSNorm(eps), RMSNorm(eps)

    def qkv(self, x: Float[Array, "B S D"], rope: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        heads = (*x.shape[:-1], self.config.heads, self.config.head_dim)
        q, k = self.norm_q(self.q(x)).reshape(heads), self.norm_k(self.k(x)).reshape(heads)
        return apply_rope(q, *rope), apply_rope(k, *rope), self.v(x).reshape(heads)

    def output(self, x: Float[Array, "B S N K"]) -> Float[Array, "B S D"]:
        return self.o(x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1]))  # -1 would not do without tokens


class VideoBlock(nn.Module):
    """One layer of the video expert. Modulation order: shift, scale, gate of attention, then of the MLP."""

    config: VideoExpertConfig
    dtype: Dtype
    kernel: str = "xla"

    def setup(self) -> None:
        self.modulation = self.param("modulation", MODULATION, (6, self.config.width))
        self.self_attention = SelfAttention(self.config, self.dtype)
        self.cross_attention = CrossAttention(self.config, self.dtype, self.kernel)
        self.cross_norm = LayerNorm(self.config.eps)
        self.ffn = FeedForward(self.config.mlp, self.dtype)

    def qkv(
        self, x: Float[Array, "B S D"], time: Float[Array, "B G 6 D"], rope: tuple[Array, Array]
    ) -> tuple[Array, Array, Array]:
        """q, k, v [B, S, N, K] of the joint attention, q and k rotated."""
        m = self.modulation + time
        normed = modulate(layer_norm(x, self.config.eps), m[:, :, 0], m[:, :, 1])
        return self.self_attention.qkv(normed, rope)

    def after_attention(self, x: Array, out: Float[Array, "B S N K"], time: Array) -> Float[Array, "B S D"]:
        """Output projection and gated residual of the joint attention."""
        m = self.modulation + time
        return x + gate(self.self_attention.output(out), m[:, :, 2])

    def text_keys_values(self, text: Float[Array, "B M D"]) -> tuple[Array, Array]:
        return self.cross_attention.keys_values(text)

    def cross(self, x: Array, keys_values: tuple[Array, Array], mask: Array | None) -> Float[Array, "B S D"]:
        """Adds attention to the text (ungated)."""
        return x + self.cross_attention(self.cross_norm(x), keys_values, mask)

    def feed_forward(self, x: Array, time: Array) -> Float[Array, "B S D"]:
        m = self.modulation + time
        normed = modulate(layer_norm(x, self.config.eps), m[:, :, 3], m[:, :, 4])
        return x + gate(self.ffn(normed), m[:, :, 5])


class VideoHead(nn.Module):
    """Modulated LayerNorm and a dense layer to the patch, float32; starts at zero as in Wan."""

    config: VideoExpertConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], time: Float[Array, "B G D"]) -> Float[Array, "B S p*C"]:
        m = self.param("modulation", MODULATION, (2, self.config.width)) + time[:, :, None]
        pf, ph, pw = self.config.patch
        x = modulate(layer_norm(x, self.config.eps), m[:, :, 0], m[:, :, 1])
        return Dense(pf * ph * pw * self.config.latent_channels, jnp.float32, kernel_init=ZEROS, name="dense")(x)


class Places(nn.Module):
    """A learned vector for each place of the token grid."""

    width: int

    @nn.compact
    def __call__(self, height: int, width: int) -> Float[Array, "H W D"]:
        return self.param("embedding", nn.initializers.normal(0.5), (height, width, self.width))


class VideoExpert(nn.Module):
    """Everything of the video expert outside the scanned layers: patches and text in, time, velocity out."""

    config: VideoExpertConfig
    dtype: Dtype

    def setup(self) -> None:
        width = self.config.width
        self.patch_embedding = Dense(width, self.dtype)
        self.places = Places(width) if self.config.places else None
        self.text_embedding = Mlp((width, width), self.dtype, lambda x: nn.gelu(x, approximate=True), SMALL)
        self.time = TimeEmbedding(width, self.config.frequencies)
        self.head = VideoHead(self.config)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Token grid of latents [B, F, H, W, C]."""
        return tuple(size // patch for size, patch in zip(shape[1:4], self.config.patch))

    def embed(self, latents: Float[Array, "B F H W C"]) -> Float[Array, "B S D"]:
        """Latents to tokens, order f, h, w with w fastest; inside a patch the channel is fastest."""
        b, *_, c = latents.shape
        (f, h, w), (pf, ph, pw) = self.grid(latents.shape), self.config.patch
        x = latents.reshape(b, f, pf, h, ph, w, pw, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        tokens = self.patch_embedding(x.reshape(b, f * h * w, -1)).astype(jnp.float32)
        return tokens if self.places is None else tokens + jnp.tile(self.places(h, w).reshape(h * w, -1), (f, 1))

    def embed_text(self, states: Float[Array, "B M E"]) -> Float[Array, "B M D"]:
        return self.text_embedding(states)

    def embed_time(self, t: Float[Array, "B G"], cache: TimeCache | None = None) -> tuple[Array, Array]:
        return self.time(t) if cache is None else cache.at(t)

    def velocity(
        self, x: Float[Array, "B S D"], time: Float[Array, "B G D"], shape: tuple[int, ...]
    ) -> Float[Array, "B F H W C"]:
        """Head and unpatchify; `shape` is that of the latents."""
        b, *_, c = shape
        (f, h, w), (pf, ph, pw) = self.grid(shape), self.config.patch
        y = self.head(x, time).reshape(b, f, h, w, pf, ph, pw, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return y.reshape(shape)
