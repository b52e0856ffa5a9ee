"""The deep-compression autoencoder (DC-AE): a picture in [-1, 1] <-> latents at a 32nd to a 128th of its sides.

The largest of the family, the default here, makes four tokens of 512 numbers of a 256x256 picture: what the paper of
Motus compresses optical flow to before it becomes latent actions. Convolutions at high resolution, linear attention at
low resolution, and shortcuts without parameters around every change of resolution.

Source: diffusers `AutoencoderDC` (numbers) and mit-han-lab/efficientvit `models/efficientvit/dc_ae.py` (sizes; those of
diffusers' `scripts/convert_dcae_to_diffusers.py` agree). The public weights load through `motus_jax/weights/dc_ae.py`.
"""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from motus_jax.errors import UserError
from motus_jax.models.flow_autoencoder_blocks import (
    AffineNorm,
    AttentionBlock,
    Conv,
    Down,
    FixedBatchNorm,
    ResidualBlock,
    Up,
    average_down,
    repeat_up,
)

MEASURED = r"(.*/)?decoder/.*/norm/(mean|variance)"
"""Leaves that are measured, not trained. A run that tunes the decoder names them in `config.optimizer.frozen`, or its
weight decay moves them."""


@dataclasses.dataclass(frozen=True)
class FlowAutoencoderConfig:
    """Sizes; the defaults are f128c512's. Every tuple has one entry a stage, the highest resolution first.

    Attributes:
      channels: of a latent.
      widths: channels of the stages; each but the last halves height and width.
      encoder_blocks, decoder_blocks: blocks in a stage. The first may have none: then it is left out, and the
        convolution next to the picture changes the resolution instead.
      attention: whether the blocks are attention blocks, else residual ones.
      windows: sides of the depthwise windows that give attention further scales.
      batch_norm: whether the decoder's blocks have batch norms with fixed statistics and ReLUs, else RMS norms and
        SiLUs as everywhere in the encoder.
      head_dim: channels of a head.
      shuffle: whether resolution changes by squares of pixels that become channels, else by stride and repetition.
      dtype: of the products and of what passes between layers.
    """

    channels: int = 512
    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024, 2048, 2048)
    encoder_blocks: tuple[int, ...] = (0, 4, 8, 2, 2, 2, 2, 2)
    decoder_blocks: tuple[int, ...] = (0, 5, 10, 2, 2, 2, 2, 2)
    attention: tuple[bool, ...] = (False,) * 3 + (True,) * 5
    windows: tuple[tuple[int, ...], ...] = ((),) * 8
    batch_norm: tuple[bool, ...] = (True,) * 3 + (False,) * 5
    head_dim: int = 32
    shuffle: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        stages = len(self.widths)
        for name in ("encoder_blocks", "decoder_blocks", "attention", "windows", "batch_norm"):
            if len(getattr(self, name)) != stages:
                raise UserError(f"{name}: expected {stages} entries as in widths, found {len(getattr(self, name))}")
        for name in ("encoder_blocks", "decoder_blocks"):
            if stages < 2 or min(getattr(self, name)[1:]) < 1 or getattr(self, name)[0] < 0:
                raise UserError(f"{name}: expected blocks in every stage but the first, found {getattr(self, name)}")
        self._check_shortcuts()
        for width, attention, windows in zip(self.widths, self.attention, self.windows):
            if attention and width % self.head_dim:
                raise UserError(f"head_dim: expected a divisor of the width {width}, found {self.head_dim}")
            if any(window % 2 == 0 for window in windows):
                raise UserError(f"windows: expected odd sides, found {windows}")

    def _check_shortcuts(self) -> None:
        """The parameter-free shortcuts deal channels out evenly."""
        for width, below in itertools.pairwise(self.widths):
            if 4 * width % below or (self.shuffle and below % 4):
                wanted = f"a divisor of {4 * width}" + " and a multiple of 4" * self.shuffle
                raise UserError(f"widths: {width} is followed by {below}, expected {wanted}")
        if self.widths[-1] % self.channels:
            raise UserError(f"channels: expected a divisor of the last width {self.widths[-1]}, found {self.channels}")

    @property
    def pixels(self) -> int:
        """Side of the square of pixels to one place of a latent."""
        return 2 ** (len(self.widths) - 1)


_F32 = FlowAutoencoderConfig(
    channels=32, widths=(128, 256, 512, 512, 1024, 1024),
    encoder_blocks=(0, 4, 8, 2, 2, 2), decoder_blocks=(0, 5, 10, 2, 2, 2),
    attention=(False,) * 3 + (True,) * 3, windows=((),) * 6, batch_norm=(True,) * 3 + (False,) * 3,
)  # fmt: skip

VARIANTS: dict[str, FlowAutoencoderConfig] = {
    "f128c512": FlowAutoencoderConfig(),
    "f64c128": FlowAutoencoderConfig(
        channels=128, widths=(128, 256, 512, 512, 1024, 1024, 2048),
        encoder_blocks=(0, 4, 8, 2, 2, 2, 2), decoder_blocks=(0, 5, 10, 2, 2, 2, 2),
        attention=(False,) * 3 + (True,) * 4, windows=((),) * 7, batch_norm=(True,) * 3 + (False,) * 4,
    ),
    "f32c32": _F32,
    "f32c32_sana": dataclasses.replace(
        _F32, encoder_blocks=(2, 2, 2, 3, 3, 3), decoder_blocks=(3, 3, 3, 3, 3, 3),
        windows=((),) * 3 + ((5,),) * 3, batch_norm=(False,) * 6, shuffle=False,
    ),
    "demo": FlowAutoencoderConfig(
        channels=128, widths=(16, 16, 32, 64, 128, 128),
        encoder_blocks=(0, 1, 1, 1, 1, 1), decoder_blocks=(0, 1, 1, 1, 1, 1),
        attention=(False,) * 5 + (True,), windows=((),) * 6, batch_norm=(False,) * 6, head_dim=16,
    ),
    "debug": FlowAutoencoderConfig(
        channels=8, widths=(8, 8, 16), encoder_blocks=(0, 1, 1), decoder_blocks=(0, 1, 1),
        attention=(False, False, True), windows=((), (), (3,)), batch_norm=(True, True, False), head_dim=8,
    ),
}  # fmt: skip
"""Name -> sizes. f128c512, f64c128 and f32c32 are each published as `in-1.0` (trained on ImageNet) and `mix-1.0`, which
are one network; f32c32_sana is SANA's. `demo` and `debug` are no releases: small enough to train on a laptop, 128
channels for 32x32 pixels; and every part of the first three and one further scale, 8 channels for 4x4 pixels."""


class Encoder(nn.Module):
    """A picture to its latent."""

    config: FlowAutoencoderConfig

    @nn.compact
    def __call__(self, picture: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        c = self.config
        x = picture.astype(c.dtype)
        if c.encoder_blocks[0]:
            x = Conv(c.widths[0], c.dtype, name="stem")(x)
        else:
            x = Down(c.widths[1], c.shuffle, shortcut=False, dtype=c.dtype, name="stem")(x)
        for i, count in enumerate(c.encoder_blocks):
            x = DownStage(c, i, name=f"stage_{i}")(x) if count else x
        return Conv(c.channels, c.dtype, name="head")(x) + average_down(x, c.channels, 1)


class DownStage(nn.Module):
    """Blocks, then half the height and width unless it is the last stage."""

    config: FlowAutoencoderConfig
    index: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        c, i = self.config, self.index
        for j in range(c.encoder_blocks[i]):
            x = _block(c, i, False, f"block_{j}")(x)
        if i + 1 == len(c.widths):
            return x
        return Down(c.widths[i + 1], c.shuffle, shortcut=True, dtype=c.dtype, name="down")(x)


class Decoder(nn.Module):
    """A latent to its picture, not clamped; stages have the numbers of the encoder's, and run from the last."""

    config: FlowAutoencoderConfig

    @nn.compact
    def __call__(self, latent: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        c = self.config
        x = latent.astype(c.dtype)
        x = Conv(c.widths[-1], c.dtype, name="stem")(x) + repeat_up(x, c.widths[-1], 1)
        for i, count in reversed(list(enumerate(c.decoder_blocks))):
            x = UpStage(c, i, name=f"stage_{i}")(x) if count else x
        x = nn.relu(AffineNorm(name="norm")(x))
        if c.decoder_blocks[0]:
            return Conv(3, c.dtype, name="head")(x)
        return Up(3, c.shuffle, shortcut=False, dtype=c.dtype, name="head")(x)


class UpStage(nn.Module):
    """Twice the height and width unless it is the last stage, then blocks."""

    config: FlowAutoencoderConfig
    index: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B H W C"]:
        c, i = self.config, self.index
        if i + 1 < len(c.widths):
            x = Up(c.widths[i], c.shuffle, shortcut=True, dtype=c.dtype, name="up")(x)
        for j in range(c.decoder_blocks[i]):
            x = _block(c, i, c.batch_norm[i], f"block_{j}")(x)
        return x


def _block(config: FlowAutoencoderConfig, stage: int, batch_norm: bool, name: str) -> nn.Module:
    norm = FixedBatchNorm if batch_norm else AffineNorm
    if config.attention[stage]:
        return AttentionBlock(config.head_dim, config.windows[stage], norm, config.dtype, name=name)
    return ResidualBlock(norm, nn.relu if batch_norm else nn.silu, config.dtype, name=name)


@dataclasses.dataclass(frozen=True)
class FlowAutoencoder:
    """Encode and decode as pure functions of a parameter tree {`encoder`: ..., `decoder`: ...}; each reads its half.

    Every function is jitted, one program for each shape; pictures and latents are float32. Latents are raw, as
    `AutoencoderDC.encode` gives them: the `scaling_factor` of its configs serves diffusion over them, not these
    functions. Nothing is drawn and nothing is changed, so the tree is frozen or tuned, or one half of it, by what the
    tables of `config.optimizer` say of its paths; see `MEASURED`.
    """

    config: FlowAutoencoderConfig

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, key: PRNGKeyArray) -> dict:
        """Random parameters, float32."""
        c = self.config
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": Encoder(c).init(encoder_key, jnp.zeros((1, c.pixels, c.pixels, 3)))["params"],
            "decoder": Decoder(c).init(decoder_key, jnp.zeros((1, 1, 1, c.channels)))["params"],
        }

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """[h, w, C] of the latent of a picture.

        Raises:
          UserError: a side does not divide into places of a latent.
        """
        side = self.config.pixels
        if not height or not width or height % side or width % side:
            raise UserError(
                f"picture of {height}x{width}: expected sides divisible by {side}; pad or resize it to"
                f" {math.ceil(height / side) * side}x{math.ceil(width / side) * side}"
            )
        return height // side, width // side, self.config.channels

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, params: dict, picture: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """The latent of pictures in [-1, 1].

        Raises:
          UserError: not 3 colours, or as `latent_shape`.
        """
        if picture.shape[-1] != 3:
            raise UserError(f"picture: expected 3 colours last, found shape {picture.shape}")
        self.latent_shape(*picture.shape[1:3])
        return Encoder(self.config).apply({"params": params["encoder"]}, picture).astype(jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def decode(self, params: dict, latent: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """The pictures of latents, not clamped.

        Raises:
          UserError: not `config.channels` channels.
        """
        if latent.shape[-1] != self.config.channels:
            raise UserError(f"latent: expected {self.config.channels} channels last, found shape {latent.shape}")
        return Decoder(self.config).apply({"params": params["decoder"]}, latent).astype(jnp.float32)
