"""The full 8B model by names and shapes: the release's list, our tree over eight devices, and files of its size."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from motus_jax import convert
from motus_jax.errors import UserError
from motus_jax.models.config import get_variant
from motus_jax.models.motus import Motus
from motus_jax.models.text_encoder import XXL, TextEncoder
from motus_jax.models.video_vae import VideoVae
from motus_jax.models.vlm import QWEN3_VL_2B
from motus_jax.training import sharding
from motus_jax.weights import exporter, kinds, matching, motus, tree, wan_vae
from motus_jax.weights.sources import open_source

CHUNK = 16
STAGES = {"motus_stage3": ("finetune", CHUNK, 1990), "motus_stage2": ("pretrain", 8, 1983)}
"""Kind -> form in the table, actions, rows."""


@pytest.fixture(scope="module")
def table(golden_dir):
    """Rows of the release: (name, shape, kind, form)."""
    lines = (golden_dir / "checkpoint_params.tsv").read_text().splitlines()[1:]
    return [tuple(line.split("\t")) for line in lines]


def rows_of(table, form):
    return [f"{name}\t{shape}" for name, shape, _, mode in table if mode in ("both", form)]


@pytest.mark.parametrize("kind", list(STAGES))
def test_shapes_prints_the_release_row_by_row(table, kind, capsys):
    form, chunk, count = STAGES[kind]
    convert.main(["convert", "shapes", "--variant=5b", f"--kind={kind}", f"--chunk={chunk}"])
    ours, counts = capsys.readouterr()
    expected = rows_of(table, form)
    assert len(expected) == count and sorted(ours.splitlines()) == sorted(expected)
    assert "video_model: 4,999,787,712 parameters" in counts and "vlm: 2,127,532,032 parameters" in counts


def test_shapes_by_default_are_the_fine_tuned_release(table, capsys):
    convert.main(["convert", "shapes", "--variant=5b"])
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(rows_of(table, "finetune"))


@pytest.mark.parametrize(("kind", "prefix"), [("umt5", "T5:"), ("wan_vae", "VAE:"), ("wan", "video_model.wan_model."),
                                              ("qwen3_vl", "vlm_model.")])  # fmt: skip
def test_shapes_of_the_separate_files(table, kind, prefix, capsys):
    convert.main(["convert", "shapes", f"--kind={kind}"])
    expected = [f"{name.removeprefix(prefix)}\t{shape}" for name, shape, *_ in table if name.startswith(prefix)]
    assert expected and sorted(capsys.readouterr().out.splitlines()) == sorted(expected)


def abstract_trees():
    """What the full-size models themselves create, without computing anything."""
    config = get_variant("5b")
    video, text = (1, 2, 4, 4, 48), config.video.text_width
    experts = jax.eval_shape(
        Motus(config).init, jax.random.key(0), np.zeros(video), np.zeros((1, CHUNK, 14)), np.zeros((1, 14)),
        np.zeros(1), np.zeros(1), np.zeros((1, 3, text)), None, np.zeros((1, 3, 2048)), None,
    )["params"]  # fmt: skip
    tokens = np.zeros((1, 4), np.int32)
    encoder = jax.eval_shape(TextEncoder(XXL).init, jax.random.key(0), tokens, tokens > 0)["params"]
    codec = jax.eval_shape(VideoVae(wan_vae.RELEASE).init, jax.random.key(0))
    return {"motus": experts, "text_encoder": encoder, "video_codec": codec}


def test_the_full_tree_is_the_models_and_lies_over_eight_devices():
    """Every leaf that the maps name, no other, in the same shape; and at most an eighth and a little per device."""
    mesh = AbstractMesh((1, 8, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    trees = abstract_trees()
    parts = {part.subtree: part for kind in ("motus_stage3", "umt5", "wan_vae") for part in kinds.parts_of(kind)}
    for subtree, ours in trees.items():
        ours, mapped = tree.flatten(ours), {leaf.path: leaf.shape for leaf in parts[subtree].leaves}
        assert {path: leaf.shape for path, leaf in ours.items()} == mapped
        rules = sharding.FROZEN_RULES if subtree == "video_codec" else sharding.RULES
        total = local = 0
        for path, shape in mapped.items():
            spec = sharding.spec_for(f"{subtree}/{path}", shape, mesh, rules)
            total += np.prod(shape, dtype=np.int64)
            local += np.prod(NamedSharding(mesh, spec).shard_shape(shape), dtype=np.int64)
        assert local < 1.02 * total / 8


def write_by_shape(part, folder, contract):
    """An export of the full size without its bytes: real headers and index, and holes where the tensors would be."""
    shapes = part.abstract({leaf.path: ml_dtypes.bfloat16 for leaf in part.leaves})
    entries = exporter.entries(part, shapes, CHUNK)
    where = {}
    for file, shard in exporter.plan_shards(entries, 5 * 10**9).items():
        with (folder / file).open("wb") as stream:
            exporter.write_header(stream, shard, {"format": "pt", "motus_contract": contract})
            stream.truncate(stream.tell() + sum(entry.nbytes for entry in shard))
        where |= dict.fromkeys((entry.name for entry in shard), file)
    (folder / exporter.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return shapes


def test_the_full_tree_is_written_and_read_back_by_shape(tmp_path, table):
    """16 GB of bfloat16 in shards: names and shapes written from our tree give our tree again."""
    parts = kinds.parts_of("motus_stage3")
    sources = {}
    for part in parts:
        folder = tmp_path / part.subtree
        folder.mkdir()
        shapes = write_by_shape(part, folder, "{}")
        sources |= open_source(folder).tensors
        found = {leaf.path: leaf.shape for leaf in part.leaves}
        assert {path: leaf.shape for path, leaf in tree.flatten(shapes).items()} == found
    source = open_source(tmp_path / "motus")
    assert len(source.files) == 3 and sum(stored.nbytes for stored in source.tensors.values()) > 11 * 10**9
    whole = type(source)(tmp_path, sources, source.files)
    matched = matching.match(whole, "motus_stage3", parts)
    read = {f"{name}\t{'x'.join(map(str, sources[name].shape))}" for name in matched.used()}
    assert read == set(rows_of(table, "finetune"))
    assert matched.names.keys() == {name for part in parts for name in part.public()} | {motus.POSITION_BUFFER}


def test_one_shard_less_is_noticed(tmp_path):
    part = kinds.vlm_part(QWEN3_VL_2B)
    write_by_shape(part, tmp_path, "{}")
    source = open_source(tmp_path)
    lost = {name: stored for name, stored in source.tensors.items() if "layers.27." not in name}
    with pytest.raises(UserError, match=r"first missing is 'model\.language_model\.layers\.27\."):
        matching.match(type(source)(tmp_path, lost, source.files), "qwen3_vl", [part])
