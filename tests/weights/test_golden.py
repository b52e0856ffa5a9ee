"""The model against the public release's numbers, through the name map."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from motus_jax import convert
from motus_jax.errors import UserError
from motus_jax.models.config import get_variant
from motus_jax.models.text_encoder import XXL, TextEncoder, TextEncoderConfig, position_buckets
from motus_jax.weights import golden, golden_extras, motus, umt5
from motus_jax.weights.name_map import flatten, to_public, to_tree


@pytest.fixture(scope="module")
def deviations(golden_dir):
    return golden.verify(golden_dir / "golden_a", golden_dir / "config_a.json")


@pytest.mark.parametrize("file", [*golden.CHECKS, *golden_extras.CHECKS])
def test_every_tensor_is_within_the_limits(deviations, file):
    assert deviations[file], "nothing was compared"
    worst = max(deviations[file], key=lambda d: d.value / d.limit)
    assert worst.value <= worst.limit, worst


def test_all_stored_tensors_were_compared(deviations):
    compared = {name: len(rows) for name, rows in deviations.items()}
    assert compared == {
        "aux.safetensors": 8, "fm_scheduler.safetensors": 32, "forward_finetune.safetensors": 29,
        "forward_pretrain.safetensors": 9, "train_step.safetensors": 66, "inference.safetensors": 20,
        "extra_vae.safetensors": 6, "extra_t5.safetensors": 4, "extra_vlm.safetensors": 11,
    }


def _copy(golden_dir, tmp_path, change):
    """The golden folder with `change` applied to its parameters; without the encoders, which take long."""
    for path in (golden_dir / "golden_a").glob("*.safetensors"):
        if path.name.startswith("extra_"):
            continue
        tensors = load_file(path)
        if path.name == "params.safetensors":
            change(tensors)
        save_file(tensors, tmp_path / path.name)
    return tmp_path


def test_a_changed_weight_is_found(golden_dir, tmp_path, capsys):
    def change(tensors):
        tensors["action_expert.blocks.1.modulation"] = tensors["action_expert.blocks.1.modulation"] + 1e-3

    folder = _copy(golden_dir, tmp_path, change)
    with pytest.raises(UserError, match="deviate"):
        convert.main(["convert", "verify", f"--golden={folder}", f"--config={golden_dir / 'config_a.json'}"])
    assert "FAILED forward_finetune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("und_expert.blocks.0.ffn.0.bias"), "missing.*und_expert.blocks.0.ffn.0.bias"),
        (lambda t: t.update(extra=np.zeros(1, np.float32)), "not expected.*extra"),
        (lambda t: t.update({"action_expert.registers": np.zeros((1, 3, 64), np.float32)}), "registers.*shape"),
    ],
)
def test_the_map_is_strict(golden_dir, tmp_path, change, message):
    folder = _copy(golden_dir, tmp_path, change)
    with pytest.raises(UserError, match=message):
        golden.verify(folder, golden_dir / "config_a.json")


def test_export_is_the_inverse_of_import(golden_dir):
    tensors = load_file(golden_dir / "golden_a" / "params.safetensors")
    tensors.pop(motus.POSITION_BUFFER)
    config = golden.model_config(json.loads((golden_dir / "config_a.json").read_text()), "finetune")
    rules = motus.rules(config)
    back = to_public(to_tree(tensors, rules, config.depth), rules, config.depth)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def _table(golden_dir, keep):
    rows = [line.split("\t") for line in (golden_dir / "checkpoint_params.tsv").read_text().splitlines()[1:]]
    return {name: tuple(map(int, shape.split("x"))) for name, shape, kind, mode in rows if keep(name, kind)}


def test_names_and_shapes_of_the_8b_release(golden_dir):
    experts = ("video_model.", "action_expert.", "und_expert.")
    public = _table(golden_dir, lambda name, kind: name.startswith(experts) and kind == "param")
    config = get_variant("5b")
    ours = {name: rule.shape for rule in motus.rules(config) for name in rule.names(config.depth)}
    assert ours == public


def test_names_and_shapes_of_umt5(golden_dir):
    public = _table(golden_dir, lambda name, kind: name.startswith("T5:"))
    ours = {f"T5:{name}": rule.shape for rule in umt5.rules(XXL) for name in rule.names(XXL.depth)}
    assert ours == public
    assert sum(int(np.prod(shape)) for shape in ours.values()) == 5_680_910_336


def test_text_encoder_equals_the_release(golden_dir):
    tensors = load_file(golden_dir / "golden_a" / "extra_t5_params.safetensors")
    data = load_file(golden_dir / "golden_a" / "extra_t5.safetensors")
    vocabulary, width = tensors["token_embedding.weight"].shape
    heads = tensors["blocks.0.pos_embedding.embedding.weight"].shape[1]
    config = TextEncoderConfig(vocabulary, width, heads, width // heads, tensors["blocks.0.ffn.fc1.weight"].shape[0], 2)
    params = to_tree(tensors, umt5.rules(config), config.depth)
    mask = data["in.mask"].astype(bool)
    out = jax.jit(TextEncoder(config).apply)({"params": params}, data["in.ids"], mask)
    np.testing.assert_allclose(out, data["out.hidden"] * mask[..., None], atol=5e-5)
    buckets = position_buckets(512, 32, 128)
    np.testing.assert_array_equal(buckets[0], data["aux.bucket_row0_512"])
    np.testing.assert_array_equal(buckets[511], data["aux.bucket_row511_512"])
    np.testing.assert_array_equal(position_buckets(16, 32, 128), data["aux.bucket_small"])
    initial = jax.eval_shape(TextEncoder(config).init, jax.random.key(0), data["in.ids"], mask)["params"]
    assert {k: v.shape for k, v in flatten(initial).items()} == {k: v.shape for k, v in flatten(params).items()}
