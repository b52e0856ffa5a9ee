"""Qwen3-VL through its name map: the release's numbers, names and shapes."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from motus_jax.data.qwen_inputs import patch_places, token_positions
from motus_jax.errors import UserError
from motus_jax.models.vlm import QWEN3_VL_2B, Vlm, VlmConfig, VlmInputs
from motus_jax.weights import kinds, qwen3_vl
from motus_jax.weights.name_map import LAYOUTS, flatten

LIMIT = 5e-5


@pytest.fixture(scope="module")
def config(golden_dir):
    return VlmConfig.from_hf(json.loads((golden_dir / "golden_a" / "extra_vlm_config.json").read_text()))


@pytest.fixture(scope="module")
def tensors(golden_dir):
    spelling = qwen3_vl.SPELLINGS["inside a Motus release"]
    stored = load_file(golden_dir / "golden_a" / "extra_vlm_params.safetensors")
    return {kinds.rename(name, spelling): tensor for name, tensor in stored.items() if name.startswith("vlm_model.")}


@pytest.fixture(scope="module")
def data(golden_dir):
    return load_file(golden_dir / "golden_a" / "extra_vlm.safetensors")


@pytest.fixture(scope="module")
def states(config, tensors, data):
    """Last hidden states [B, L, D] and intermediates; the two images share one row."""
    grids = [tuple(grid) for _, *grid in data["in.image_grid_thw"]]
    mask = data["in.attention_mask"].astype(bool)
    positions = np.zeros((*mask.shape, 3), np.int32)
    for row, tokens, real, grid in zip(positions, data["in.input_ids"], mask, grids):
        row[real] = token_positions(tokens[real], [grid], config.image_token, config.vision.merge)
    places = [patch_places(grid, config.vision.merge) for grid in grids]
    segments = np.repeat(np.arange(len(grids)) + 1, [len(place) for place in places])
    inputs = VlmInputs(
        data["in.input_ids"], mask, positions, data["in.pixel_values"][None], segments[None],
        np.concatenate(places)[None],
    )  # fmt: skip
    params = qwen3_vl.to_tree(tensors, config)
    apply = jax.jit(functools.partial(Vlm(config).apply, mutable="intermediates"))
    found, state = apply({"params": params}, inputs)
    return found, state["intermediates"]


def test_states_equal_the_release(states, data):
    mask = data["in.attention_mask"].astype(bool)
    np.testing.assert_allclose(states[0][mask], data["out.hidden_post_norm"][mask], atol=LIMIT)
    assert not states[0][~mask].any(), "padding is zero"


def test_intermediates_equal_the_release(states, data):
    mask, seen = data["in.attention_mask"].astype(bool), states[1]
    embedded, layers = seen["language"]["embedded"][0], seen["language"]["layers"]["out"][0]
    np.testing.assert_allclose(embedded[mask], data["mid.inputs_embeds_with_image"][mask], atol=LIMIT)
    np.testing.assert_allclose(embedded[mask], data["mid.hidden_0"][mask], atol=LIMIT)
    for i in (0, 1):
        np.testing.assert_allclose(layers[i][mask], data[f"mid.hidden_{i + 1}"][mask], atol=LIMIT)
    deepstack = seen["deepstack"][0]
    for i in range(3):
        np.testing.assert_allclose(deepstack[i, 0], data[f"mid.deepstack_{i}"], atol=LIMIT)


def test_export_is_the_inverse_of_import(config, tensors):
    back = qwen3_vl.to_public(qwen3_vl.to_tree(tensors, config), config)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.visual.blocks.2.attn.qkv.bias"), "missing.*blocks.2.attn.qkv.bias"),
        (lambda t: t.pop("model.visual.deepstack_merger_list.1.norm.bias"), r"missing.*merger_list\.1\.norm\.bias"),
        (lambda t: t.update({"model.visual.extra": np.zeros(1)}), "not expected.*model.visual.extra"),
        (lambda t: t.update({"model.language_model.norm.weight": np.zeros(3)}), r"norm\.weight.*\(48,\).*\(3,\)"),
    ],
)
def test_the_map_is_strict(config, tensors, change, message):
    changed = dict(tensors)
    change(changed)
    with pytest.raises(UserError, match=message):
        qwen3_vl.to_tree(changed, config)


def test_export_refuses_a_tree_with_another_leaf(config, tensors):
    tree = qwen3_vl.to_tree(tensors, config)
    tree["vision"]["extra"] = np.zeros(1)
    with pytest.raises(UserError, match=r"not expected.*vision/extra"):
        qwen3_vl.to_public(tree, config)


def test_every_row_of_the_release(golden_dir):
    rows = [line.split("\t") for line in (golden_dir / "checkpoint_params.tsv").read_text().splitlines()[1:]]
    public = {row[0]: tuple(map(int, row[1].split("x"))) for row in rows if row[0].startswith("vlm_model.")}
    names = qwen3_vl.names(QWEN3_VL_2B)
    names |= {name: names[first] for name, first in qwen3_vl.TIED.items()}
    assert {qwen3_vl.MOTUS_PREFIX + name: shape for name, shape in names.items()} == public


def test_every_spelling_leads_to_the_map(tensors):
    prefixes = {
        "Hugging Face Qwen3VLForConditionalGeneration": ["model."],
        "Hugging Face Qwen3VLModel": [""],
        "inside a Motus release": [f"{alias}vlm_model.model." for alias in ("", "und_module.", "action_module.")],
    }
    assert prefixes.keys() == qwen3_vl.SPELLINGS.keys()
    for layout, spelling in qwen3_vl.SPELLINGS.items():
        for prefix in prefixes[layout]:
            public = {prefix + name.removeprefix("model.") for name in tensors}
            assert {kinds.rename(name, spelling) for name in public} == tensors.keys()


def test_full_size():
    abstract = VlmInputs(
        *(jax.ShapeDtypeStruct(shape, kind) for shape, kind in (
            ((2, 140), jnp.int32), ((2, 140), jnp.bool_), ((2, 140, 3), jnp.int32),
            ((1, 960, 1536), jnp.float32), ((1, 960), jnp.int32), ((1, 960, 4), jnp.int32),
        ))
    )  # fmt: skip
    model = Vlm(QWEN3_VL_2B)
    params = jax.eval_shape(model.init, jax.random.key(0), abstract)["params"]
    ours = {path: leaf.shape for path, leaf in flatten(params).items()}
    assert sum(map(np.prod, ours.values())) == 2_127_532_032
    mapped = {}
    for rules, depth in qwen3_vl.groups(QWEN3_VL_2B):
        for rule in rules:
            one = LAYOUTS[rule.layout].ours(np.broadcast_to(np.False_, rule.shape)).shape
            mapped[rule.path] = (depth, *one) if "{layer}" in rule.source else one
    assert ours == mapped
    out = jax.eval_shape(lambda params, inputs: model.apply({"params": params}, inputs), params, abstract)
    assert out.shape == (2, 140, 2048) and out.dtype == jnp.float32
