"""Blocks of the deep-compression autoencoder: residual blocks, linear attention, gated convolutions, resampling.

Pictures are [B, H, W, C]. The parameter-free shortcuts of the resampling layers are those of the video VAE, which has
them from here. Source: diffusers `AutoencoderDC`, and `SanaMultiscaleLinearAttention` and `GLUMBConv` in it; Chen et
al. 2024, "Deep Compression Autoencoder for Efficient High-Resolution Diffusion Models".
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from motus_jax.models import video_vae_blocks
from motus_jax.models.convolution import convolve
from motus_jax.models.layers import ZEROS, Dense, Dtype
from motus_jax.models.video_vae_blocks import FAN_IN

ONES = nn.initializers.ones_init()
EPS = 1e-5
"""Of every norm."""
ATTENTION_EPS = 1e-15
"""Added to the sum of a query's weights, which is 0 where the rectified query meets no key."""
FEW = 256
"""Places of a picture up to which a convolution is written as a matrix product."""
EXPANSION = 4
"""Width inside a gated convolution over the block's."""


class Conv(nn.Module):
    """Convolution with a border of zeros; parameters `kernel` [window, window, in, out] and `bias`.

    Small pictures are one matrix product over the nine shifted copies: XLA's convolution on CPU reorders a kernel that
    is larger than its picture, every time (2x2 places of 2048 channels to 8192: 3.8 s, the product 0.1 s).
    """

    features: int
    dtype: Dtype
    stride: int = 1
    use_bias: bool = True
    window: int = 3

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        window, reach = self.window, self.window // 2
        kernel = self.param("kernel", FAN_IN, (window, window, x.shape[-1], self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        if x.shape[1] * x.shape[2] > FEW:
            y = convolve(x, kernel, self.stride, ((reach, reach), (reach, reach)))
        else:
            y = jnp.concatenate(shifted(x, window, self.stride), -1) @ kernel.reshape(-1, self.features)
        return y + self.param("bias", ZEROS, (self.features,)).astype(self.dtype) if self.use_bias else y


class DepthwiseConv(nn.Module):
    """A window of its own for each channel, border of zeros; parameters `kernel` [window, window, 1, C] and `bias`.

    It is a sum of shifted pictures, in float32: on CPU that is tens of times as fast as XLA's grouped convolution, as
    fast as PyTorch's, and its gradients are hundreds of times as fast.
    """

    window: int
    dtype: Dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        kernel = self.param("kernel", FAN_IN, (self.window, self.window, 1, x.shape[-1])).astype(jnp.float32)
        taps = kernel.reshape(-1, x.shape[-1])
        y = sum(copy.astype(jnp.float32) * tap for copy, tap in zip(shifted(x, self.window), taps, strict=True))
        if self.use_bias:
            y = y + self.param("bias", ZEROS, x.shape[-1:])
        return y.astype(self.dtype)


class AffineNorm(nn.Module):
    """RMS norm over the channels with `scale` and `bias`, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        scale, bias = self.param("scale", ONES, x.shape[-1:]), self.param("bias", ZEROS, x.shape[-1:])
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + EPS)
        return (x32 * scale + bias).astype(x.dtype)


class FixedBatchNorm(nn.Module):
    """Batch norm with the `mean` and `variance` of what it was first trained on; no gradient reaches these two."""

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        size = x.shape[-1:]
        scale, bias = self.param("scale", ONES, size), self.param("bias", ZEROS, size)
        mean, variance = (
            jax.lax.stop_gradient(self.param(name, start, size))
            for name, start in (("mean", ZEROS), ("variance", ONES))
        )
        y = (x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(variance + EPS) * scale) + bias
        return y.astype(x.dtype)


Norm = Callable[..., nn.Module]
"""`AffineNorm` or `FixedBatchNorm`."""


class ResidualBlock(nn.Module):
    """x + norm(convolution(activation(convolution(x))))."""

    norm: Norm
    activation: Callable[[Array], Array]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = self.activation(Conv(x.shape[-1], self.dtype, name="conv_0")(x))
        y = Conv(x.shape[-1], self.dtype, use_bias=False, name="conv_1")(y)
        return x + self.norm(name="norm")(y)


class AttentionBlock(nn.Module):
    """Linear attention among the places, then a gated convolution, both residual (EfficientViT)."""

    head_dim: int
    windows: tuple[int, ...]
    norm: Norm
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = x + LinearAttention(self.head_dim, self.windows, self.norm, self.dtype, name="attention")(x)
        return x + GatedConv(self.dtype, name="gated")(x)


class LinearAttention(nn.Module):
    """Attention with rectified queries and keys in place of a softmax, over several scales.

    A scale is the projections seen through a depthwise `window` and mixed within runs of `head_dim` channels; its heads
    join those of the projections themselves. A head has 3 `head_dim` neighbouring channels, one third each for query,
    key and value, of all the projected ones in a row: so what it queries with need not come from the kernel `q`, which
    is the first third of the row and bears the name that the public file gives it.
    """

    head_dim: int
    windows: tuple[int, ...]
    norm: Norm
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        batch, height, width, channels = x.shape
        row = jnp.concatenate([self._dense(channels, name)(x) for name in "qkv"], -1)
        scales = [row] + [self._scale(row, i) for i in range(len(self.windows))]
        heads = jnp.concatenate(scales, -1).reshape(batch, height * width, -1, 3 * self.head_dim)
        q, k, v = jnp.split(heads.astype(jnp.float32), 3, -1)
        y = rectified_attention(nn.relu(q), nn.relu(k), v).astype(self.dtype)
        y = self._dense(channels, "o")(y.reshape(batch, height, width, -1))
        return self.norm(name="norm")(y)

    def _scale(self, row: Float[Array, "B H W R"], index: int) -> Float[Array, "B H W R"]:
        y = DepthwiseConv(self.windows[index], self.dtype, use_bias=False, name=f"window_{index}")(row)
        return GroupedDense(self.head_dim, self.dtype, name=f"mix_{index}")(y)

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, self.dtype, use_bias=False, kernel_init=FAN_IN, name=name)


class GroupedDense(nn.Module):
    """A matrix of its own for each run of `size` channels; parameter `kernel` [size in, C out]."""

    size: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"]) -> Float[Array, "*batch C"]:
        kernel = self.param("kernel", FAN_IN, (self.size, x.shape[-1])).astype(self.dtype)
        runs = x.astype(self.dtype).reshape(*x.shape[:-1], -1, self.size)
        return jnp.einsum("...gi,igo->...go", runs, kernel.reshape(self.size, -1, self.size)).reshape(x.shape)


class GatedConv(nn.Module):
    """Widened, seen through a depthwise window, one half gated by the other, and back."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        hidden = 2 * EXPANSION * x.shape[-1]
        y = nn.silu(Dense(hidden, self.dtype, kernel_init=FAN_IN, name="widen")(x))
        y, gate = jnp.split(DepthwiseConv(3, self.dtype, name="window")(y), 2, -1)
        y = Dense(x.shape[-1], self.dtype, use_bias=False, kernel_init=FAN_IN, name="narrow")(y * nn.silu(gate))
        return AffineNorm(name="norm")(y)


class Down(nn.Module):
    """Half the height and width: by a convolution and squares that become channels (`shuffle`), or of stride 2."""

    features: int
    shuffle: bool
    shortcut: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H/2 W/2 O"]:
        if self.shuffle:
            y = average_down(Conv(self.features // 4, self.dtype, name="conv")(x), self.features, 2)
        else:
            y = Conv(self.features, self.dtype, stride=2, name="conv")(x)
        return y + average_down(x, self.features, 2) if self.shortcut else y


class Up(nn.Module):
    """Twice the height and width: a convolution whose channels become squares (`shuffle`), or over repeated pixels."""

    features: int
    shuffle: bool
    shortcut: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 2H 2W O"]:
        if self.shuffle:
            y = repeat_up(Conv(4 * self.features, self.dtype, name="conv")(x), self.features, 2)
        else:
            y = Conv(self.features, self.dtype, name="conv")(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))
        return y + repeat_up(x, self.features, 2) if self.shortcut else y


def rectified_attention(
    q: Float[Array, "B S N K"], k: Float[Array, "B S N K"], v: Float[Array, "B S N K"]
) -> Float[Array, "B S N K"]:
    """Attention with the weights q k / sum(q k); q and k are at least 0, everything float32.

    More than K places go through the [K, K] product of keys and values, fewer through the [S, S] weights, as in
    the release: it is the same sum, and this is the cheaper order of it.
    """
    if q.shape[1] > q.shape[-1]:
        total = jnp.einsum("bsnk,bnk->bsn", q, k.sum(1))
        y = jnp.einsum("bsnk,bnkv->bsnv", q, jnp.einsum("bsnk,bsnv->bnkv", k, v))
        return y / (total[..., None] + ATTENTION_EPS)
    weights = jnp.einsum("bsnk,btnk->bnst", q, k)
    weights = weights / (weights.sum(-1, keepdims=True) + ATTENTION_EPS)
    return jnp.einsum("bnst,btnv->bsnv", weights, v)


def shifted(x: Float[Array, "B H W C"], window: int, stride: int = 1) -> list[Float[Array, "B h w C"]]:
    """What each place of a square window of odd side sees, row by row, with zeros around the picture."""
    (_, height, width, _), reach = x.shape, window // 2
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    padded = jax.lax.optimization_barrier(padded)  # else each copy tests for the border at every pixel
    return [padded[:, i : i + height : stride, j : j + width : stride] for i in range(window) for j in range(window)]


def average_down(x: Float[Array, "B H W C"], features: int, factor: int) -> Float[Array, "B h w O"]:
    """Squares of side `factor` become channels, averaged in `features` groups."""
    return video_vae_blocks.average_down(x[:, None], features, 1, factor)[:, 0]


def repeat_up(x: Float[Array, "B H W C"], features: int, factor: int) -> Float[Array, "B h w O"]:
    """Channels, repeated as often as needed, become squares of side `factor`."""
    return video_vae_blocks.repeat_up(x[:, None], features, 1, factor)[:, 0]
