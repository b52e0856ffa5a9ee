"""Parts of DPFlow: its encoder over both pictures, the recurrent unit, correlations, resampling.

Pictures are [B, H, W, C]. Source: ptlflow `models/dpflow` (`cgu.py`, `cgu_bidir_dual_encoder.py`, `update.py`,
`corr.py`). Correlations are looked up by products with matrices of bilinear weights in place of its sampling: the same
numbers, and no gathering, which accelerators are slow at.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from motus_jax.models.flow_autoencoder_blocks import Conv, DepthwiseConv, shifted
from motus_jax.models.layers import ZEROS, Dense, Dtype
from motus_jax.models.video_vae_blocks import FAN_IN

GROUPS = 8
"""Of the encoder's norms."""
EPS = 1e-6
"""Of every norm."""
EXPANSION = 2
"""Width inside a gated unit over its own."""
WINDOW = 7
"""Side of the windows of gated units, of the stem, and of what sees the flow."""
SCALE = 0.01
"""Share of a gated unit in its sum at the start."""


class Encoder(nn.Module):
    """Features of two pictures at every size, which know of each other."""

    config: Any

    @nn.compact
    def __call__(
        self, first: Float[Array, "B H W 3"], second: Float[Array, "B H W 3"], levels: int
    ) -> tuple[list[Float[Array, "B h w F"]], list[Float[Array, "B h w F"]]]:
        """(of the first, of the second) picture, the smallest size first; their sides divide by the largest stride."""
        c = self.config
        both = jnp.concatenate([first, second]).astype(c.dtype)  # what does not mix the two runs once over both
        down, low = self._down(both, levels), Stem(c.widths, c.dtype, name="low_stem")
        gru, enlarge = Gru(c.widths[2], c.dtype, name="up_gru"), Enlarge(c.widths[2], c.dtype, name="enlarge")
        stage = Stage(c.widths[2], c.depth, c.dtype, name="up_stage")
        merge = self._dense(c.widths[2], "merge")
        last, out = Stage(c.widths[2], c.depth, c.dtype, name="out_stage"), self._dense(c.features, "out")
        state, found = jnp.zeros_like(down[-1]), []
        for i in reversed(range(levels)):
            state = gru(state, down[i])
            height, width = (side // 2 ** (i + 1) for side in both.shape[1:3])
            seen = low(resize(both, height, width))
            found.append(jnp.concatenate([down[i], stage(state), seen], -1))
            state = jnp.tanh(enlarge(state)) if i else state
        halves = [jnp.split(out(last(merge(nn.relu(x)))), 2) for x in found]
        return [one for one, _ in halves], [other for _, other in halves]

    def _down(self, both: Float[Array, "2B H W 3"], levels: int) -> list[Float[Array, "2B h w C"]]:
        """What is seen on the way from large to small, the largest first."""
        c = self.config
        x, state = jnp.split(Stem((*c.widths[:2], 2 * c.widths[2]), c.dtype, name="stem")(both), 2, -1)
        state = jnp.tanh(state)
        gru = Gru(c.widths[2], c.dtype, name="down_gru")
        stage = Stage(c.widths[2], c.depth, c.dtype, stride=2, name="down_stage")
        reduce = Conv(c.widths[2], c.dtype, stride=2, name="reduce")
        found = []
        for i in range(levels):
            state = gru(state, x)
            x = stage(state)
            found.append(x)
            state = jnp.tanh(reduce(state)) if i + 1 < levels else state
        return found

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, self.config.dtype, kernel_init=FAN_IN, name=name)


class Stem(nn.Module):
    """A picture to features at a quarter of its sides."""

    widths: tuple[int, int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        first, second, out = self.widths
        x = nn.relu(group_norm(Conv(first, self.dtype, stride=2, window=WINDOW, name="conv")(x)))
        for i, (width, stride) in enumerate(((first, 1), (first, 1), (second, 2), (second, 1))):
            x = StemBlock(width, stride, self.dtype, name=f"block_{i}")(x)
        return Dense(out, self.dtype, kernel_init=FAN_IN, name="out")(x)


class StemBlock(nn.Module):
    """Two convolutions beside a shortcut, which is one itself where the size changes."""

    features: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w O"]:
        y = nn.relu(group_norm(Conv(self.features, self.dtype, stride=self.stride, name="conv_0")(x)))
        y = nn.relu(group_norm(Conv(self.features, self.dtype, name="conv_1")(y)))
        if self.stride > 1:
            few = x[:, :: self.stride, :: self.stride]
            x = group_norm(Dense(self.features, self.dtype, kernel_init=FAN_IN, name="shortcut")(few))
        return nn.relu(x + y)


class Gru(nn.Module):
    """Gated recurrent unit of convolutions."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, state: Float[Array, "B h w C"], x: Float[Array, "B h w D"]) -> Float[Array, "B h w C"]:
        both = jnp.concatenate([state, x], -1)
        z = nn.sigmoid(Conv(self.features, self.dtype, name="z")(both))
        r = nn.sigmoid(Conv(self.features, self.dtype, name="r")(both))
        q = jnp.tanh(Conv(self.features, self.dtype, name="q")(jnp.concatenate([r * state, x], -1)))
        return (1 - z) * state + z * q


class Stage(nn.Module):
    """Gated units over both pictures, which are the halves of the batch; before them half the size where asked for."""

    features: int
    depth: int
    dtype: Dtype
    stride: int = 1

    @nn.compact
    def __call__(self, both: Float[Array, "2B h w C"]) -> Float[Array, "2B H W C"]:
        if self.stride > 1:
            both = Conv(self.features, self.dtype, stride=self.stride, name="reduce")(both)
        both, _ = repeated(CrossUnit, self.depth)(self.dtype, name="units")(both)
        return group_norm(both)


class CrossUnit(nn.Module):
    """A gated unit on each picture's own features, then one that lets through what goes with the other picture's."""

    dtype: Dtype

    @nn.compact
    def __call__(self, both: Float[Array, "2B h w C"]) -> tuple[Float[Array, "2B h w C"], None]:
        channels = both.shape[-1]
        own = Gated(self.dtype, name="own")
        cross = Gated(self.dtype, name="cross")
        merge = Dense(channels, self.dtype, kernel_init=FAN_IN, name="merge")
        scale = self.param("scale", nn.initializers.constant(SCALE), (channels,)).astype(self.dtype)
        normed = group_norm(both)
        x, y = jnp.split(own(normed, normed), 2)
        x_before, y_before = jnp.split(both, 2)
        x = x_before + scale * cross(merge(jnp.concatenate([x, y], -1)), y)
        y = y_before + scale * cross(merge(jnp.concatenate([y, x], -1)), x)
        return jnp.concatenate([x, y]), None


class Gated(nn.Module):
    """Readings of two inputs through windows, one of which gates the other."""

    dtype: Dtype

    @nn.compact
    def __call__(self, gate: Float[Array, "B h w C"], value: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        channels = gate.shape[-1]
        gate, value = (self._seen(x, EXPANSION * channels, name) for x, name in ((gate, "gate"), (value, "value")))
        return Dense(channels, self.dtype, kernel_init=FAN_IN, name="out")(nn.gelu(gate, approximate=False) * value)

    def _seen(self, x: Float[Array, "B h w C"], features: int, name: str) -> Float[Array, "B h w F"]:
        x = Dense(features, self.dtype, kernel_init=FAN_IN, name=name)(x)
        return DepthwiseConv(WINDOW, self.dtype, name=f"{name}_window")(x)


def repeated(unit: type[nn.Module], depth: int) -> Any:
    """The module one after another, its parameters stacked on axis 0: compiled once whatever the depth."""
    return nn.scan(unit, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)


class Enlarge(nn.Module):
    """Transposed convolution to twice the size; parameters `kernel` [4, 4, in, out] and `bias`."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B 2h 2w O"]:
        kernel = self.param("kernel", FAN_IN, (4, 4, x.shape[-1], self.features)).astype(self.dtype)
        bias = self.param("bias", ZEROS, (self.features,)).astype(self.dtype)
        return jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel[::-1, ::-1], (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ) + bias  # fmt: skip


class Update(nn.Module):
    """One correction of the flow."""

    config: Any

    @nn.compact
    def __call__(
        self, state: Float[Array, "B h w S"], told: Float[Array, "B h w S"], found: Float[Array, "B h w K"],
        flow: Float[Array, "B h w 2"],
    ) -> tuple[Float[Array, "B h w 2"], Float[Array, "B h w S"]]:  # fmt: skip
        """(change of the flow, new state). The head's other four numbers are its spread, which only training reads."""
        c = self.config
        x = jnp.concatenate([told, MotionEncoder(c, name="motion")(flow, found)], -1)
        both = jnp.concatenate([state, x], -1)
        z, r = (nn.sigmoid(self._gate(name)(both)) for name in "zr")
        q = jnp.tanh(self._gate("q")(jnp.concatenate([r * state, x], -1)))
        state = (1 - z) * state + z * q
        head = nn.relu(Conv(c.head, c.dtype, name="head")(state))
        return Conv(6, c.dtype, name="change")(head)[..., :2].astype(jnp.float32), state

    def _gate(self, name: str) -> nn.Module:
        return Gate(self.config.context, self.config.update_depth, self.config.dtype, name=f"gate_{name}")


class Upsampling(nn.Module):
    """The recurrent state to the logarithms of the weights that the flow is upsampled by."""

    dtype: Dtype
    factor: int

    @nn.compact
    def __call__(self, state: Float[Array, "B h w S"]) -> Float[Array, "B h w 9*f*f"]:
        x = nn.relu(Conv(2 * state.shape[-1], self.dtype, name="hidden")(state))
        found = Dense(9 * self.factor**2, self.dtype, kernel_init=FAN_IN, name="out")(x)
        return found.astype(jnp.float32)


class MotionEncoder(nn.Module):
    """What the recurrent unit is told: correlations and flow, and the flow itself."""

    config: Any

    @nn.compact
    def __call__(self, flow: Float[Array, "B h w 2"], found: Float[Array, "B h w K"]) -> Float[Array, "B h w M"]:
        c = self.config
        x = nn.relu(Dense(c.correlation[0], c.dtype, kernel_init=FAN_IN, name="correlation_0")(found))
        x = nn.relu(Conv(c.correlation[1], c.dtype, name="correlation_1")(x))
        y = nn.relu(Conv(c.flow[0], c.dtype, window=WINDOW, name="flow_0")(flow))
        y = nn.relu(Conv(c.flow[1], c.dtype, name="flow_1")(y))
        out = nn.relu(Conv(c.motion - 2, c.dtype, name="out")(jnp.concatenate([x, y], -1)))
        return jnp.concatenate([out, flow.astype(out.dtype)], -1)


class Gate(nn.Module):
    """Gated units on what a gate of the recurrent unit sees."""

    features: int
    depth: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w S"]:
        x = Dense(self.features, self.dtype, kernel_init=FAN_IN, name="narrow")(x)
        x, _ = repeated(Unit, self.depth)(self.dtype, name="units")(x)
        return layer_norm(x)


class Unit(nn.Module):
    """A gated unit beside a shortcut."""

    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> tuple[Float[Array, "B h w C"], None]:
        scale = self.param("scale", nn.initializers.constant(SCALE), x.shape[-1:]).astype(self.dtype)
        normed = layer_norm(x)
        return x + scale * Gated(self.dtype, name="own")(normed, normed), None


def group_norm(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """Each of `GROUPS` runs of channels of a picture to mean 0 and variance 1, in float32."""
    runs = x.astype(jnp.float32).reshape(len(x), -1, GROUPS, x.shape[-1] // GROUPS)
    return _normalised(runs, (1, 3)).reshape(x.shape).astype(x.dtype)


def layer_norm(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
    """The channels of each place to mean 0 and variance 1, in float32."""
    return _normalised(x.astype(jnp.float32), (-1,)).astype(x.dtype)


def _normalised(x: Array, axes: tuple[int, ...]) -> Array:
    x = x - jnp.mean(x, axes, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + EPS)


def correlations(
    first: Float[Array, "B h w C"], second: Float[Array, "B h w C"]
) -> Float[Array, "B h w h w"]:
    """How well each place of the first goes with each of the second: scaled products, float32."""
    one, other = first.astype(jnp.float32), second.astype(jnp.float32)
    return jnp.einsum("bijc,bklc->bijkl", one, other) * (1 / first.shape[-1] ** 0.5)


def window(
    volume: Float[Array, "B h w h w"], flow: Float[Array, "B h w 2"], radius: int
) -> Float[Array, "B h w K"]:
    """Correlations of each place with those around where the flow leads, read between places bilinearly, 0 outside.

    The order of the K = (2 radius + 1)^2 offsets is the release's: the one to the right changes slowly.
    """
    height, width = flow.shape[1:3]
    offsets = jnp.arange(-radius, radius + 1)
    across = _weights(flow[..., 0] + jnp.arange(width), offsets, width)
    down = _weights(flow[..., 1] + jnp.arange(height)[:, None], offsets, height)
    rows = jnp.einsum("bijyk,bijkl->bijyl", down, volume)
    return jnp.einsum("bijyl,bijxl->bijxy", rows, across).reshape(*flow.shape[:3], -1)


def _weights(centre: Float[Array, "B h w"], offsets: Array, count: int) -> Float[Array, "B h w D n"]:
    """Bilinear weights of `count` places for what lies at the offsets from a centre."""
    apart = centre[..., None, None] + offsets[:, None] - jnp.arange(count)
    return jnp.maximum(0.0, 1.0 - jnp.abs(apart))


def resize(x: Float[Array, "B H W C"], height: int, width: int) -> Float[Array, "B h w C"]:
    """Bilinear, first and last rows and columns staying where they are."""
    for axis, size in ((1, height), (2, width)):
        if size != x.shape[axis]:
            places = jnp.arange(size) * ((x.shape[axis] - 1) / max(size - 1, 1))
            weights = jnp.maximum(0.0, 1.0 - jnp.abs(places[:, None] - jnp.arange(x.shape[axis]))).astype(x.dtype)
            x = jnp.moveaxis(jnp.tensordot(weights, x, ((1,), (axis,))), 0, axis)
    return x


def upsample_convex(
    flow: Float[Array, "B h w 2"], weights: Float[Array, "B h w 9*f*f"], factor: int
) -> Float[Array, "B f*h f*w 2"]:
    """Each pixel a mean of the nine places around its own, by a softmax of its weights."""
    batch, height, width, _ = flow.shape
    shares = nn.softmax(weights.reshape(batch, height, width, 9, factor, factor), axis=3)
    around = jnp.stack(shifted(flow, 3), axis=3)
    found = jnp.einsum("bhwkyx,bhwkc->bhywxc", shares, around)
    return found.reshape(batch, factor * height, factor * width, 2)
