"""DPFlow: optical flow of two pictures by a recurrent network over a pyramid of their sizes.

One encoder, the same at every size, sees both pictures: down the sizes once, and up again with what it has seen. From
the smallest size to an eighth of the picture a gated recurrent unit then corrects the flow, four times a size, by how
well the features of a place go with those around where the flow leads. It is what the paper of Motus takes flow from.

Source: ptlflow `models/dpflow` (numbers and sizes); Morimitsu et al., CVPR 2025, "DPFlow: Adaptive Optical Flow
Estimation with a Dual-Pyramid Framework". Its public weights load through `motus_jax/weights/dpflow.py`.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from motus_jax.errors import UserError
from motus_jax.models.flow_network_blocks import (
    Encoder,
    Update,
    Upsampling,
    correlations,
    resize,
    upsample_convex,
    window,
)

LARGE = 1100.0
"""Diagonal [pixels] up to which a picture has three sizes; with each doubling, one more."""
FEWEST_LEVELS = 3
FINEST = 8
"""Pixels to a place of the finest size, which is then upsampled by learned weights."""
SMALLEST = 16
"""Pixels that a picture must have each way."""


@dataclasses.dataclass(frozen=True)
class FlowNetworkConfig:
    """Sizes; the defaults are the release's.

    Attributes:
      widths: channels of the encoder's stem at a half and at a quarter of the picture, and from there on.
      depth: gated units in each stage of the encoder.
      features: channels of a place; a third of them is context, half of which begins the recurrent state.
      update_depth: gated units in each gate of the recurrent unit.
      motion: channels of what the recurrent unit is told of the flow.
      correlation: channels, hidden and out, of what is made of correlations.
      flow: the same of what is made of the flow.
      head: hidden channels of the reading of a correction.
      radius: correlations are looked up this many places around where the flow leads.
      iterations: corrections a size.
      dtype: of the products in the encoder and in the recurrent unit; correlations and flow are float32.
    """

    widths: tuple[int, int, int] = (64, 96, 128)
    depth: int = 4
    features: int = 384
    update_depth: int = 4
    motion: int = 128
    correlation: tuple[int, int] = (256, 192)
    flow: tuple[int, int] = (128, 64)
    head: int = 256
    radius: int = 4
    iterations: int = 4
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.features % 6:
            raise UserError(f"features: expected a multiple of 6, found {self.features}")
        if self.radius < 1 or self.iterations < 1 or self.motion < 3:
            raise UserError("radius, iterations, motion: expected at least 1, 1 and 3, "
                            f"found {self.radius}, {self.iterations}, {self.motion}")  # fmt: skip

    @property
    def context(self) -> int:
        """Channels of the recurrent state, and of what it is told at each correction besides the flow."""
        return self.features // 3


VARIANTS: dict[str, FlowNetworkConfig] = {
    "dpflow": FlowNetworkConfig(),
    "debug": FlowNetworkConfig(
        widths=(8, 16, 16), depth=1, features=24, update_depth=1, motion=10, correlation=(12, 8), flow=(8, 4), head=8,
        radius=2, iterations=2,
    ),
}  # fmt: skip
"""Name -> sizes. `debug` is no release: every part, small enough for tests."""


@dataclasses.dataclass(frozen=True)
class FlowNetwork:
    """Flow as a pure function of a parameter tree {`encoder`, `update`, `upsampling`}, one program for each shape."""

    config: FlowNetworkConfig

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, key: PRNGKeyArray) -> dict:
        """Random parameters, float32."""
        c, keys, side = self.config, jax.random.split(key, 3), FINEST * 2 ** (FEWEST_LEVELS - 1)
        picture = jnp.zeros((1, side, side, 3))
        state, flow = jnp.zeros((1, 1, 1, c.context)), jnp.zeros((1, 1, 1, 2))
        found = jnp.zeros((1, 1, 1, (2 * c.radius + 1) ** 2))
        return {
            "encoder": Encoder(c).init(keys[0], picture, picture, FEWEST_LEVELS)["params"],
            "update": Update(c).init(keys[1], state, state, found, flow)["params"],
            "upsampling": Upsampling(c.dtype, FINEST).init(keys[2], state)["params"],
        }

    @functools.partial(jax.jit, static_argnums=0)
    def estimate(
        self, params: dict, first: Float[Array, "B H W 3"], second: Float[Array, "B H W 3"]
    ) -> Float[Array, "B H W 2"]:
        """By how many pixels what stands in a place of the first picture has moved to the right and down in the second.

        Args:
          first, second: RGB pictures in [0, 1], of any size from `SMALLEST`.

        Raises:
          UserError: pictures of other sizes than each other, not RGB, or too small.
        """
        if first.shape != second.shape or first.ndim != 4 or first.shape[-1] != 3:
            raise UserError(f"flow: expected two stacks of RGB pictures, found {first.shape} and {second.shape}")
        height, width = first.shape[1:3]
        if min(height, width) < SMALLEST:
            raise UserError(f"flow: expected at least {SMALLEST}x{SMALLEST} pixels, found {height}x{width}")
        levels = pyramid_levels(height, width)
        stride = FINEST * 2 ** (levels - 1)
        top, left = (-height % stride) // 2, (-width % stride) // 2
        border = ((0, 0), (top, -height % stride - top), (left, -width % stride - left), (0, 0))
        first, second = (jnp.pad(2 * picture - 1, border, mode="edge") for picture in (first, second))
        flow = self._coarse_to_fine(params, first, second, levels)
        return flow[:, top : top + height, left : left + width]

    def _coarse_to_fine(
        self, params: dict, first: Float[Array, "B H W 3"], second: Float[Array, "B H W 3"], levels: int
    ) -> Float[Array, "B H W 2"]:
        c = self.config
        pyramids = Encoder(c).apply({"params": params["encoder"]}, first, second, levels)
        flow = state = None
        for one, other in zip(*pyramids, strict=True):
            (one, told, begun), (other, told_too, begun_too) = (_split(x, c.context) for x in (one, other))
            told = nn.relu(jnp.concatenate([told, told_too], -1))
            state = jnp.tanh(jnp.concatenate([begun, begun_too], -1))
            size = one.shape[1:3]
            flow = jnp.zeros((*one.shape[:3], 2), jnp.float32) if flow is None else _enlarge(flow, size)
            flow, state = self._correct(params["update"], told, state, correlations(one, other), flow)
        weights = Upsampling(c.dtype, FINEST).apply({"params": params["upsampling"]}, state)
        return upsample_convex(_scaled(flow, first.shape[1:3]), weights, FINEST)

    def _correct(
        self, params: dict, told: Array, state: Array, volume: Array, flow: Float[Array, "B h w 2"]
    ) -> tuple[Float[Array, "B h w 2"], Array]:
        """The corrections at one size."""
        update = Update(self.config)

        def step(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            flow, state = jax.lax.stop_gradient(carry[0]), carry[1]
            seen = window(volume, flow, self.config.radius)
            change, state = update.apply({"params": params}, state, told, seen, flow)
            return (flow + change, state), None

        (flow, state), _ = jax.lax.scan(step, (flow, state), None, length=self.config.iterations)
        return flow, state


def pyramid_levels(height: int, width: int) -> int:
    """Sizes that a picture is seen in: the more, the larger it is."""
    return round(math.log2(max(1.0, math.hypot(height, width) / LARGE))) + FEWEST_LEVELS


def _split(x: Float[Array, "B h w F"], context: int) -> tuple[Array, Array, Array]:
    """(for matching, told to the recurrent unit, begins its state)."""
    matching = x.shape[-1] - context
    told = matching + context - context // 2
    return x[..., :matching], x[..., matching:told], x[..., told:]


def _scaled(flow: Float[Array, "B h w 2"], size: tuple[int, ...]) -> Float[Array, "B h w 2"]:
    """The same motion in pixels of a picture of that (height, width)."""
    return flow * jnp.array([size[1] / flow.shape[2], size[0] / flow.shape[1]], jnp.float32)


def _enlarge(flow: Float[Array, "B h w 2"], size: tuple[int, ...]) -> Float[Array, "B H W 2"]:
    return resize(_scaled(flow, size), *size)
