"""Motus: three experts joined layer by layer by one attention. Streams in, velocities out."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.errors import UserError
from motus_jax.models.action_expert import ActionExpert
from motus_jax.models.action_tail import LayerMemory, Memory
from motus_jax.models.config import MotusConfig
from motus_jax.models.joint_layer import Conditions, JointLayer, Streams
from motus_jax.models.layers import rope_table
from motus_jax.models.understanding_expert import UnderstandingExpert
from motus_jax.models.video_expert import CrossAttention, TimeCache, TimeEmbedding, VideoExpert

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "ffn": jax.checkpoint_policies.save_only_these_names("ffn"),
    "attention_ffn": jax.checkpoint_policies.save_only_these_names("attention", "ffn"),
    "products": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attention"),
    ),
}
"""What the backward pass finds saved from each layer; `none` saves everything, `full` recomputes everything,
`products` recomputes only what is elementwise: the fastest where memory allows."""


class Context(NamedTuple):
    """What the velocities depend on besides the noisy data; constant over a sampling run.

    Attributes:
      text: embedded text states [B, M, Dv].
      text_mask: True at real text, [B, M], or None to attend to padding.
      understanding: understanding tokens entering layer 0, [B, U, Du].
      understanding_mask: True at real tokens, [B, U], or None if nothing is padded.
      text_cache: keys and values of the text for all layers, each [L, B, M, N, K], or None to compute in the layers.
      time_cache: the video's and the action expert's embeddings of all timesteps to come, or None to compute each.
    """

    text: Float[Array, "B M D"]
    text_mask: Bool[Array, "B M"] | None
    understanding: Float[Array, "B U D"]
    understanding_mask: Bool[Array, "B U"] | None
    text_cache: tuple[Array, Array] | None = None
    time_cache: tuple[TimeCache, TimeCache] | None = None


class Motus(nn.Module):
    """The model.

    Attributes:
      trace: `velocities` also returns the intermediates that the golden files name.
      remember: `velocities` also returns the memory for `action_tail.action_velocity`.
    """

    config: MotusConfig
    trace: bool = False
    remember: bool = False

    def setup(self) -> None:
        c = self.config
        self.video = VideoExpert(c.video, c.dtype)
        self.action = ActionExpert(c.action, c.dtype)
        self.understanding = UnderstandingExpert(c.understanding, c.dtype)
        self.layers = _scanned_layers(c)(c, self.trace, self.remember)

    def __call__(
        self,
        video: Float[Array, "B F H W C"],
        actions: Float[Array, "B T A"],
        state: Float[Array, "B P"] | None,
        t_video: Float[Array, " B"],
        t_action: Float[Array, " B"],
        text_states: Float[Array, "B M E"],
        text_mask: Bool[Array, "B M"] | None,
        vlm_states: Float[Array, "B U V"],
        vlm_mask: Bool[Array, "B U"] | None,
    ) -> tuple[Array, Array] | tuple[Array, Array, dict[str, Array]]:
        """Velocities from raw conditioning: `context` followed by `velocities`."""
        context = self.context(text_states, text_mask, vlm_states, vlm_mask)
        return self.velocities(video, actions, state, t_video, t_action, context)

    def context(
        self,
        text_states: Float[Array, "B M E"],
        text_mask: Bool[Array, "B M"] | None,
        vlm_states: Float[Array, "B U V"],
        vlm_mask: Bool[Array, "B U"] | None,
    ) -> Context:
        """Embeds the text encoder's states and the vision-language model's last hidden states.

        Padded text rows must be zero; they are masked only if `config.mask_text_padding`.
        """
        mask = text_mask if self.config.mask_text_padding else None
        return Context(self.video.embed_text(text_states), mask, self.understanding.embed(vlm_states), vlm_mask)

    def velocities(
        self,
        video: Float[Array, "B F H W C"],
        actions: Float[Array, "B T A"],
        state: Float[Array, "B P"] | None,
        t_video: Float[Array, " B"],
        t_action: Float[Array, " B"] | Float[Array, "B T"],
        context: Context,
        has_state: Bool[Array, " B"] | None = None,
        only_actions: bool = False,
    ) -> tuple[Array, Array] | tuple[Array, Array, dict[str, Array] | Memory]:
        """Velocities of both modalities.

        Args:
          video: noisy latents whose frame 0 is the clean condition frame.
          actions: noisy actions.
          state: proprioception; None exactly in the action-only form.
          t_video, t_action: timesteps, 1000 tau (`flow_matching.TIMESTEP_SCALE`), in [0, 1000]; of actions also [B, T].
          has_state: where False, the example's state is unknown and its token is not attended to.
          only_actions: leaves the video's velocity out; zeros stand in its place.

        Returns:
          Video velocity [B, F, H, W, C] and action velocity [B, T, A], float32 (frame 0 of the video velocity has no
          meaning, and neither have actions if `config.video_only`); with `trace` also the intermediates by name, with
          `remember` the memory of all layers.
        """
        if (state is not None) != self.config.action.with_state:
            raise UserError("state must be given exactly when the action expert has a state token (action.state_dim)")
        x = Streams(self.video.embed(video), self.action.embed(actions, state), context.understanding)
        understanding_mask = context.understanding_mask
        if self.config.video_only:
            x, understanding_mask = Streams(x.video, x.action[:, :0], x.understanding[:, :0]), None
        cache = context.time_cache or (None, None)
        video_head, video_time = self.video.embed_time(self._video_timesteps(t_video, video.shape[1]), cache[0])
        action_head, action_time = self.action.embed_time(t_action, cache[1])
        rope = rope_table(self.video.grid(video.shape), self.config.video.head_dim)
        key_mask = _key_mask(x, understanding_mask, has_state)
        text = context.text if context.text_cache is None else None
        conditions = Conditions(video_time, action_time, rope, text, context.text_mask, key_mask)
        if self.config.trim_last_layer and not (self.trace or self.is_initializing()):
            only_keys = x.video.shape[1] // (1 if only_actions else video.shape[1])
            y, seen = self._trimmed(x, conditions, context.text_cache, only_keys)
        else:
            y, seen = self.layers(x, conditions, context.text_cache)
        action_all = self.action.decode(y.action, action_head)
        velocity = jnp.zeros_like(video) if only_actions else self.video.velocity(y.video, video_head, video.shape)
        if self.config.video_only:
            return velocity, jnp.zeros_like(actions)
        action = self.action.action_rows(action_all, actions.shape[1])
        if self.remember:
            return velocity, action, Memory(seen, key_mask)
        if not self.trace:
            return velocity, action
        seen |= {f"tokens.embed.{name}": tensor for name, tensor in x._asdict().items()}
        seen |= {"time.video_head": video_head, "time.action_head": action_head, "text_context": context.text}
        return velocity, action, seen | {
            "time.video_adaln": video_time, "time.action_adaln": action_time, "action_full": action_all
        }

    def _trimmed(
        self, x: Streams, conditions: Conditions, text_cache: tuple[Array, Array] | None, only_keys: int
    ) -> tuple[Streams, LayerMemory | None]:
        """All layers, of the last one only what the velocities need (`JointLayer.last`), and their memory."""
        stacked = (self.layers.variables["params"], text_cache)
        earlier, last = (jax.tree.map(lambda leaf, at=at: leaf[at], stacked) for at in (slice(0, -1), -1))
        memories = []
        if self.config.depth > 1:
            config = dataclasses.replace(self.config, depth=self.config.depth - 1)
            layers = _scanned_layers(config)(config, remember=self.remember, parent=None)
            x, memory = layers.apply({"params": earlier[0]}, x, conditions, earlier[1])
            memories.append(memory)
        layer = JointLayer(self.config, remember=self.remember, parent=None)
        x, memory = layer.apply({"params": last[0]}, x, conditions, last[1], only_keys, method="last")
        memories.append(jax.tree.map(lambda leaf: leaf[None], memory))
        return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), *memories)

    def _video_timesteps(self, t: Float[Array, " B"], frames: int) -> Float[Array, "B G"]:
        t = t[:, None]
        if not self.config.clean_condition_timestep:
            return t
        return jnp.concatenate([jnp.zeros_like(t), jnp.repeat(t, frames - 1, axis=1)], axis=1)


def with_text_cache(config: MotusConfig, params: dict, context: Context) -> Context:
    """The same context with the text's keys and values of every layer computed once, for a sampling run.

    Args:
      params: Motus parameters (the tree with `layers`).
    """
    module = CrossAttention(config.video, config.dtype)

    def one_layer(layer: dict) -> tuple[Array, Array]:
        return module.apply({"params": layer}, context.text, method="keys_values")

    return context._replace(text_cache=jax.vmap(one_layer)(params["layers"]["video"]["cross_attention"]))


def with_time_cache(
    config: MotusConfig, params: dict, context: Context, t_video: Float[Array, " N"], t_action: Float[Array, " M"]
) -> Context:
    """The same context with the embeddings of all timesteps to come, computed at once.

    In the loop of a sampling run they would read 75 million weights of `5b` in every step, for one row each.
    """
    found = []
    for expert, own, t in ((config.video, params["video"], t_video), (config.action, params["action"], t_action)):
        head, blocks = TimeEmbedding(expert.width, expert.frequencies).apply({"params": own["time"]}, t[None])
        found.append(TimeCache(t, head[0], blocks[0]))
    return context._replace(time_cache=tuple(found))


def _scanned_layers(config: MotusConfig) -> type[nn.Module]:
    if config.remat not in REMAT_POLICIES:
        raise UserError(f"unknown remat policy {config.remat!r}: expected one of {', '.join(REMAT_POLICIES)}")
    layer = JointLayer
    if config.remat != "none":
        layer = nn.remat(layer, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, 0),
        length=config.depth,
        unroll=config.scan_unroll,
    )


def _key_mask(
    x: Streams, understanding_mask: Bool[Array, "B U"] | None, has_state: Bool[Array, " B"] | None
) -> Bool[Array, "B S"] | None:
    """Which of the joint keys are real; the state's token is the first of the action stream."""
    if understanding_mask is None and has_state is None:
        return None
    real = Streams(*(jnp.ones(stream.shape[:2], bool) for stream in x))
    if understanding_mask is not None:
        real = real._replace(understanding=understanding_mask)
    if has_state is not None and x.action.shape[1]:
        real = real._replace(action=real.action.at[:, 0].set(has_state))
    return jnp.concatenate(real, axis=1)
