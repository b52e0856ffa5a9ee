"""The Wan2.2 video VAE: 1 + 4k frames in [-1, 1] <-> 1 + k latent frames at a sixteenth of the height and width.

Streamed: the first frame makes the first latent, every further four frames the next one, and what a layer needs of the
past is carried as an explicit tree of arrays of fixed shapes. Memory does not grow with the length of a video, and
`encode_first` / `encode_next` / `decode_first` / `decode_next` take videos that never end. Source: Wan2.2
`modules/vae2_2.py`; the public weights load through `motus_jax/weights/wan_vae.py`.
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
from motus_jax.models.layers import Dense, RMSNorm
from motus_jax.models.video_vae_blocks import (
    EPS,
    CausalConv,
    Middle,
    ResidualBlock,
    SpaceDown,
    SpaceUp,
    TimeDown,
    TimeUp,
    average_down,
    repeat_up,
)

RELEASE_MEAN = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
RELEASE_STD = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip

Cache = dict
"""What a stream carries: nested dict by layer of [B, 1 or 2, H, W, C] arrays, the last frames that the layer saw."""


@dataclasses.dataclass(frozen=True)
class VideoVaeConfig:
    """Sizes; the defaults are the release's.

    Attributes:
      width: channels of the encoder's first stage; `decoder_width` of the decoder's last one.
      channels: of a latent.
      multipliers: width of each encoder stage over `width`; the decoder has them in reverse.
      blocks: residual blocks in an encoder stage; a decoder stage has one more.
      temporal: whether each stage but the last also halves time.
      patch: side of the square of pixels that becomes channels first.
      latent_mean, latent_std: of each latent channel over natural video; latents are given out normalised by them.
      dtype: of the products and of what passes between layers.
    """

    width: int = 160
    decoder_width: int = 256
    channels: int = 48
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    temporal: tuple[bool, ...] = (False, True, True)
    patch: int = 2
    latent_mean: tuple[float, ...] = RELEASE_MEAN
    latent_std: tuple[float, ...] = RELEASE_STD
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.temporal) != len(self.multipliers) - 1:
            raise UserError(
                f"temporal: expected one entry for each of the {len(self.multipliers)} stages but the last,"
                f" found {len(self.temporal)}"
            )
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.channels:
                raise UserError(
                    f"{name}: expected {self.channels} numbers, one for each latent channel, found"
                    f" {len(getattr(self, name))}; give the numbers that belong to this size"
                )

        self._check_shortcuts()

    def _check_shortcuts(self) -> None:
        """The parameter-free shortcuts deal channels out evenly."""
        widths = [self.width, *self.stage_widths()]
        for i, (before, width) in enumerate(itertools.pairwise(widths)):
            time, space = _factors((*self.temporal, None)[i])
            if before * time * space**2 % width:
                raise UserError(
                    f"multipliers: stage {i} makes {width} channels of {before}, expected a divisor of"
                    f" {before * time * space**2}"
                )

    @property
    def group(self) -> int:
        """Frames to a latent frame, but for the first."""
        return 2 ** sum(self.temporal)

    @property
    def pixels(self) -> int:
        """Side of the square of pixels to one place of a latent."""
        return self.patch * 2 ** len(self.temporal)

    def stage_widths(self) -> list[int]:
        """Widths of the encoder's stages."""
        return [self.width * multiplier for multiplier in self.multipliers]

    def decoder_widths(self) -> list[int]:
        """Widths of the decoder's stages, lowest resolution first."""
        return [self.decoder_width * multiplier for multiplier in self.multipliers[::-1]]


class Encoder(nn.Module):
    """A chunk of frames to raw latent means; the first chunk has one frame, later ones `config.group` frames."""

    config: VideoVaeConfig

    @nn.compact
    def __call__(self, video: Float[Array, "B T H W 3"]) -> Float[Array, "B F h w C"]:
        c = self.config
        x = CausalConv(c.width, c.dtype, name="stem")(_patches(video.astype(c.dtype), c.patch))
        for i, width in enumerate(c.stage_widths()):
            x = DownStage(width, c.blocks, (*c.temporal, None)[i], c.dtype, name=f"stage_{i}")(x)
        x = nn.silu(RMSNorm(EPS, name="norm")(Middle(c.dtype, name="middle")(x)))
        x = CausalConv(2 * c.channels, c.dtype, name="head")(x)
        # The other half is the log-variance: the release never samples.
        return Dense(2 * c.channels, c.dtype, name="moments")(x)[..., : c.channels]


class DownStage(nn.Module):
    """Residual blocks, then half the height and width, and half the frames if `temporal`; None resamples nothing."""

    width: int
    blocks: int
    temporal: bool | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        time, space = _factors(self.temporal)
        shortcut = average_down(x, self.width, time, space)
        for j in range(self.blocks):
            x = ResidualBlock(self.width, self.dtype, name=f"block_{j}")(x)
        if self.temporal is not None:
            x = SpaceDown(self.dtype, name="space")(x)
        if self.temporal:
            x = TimeDown(self.dtype, name="frames")(x)
        return x + shortcut


class Decoder(nn.Module):
    """Raw latents to frames, not clamped; the first chunk is one latent frame and makes one frame."""

    config: VideoVaeConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B F h w C"]) -> Float[Array, "B T H W 3"]:
        c = self.config
        widths = c.decoder_widths()
        x = Dense(c.channels, c.dtype, name="latent")(latents.astype(c.dtype))
        x = CausalConv(widths[0], c.dtype, name="stem")(x)
        x = Middle(c.dtype, name="middle")(x)
        for i, width in enumerate(widths):
            x = UpStage(width, c.blocks + 1, (*c.temporal[::-1], None)[i], c.dtype, name=f"stage_{i}")(x)
        x = CausalConv(3 * c.patch**2, c.dtype, name="head")(nn.silu(RMSNorm(EPS, name="norm")(x)))
        return _pixels(x, c.patch)


class UpStage(nn.Module):
    """Residual blocks, then twice the frames if `temporal`, and twice the height and width; None resamples nothing."""

    width: int
    blocks: int
    temporal: bool | None
    dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B t h w D"]:
        before = x
        for j in range(self.blocks):
            x = ResidualBlock(self.width, self.dtype, name=f"block_{j}")(x)
        if self.temporal is None:
            return x
        if self.temporal:
            x = TimeUp(self.dtype, name="frames")(x)
        time, space = _factors(self.temporal)
        x = SpaceUp(self.dtype, name="space")(x)
        # The first chunk's frame was not doubled: of its doubled shortcut the last frame belongs to it.
        return x + repeat_up(before, self.width, time, space)[:, -x.shape[1] :]


@dataclasses.dataclass(frozen=True)
class VideoVae:
    """Encode and decode as pure functions of a parameter tree {`encoder`: ..., `decoder`: ...}; each reads its half.

    Every function is jitted, one program for each shape. Frames are in [-1, 1], latents are normalised; both are
    float32.
    """

    config: VideoVaeConfig

    @functools.partial(jax.jit, static_argnums=0)
    def init(self, key: PRNGKeyArray) -> dict:
        """Random parameters, float32."""
        c = self.config
        frames = jnp.zeros((1, 1 + c.group, c.pixels, c.pixels, 3))
        latents = jnp.zeros((1, 2, 1, 1, c.channels))
        encoder_key, decoder_key = jax.random.split(key)
        return {
            "encoder": Encoder(c).init(encoder_key, frames, method=_both_chunks)["params"],
            "decoder": Decoder(c).init(decoder_key, latents, method=_both_chunks)["params"],
        }

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """[F, h, w, C] of the latents of a clip.

        Raises:
          UserError: the clip has not 1 + 4k frames, or a side does not divide into places of a latent.
        """
        c = self.config
        if frames < 1 or (frames - 1) % c.group:
            raise UserError(
                f"clip of {frames} frames: expected 1 + {c.group}k; cut it to {1 + (frames - 1) // c.group * c.group}"
            )
        self._check_sides(height, width)
        return 1 + (frames - 1) // c.group, height // c.pixels, width // c.pixels, c.channels

    @functools.partial(jax.jit, static_argnums=0)
    def encode(self, params: dict, video: Float[Array, "B T H W 3"]) -> Float[Array, "B F h w C"]:
        """Latents of a clip of 1 + 4k frames, (mean - `latent_mean`) / `latent_std`.

        Raises:
          UserError: as `latent_shape`.
        """
        self.latent_shape(*video.shape[1:4])
        first, cache = self.encode_first(params, video[:, :1])
        if video.shape[1] == 1:
            return first
        return jnp.concatenate([first, self.encode_next(params, cache, video[:, 1:])[0]], 1)

    @functools.partial(jax.jit, static_argnums=0)
    def encode_first(self, params: dict, frame: Float[Array, "B 1 H W 3"]) -> tuple[Float[Array, "B 1 h w C"], Cache]:
        """The latent of a stream's first frame, and the cache for `encode_next`.

        Raises:
          UserError: not one frame of 3 colours, or a side is not divisible.
        """
        _check_count("encode_first", "frame", frame.shape[1])
        _check_colours(frame)
        self._check_sides(*frame.shape[2:4])
        mean, state = Encoder(self.config).apply({"params": params["encoder"]}, frame, mutable=["cache"])
        return self._normalise(mean), state["cache"]

    @functools.partial(jax.jit, static_argnums=0)
    def encode_next(
        self, params: dict, cache: Cache, frames: Float[Array, "B 4k H W 3"]
    ) -> tuple[Float[Array, "B k h w C"], Cache]:
        """The latents of a stream's next 4k frames, and the cache after them.

        Raises:
          UserError: the number of frames is not a positive multiple of four, or they are not of the stream's shape.
        """
        group, patch = self.config.group, self.config.patch
        if frames.shape[1] == 0 or frames.shape[1] % group:
            raise UserError(
                f"encode_next: expected a multiple of {group} frames, found {frames.shape[1]}; wait for the group"
            )
        _check_colours(frames)
        _check_stream("encode_next", cache, frames, patch)
        means, cache = _stream(Encoder(self.config), params["encoder"], cache, frames, group)
        return self._normalise(means), cache

    @functools.partial(jax.jit, static_argnums=0, static_argnames="clamp")
    def decode(self, params: dict, latents: Float[Array, "B F h w C"], clamp: bool = True) -> Float[Array, "B T H W 3"]:
        """Frames of latents, 1 + 4 (F - 1) of them; with `clamp` cut to [-1, 1] as the release does.

        Raises:
          UserError: no latent frame, or not `config.channels` channels.
        """
        first, cache = self.decode_first(params, latents[:, :1], clamp=clamp)
        if latents.shape[1] == 1:
            return first
        return jnp.concatenate([first, self.decode_next(params, cache, latents[:, 1:], clamp=clamp)[0]], 1)

    @functools.partial(jax.jit, static_argnums=0, static_argnames="clamp")
    def decode_first(
        self, params: dict, latent: Float[Array, "B 1 h w C"], clamp: bool = True
    ) -> tuple[Float[Array, "B 1 H W 3"], Cache]:
        """The first frame of a stream, and the cache for `decode_next`.

        Raises:
          UserError: not one latent frame, or not `config.channels` channels.
        """
        _check_count("decode_first", "latent frame", latent.shape[1])
        raw = self._denormalise(latent)
        frame, state = Decoder(self.config).apply({"params": params["decoder"]}, raw, mutable=["cache"])
        return _finish(frame, clamp), state["cache"]

    @functools.partial(jax.jit, static_argnums=0, static_argnames="clamp")
    def decode_next(
        self, params: dict, cache: Cache, latents: Float[Array, "B k h w C"], clamp: bool = True
    ) -> tuple[Float[Array, "B 4k H W 3"], Cache]:
        """The next 4k frames of a stream, and the cache after them.

        Raises:
          UserError: no latent frame, not `config.channels` channels, or not of the stream's shape.
        """
        if latents.shape[1] == 0:
            raise UserError("decode_next: expected at least 1 latent frame, found 0")
        raw = self._denormalise(latents)
        _check_stream("decode_next", cache, latents, 1)
        frames, cache = _stream(Decoder(self.config), params["decoder"], cache, raw, 1)
        return _finish(frames, clamp), cache

    def _normalise(self, mean: Array) -> Array:
        return (mean.astype(jnp.float32) - jnp.asarray(self.config.latent_mean)) / jnp.asarray(self.config.latent_std)

    def _denormalise(self, latents: Array) -> Array:
        c = self.config
        if latents.shape[-1] != c.channels:
            raise UserError(f"latents: expected {c.channels} channels last, found shape {latents.shape}")
        return latents.astype(jnp.float32) * jnp.asarray(c.latent_std) + jnp.asarray(c.latent_mean)

    def _check_sides(self, height: int, width: int) -> None:
        side = self.config.pixels
        if not height or not width or height % side or width % side:
            raise UserError(
                f"frames of {height}x{width}: expected sides divisible by {side}; pad or resize them to"
                f" {math.ceil(height / side) * side}x{math.ceil(width / side) * side}"
            )


def _both_chunks(module: nn.Module, x: Array) -> Array:
    """A first and a later chunk: some parameters are used in later ones only."""
    module(x[:, :1])
    return module(x[:, 1:])


def _stream(module: nn.Module, params: dict, cache: Cache, x: Array, group: int) -> tuple[Array, Cache]:
    """The module over the chunks of x, `group` long each, the cache carried from one to the next."""

    def step(cache: Cache, chunk: Array) -> tuple[Cache, Array]:
        y, state = module.apply({"params": params, "cache": cache}, chunk, mutable=["cache"])
        return state["cache"], y

    chunks = jnp.moveaxis(x.reshape(x.shape[0], -1, group, *x.shape[2:]), 1, 0)
    cache, y = jax.lax.scan(step, cache, chunks)
    y = jnp.moveaxis(y, 0, 1)
    return y.reshape(y.shape[0], -1, *y.shape[3:]), cache


def _check_count(function: str, what: str, found: int) -> None:
    if found != 1:
        raise UserError(f"{function}: expected 1 {what}, found {found}")


def _check_colours(frames: Array) -> None:
    if frames.shape[-1] != 3:
        raise UserError(f"frames: expected 3 colours last, found shape {frames.shape}")


def _check_stream(function: str, cache: Cache, x: Array, scale: int) -> None:
    """Batch, height and width are those that the cache was made with; the stem saw them `scale` times smaller."""
    batch, _, height, width, _ = cache["stem"]["past"].shape
    expected, found = (batch, height * scale, width * scale), (x.shape[0], *x.shape[2:4])
    if found != expected:
        raise UserError(
            f"{function}: expected (batch, height, width) {expected} as in this stream before, found {found}"
        )


def _factors(temporal: bool | None) -> tuple[int, int]:
    """Resampling of a stage in time and in space."""
    return 2 if temporal else 1, 1 if temporal is None else 2


def _finish(frames: Array, clamp: bool) -> Float[Array, "B T H W 3"]:
    frames = frames.astype(jnp.float32)
    return jnp.clip(frames, -1, 1) if clamp else frames


def _patches(video: Float[Array, "B T H W 3"], patch: int) -> Float[Array, "B T h w C"]:
    """Squares of pixels to channels (colour, column, row), the row fastest."""
    b, t, height, width, colours = video.shape
    x = video.reshape(b, t, height // patch, patch, width // patch, patch, colours).transpose(0, 1, 2, 4, 6, 5, 3)
    return x.reshape(b, t, height // patch, width // patch, -1)


def _pixels(x: Float[Array, "B T h w C"], patch: int) -> Float[Array, "B T H W 3"]:
    """The inverse of `_patches`."""
    b, t, height, width, _ = x.shape
    x = x.reshape(b, t, height, width, 3, patch, patch).transpose(0, 1, 2, 6, 3, 5, 4)
    return x.reshape(b, t, height * patch, width * patch, 3)
