"""Vision tower of Qwen3-VL: image patches in, one feature per merged block of patches out, at four depths.

Source: the public `Qwen3VLVisionModel`. Plain pre-LayerNorm transformer with a learned position table that is resampled
to each image's grid, rotary positions of row and column, and DeepStack: states after some layers (`taps`) go through
mergers of their own and are added inside the language model.

Images of any size are packed one after the other into rows of a fixed length; attention stays within an image.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motus_jax.models.layers import (
    ROPE_BASE,
    SMALL,
    Dense,
    Dtype,
    FeedForward,
    LayerNorm,
    apply_rope_halves,
)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes.

    Attributes:
      patch, temporal_patch: pixels and frames of a patch; a still image is repeated over the frames.
      merge: `merge` x `merge` neighbouring patches become one feature.
      positions: rows and columns of the learned position table.
      taps: layers, counted from 0, whose output goes through a DeepStack merger, ascending.
      out_width: width of the features, that of the language model.
    """

    depth: int
    width: int
    heads: int
    mlp: int
    out_width: int
    taps: tuple[int, ...]
    positions: int = 48
    patch: int = 16
    temporal_patch: int = 2
    merge: int = 2
    channels: int = 3
    eps: float = 1e-6

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.channels * self.temporal_patch * self.patch**2


class VisionBlock(nn.Module):
    """Self-attention and MLP, both pre-norm; keeps its output if it is a tap.

    The carry is (states, taps seen so far with one row to spare for layers that are none).
    """

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "R P D"], Float[Array, "T+1 R P D"]],
        slot: Int[Array, ""],
        angle: Float[Array, "R P K/2"],
        mask: Bool[Array, "R 1 P P"],
    ) -> tuple[tuple[Array, Array], None]:
        c, (x, taps) = self.config, carry
        y = LayerNorm(c.eps, name="norm_attention")(x)
        qkv = Dense(3 * c.width, self.dtype, kernel_init=SMALL, name="qkv")(y)
        q, k, v = jnp.unstack(qkv.reshape(*y.shape[:2], 3, c.heads, -1), axis=2)
        q, k = (apply_rope_halves(part, angle) for part in (q, k))
        out = jax.nn.dot_product_attention(q, k, v, mask=mask)
        x = x + Dense(c.width, self.dtype, kernel_init=SMALL, name="o")(out.reshape(y.shape))
        x = x + FeedForward(c.mlp, self.dtype, name="ffn")(LayerNorm(c.eps, name="norm_ffn")(x))
        self.sow("intermediates", "out", x)
        return (x, taps.at[slot].set(x)), None


class Merger(nn.Module):
    """Makes one feature of each block of patches. The norm is over a patch, or over the block if `over_block`."""

    config: VisionConfig
    dtype: Dtype
    over_block: bool

    @nn.compact
    def __call__(self, x: Float[Array, "R P D"]) -> Float[Array, "R P/merge**2 E"]:
        c = self.config
        norm, block = LayerNorm(c.eps, name="norm"), c.width * c.merge**2
        blocks = x.reshape(x.shape[0], -1, block)
        y = norm(blocks) if self.over_block else norm(x).reshape(blocks.shape)
        y = nn.gelu(Dense(block, self.dtype, kernel_init=SMALL, name="dense_0")(y), approximate=False)
        return Dense(c.out_width, self.dtype, kernel_init=SMALL, name="dense_1")(y)


class VisionTower(nn.Module):
    """Patches to features."""

    config: VisionConfig
    dtype: Dtype

    @nn.compact
    def __call__(
        self, patches: Float[Array, "R P E"], segments: Int[Array, "R P"], places: Int[Array, "R P 4"]
    ) -> tuple[Float[Array, "R P/merge**2 D"], Float[Array, "T R P/merge**2 D"]]:
        """Features of the last layer, and of each tap for DeepStack; without meaning at padding.

        Args:
          patches: pixels in [-1, 1], each patch flattened in the order channel, frame, row, column; the patches of a
            block of `merge` x `merge` stand together, so P is a multiple of `merge`**2.
          segments: which image of the row a patch belongs to, from 1; 0 is padding.
          places: (row, column) of a patch in its image and (rows, columns) of that image, in patches.
        """
        c = self.config
        x = Dense(c.width, self.dtype, kernel_init=SMALL, name="patch_embedding")(patches)
        table = self.param("position_embedding", SMALL, (c.positions**2, c.width))
        x = x.astype(jnp.float32) + _resample(table, c.positions, places)
        mask = segments[:, None, :, None] == segments[:, None, None, :]
        slots = np.full(c.depth, len(c.taps), np.int32)
        slots[list(c.taps)] = np.arange(len(c.taps))
        scanned = nn.scan(
            VisionBlock, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast), length=c.depth,
        )  # fmt: skip
        start = x, jnp.zeros((len(c.taps) + 1, *x.shape), x.dtype)
        (x, taps), _ = scanned(c, self.dtype, name="layers")(start, slots, _angles(c, places), mask)
        per_tap = nn.vmap(Merger, variable_axes={"params": 0}, split_rngs={"params": True}, axis_size=len(c.taps))
        deepstack = per_tap(c, self.dtype, over_block=True, name="deepstack_mergers")(taps[:-1])
        return Merger(c, self.dtype, over_block=False, name="merger")(x), deepstack


def _resample(table: Float[Array, "G*G D"], side: int, places: Int[Array, "R P 4"]) -> Float[Array, "R P D"]:
    """The position table at each patch's place, bilinear, with the corners of image and table in the same spot."""
    place, size = places[..., :2].astype(jnp.float32), places[..., 2:]
    exact = place * (side - 1) / jnp.maximum(size - 1, 1)
    low = jnp.floor(exact).astype(jnp.int32)
    high = jnp.minimum(low + 1, side - 1)
    far = exact - low
    total = 0.0
    for row, row_weight in ((low[..., 0], 1 - far[..., 0]), (high[..., 0], far[..., 0])):
        for column, column_weight in ((low[..., 1], 1 - far[..., 1]), (high[..., 1], far[..., 1])):
            total += table[row * side + column].astype(jnp.float32) * (row_weight * column_weight)[..., None]
    return total


def _angles(config: VisionConfig, places: Int[Array, "R P 4"]) -> Float[Array, "R P K/2"]:
    """Rotary angles: the first half of the pairs turns with the row, the second with the column, on one ladder."""
    axis = config.width // config.heads // 2
    ladder = ROPE_BASE ** (-np.arange(0, axis, 2) / axis)
    angle = places[..., :2, None].astype(jnp.float32) * ladder.astype(np.float32)
    return angle.reshape(*places.shape[:2], axis)
