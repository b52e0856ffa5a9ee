"""Action expert: state, noisy actions and registers in; action velocity out.

Source: the release's `models/action_expert.py`. Two forms: with state and registers (fine-tuning), and action-only
(phase 2 on latent actions).
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from motus_jax.models.config import ActionExpertConfig
from motus_jax.models.layers import (
    SMALL,
    ZEROS,
    Dense,
    Dtype,
    FeedForward,
    Mlp,
    gate,
    layer_norm,
    modulate,
    position_table,
)
from motus_jax.models.small_block import NarrowAttention
from motus_jax.models.video_expert import MODULATION, TimeCache, TimeEmbedding


class ActionBlock(nn.Module):
    """One layer of the action expert, modulated by its own timestep, or each token by its own."""

    config: ActionExpertConfig
    heads: int
    head_dim: int
    dtype: Dtype

    def setup(self) -> None:
        c = self.config
        self.modulation = self.param("modulation", MODULATION, (6, c.width))
        self.attention = NarrowAttention(c.width, self.heads, self.head_dim, c.eps, self.dtype)
        self.ffn = FeedForward(c.mlp, self.dtype)

    def qkv(self, x: Float[Array, "B S D"], time: Float[Array, "B G 6 D"]) -> tuple[Array, Array, Array]:
        m = self.modulation + time
        return self.attention.qkv(modulate(layer_norm(x, self.config.eps), m[:, :, 0], m[:, :, 1]))

    def after_attention(self, x: Array, out: Float[Array, "B S N K"], time: Array) -> Float[Array, "B S D"]:
        return x + gate(self.attention.output(out), (self.modulation + time)[:, :, 2])

    def feed_forward(self, x: Array, time: Array) -> Float[Array, "B S D"]:
        m = self.modulation + time
        normed = modulate(layer_norm(x, self.config.eps), m[:, :, 3], m[:, :, 4])
        return x + gate(self.ffn(normed), m[:, :, 5])


class ActionDecoder(nn.Module):
    """Modulated LayerNorm and one dense layer, zero at the start."""

    config: ActionExpertConfig
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], time: Float[Array, "B G D"]) -> Float[Array, "B S A"]:
        m = self.param("modulation", MODULATION, (2, self.config.width)) + time[:, :, None]
        x = modulate(layer_norm(x, self.config.eps), m[:, :, 0], m[:, :, 1])
        return Dense(self.config.action_dim, self.dtype, kernel_init=ZEROS, name="dense")(x).astype(jnp.float32)


class ActionExpert(nn.Module):
    """Everything of the action expert outside the scanned layers."""

    config: ActionExpertConfig
    dtype: Dtype

    def setup(self) -> None:
        c = self.config
        widths = (c.width,) * 3
        self.action_encoder = Mlp(widths, self.dtype)
        if c.with_state:
            self.state_encoder = Mlp(widths, self.dtype)
            self.registers = self.param("registers", SMALL, (c.registers, c.width))
        self.time = TimeEmbedding(c.width, c.frequencies)
        self.decoder = ActionDecoder(c, self.dtype)

    def embed(self, actions: Float[Array, "B T A"], state: Float[Array, "B P"] | None) -> Float[Array, "B S D"]:
        """Tokens [state, T actions, registers] or, in the action-only form, [T actions]; positions are added to all."""
        tokens = self.action_encoder(actions)
        if self.config.with_state:
            batch = tokens.shape[0]
            registers = jnp.broadcast_to(self.registers, (batch, *self.registers.shape)).astype(tokens.dtype)
            tokens = jnp.concatenate([self.state_encoder(state)[:, None], tokens, registers], axis=1)
        return tokens.astype(jnp.float32) + position_table(tokens.shape[1], self.config.width)

    def embed_time(
        self, t: Float[Array, " B"] | Float[Array, "B T"], cache: TimeCache | None = None
    ) -> tuple[Array, Array]:
        """Vectors [B, G, D] and [B, G, 6, D] of timesteps; G is 1, or all tokens where each action has its own.

        The state and the registers have the chunk's, which is the last action's: a clean prefix is never all of it.
        """
        if t.ndim == 1:
            t = t[:, None]
        elif self.config.with_state:
            rest = jnp.repeat(t[:, -1:], 1 + self.config.registers, axis=1)
            t = jnp.concatenate([rest[:, :1], t, rest[:, 1:]], axis=1)
        return self.time(t) if cache is None else cache.at(t)

    def decode(self, x: Float[Array, "B S D"], time: Float[Array, "B G D"]) -> Float[Array, "B S A"]:
        """Velocity of every token; `action_rows` picks the actions' own."""
        return self.decoder(x, time)

    def action_rows(self, x: Float[Array, "B S A"], chunk: int) -> Float[Array, "B T A"]:
        first = 1 if self.config.with_state else 0
        return x[:, first : first + chunk]
