"""The action stream alone, against keys and values that the other streams had in an earlier evaluation.

MotuBrain (arXiv:2604.27792) calls it the action-only tail of a sampling run: once the video hardly changes what the
actions become, its tokens need not be computed again. Here the understanding stream is frozen with it, since its states
too depend on the noise, through the joint attention.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.models.action_expert import ActionBlock, ActionExpert
from motus_jax.models.attention import attention
from motus_jax.models.config import MotusConfig
from motus_jax.models.video_expert import TimeCache


class LayerMemory(NamedTuple):
    """Keys and values of the frozen streams, each [B, S, N, K], or of all layers [L, B, S, N, K]."""

    video: tuple[Array, Array]
    understanding: tuple[Array, Array]


class Memory(NamedTuple):
    """What an evaluation leaves to later ones of the actions alone.

    Attributes:
      layers: of every layer.
      key_mask: which of the joint keys are real, or None if all are.
    """

    layers: LayerMemory
    key_mask: Bool[Array, "B S"] | None


def remember(
    k: Float[Array, "B S N K"], v: Float[Array, "B S N K"], video_tokens: int, action_tokens: int
) -> LayerMemory:
    """What one layer's joint keys and values (video, action, understanding) have of the frozen streams."""
    rest = video_tokens + action_tokens
    return LayerMemory((k[:, :video_tokens], v[:, :video_tokens]), (k[:, rest:], v[:, rest:]))


def action_velocity(
    config: MotusConfig,
    params: dict,
    actions: Float[Array, "B T A"],
    state: Float[Array, "B P"] | None,
    t_action: Float[Array, " B"],
    memory: Memory,
    time_cache: TimeCache | None = None,
) -> Float[Array, "B T A"]:
    """What the action expert outputs, float32; with the memory of the same evaluation, the same as `Motus.velocities`.

    Args:
      params: Motus parameters (the tree with `layers`).
      t_action: the actions' timesteps.
      memory: of an evaluation for the same observation.
      time_cache: the action expert's, if there is one.
    """
    expert = ActionExpert(config.action, config.dtype)
    block = ActionBlock(config.action, config.video.heads, config.video.head_dim, config.dtype)
    own = {"params": params["action"]}
    head, blocks = expert.apply(own, t_action, time_cache, method="embed_time")

    def layer(x: Array, given: tuple[dict, LayerMemory]) -> tuple[Array, None]:
        weights, seen = {"params": given[0]}, given[1]
        q, *own_keys = block.apply(weights, x, blocks, method="qkv")
        k, v = (jnp.concatenate(parts, axis=1) for parts in zip(seen.video, own_keys, seen.understanding))
        out = attention(q, k, v, memory.key_mask, config.attention)
        x = block.apply(weights, x, out, blocks, method="after_attention")
        return block.apply(weights, x, blocks, method="feed_forward"), None

    x = expert.apply(own, actions, state, method="embed")
    x, _ = jax.lax.scan(layer, x, (params["layers"]["action"], memory.layers), unroll=config.scan_unroll)
    decoded = expert.apply(own, x, head, method="decode")
    return expert.apply(own, decoded, actions.shape[1], method="action_rows")
