"""One layer of Motus: one softmax over the tokens of all three experts, then each expert's own work.

Order on the key axis: video, action, understanding (the release's tri-model joint attention).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from motus_jax.models import placement
from motus_jax.models.action_expert import ActionBlock
from motus_jax.models.action_tail import LayerMemory, remember
from motus_jax.models.attention import attention
from motus_jax.models.config import MotusConfig
from motus_jax.models.understanding_expert import UnderstandingBlock
from motus_jax.models.video_expert import VideoBlock


class Streams(NamedTuple):
    """Residual streams, float32: video [B, Sv, Dv], action [B, Sa, Da], understanding [B, Su, Du]."""

    video: Array
    action: Array
    understanding: Array


class Conditions(NamedTuple):
    """What every layer reads and none changes.

    Attributes:
      video_time: [B, G, 6, Dv]; G is 1, or F if the condition frame has a timestep of its own.
      action_time: [B, G, 6, Da]; G is 1, or all tokens of the stream if each action has a timestep of its own.
      rope: cosines and sines [Sv, K/2].
      text: embedded text [B, M, Dv], or None when the layers get their text keys and values from a cache.
      text_mask: [B, M], or None to attend to padding.
      key_mask: [B, S] over all joint keys, or None if nothing is padded.
    """

    video_time: Float[Array, "B G 6 D"]
    action_time: Float[Array, "B G 6 D"]
    rope: tuple[Array, Array]
    text: Array | None
    text_mask: Bool[Array, "B M"] | None
    key_mask: Bool[Array, "B S"] | None


class JointLayer(nn.Module):
    """Maps `Streams` to `Streams`; written for `nn.scan` (carry in, carry out).

    Attributes:
      trace: also returns the intermediates of the golden files by name.
      remember: also returns what a later evaluation of the actions alone needs (`action_tail`).
    """

    config: MotusConfig
    trace: bool = False
    remember: bool = False

    def setup(self) -> None:
        c = self.config
        heads = (c.video.heads, c.video.head_dim)
        self.video = VideoBlock(c.video, c.dtype, c.attention)
        self.action = ActionBlock(c.action, *heads, c.dtype)
        self.understanding = UnderstandingBlock(c.understanding, *heads, c.dtype)

    def __call__(
        self, x: Streams, conditions: Conditions, text_cache: tuple[Array, Array] | None
    ) -> tuple[Streams, dict[str, Array] | LayerMemory | None]:
        """One layer.

        Args:
          text_cache: this layer's keys and values of the text, or None to compute them from `conditions.text`.

        Returns:
          The streams, and what `trace` or `remember` ask for.
        """
        c, x = conditions, Streams(*map(placement.by_example, x))
        parts = (
            self.video.qkv(x.video, c.video_time, c.rope),
            self.action.qkv(x.action, c.action_time),
            self.understanding.qkv(x.understanding),
        )
        q, k, v = (jnp.concatenate(tensors, axis=1) for tensors in zip(*parts))
        out = attention(q, k, v, c.key_mask, self.config.attention)
        joined, crossed, done = self._own_work(x, out, c, text_cache)
        if not self.trace:
            return done, self._remembered(x, k, v)
        seen = {f"joint_attention.{name}": tensor for name, tensor in zip("qkvo", (q, k, v, out))}
        seen |= {f"after_joint.{name}": tensor for name, tensor in joined._asdict().items()}
        seen |= {f"out.{name}": tensor for name, tensor in done._asdict().items()}
        return done, seen | {"after_cross.video": crossed}

    def last(
        self, x: Streams, conditions: Conditions, text_cache: tuple[Array, Array] | None, only_keys: int
    ) -> tuple[Streams, LayerMemory | None]:
        """The last layer as far as velocities depend on it.

        The video's first `only_keys` tokens (its condition frame, or all where the actions' velocity alone is wanted)
        and the understanding stream are keys here, and come out as they came in.
        """
        c, first = conditions, only_keys
        parts = (
            self.video.qkv(x.video, c.video_time, c.rope),
            self.action.qkv(x.action, c.action_time),
            self.understanding.qkv(x.understanding),
        )
        k, v = (jnp.concatenate(tensors, axis=1) for tensors in list(zip(*parts))[1:])
        q = jnp.concatenate([parts[0][0][:, first:], parts[1][0]], axis=1)
        out = attention(q, k, v, c.key_mask, self.config.attention)
        if c.video_time.shape[1] > 1:  # the condition frame has a timestep of its own
            c = c._replace(video_time=c.video_time[:, 1:])
        asking = Streams(x.video[:, first:], x.action, x.understanding[:, :0])
        _, _, done = self._own_work(asking, out, c, text_cache)
        video = jnp.concatenate([x.video[:, :first], done.video], axis=1)
        return Streams(video, done.action, x.understanding), self._remembered(x, k, v)

    def _remembered(self, x: Streams, k: Array, v: Array) -> LayerMemory | None:
        return remember(k, v, x.video.shape[1], x.action.shape[1]) if self.remember else None

    def _own_work(
        self, x: Streams, out: Float[Array, "B S N K"], conditions: Conditions, text_cache: tuple[Array, Array] | None
    ) -> tuple[Streams, Array, Streams]:
        """What each expert makes of the attention's results; also its streams before, and the video between the two."""
        c = conditions
        ends = x.video.shape[1], x.video.shape[1] + x.action.shape[1]
        joined = Streams(
            self.video.after_attention(x.video, out[:, : ends[0]], c.video_time),
            self.action.after_attention(x.action, out[:, ends[0] : ends[1]], c.action_time),
            self.understanding.after_attention(x.understanding, out[:, ends[1] :]),
        )
        keys_values = self.video.text_keys_values(c.text) if text_cache is None else text_cache
        crossed = self.video.cross(joined.video, keys_values, c.text_mask)
        done = Streams(
            self.video.feed_forward(crossed, c.video_time),
            self.action.feed_forward(joined.action, c.action_time),
            self.understanding.feed_forward(joined.understanding),
        )
        return joined, crossed, done
