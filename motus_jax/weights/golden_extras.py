"""Golden numbers of the pretrained parts: video VAE, umT5 and Qwen3-VL, each a small random model of its own.

Sizes are read off the parameters' shapes, of Qwen3-VL off its config. Rows at padding have no meaning in the release
and are not compared.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from motus_jax.data.qwen_inputs import patch_places, token_positions
from motus_jax.models.layers import Mlp
from motus_jax.models.text_encoder import TextEncoder, TextEncoderConfig, position_buckets
from motus_jax.models.video_vae import VideoVae, VideoVaeConfig
from motus_jax.models.vlm import Vlm, VlmConfig, VlmInputs
from motus_jax.weights import kinds, qwen3_vl, umt5, wan_vae
from motus_jax.weights.name_map import to_tree

Tensors = dict[str, np.ndarray]
Found = Iterator[tuple[str, np.ndarray]]

LIMIT = 5e-5
"""Largest absolute deviation."""
LONG = 512
"""Tokens of the position buckets of which two rows are stored."""


def _vae(folder: pathlib.Path, tensors: Tensors) -> Found:
    stored = load_file(folder / "extra_vae_params.safetensors")
    config = VideoVaeConfig(
        width=stored["encoder.conv1.weight"].shape[0],
        decoder_width=stored["decoder.head.2.weight"].shape[1],
        channels=stored["conv2.weight"].shape[0],
        latent_mean=tuple(tensors["in.mean"].tolist()),
        latent_std=tuple(tensors["in.std"].tolist()),
    )
    vae, params = VideoVae(config), to_tree(stored, wan_vae.rules(config), 0)
    video = np.moveaxis(tensors["in.video"], 1, -1)
    # As a stream: two programs a direction for all lengths.
    latent, cache = vae.encode_first(params, video[:, :1])
    latents = [latent]
    for start in range(1, video.shape[1], config.group):
        latent, cache = vae.encode_next(params, cache, video[:, start : start + config.group])
        latents.append(latent)
    yield "out.latent_first_frame_only", _first_channel(latents[0])
    yield "out.latent_5_frames", _first_channel(np.concatenate(latents[:2], 1))
    yield "out.latent", _first_channel(np.concatenate(latents, 1))
    for given, name in ((tensors["out.latent"], "latent"), (tensors["in.random_latent"], "random_latent")):
        decoded = _first_channel(_decode(vae, params, np.moveaxis(given, 1, -1)))
        yield f"out.decoded_of_{name}", decoded
        yield f"out.decoded_of_{name}_clamped", np.clip(decoded, -1, 1)


def _decode(vae: VideoVae, params: dict, latents: np.ndarray) -> np.ndarray:
    frame, cache = vae.decode_first(params, latents[:, :1], clamp=False)
    rest, _ = vae.decode_next(params, cache, latents[:, 1:], clamp=False)
    return np.concatenate([frame, rest], 1)


def _first_channel(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.asarray(x), -1, 1)


def _umt5(folder: pathlib.Path, tensors: Tensors) -> Found:
    stored = load_file(folder / "extra_t5_params.safetensors")
    vocabulary, width = stored["token_embedding.weight"].shape
    buckets, heads = stored["blocks.0.pos_embedding.embedding.weight"].shape
    config = TextEncoderConfig(
        vocabulary=vocabulary, width=width, heads=heads,
        head_dim=stored["blocks.0.attn.q.weight"].shape[0] // heads, mlp=stored["blocks.0.ffn.fc1.weight"].shape[0],
        depth=len({name.split(".")[1] for name in stored if name.startswith("blocks.")}), buckets=buckets,
    )  # fmt: skip
    params = jax.tree.map(jnp.asarray, to_tree(stored, umt5.rules(config), config.depth))
    mask = tensors["in.mask"].astype(bool)
    hidden = jax.jit(TextEncoder(config).apply)({"params": params}, tensors["in.ids"], mask)
    yield "out.hidden", _real(hidden, tensors["out.hidden"], mask)
    yield "aux.bucket_small", position_buckets(mask.shape[1], buckets, config.max_distance)
    long = position_buckets(LONG, buckets, config.max_distance)
    for row in (0, LONG - 1):
        yield f"aux.bucket_row{row}_{LONG}", long[row]


def _qwen(folder: pathlib.Path, tensors: Tensors) -> Found:
    config = VlmConfig.from_hf(json.loads((folder / "extra_vlm_config.json").read_text()))
    stored = load_file(folder / "extra_vlm_params.safetensors")
    spelling = qwen3_vl.SPELLINGS["inside a Motus release"]
    public = {kinds.rename(name, spelling): x for name, x in stored.items() if name.startswith("vlm_model.")}
    params = jax.tree.map(jnp.asarray, qwen3_vl.to_tree(public, config))
    mask, inputs = tensors["in.attention_mask"].astype(bool), _qwen_inputs(config, tensors)
    apply = jax.jit(functools.partial(Vlm(config).apply, mutable="intermediates"))
    states, state = apply({"params": params}, inputs)
    seen = state["intermediates"]
    yield "mid.position_ids", _real(inputs.positions, np.moveaxis(tensors["mid.position_ids"], 0, -1), mask, 0)
    yield "mid.visual_pos_mask", inputs.tokens == config.image_token
    embedded = seen["language"]["embedded"][0]
    yield "mid.inputs_embeds_with_image", _real(embedded, tensors["mid.inputs_embeds_with_image"], mask)
    for layer, out in enumerate((embedded, *seen["language"]["layers"]["out"][0])):
        if f"mid.hidden_{layer}" in tensors:
            yield f"mid.hidden_{layer}", _real(out, tensors[f"mid.hidden_{layer}"], mask)
    for tap, features in enumerate(seen["deepstack"][0]):
        yield f"mid.deepstack_{tap}", features[0]
    yield "out.hidden_post_norm", _real(states, tensors["out.hidden_post_norm"], mask)
    yield "out.und_tokens", _real(_adapter(stored, states), tensors["out.und_tokens"], mask)


def _qwen_inputs(config: VlmConfig, tensors: Tensors) -> VlmInputs:
    """All images in one row, as the release keeps them."""
    grids = [tuple(grid) for _, *grid in tensors["in.image_grid_thw"]]
    tokens, mask = tensors["in.input_ids"], tensors["in.attention_mask"].astype(bool)
    positions = np.zeros((*mask.shape, 3), np.int32)
    for row, ids, real, grid in zip(positions, tokens, mask, grids):
        row[real] = token_positions(ids[real], [grid], config.image_token, config.vision.merge)
    places = [patch_places(grid, config.vision.merge) for grid in grids]
    segments = np.repeat(np.arange(len(grids)) + 1, [len(place) for place in places])
    patches, place = tensors["in.pixel_values"][None], np.concatenate(places)[None]
    return VlmInputs(tokens, mask, positions, patches, segments[None], place)


def _adapter(stored: Tensors, states: jax.Array) -> jax.Array:
    """The understanding expert's adapter, whose parameters stand beside those of the VLM."""
    names = [f"und_expert.vlm_adapter.{index}" for index in (0, 2, 4)]
    params = {f"dense_{i}": {"kernel": jnp.asarray(stored[f"{name}.weight"].T), "bias": stored[f"{name}.bias"]}
              for i, name in enumerate(names)}  # fmt: skip
    return Mlp([stored[f"{name}.bias"].size for name in names], "float32").apply({"params": params}, states)


def _real(ours: jax.Array, golden: np.ndarray, mask: np.ndarray, axis: int = -1) -> np.ndarray:
    """Ours where rows are real and the golden values at padding; the last axis moved to `axis`."""
    return np.moveaxis(np.where(mask[..., None], np.asarray(ours), golden), -1, axis)


CHECKS: dict[str, Callable[[pathlib.Path, Tensors], Found]] = {
    "extra_vae.safetensors": _vae,
    "extra_t5.safetensors": _umt5,
    "extra_vlm.safetensors": _qwen,
}
"""Golden file -> function of its folder and tensors that recomputes them."""
