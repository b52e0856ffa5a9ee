"""Public checkpoints of every kind into our trees: every key accounted for, bad ones refused with nothing written."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from public_weights import CHUNK, as_bfloat16, assert_bits_equal, public_tensors, targets, with_aliases
from safetensors.numpy import save_file

from motus_jax import convert
from motus_jax.errors import UserError
from motus_jax.models.config import get_variant
from motus_jax.models.motus import Motus
from motus_jax.weights import importer, kinds, matching, motus, tree
from motus_jax.weights.name_map import to_tree
from motus_jax.weights.sources import open_source

STATE = ("action_expert.registers", "action_expert.input_encoder.state_encoder.")


def run_import(folder, tensors, kind, *arguments, variant="debug"):
    """Saves and imports; the workdir."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "x.safetensors")
    return import_source(folder / "x.safetensors", folder, kind, *arguments, variant=variant)


def import_source(source, folder, kind, *arguments, variant="debug"):
    workdir = folder / "workdir"
    convert.main(["convert", "import", f"--source={source}", f"--kind={kind}", f"--variant={variant}",
                  f"--workdir={workdir}", *arguments])  # fmt: skip
    return workdir


def expected_tree(tensors, kind):
    """By the other way there is: the whole map at once, in memory."""
    config = get_variant("debug", {"action": {"state_dim": None, "registers": 0}} if kind == "motus_stage2" else {})
    tensors = {name: value for name, value in tensors.items() if name != motus.POSITION_BUFFER}
    return to_tree(tensors, motus.rules(config), config.depth)


@pytest.mark.parametrize("kind", ["motus_stage2", "motus_stage3"])
def test_a_release_with_its_aliases(tmp_path, kind, capsys):
    tensors = public_tensors(kind)
    workdir = run_import(tmp_path, with_aliases(tensors), kind)
    restored = importer.load_imported(workdir, targets(kinds.parts_of(kind, "debug")))
    assert_bits_equal(restored["motus"], expected_tree(tensors, kind))
    (record,) = importer.read_report(workdir)
    assert record["keys"].keys() == with_aliases(tensors).keys()
    becomes = {name: row["becomes"] for name, row in record["keys"].items()}
    name = "video_model.wan_model.blocks.1.ffn.0.weight"
    assert becomes[name] == "motus/layers/video/ffn/dense_0/kernel[1]"
    assert becomes[f"action_module.{name}"] == f"equal to {name}"
    assert "checked" in becomes[motus.POSITION_BUFFER]
    assert record["subtrees"]["motus"]["chunk"] == CHUNK
    assert record["subtrees"]["motus"]["parameters"] == sum(v.size for v in tensors.values()) - tensors[
        motus.POSITION_BUFFER].size  # fmt: skip
    out, progress = capsys.readouterr()
    assert "motus/layers/action" in out and "report.json" in out and "imported 0.00 of" in progress


def test_the_tree_is_the_models(tmp_path):
    config = get_variant("debug")
    b, frames, side = 1, 2, 2
    shapes = jax.eval_shape(
        Motus(config).init, jax.random.key(0), np.zeros((b, frames, side, side, 8)), np.zeros((b, CHUNK, 14)),
        np.zeros((b, 14)), np.zeros(b), np.zeros(b), np.zeros((b, 3, 16)), None, np.zeros((b, 3, 16)), None,
    )["params"]  # fmt: skip
    (part,) = kinds.parts_of("motus_stage3", "debug")
    abstract = part.abstract({leaf.path: np.float32 for leaf in part.leaves})
    assert {path: leaf.shape for path, leaf in tree.flatten(abstract).items()} == {
        path: leaf.shape for path, leaf in tree.flatten(shapes).items()
    }


@pytest.mark.parametrize("prefix", ["", "wan_model.", "video_model.wan_model.", "dit."])
def test_stage_1_under_any_prefix(tmp_path, prefix):
    tensors = public_tensors("motus_stage1")
    workdir = run_import(tmp_path, {prefix + name: value for name, value in tensors.items()}, "motus_stage1")
    restored = importer.load_imported(workdir, targets(kinds.parts_of("motus_stage1", "debug")))["motus"]
    whole = public_tensors("motus_stage3") | {f"video_model.wan_model.{name}": v for name, v in tensors.items()}
    expected = tree.flatten(expected_tree(whole, "motus_stage3"))
    assert_bits_equal(restored, {path: expected[path] for path in tree.flatten(restored)})
    assert set(restored) == {"video", "layers"} and set(restored["layers"]) == {"video"}


@pytest.mark.parametrize(("dtype", "kept"), [((), "float32"), (("--dtype=source",), "bfloat16"),
                                             (("--dtype=bfloat16",), "bfloat16")])  # fmt: skip
def test_types(tmp_path, dtype, kept):
    tensors = as_bfloat16(public_tensors("motus_stage3"))
    workdir = run_import(tmp_path, tensors, "motus_stage3", *dtype)
    kept = jax.numpy.dtype(kept)
    restored = importer.load_imported(workdir, targets(kinds.parts_of("motus_stage3", "debug"), kept))["motus"]
    expected = expected_tree(tensors, "motus_stage3")
    assert_bits_equal(restored, jax.tree.map(lambda x: x.astype(kept), expected))
    assert {leaf["dtype"] for leaf in importer.imported_leaves(workdir)["motus"].values()} == {kept.name}


def test_layers_of_two_types_need_a_decision(tmp_path):
    tensors = public_tensors("wan")
    name = "blocks.1.ffn.0.weight"
    tensors[name] = tensors[name].astype(ml_dtypes.bfloat16)
    with pytest.raises(UserError, match=r"blocks\.0\.ffn\.0\.weight' is float32 and 'blocks\.1.*bfloat16.*--dtype"):
        run_import(tmp_path, tensors, "wan", "--dtype=source")
    assert not (tmp_path / "workdir").exists()


def test_second_import_into_one_workdir(tmp_path):
    """Another subtree joins the first; the same one is refused, and the first stays."""
    workdir = run_import(tmp_path, public_tensors("wan"), "wan")
    before = (workdir / "imported" / "report.json").read_text()
    with pytest.raises(UserError, match="motus exists: expected a workdir without it"):
        run_import(tmp_path, public_tensors("motus_stage3"), "motus_stage3")
    assert (workdir / "imported" / "report.json").read_text() == before
    text = kinds.text_part(SMALL_TEXT)
    save_text(tmp_path / "text.safetensors", text)
    source = open_source(tmp_path / "text.safetensors")
    importer.import_weights(matching.match(source, "umt5", [text]), [text], workdir, one_device)
    assert set(importer.imported_leaves(workdir)) == {"motus", "text_encoder"}
    assert sorted(path.name for path in (workdir / "imported").iterdir()) == ["motus", "report.json", "text_encoder"]


SMALL_TEXT = kinds.TextEncoderConfig(vocabulary=32, width=16, heads=2, head_dim=8, mlp=24, depth=2)


def save_text(path, part):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in part.public().items()}
    save_file(as_bfloat16(tensors), path)


def one_device(abstract):
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract)


def without(tensors, *prefixes):
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def changed(tensors, name, value):
    return tensors | {name: value}


BLOCK = "action_expert.blocks.1.modulation"
REFUSED = {
    "a missing tensor": (
        lambda t: without(t, BLOCK), (),
        rf"found 130 of them; the first missing is '{BLOCK}' of shape \(1, 6, 16\)",
    ),
    "another shape": (
        lambda t: changed(t, BLOCK, np.zeros((1, 6, 17), np.float32)), (),
        rf"tensor '{BLOCK}' in .*: expected shape \(1, 6, 16\), found \(1, 6, 17\)",
    ),
    "an integer type": (
        lambda t: changed(t, BLOCK, np.zeros((1, 6, 16), np.int8)), (),
        rf"tensor '{BLOCK}' in .*: expected a floating-point type, found int8",
    ),
    "an alias that differs": (
        lambda t: changed(with_aliases(t), f"action_module.{BLOCK}", t[BLOCK] + 1), (),
        rf"tensor 'action_module\.{BLOCK}' must equal '{BLOCK}'.*expected float32 with mean .* found float32 with mean",
    ),
    "an alias of another shape": (
        lambda t: changed(with_aliases(t), f"action_module.{BLOCK}", t[BLOCK][:, :5]), (),
        rf"tensor 'action_module\.{BLOCK}' in .*: expected shape \(1, 6, 16\), found \(1, 5, 16\)",
    ),
    "another position table": (
        lambda t: changed(t, motus.POSITION_BUFFER, t[motus.POSITION_BUFFER] + 0.01), (),
        r"pos_embedding' in .*: expected the sine-cosine table.*found a deviation of 1\.0e-02",
    ),
    "a position table of another width": (
        lambda t: changed(t, motus.POSITION_BUFFER, t[motus.POSITION_BUFFER][..., :8]), (),
        r"pos_embedding' in .*: expected shape \(1, T \+ 6, 16\), found \(1, 22, 8\)",
    ),
    "stage 2 for stage 3": (
        lambda t: public_tensors("motus_stage2", chunk=8), (),
        r"no --kind=motus_stage3: .*first missing is 'action_expert\.input_encoder\.state_encoder.*--kind=motus_stage2",
    ),
    "stage 1 for stage 3": (
        lambda t: public_tensors("motus_stage1"), (), "none of its 69 names.*it has the names of --kind=wan",
    ),
    "a LoRA adapter": (
        lambda t: {"action_expert.blocks.0.wan_action_o.lora_A": np.zeros((8, 32), np.float32)}, (),
        "wan_action_o.lora_A' is a LoRA adapter: import the base weights",
    ),
    "a LoRA adapter beside other names": (
        lambda t: {BLOCK: t[BLOCK], "action_expert.blocks.0.wan_action_o.lora_A": np.zeros((8, 32), np.float32)}, (),
        "first missing is .*; 'action_expert.blocks.0.wan_action_o.lora_A' is a LoRA adapter",
    ),
    "a name that is left over": (
        lambda t: changed(t, "extra.weight", np.zeros(3, np.float32)), (),
        r"1 tensors are left over.*first is 'extra\.weight' of shape \(3,\); name what may be skipped with --allow",
    ),
    "a name that another regex allows": (
        lambda t: changed(t, "extra.weight", np.zeros(3, np.float32)), ("--allow=other.*",),
        r"--allow=other\.\* matches no name that is left over",
    ),
    "a bad regex": (
        lambda t: changed(t, "extra.weight", np.zeros(3, np.float32)), ("--allow=(",), "not a regular expression",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REFUSED))
def test_refused_with_nothing_written(tmp_path, case):
    change, arguments, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        run_import(tmp_path, change(public_tensors("motus_stage3")), "motus_stage3", *arguments)
    assert not (tmp_path / "workdir").exists()


def test_stage_3_for_stage_2(tmp_path):
    with pytest.raises(UserError, match=r"tensors are left over.*it has the names of --kind=motus_stage3"):
        run_import(tmp_path, public_tensors("motus_stage3"), "motus_stage2")


def test_allowed_names_are_skipped(tmp_path):
    tensors = public_tensors("motus_stage3") | {"extra.weight": np.zeros(3, np.int32)}
    workdir = run_import(tmp_path, tensors, "motus_stage3", "--allow=extra.*")
    assert importer.read_report(workdir)[0]["keys"]["extra.weight"]["becomes"] == "skipped (--allow)"


def test_a_failure_after_the_first_subtree_leaves_nothing(tmp_path):
    """Both parts are built from one source; the alias that differs is in the second."""
    wan, text = kinds.wan_part(get_variant("debug")), kinds.text_part(SMALL_TEXT)
    rng = np.random.default_rng(0)
    public = {name: rng.standard_normal(shape, np.float32) for p in (wan, text) for name, shape in p.public().items()}
    save_file(public | {"tied": public["norm.weight"] + 1}, tmp_path / "x.safetensors")
    parts = [wan, dataclasses.replace(text, tied={"tied": "norm.weight"})]
    matched = matching.match(open_source(tmp_path / "x.safetensors"), "wan", parts)
    with pytest.raises(UserError, match=r"tensor 'tied' must equal 'norm\.weight'"):
        importer.import_weights(matched, parts, tmp_path / "workdir", one_device)
    assert not (tmp_path / "workdir" / "imported").exists()


def test_one_size_kinds_have_one_size(tmp_path):
    with pytest.raises(UserError, match="--kind=umt5 has one size"):
        run_import(tmp_path, {"a": np.zeros(1, np.float32)}, "umt5")


def test_what_load_imported_refuses(tmp_path):
    with pytest.raises(UserError, match="import weights first"):
        importer.load_imported(tmp_path, {})
    workdir = run_import(tmp_path, public_tensors("wan"), "wan")
    asked = targets(kinds.parts_of("wan", "debug"))
    with pytest.raises(UserError, match="expected an imported 'vlm', found motus"):
        importer.load_imported(workdir, {"vlm": asked["motus"]})
    for shape in ((2, 3), None):
        odd = {"video": {"patch_embedding": {"kernel" if shape else "new": jax.ShapeDtypeStruct((2, 3), np.float32)}}}
        found = r"\[32, 32\]" if shape else "no such leaf"
        with pytest.raises(UserError, match=rf"patch_embedding/.*expected shape \(2, 3\), found {found}"):
            importer.load_imported(workdir, {"motus": odd})
    report = workdir / "imported" / "report.json"
    report.write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="expected format 1, found 99"):
        importer.read_report(workdir)


def test_part_of_a_subtree_is_loaded(tmp_path):
    """As a run does that starts its video expert from Wan."""
    workdir = run_import(tmp_path, public_tensors("wan"), "wan")
    asked = {"motus": {"video": targets(kinds.parts_of("wan", "debug"))["motus"]["video"]}}
    assert set(importer.load_imported(workdir, asked)["motus"]) == {"video"}


EIGHT = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from motus_jax import convert
from motus_jax.weights import importer, kinds
assert jax.device_count() == 8
source, workdir, reference = map(pathlib.Path, sys.argv[1:])
convert.main(["convert", "import", f"--source={source}", "--kind=motus_stage3", "--variant=demo",
              f"--workdir={workdir}", '--overrides={"depth": 2}'])
(part,) = kinds.parts_of("motus_stage3", "demo", {"depth": 2})
abstract = part.abstract({leaf.path: np.float32 for leaf in part.leaves})
one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
ask = lambda place: {"motus": jax.tree.map(
    lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, place)}
split = importer.load_imported(workdir, ask(convert._place(abstract)))
kernel = split["motus"]["layers"]["video"]["ffn"]["dense_0"]["kernel"]
assert len({str(shard.index) for shard in kernel.addressable_shards}) == 8, kernel.sharding
whole = importer.load_imported(workdir, ask(jax.tree.map(lambda _: one, abstract)))
jax.tree.map(np.testing.assert_array_equal, split, whole)
np.savez(reference, **{path: np.asarray(leaf) for path, leaf in importer.tree.flatten(whole).items()})
"""


def test_eight_devices(tmp_path):
    """Imported onto eight devices, restored onto eight and onto one: the same numbers."""
    shallow = {"depth": 2}
    tensors = public_tensors("motus_stage3", variant="demo", overrides=shallow)
    save_file(tensors, tmp_path / "x.safetensors")
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"}
    command = [sys.executable, "-c", EIGHT, tmp_path / "x.safetensors", tmp_path / "workdir", tmp_path / "x.npz"]
    subprocess.run(command, env=environment, check=True)
    config = get_variant("demo", shallow)
    del tensors[motus.POSITION_BUFFER]
    expected = tree.flatten({"motus": to_tree(tensors, motus.rules(config), config.depth)})
    found = np.load(tmp_path / "x.npz")
    assert set(found) == set(expected)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
