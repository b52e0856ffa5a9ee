"""Qwen3-VL: packing, padding, masks, static shapes, the reading of configs (numbers: tests/weights, tests/parity)."""

import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.data.qwen_inputs import patch_places, token_positions
from motus_jax.errors import UserError
from motus_jax.models.vlm import QWEN3_VL_2B, Vlm, VlmConfig, VlmInputs, rotary_axes
from motus_jax.models.vlm_vision import VisionConfig

IMAGE = 30
CONFIG = VlmConfig(
    vision=VisionConfig(depth=3, width=16, heads=2, mlp=24, out_width=24, taps=(0, 2), positions=5, patch=2),
    vocabulary=31, width=24, depth=4, heads=4, kv_heads=2, head_dim=8, mlp=32, sections=(2, 1, 1), image_token=IMAGE,
)  # fmt: skip

RELEASE = {
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "tie_word_embeddings": True,
    "text_config": {
        "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 6144,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8, "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000, "vocab_size": 151936,
    },
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17], "depth": 24, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024,
        "in_channels": 3, "intermediate_size": 4096, "num_heads": 16, "num_position_embeddings": 2304,
        "out_hidden_size": 2048, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
"""The fields of Qwen3-VL-2B-Instruct's config.json that matter here."""


def make_inputs(grids, texts, rows, patches, length):
    """Random prompts: `texts[i]` text tokens around the images `grids[i]`."""
    rng = np.random.default_rng(0)
    images = [[rng.standard_normal((h * w, CONFIG.vision.patch_values)) for h, w in group] for group in grids]
    tokens, mask = np.zeros((len(grids), length), np.int32), np.zeros((len(grids), length), bool)
    positions = np.zeros((len(grids), length, 3), np.int32)
    for i, (group, text) in enumerate(zip(grids, texts)):
        ids = [*rng.integers(1, IMAGE, 2)]
        for h, w in group:
            ids += [IMAGE] * (h * w // 4) + [*rng.integers(1, IMAGE, 1)]
        ids += [*rng.integers(1, IMAGE, text)]
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
        positions[i, : len(ids)] = token_positions(ids, group, IMAGE, 2)
    share = len(grids) // rows
    packed = np.zeros((rows, patches, CONFIG.vision.patch_values), np.float32)
    segments, places = np.zeros((rows, patches), np.int32), np.zeros((rows, patches, 4), np.int32)
    for row in range(rows):
        at, number = 0, 0
        for i in range(row * share, (row + 1) * share):
            for values, grid in zip(images[i], grids[i]):
                part, number = slice(at, at + len(values)), number + 1
                packed[row, part], segments[row, part], places[row, part] = values, number, patch_places(grid, 2)
                at = part.stop
    return VlmInputs(tokens, mask, positions, packed, segments, places)


GRIDS, TEXTS = [[(4, 6)], [(2, 2), (6, 4)], [], [(4, 4)]], [5, 1, 4, 3]


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(GRIDS, TEXTS, rows=4, patches=28, length=18)


@pytest.fixture(scope="module")
def params(inputs):
    """Random, the norms' scales too, and large enough for every part to matter."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Vlm(CONFIG).init, jax.random.key(0), inputs)["params"]
    return jax.tree.map(lambda leaf: np.float32(0.2 * rng.standard_normal(leaf.shape)), shapes)


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda params, inputs: Vlm(CONFIG).apply({"params": params}, inputs))


@pytest.fixture(scope="module")
def states(model, params, inputs):
    return np.asarray(model(params, inputs))


def test_rotary_axes_of_the_release():
    axes = rotary_axes(QWEN3_VL_2B.sections)
    assert np.bincount(axes).tolist() == [24, 20, 20]
    assert axes[:7].tolist() == [0, 1, 2, 0, 1, 2, 0] and axes[57:].tolist() == [0, 1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(("rows", "patches"), [(2, 60), (1, 92)])
def test_packing_changes_nothing(model, params, inputs, states, rows, patches):
    packed = make_inputs(GRIDS, TEXTS, rows, patches, length=18)
    np.testing.assert_array_equal(packed.tokens, inputs.tokens)
    np.testing.assert_allclose(model(params, packed), states, atol=1e-5)


def test_padding_changes_nothing_and_is_zero(model, params, inputs, states):
    longer = np.asarray(model(params, make_inputs(GRIDS, TEXTS, rows=4, patches=40, length=24)))
    np.testing.assert_allclose(longer[:, :18], states, atol=1e-5)
    assert not longer[:, 18:].any() and not states[~inputs.mask].any()
    assert np.abs(states[inputs.mask]).max(-1).min() > 0.1, "real rows are not"


def test_other_sizes_of_the_same_shapes_do_not_compile_again(model, params, inputs, states):
    compiled = model._cache_size()
    model(params, make_inputs([[(2, 6)], [(4, 4)], [(2, 4), (4, 4)], []], [3, 2, 1, 0], rows=4, patches=28, length=18))
    assert model._cache_size() == compiled


def test_attention_stays_within_an_image(params, inputs):
    """The first image of a row of two does not see the second; within itself it does."""
    changed = inputs.patches.copy()
    changed[1, 4:28] += 1
    features, apply = [], jax.jit(functools.partial(Vlm(CONFIG).apply, mutable="intermediates"))
    for patches in (inputs.patches, changed):
        _, seen = apply({"params": params}, inputs._replace(patches=patches))
        features.append(np.asarray(seen["intermediates"]["features"][0]))
    difference = np.abs(features[0] - features[1]).max(-1)
    assert difference[1, 0] == 0 and (difference[1, 1:7] > 1e-3).all() and difference[[0, 2, 3]].max() == 0


def test_a_token_sees_only_what_is_before_it(model, params, inputs, states):
    changed = inputs.tokens.copy()
    changed[0, 9] = changed[0, 9] % (IMAGE - 1) + 1
    difference = np.abs(model(params, inputs._replace(tokens=changed)) - states).max(-1)
    assert difference[0, :9].max() == 0 and difference[0, 9:14].min() > 1e-4 and difference[1:].max() == 0


def test_each_depth_of_the_picture_reaches_the_states(model, params, inputs, states):
    """Zeroing one DeepStack merger, or the last one, changes what follows an image, and nothing without an image."""
    mergers = {"deepstack_mergers": 0, "merger": slice(None)}
    for name, index in mergers.items():
        changed = jax.tree.map(np.copy, params)
        for leaf in changed["vision"][name]["dense_1"].values():
            leaf[index] = 0
        difference = np.abs(model(changed, inputs) - states).max(-1)
        assert difference[0, 2:14].min() > 1e-4 and difference[2].max() == 0


def test_bfloat16_returns_float32_close_to_float32(params, inputs, states):
    low = jax.jit(Vlm(dataclasses.replace(CONFIG, dtype="bfloat16")).apply)({"params": params}, inputs)
    assert low.dtype == jnp.float32
    error = np.abs(low - states)
    assert 1e-4 < error.max() < 0.5 and error.mean() < 0.02


def test_a_release_config_is_the_constant():
    assert VlmConfig.from_hf(RELEASE, "bfloat16") == QWEN3_VL_2B
    newer = copy.deepcopy(RELEASE)
    text = newer["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    assert VlmConfig.from_hf(newer, "bfloat16") == QWEN3_VL_2B


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("text_config", "hidden_act", "gelu", "text_config.hidden_act: expected 'silu'.*found 'gelu'"),
        ("text_config", "attention_bias", True, "attention_bias: expected False"),
        ("text_config", "vocab_size", None, "expected the field 'vocab_size'"),
        ("text_config", "rope_scaling", {"mrope_section": [24, 20, 20]}, "mrope_interleaved: expected True"),
        ("text_config", "head_dim", 64, "the sum of mrope_section is half of head_dim"),
        ("text_config", "hidden_size", 1024, "hidden_size equals vision_config.out_hidden_size"),
        ("text_config", "num_key_value_heads", 3, "num_key_value_heads divides"),
        ("text_config", "num_hidden_layers", 2, "deepstack_visual_indexes"),
        ("vision_config", "deepstack_visual_indexes", [11, 5], "deepstack_visual_indexes ascend"),
        ("vision_config", "num_heads", 3, "vision heads"),
    ],
)
def test_what_is_not_built_is_refused(section, name, value, message):
    config = copy.deepcopy(RELEASE)
    config[section][name] = value
    with pytest.raises(UserError, match=message):
        VlmConfig.from_hf(config)
