"""Building blocks of the three experts: dense layers, norms, MLPs, position and time embeddings.

Numbers: norms, modulation, embeddings of time and rotary angles in float32; matrix products in the module's `dtype`.
"""

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from motus_jax.models import placement

Dtype = jnp.dtype | str
Initializer = Callable[..., Array]

XAVIER = nn.initializers.xavier_uniform()
SMALL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros_init()
ROPE_BASE = 10_000.0
ADAPTERS = ("lora_a", "lora_b")
"""Leaves [in, r] and [r, out] that may lie beside a kernel (`motus_jax.weights.lora`)."""
SCALE = "kernel_scale"
"""Leaf [out] beside a kernel of 8-bit numbers: its columns' unit (`motus_jax.sampling.precision`)."""


class Dense(nn.Module):
    """Affine map over the last axis; parameters `kernel` [in, out] and `bias` [out], float32.

    Where the tree has `ADAPTERS` beside the kernel, their product is added to it, never made as a matrix of its size.
    Leading axes are flattened to one: on CPU the backward pass of a 2-D product is a third faster than a 3-D one.
    """

    features: int
    dtype: Dtype
    use_bias: bool = True
    kernel_init: Initializer = XAVIER
    bias_init: Initializer = ZEROS

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x2 = _two_axes(x).astype(self.dtype)
        y = x2 @ placement.whole(kernel, self.dtype)
        if self.has_variable("params", SCALE):
            y = (y * self.get_variable("params", SCALE)).astype(self.dtype)
        if self.has_variable("params", ADAPTERS[0]):
            a, b = (self.get_variable("params", name).astype(self.dtype) for name in ADAPTERS)
            y = y + x2 @ a @ b
        if self.use_bias:
            y = shifted(y, self.param("bias", self.bias_init, (self.features,)).astype(self.dtype))
        return y.reshape(*x.shape[:-1], self.features)


@jax.custom_vjp
def shifted(x: Float[Array, "*batch S D"], shift: Float[Array, "*batch D"]) -> Float[Array, "*batch S D"]:
    """x + shift, the same for every row; the shift's gradient is `sum_rows`."""
    return x + shift[..., None, :]


shifted.defvjp(lambda x, shift: (shifted(x, shift), None), lambda _, g: (g, sum_rows(g)))


@jax.custom_vjp
def scaled(x: Float[Array, "*batch S D"], scale: Float[Array, "*batch D"]) -> Float[Array, "*batch S D"]:
    """x * scale, the same for every row; the scale's gradient is `sum_rows`."""
    return x * scale[..., None, :]


def _scaled_backward(given: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, scale = given
    return g * scale[..., None, :], sum_rows(g * x)


scaled.defvjp(lambda x, scale: (scaled(x, scale), (x, scale)), _scaled_backward)


def sum_rows(x: Float[Array, "*batch S D"]) -> Float[Array, "*batch D"]:
    """Sum over the last axis but one, accumulated in float32.

    On CPU a product with ones: XLA's own sum over rows is neither vectorised nor split over cores there, and takes ten
    times as long.
    """

    def product(x: Array) -> Array:
        ones = jnp.ones((*x.shape[:-2], 1, x.shape[-2]), x.dtype)
        return jnp.matmul(ones, x, preferred_element_type=jnp.float32)[..., 0, :]

    def plain(x: Array) -> Array:
        return jnp.sum(x, -2, dtype=jnp.float32)

    return jax.lax.platform_dependent(x, cpu=product, default=plain).astype(x.dtype)


class Mlp(nn.Module):
    """Dense layers `dense_0 .. dense_n` with an activation between them."""

    widths: Sequence[int]
    dtype: Dtype
    activation: Callable[[Array], Array] = nn.silu
    kernel_init: Initializer = XAVIER

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        for i, width in enumerate(self.widths):
            x = Dense(width, self.dtype, kernel_init=self.kernel_init, name=f"dense_{i}")(x)
            if i + 1 < len(self.widths):
                x = self.activation(x)
        return x


class FeedForward(nn.Module):
    """Dense, tanh-GELU, dense; the hidden activation is named `ffn` for rematerialisation policies."""

    hidden: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        h = checkpoint_name(Dense(self.hidden, self.dtype, name="dense_0")(x), "ffn")
        return Dense(x.shape[-1], self.dtype, name="dense_1")(nn.gelu(h, approximate=True))


class RMSNorm(nn.Module):
    """x / rms(x) * scale over the last axis, statistics in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), -1, keepdims=True) + self.eps)
        return scaled(_two_axes(x32), scale).reshape(x.shape).astype(x.dtype)


def layer_norm(x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """LayerNorm without parameters, float32 in and out of the statistics."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + eps)


class LayerNorm(nn.Module):
    """LayerNorm with `scale` and `bias`, float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", ZEROS, (x.shape[-1],))
        return shifted(scaled(_two_axes(layer_norm(x, self.eps)), scale), bias).reshape(x.shape)


def modulate(
    x: Float[Array, "B S D"], shift: Float[Array, "B G D"], scale: Float[Array, "B G D"]
) -> Float[Array, "B S D"]:
    """x (1 + scale) + shift, where the tokens are G equal runs that share one shift and scale (adaptive LayerNorm)."""
    return shifted(scaled(_by_group(x, shift), 1 + scale), shift).reshape(x.shape)


def gate(x: Float[Array, "B S D"], amount: Float[Array, "B G D"]) -> Float[Array, "B S D"]:
    """x * amount, by token run as in `modulate`."""
    return scaled(_by_group(x, amount), amount).reshape(x.shape)


def _by_group(x: Float[Array, "B S D"], amount: Float[Array, "B G D"]) -> Float[Array, "B G S/G D"]:
    batch, tokens, width = x.shape
    groups = amount.shape[1]
    return x.reshape(batch, groups, tokens // groups, width)


def _two_axes(x: Float[Array, "*batch D"]) -> Float[Array, "S D"]:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])  # -1 would not do: a stream may have no tokens


def timestep_embedding(t: Float[Array, "*batch"], width: int) -> Float[Array, "*batch width"]:
    """[cos | sin] of t 10000^(-i / (width/2)), float32 (Wan `sinusoidal_embedding_1d`, there in float64).

    t is up to 1000, where a float32 product would be off by 3e-5 rad. The frequency is split into a 13-bit head, whose
    product with the whole part of t is exact, and a tail: the result is good to 1e-7.
    """
    half = width // 2
    frequency = ROPE_BASE ** (-np.arange(half) / half)
    exponent = np.exp2(np.floor(np.log2(frequency)) - 12)
    head = np.round(frequency / exponent) * exponent
    tail = (frequency - head).astype(np.float32)
    t = t.astype(jnp.float32)[..., None]
    whole = jnp.floor(t)
    large = whole * head.astype(np.float32)
    small = whole * tail + (t - whole) * frequency.astype(np.float32)
    cos, sin = jnp.cos(large), jnp.sin(large)
    cos_small, sin_small = jnp.cos(small), jnp.sin(small)
    return jnp.concatenate([cos * cos_small - sin * sin_small, sin * cos_small + cos * sin_small], -1)


def position_table(rows: int, width: int) -> Float[np.ndarray, "rows width"]:
    """Fixed additive positions of the action stream, [sin | cos] (the release's `pos_embedding` buffer)."""
    angle = np.arange(rows)[:, None] * ROPE_BASE ** (-np.arange(width // 2) / (width / 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def rope_axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Head dimensions given to frame, height and width (Wan: d - 4 (d // 6), 2 (d // 6), 2 (d // 6))."""
    part = 2 * (head_dim // 6)
    return head_dim - 2 * part, part, part


def rope_table(grid: tuple[int, int, int], head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every video token, each float32 [f*h*w, head_dim/2]; each axis has its own ladder."""
    positions = np.indices(grid).reshape(3, -1)
    angles = [
        positions[axis][:, None] * ROPE_BASE ** (-np.arange(0, dims, 2) / dims)
        for axis, dims in enumerate(rope_axis_dims(head_dim))
    ]
    angle = np.concatenate(angles, -1)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def locality_bias(heads: int, head_dim: int, strength: float) -> Float[np.ndarray, " N*K"]:
    """A bias for both q and k that makes half of the heads look near their own place at the start of training.

    It is `strength` on the cosine part of the fastest rotary pair of height and of width and 0 elsewhere: rotated, it
    adds the cosines of the distances in rows and in columns to the logits, in every frame alike.
    """
    frame, height, _ = rope_axis_dims(head_dim)
    bias = np.zeros((heads, head_dim), np.float32)
    bias[: heads // 2, [frame, frame + height]] = strength
    return bias.reshape(-1)


def apply_rope(x: Float[Array, "B S N K"], cos: Float[Array, "S K/2"], sin: Float[Array, "S K/2"]) -> Array:
    """Rotates adjacent pairs (2i, 2i+1) in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None], sin[:, None]
    rotated = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return rotated.reshape(x.shape).astype(x.dtype)


def apply_rope_halves(x: Float[Array, "B S N K"], angle: Float[Array, "B S K/2"]) -> Float[Array, "B S N K"]:
    """Rotates the pairs (i, i + K/2) by `angle` [rad] in float32: the pairing of Qwen and Llama."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
