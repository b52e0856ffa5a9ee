"""Qwen3-VL: images and a prompt in, last hidden states out. It writes no text: the understanding expert reads states.

Source: the public `Qwen3VLModel` (Qwen3-VL-2B-Instruct: 28 layers, 16 query and 8 key heads x 128, width 2048). A
pre-norm decoder with RMSNorm on the heads of q and k, SwiGLU, and rotary positions in three axes (time, row, column)
whose frequencies are interleaved. Features of the vision tower replace the embeddings of image tokens; its DeepStack
features are added at the same tokens after the first layers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from motus_jax.errors import UserError
from motus_jax.models.layers import SMALL, Dense, RMSNorm, apply_rope_halves
from motus_jax.models.vlm_vision import VisionConfig, VisionTower


@dataclasses.dataclass(frozen=True)
class VlmConfig:
    """Sizes.

    Attributes:
      sections: rotary frequencies that belong to time, row and column; their sum is half of `head_dim`.
      image_token: the token whose embedding an image feature replaces.
      dtype: of matrix products and attention; parameters and residual streams are float32.
    """

    vision: VisionConfig
    vocabulary: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    sections: tuple[int, int, int]
    image_token: int
    rope_base: float = 5e6
    eps: float = 1e-6
    dtype: str = "float32"

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], dtype: str = "float32") -> "VlmConfig":
        """The sizes in a Hugging Face `config.json` of a Qwen3-VL model.

        Raises:
          UserError: a field is missing, or asks for something that this model does not do.
        """
        vision, text = _field(config, "vision_config"), _field(config, "text_config")
        rope = _rope(text)
        _require("text_config", text, hidden_act="silu", attention_bias=False)
        _require("vision_config", vision, hidden_act="gelu_pytorch_tanh")
        _require("text_config.rope_parameters", rope, rope_type="default", mrope_interleaved=True)
        found = cls(
            vision=_vision(vision),
            vocabulary=_field(text, "vocab_size"),
            width=_field(text, "hidden_size"),
            depth=_field(text, "num_hidden_layers"),
            heads=_field(text, "num_attention_heads"),
            kv_heads=_field(text, "num_key_value_heads"),
            head_dim=_field(text, "head_dim"),
            mlp=_field(text, "intermediate_size"),
            sections=tuple(_field(rope, "mrope_section")),
            image_token=_field(config, "image_token_id"),
            rope_base=float(_field(rope, "rope_theta")),
            eps=float(_field(text, "rms_norm_eps")),
            dtype=dtype,
        )
        _check_sizes(found)
        return found


def _rope(text: Mapping[str, Any]) -> Mapping[str, Any]:
    """Rotary settings: one dict in transformers 5, `rope_scaling` and a `rope_theta` beside it in the release."""
    rope = text.get("rope_parameters") or _field(text, "rope_scaling")
    return {"rope_theta": text.get("rope_theta"), "mrope_interleaved": False, "rope_type": "default", **rope}


def _vision(vision: Mapping[str, Any]) -> VisionConfig:
    return VisionConfig(
        depth=_field(vision, "depth"),
        width=_field(vision, "hidden_size"),
        heads=_field(vision, "num_heads"),
        mlp=_field(vision, "intermediate_size"),
        out_width=_field(vision, "out_hidden_size"),
        taps=tuple(_field(vision, "deepstack_visual_indexes")),
        positions=math.isqrt(_field(vision, "num_position_embeddings")),
        patch=_field(vision, "patch_size"),
        temporal_patch=_field(vision, "temporal_patch_size"),
        merge=_field(vision, "spatial_merge_size"),
        channels=_field(vision, "in_channels"),
    )


def _field(config: Mapping[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise UserError(f"Qwen3-VL config: expected the field {name!r}, found only {', '.join(sorted(config))}")
    return config[name]


def _require(place: str, config: Mapping[str, Any], **expected: object) -> None:
    for name, value in expected.items():
        found = config.get(name, value)
        if found != value:
            raise UserError(f"Qwen3-VL config: {place}.{name}: expected {value!r}, the only one built, found {found!r}")


def _check_sizes(config: VlmConfig) -> None:
    vision = config.vision
    facts = {
        "text_config.hidden_size equals vision_config.out_hidden_size": config.width == vision.out_width,
        "the sum of mrope_section is half of head_dim": 2 * sum(config.sections) == config.head_dim,
        "num_key_value_heads divides num_attention_heads": config.heads % config.kv_heads == 0,
        "vision heads divide hidden_size into multiples of 4": vision.width % (4 * vision.heads) == 0,
        "deepstack_visual_indexes ascend below depth, at most one a text layer": (
            list(vision.taps) == sorted({*vision.taps} & {*range(vision.depth)}) and len(vision.taps) <= config.depth
        ),
    }
    broken = [fact for fact, holds in facts.items() if not holds]
    if broken:
        raise UserError(f"Qwen3-VL config: expected that {broken[0]}; found {config}")


QWEN3_VL_2B = VlmConfig(
    vision=VisionConfig(depth=24, width=1024, heads=16, mlp=4096, out_width=2048, taps=(5, 11, 17)),
    vocabulary=151936, width=2048, depth=28, heads=16, kv_heads=8, head_dim=128, mlp=6144, sections=(24, 20, 20),
    image_token=151655, dtype="bfloat16",
)  # fmt: skip
"""Qwen3-VL-2B-Instruct, 2,127,532,032 parameters with the output head tied to the embeddings."""


class VlmInputs(NamedTuple):
    """A batch of prompts with their images, all of static shape.

    The images of B/R consecutive prompts share one row of patches, in the order of their tokens: R = B gives every
    prompt a row of its own, which keeps a batch-sharded run local; R = 1 packs best.

    Attributes:
      tokens: token ids, right-padded; an image is a run of `image_token`, one for each feature.
      mask: True at real tokens.
      positions: rotary positions of time, row and column.
      patches, segments, places: see `VisionTower`.
    """

    tokens: Int[Array, "B L"]
    mask: Bool[Array, "B L"]
    positions: Int[Array, "B L 3"]
    patches: Float[Array, "R P E"]
    segments: Int[Array, "R P"]
    places: Int[Array, "R P 4"]


class DecoderLayer(nn.Module):
    """Causal self-attention and gated MLP, both pre-norm, then the DeepStack features of this layer, if it has some."""

    config: VlmConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        tap: Int[Array, ""],
        deepstack: Float[Array, "T+1 B L D"],
        angle: Float[Array, "B L K/2"],
        mask: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B L D"], None]:
        y = RMSNorm(self.config.eps, name="norm_attention")(x)
        x = x + self._attend(y, angle, mask)
        y = RMSNorm(self.config.eps, name="norm_mlp")(x)
        hidden = nn.silu(self._dense(self.config.mlp, "gate")(y)) * self._dense(self.config.mlp, "up")(y)
        x = x + self._dense(self.config.width, "down")(hidden)
        self.sow("intermediates", "out", x)
        return x + deepstack[tap], None

    def _attend(self, y: Array, angle: Array, mask: Array) -> Float[Array, "B L D"]:
        c = self.config
        sizes = {"q": c.heads, "k": c.kv_heads, "v": c.kv_heads}
        q, k, v = (self._dense(n * c.head_dim, name)(y).reshape(*y.shape[:2], n, -1) for name, n in sizes.items())
        q, k = RMSNorm(c.eps, name="norm_q")(q), RMSNorm(c.eps, name="norm_k")(k)
        q, k = (apply_rope_halves(part, angle) for part in (q, k))
        out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None], is_causal=True)
        return self._dense(c.width, "o")(out.reshape(*y.shape[:2], -1))

    def _dense(self, features: int, name: str) -> Dense:
        return Dense(features, self.config.dtype, use_bias=False, kernel_init=SMALL, name=name)


class LanguageModel(nn.Module):
    """Token ids and image features to states."""

    config: VlmConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B L"],
        mask: Bool[Array, "B L"],
        positions: Int[Array, "B L 3"],
        features: Float[Array, "R U D"],
        deepstack: Float[Array, "T R U D"],
    ) -> Float[Array, "B L D"]:
        """States after the final norm, float32, zero at padding; arguments as in `VlmInputs` and from `VisionTower`."""
        c = self.config
        table = self.param("token_embedding", SMALL, (c.vocabulary, c.width))
        is_image = (tokens == c.image_token) & mask
        stacked = _at_tokens(jnp.concatenate([features[None], deepstack]).astype(jnp.float32), is_image)
        x = jnp.where(is_image[..., None], stacked[0], table[tokens].astype(jnp.float32))
        self.sow("intermediates", "embedded", x)
        # Layers without DeepStack add the row of zeros at the end.
        deepstack = jnp.concatenate([stacked[1:], jnp.zeros_like(stacked[:1])])
        taps = np.minimum(np.arange(c.depth, dtype=np.int32), len(deepstack) - 1)
        scanned = nn.scan(
            DecoderLayer, variable_axes={"params": 0, "intermediates": 0}, split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast), length=c.depth,
        )  # fmt: skip
        x, _ = scanned(c, name="layers")(x, taps, deepstack, _angles(c, positions), mask)
        return RMSNorm(c.eps, name="norm")(x) * mask[..., None]


def _at_tokens(features: Float[Array, "T R U D"], is_image: Bool[Array, "B L"]) -> Float[Array, "T B L D"]:
    """The k-th feature of a row at the k-th image token of the prompts that share the row, zero at other tokens."""
    rows = is_image.reshape(features.shape[1], -1)
    index = jnp.where(rows, jnp.cumsum(rows, axis=1) - 1, 0)
    found = jnp.take_along_axis(features, index[None, :, :, None], axis=2) * rows[..., None]
    return found.reshape(len(features), *is_image.shape, -1)


def rotary_axes(sections: tuple[int, int, int]) -> Int[np.ndarray, " K/2"]:
    """The axis (0 time, 1 row, 2 column) of every frequency, highest first: they take turns time, row, column until row
    or column has its number; time gets the rest."""
    axes = np.zeros(sum(sections), np.int32)
    for axis in (1, 2):
        axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def _angles(config: VlmConfig, positions: Int[Array, "B L 3"]) -> Float[Array, "B L K/2"]:
    axes = rotary_axes(config.sections)
    ladder = config.rope_base ** (-np.arange(len(axes)) / len(axes))
    return positions[..., axes].astype(jnp.float32) * ladder.astype(np.float32)


class Vlm(nn.Module):
    """The whole: vision tower, then language model."""

    config: VlmConfig

    @nn.compact
    def __call__(self, inputs: VlmInputs) -> Float[Array, "B L D"]:
        """Last hidden states after the final norm, float32, zero at padding."""
        c = self.config
        features, deepstack = VisionTower(c.vision, c.dtype, name="vision")(
            inputs.patches, inputs.segments, inputs.places
        )
        self.sow("intermediates", "features", features)
        self.sow("intermediates", "deepstack", deepstack)
        language = LanguageModel(c, name="language")
        return language(inputs.tokens, inputs.mask, inputs.positions, features, deepstack)
