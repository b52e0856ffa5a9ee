"""Blocks of the Wan2.2 video VAE: causal convolutions that remember the past, residual blocks, attention, resampling.

A video runs through them chunk by chunk, [B, T, H, W, C]. What a block needs of earlier chunks stands in the variable
collection `cache`, one array a block; a chunk that finds no cache is the first one, and has one frame. The shapes
of the cache are those of the first chunk for ever, so later chunks can be scanned.

Source: Wan2.2 `modules/vae2_2.py`, which pads the first chunk with zeros and multiplies them, and which builds a x2
picture before the convolution over it; here both products are left out.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from motus_jax.models.attention import attention
from motus_jax.models.convolution import convolve
from motus_jax.models.layers import ZEROS, Dense, Dtype, RMSNorm

FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""The release's start, which is PyTorch's: uniform within 1 / sqrt(fan in)."""
EPS = 1e-24
"""The release divides by max(|x|, 1e-12): nothing but a guard against 0 / 0."""
TAPS = 3
"""Frames under a kernel, of which the last is the current one."""


class CausalConv(nn.Module):
    """3x3x3 convolution over the current and the two frames before it; parameters `kernel` [t, h, w, in, out], `bias`.

    In float32 an even number of frames takes two thirds of the products (`_pairwise`). In bfloat16 it does not: the
    sums of frames would be rounded before the products.
    """

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W O"]:
        kernel = self.param("kernel", FAN_IN, (TAPS, 3, 3, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", ZEROS, (self.features,)).astype(self.dtype)
        frames, count = remember(self, x, TAPS - 1), x.shape[1]
        if count % 2 == 0 and kernel.dtype == jnp.float32:
            return _pairwise(frames, kernel) + bias
        # The first chunk has no past: only the last tap meets a frame.
        return _convolve_in_time(frames, kernel[count - frames.shape[1] - 1 :]) + bias


def remember(module: nn.Module, x: Float[Array, "B T H W C"], count: int) -> Float[Array, "B S H W C"]:
    """x after the `count` frames before it, which are kept for the next chunk; the first chunk alone, after none.

    What stands before the first chunk is zero in the cache.
    """
    frames = x
    if module.has_variable("cache", "past"):
        frames = jnp.concatenate([module.get_variable("cache", "past"), x], 1)
    missing = max(0, count - frames.shape[1])
    past = jnp.pad(frames[:, -count:], ((0, 0), (missing, 0), (0, 0), (0, 0), (0, 0)))
    module.put_variable("cache", "past", past)
    return frames


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; a dense shortcut where the width changes."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W D"]:
        y = x
        for i in range(2):
            y = nn.silu(RMSNorm(EPS, name=f"norm_{i}")(y))
            y = CausalConv(self.width, self.dtype, name=f"conv_{i}")(y)
        return y + (x if x.shape[-1] == self.width else Dense(self.width, self.dtype, name="shortcut")(x))


class FrameAttention(nn.Module):
    """Residual self-attention of one head among the places of each frame."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        width = x.shape[-1]
        y = RMSNorm(EPS, name="norm")(x).reshape(-1, x.shape[2] * x.shape[3], width)
        q, k, v = jnp.split(Dense(3 * width, self.dtype, name="qkv")(y)[:, :, None], 3, axis=-1)
        return x + Dense(width, self.dtype, name="o")(attention(q, k, v)).reshape(x.shape)


class Middle(nn.Module):
    """Residual block, attention, residual block, at the lowest resolution."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        x = ResidualBlock(x.shape[-1], self.dtype, name="block_0")(x)
        x = FrameAttention(self.dtype, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.dtype, name="block_1")(x)


class SpaceDown(nn.Module):
    """3x3 convolution of stride 2, the frame padded by one row and column at its end."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H/2 W/2 C"]:
        kernel, bias = _frame_kernel(self, x.shape[-1])
        halved = functools.partial(_convolve, stride=2, padding=(0, 1))
        return _per_frame(halved, x, kernel.astype(self.dtype)) + bias


class SpaceUp(nn.Module):
    """x2 by repetition, then a 3x3 convolution, without making the repeated frame.

    A 3-wide kernel over repeated pixels sees two pixels: (a, b + c) for the even results, (a + b, c) for the odd ones.
    One 2x2 convolution makes all four kinds of results with 4/9 of the products.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T 2H 2W C"]:
        kernel, bias = _frame_kernel(self, x.shape[-1])
        folded = _pairs(_pairs(kernel.astype(jnp.float32), 0), 2)  # [row parity, row, column parity, column, in, out]
        folded = folded.transpose(1, 3, 4, 0, 2, 5).astype(self.dtype)
        return _per_frame(_interleaved, x, folded) + bias


class TimeDown(nn.Module):
    """Half the frames: a 3-wide kernel of stride 2 that starts at the last frame of the chunk before.

    The first chunk's only frame passes.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T/2 H W C"]:
        frames = remember(self, x, 1)
        if frames.shape[1] == 1:
            return x
        stacked = jnp.concatenate([frames[:, :-2:2], frames[:, 1::2], frames[:, 2::2]], -1)
        return Dense(x.shape[-1], self.dtype, kernel_init=FAN_IN, name="time")(stacked)


class TimeUp(nn.Module):
    """Two frames of each one by a causal 3-wide kernel.

    The first chunk's only frame passes, and counts as zero later.
    """

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B 2T H W C"]:
        batch, count, height, width, channels = x.shape
        if not self.has_variable("cache", "past"):
            self.put_variable("cache", "past", jnp.zeros((batch, TAPS - 1, height, width, channels), x.dtype))
            return x
        frames = remember(self, x, TAPS - 1)
        stacked = jnp.concatenate([frames[:, i : i + count] for i in range(TAPS)], -1)
        pair = Dense(2 * channels, self.dtype, kernel_init=FAN_IN, name="time")(stacked)
        return jnp.stack(jnp.split(pair, 2, -1), 2).reshape(batch, 2 * count, height, width, channels)


def average_down(x: Float[Array, "B T H W C"], features: int, time: int, space: int) -> Float[Array, "B t h w O"]:
    """Parameter-free shortcut: blocks of `time` x `space` x `space` become channels, averaged in `features` groups.

    A chunk that does not fill its last block in time is the first; zeros stand before it.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    batch, frames, height, width, channels = x.shape
    x = x.reshape(batch, frames // time, time, height // space, space, width // space, space, channels)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:4], features, -1).mean(-1)


def repeat_up(x: Float[Array, "B T H W C"], features: int, time: int, space: int) -> Float[Array, "B t h w O"]:
    """Parameter-free shortcut: channels, repeated as often as needed, become blocks of `time` x `space` x `space`."""
    batch, frames, height, width, channels = x.shape
    x = jnp.repeat(x, features * time * space * space // channels, axis=-1)
    x = x.reshape(batch, frames, height, width, features, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(batch, frames * time, height * space, width * space, features)


def _frame_kernel(module: nn.Module, width: int) -> tuple[Float[Array, "3 3 C C"], Float[Array, " C"]]:
    kernel = module.param("kernel", FAN_IN, (3, 3, width, width))
    return kernel, module.param("bias", ZEROS, (width,)).astype(module.dtype)


def _per_frame(
    function: Callable[[Array, Array], Array], x: Float[Array, "B T H W C"], kernel: Array
) -> Float[Array, "B T h w O"]:
    y = function(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _pairwise(frames: Float[Array, "B T+2 H W C"], kernel: Float[Array, "3 h w C O"]) -> Float[Array, "B T H W O"]:
    """A 3-wide convolution in time with four 2-D ones for each two frames, not six.

    Winograd's F(2, 3), here along time only, where it costs float32 less than one digit; Lavin & Gray 2016, "Fast
    algorithms for convolutional neural networks", section 4.1.
    """
    batch, count = frames.shape[0], frames.shape[1] - TAPS + 1
    a, b, c, d = (frames[:, i : i + count : 2] for i in range(4))
    outer, inner = (kernel[0] + kernel[2]) / 2, kernel[1] / 2
    first = _per_frame(_convolve, a - c, kernel[0])
    plus = _per_frame(_convolve, b + c, outer + inner)
    minus = _per_frame(_convolve, c - b, outer - inner)
    last = _per_frame(_convolve, b - d, kernel[2])
    y = jnp.stack([first + plus + minus, plus - minus - last], 2)
    return y.reshape(batch, count, *y.shape[3:])


def _convolve_in_time(frames: Float[Array, "B S H W C"], kernel: Float[Array, "t 3 3 C O"]) -> Array:
    """3-D convolution without padding in time, [B, S - t + 1, H, W, O]."""
    return convolve(frames, kernel, 1, ((0, 0), (1, 1), (1, 1)))


def _convolve(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"], stride: int = 1, padding: tuple[int, int] = (1, 1)
) -> Float[Array, "N h w O"]:
    return convolve(x.astype(kernel.dtype), kernel, stride, (padding, padding))


def _pairs(kernel: Array, axis: int) -> Array:
    """An axis of three taps over repeated pixels -> two axes: parity of the result, and its two pixels."""
    a, b, c = jnp.moveaxis(kernel, axis, 0)
    return jnp.stack([jnp.stack([a, b + c], axis), jnp.stack([a + b, c], axis)], axis)


def _interleaved(x: Float[Array, "N H W C"], kernel: Float[Array, "2 2 C 2 2 O"]) -> Float[Array, "N 2H 2W O"]:
    """Results of all four parities from one convolution, put in their places; the odd ones start a pixel later."""
    batch, height, width, channels = x.shape
    y = _convolve(x, kernel.reshape(2, 2, channels, -1)).reshape(batch, height + 1, width + 1, *kernel.shape[3:])
    rows = [jnp.stack([y[:, i : i + height, j : j + width, i, j] for j in range(2)], 3) for i in range(2)]
    return jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, -1)
