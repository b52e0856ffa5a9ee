"""The encoders between data and experts, one table a role: small stand-ins to train along, and the pretrained ones.

Each role has one interface, pure functions of a parameter tree, so that an experiment swaps an encoder by its `kind`:
`config.model.video_codec`, `config.model.text_encoder`, `config.model.vlm`. A `variant` is a size with public weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8

from motus_jax.errors import UserError
from motus_jax.models.compact_vlm import CompactVlm, CompactVlmConfig
from motus_jax.models.text_encoder import XXL, TextEncoder, TextEncoderConfig
from motus_jax.models.video_codec import VideoCodec, VideoCodecConfig
from motus_jax.models.video_vae import VideoVae, VideoVaeConfig
from motus_jax.models.vlm import QWEN3_VL_2B, Vlm, VlmConfig, VlmInputs
from motus_jax.models.vlm_vision import VisionConfig

BYTE_VOCABULARY = 257
"""256 bytes and padding (0)."""

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class VideoEncoder(Protocol):
    """Frames in [-1, 1] <-> latents, float32; `dtype` is what is computed in between.

    If it is `fitted`, `fit` gives the parameters in closed form from training clips, of the `shapes` that it says for
    pictures of a size; else they are trained or loaded, and `init` gives random ones of the right shapes.
    """

    fitted: bool
    dtype: str

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]: ...

    def fit(self, clips: UInt8[np.ndarray, "M frames H W 3"]) -> Params: ...

    def shapes(self, height: int, width: int) -> Params: ...

    def init(self, key: PRNGKeyArray) -> Params: ...

    def encode(self, params: Params, video: Float[Array, "B T H W 3"]) -> Float[Array, "B F h w C"]: ...

    def decode(
        self, params: Params, latents: Float[Array, "B F h w C"], condition: Float[Array, "B 1 H W 3"]
    ) -> Float[Array, "B T H W 3"]: ...


class LinearVideo:
    """`video_codec.py`: closed form, nothing to train."""

    fitted = True
    dtype = "float32"

    def __init__(self, channels: int, sizes: Mapping[str, Any]) -> None:
        codec = VideoCodec(_sizes("video_codec", VideoCodecConfig, sizes, channels=channels))
        self.latent_shape, self.fit, self.shapes = codec.latent_shape, codec.fit, codec.shapes
        self.encode, self.decode = codec.encode, codec.decode


class WanVideo:
    """`video_vae.py`: the Wan2.2 VAE, in the release's size or a smaller one with latents of mean 0 and deviation 1."""

    fitted = False

    def __init__(self, channels: int, sizes: Mapping[str, Any]) -> None:
        given = dict(sizes)
        if given.pop("variant", "") != "release":
            given = {"latent_mean": (0.0,) * channels, "latent_std": (1.0,) * channels} | given
        config = _sizes("video_codec", VideoVaeConfig, given, channels=channels)
        self.vae, self.dtype = VideoVae(config), config.dtype
        self.latent_shape, self.init, self.encode = self.vae.latent_shape, self.vae.init, self.vae.encode

    def decode(self, params: Params, latents: Array, condition: Array) -> Float[Array, "B T H W 3"]:
        """The condition frame is known: it is not decoded but repeated."""
        return jnp.concatenate([condition, self.vae.decode(params, latents)[:, 1:]], axis=1)


VIDEO_ENCODERS: dict[str, Callable[[int, Mapping[str, Any]], VideoEncoder]] = {"linear": LinearVideo, "wan": WanVideo}


def text_encoder(width: int, sizes: Mapping[str, Any]) -> TextEncoder:
    """umT5 in the release's size (`variant` xxl) or another; bytes are its vocabulary unless `vocabulary` says more."""
    given = dict(sizes)
    if given.pop("variant", "") == "xxl":
        return TextEncoder(XXL)
    return TextEncoder(_sizes("text_encoder", TextEncoderConfig, {"vocabulary": BYTE_VOCABULARY} | given, width=width))


class Understanding(Protocol):
    """Condition frame and prompt -> hidden states of one sequence and the mask of real ones, for a batch of the schema
    `motus_jax.data.example`; `dtype` is what it computes in."""

    dtype: str

    def init(self, key: PRNGKeyArray, batch: Batch) -> Params: ...

    def states(self, params: Params, batch: Batch) -> tuple[Float[Array, "B U V"], Bool[Array, "B U"]]: ...


class CompactUnderstanding:
    """`compact_vlm.py`; reads the text encoder's tokens."""

    def __init__(self, width: int, sizes: Mapping[str, Any]) -> None:
        self.config = _sizes("vlm", CompactVlmConfig, sizes, vocabulary=BYTE_VOCABULARY, width=width)
        self.dtype = self.config.dtype
        self._module = CompactVlm(self.config)

    def init(self, key: PRNGKeyArray, batch: Batch) -> Params:
        return self._module.init(key, *self._arguments(batch))["params"]

    def states(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        return self._module.apply({"params": params}, *self._arguments(batch))

    def _arguments(self, batch: Batch) -> tuple[Array, Array, Array]:
        return unit(batch["frames"][:, 0]), batch["instruction"], batch["instruction_mask"]


class QwenUnderstanding:
    """`vlm.py`: Qwen3-VL on the condition frame as it is and the chat tokens (`data.chat`)."""

    def __init__(self, width: int, sizes: Mapping[str, Any]) -> None:
        given = dict(sizes)
        if given.pop("variant", "") == "2b":
            self.config, self.least_pixels = QWEN3_VL_2B, 65_536
        else:
            vision = VisionConfig(**{"out_width": width} | dict(given.pop("vision")))
            self.config = _sizes("vlm", VlmConfig, given, vision=vision, width=width)
            self.least_pixels = 0
        self.dtype = self.config.dtype
        self._module = Vlm(self.config)

    def init(self, key: PRNGKeyArray, batch: Batch) -> Params:
        return self._module.init(key, self._inputs(batch))["params"]

    def states(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        return self._module.apply({"params": params}, self._inputs(batch)), batch["chat_mask"]

    def _inputs(self, batch: Batch) -> VlmInputs:
        if "chat" not in batch:
            raise UserError("model.vlm.kind=qwen3_vl reads a chat: set data.chat to train or deploy, found nothing")
        picture = unit(batch["frames"][:, 0])
        patches, places = self._cut(picture)
        rows = len(picture)
        segments = jnp.ones((rows, len(places)), jnp.int32)
        places = jnp.broadcast_to(places, (rows, *places.shape))
        return VlmInputs(batch["chat"], batch["chat_mask"], batch["chat_positions"], patches, segments, places)

    def _cut(self, picture: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B P E"], np.ndarray]:
        """What `motus_jax.data.qwen_inputs.ImageProcessor` makes of a picture that it has no need to resize."""
        vision = self.config.vision
        (b, height, width, _), p, m = picture.shape, vision.patch, vision.merge
        if height % (p * m) or width % (p * m) or height * width < self.least_pixels:
            raise UserError(
                f"data.image_size: Qwen3-VL takes pictures of at least {self.least_pixels} pixels with sides divisible "
                f"by {p * m}, found {height}x{width}"
            )
        rows, columns = height // p, width // p
        blocks = picture.reshape(b, rows // m, m, p, columns // m, m, p, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
        patches = jnp.repeat(blocks.reshape(b, rows * columns, 3, 1, p, p), vision.temporal_patch, axis=3)
        place = np.indices((rows, columns)).reshape(2, rows // m, m, columns // m, m).transpose(1, 3, 2, 4, 0)
        place = place.reshape(-1, 2)
        return patches.reshape(b, rows * columns, -1), np.concatenate([place, np.full_like(place, (rows, columns))], 1)


UNDERSTANDING_ENCODERS: dict[str, Callable[[int, Mapping[str, Any]], Understanding]] = {
    "compact": CompactUnderstanding,
    "qwen3_vl": QwenUnderstanding,
}


def pick(table: Mapping[str, Callable], role: str, width: int, given: Mapping[str, Any]) -> Any:
    """The encoder of `config.model.ROLE`.

    Raises:
      UserError: no such kind, or a size that it does not have.
    """
    sizes = dict(given)
    kind = sizes.pop("kind")
    if kind not in table:
        raise UserError(f"config.model.{role}.kind: expected one of {', '.join(table)}, found {kind!r}")
    return table[kind](width, sizes)


def unit(frames: UInt8[Array, "*shape 3"]) -> Float[Array, "*shape 3"]:
    """uint8 pixels -> [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1


def _sizes(role: str, config: type, given: Mapping[str, Any], **fixed: Any) -> Any:
    try:
        return config(**fixed, **given)
    except TypeError as error:
        raise UserError(f"config.model.{role}: {error}") from error

