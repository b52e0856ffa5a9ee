"""DPFlow's public file through the converter: in, out, and what is refused."""

import jax
import numpy as np
import pytest
from dpflow_fixture import weights
from public_weights import assert_bits_equal, targets
from safetensors.numpy import load_file

from motus_jax import convert
from motus_jax.errors import UserError
from motus_jax.models.flow_network import VARIANTS
from motus_jax.weights import dpflow, importer, kinds, name_map

torch = pytest.importorskip("torch")

GROUPS = dpflow.groups(VARIANTS["debug"])


def public():
    return weights({name: rule.shape for rules, depth in GROUPS for rule in rules for name in rule.names(depth)})


def import_(folder, tensors, *arguments):
    """As ptlflow lays the file out: a checkpoint of Lightning's."""
    folder.mkdir()
    state = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
    torch.save({"epoch": 3, "state_dict": state}, folder / "dpflow-things.ckpt")
    convert.main(["convert", "import", f"--source={folder / 'dpflow-things.ckpt'}", "--kind=dpflow",
                  f"--workdir={folder / 'workdir'}", *arguments])  # fmt: skip
    return folder / "workdir"


def restored(workdir):
    return importer.load_imported(workdir, targets(kinds.parts_of("dpflow", "debug")))["flow_network"]


def test_import_export_import(tmp_path):
    tensors = public()
    workdir = import_(tmp_path / "in", tensors, "--variant=debug")
    assert_bits_equal(restored(workdir), name_map.groups_to_tree(tensors, GROUPS))
    (record,) = importer.read_report(workdir)
    assert record["keys"].keys() == tensors.keys() and record["layout"] == dpflow.PTLFLOW
    convert.main(["convert", "export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"])
    exported = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    assert_bits_equal(exported, tensors)


def test_the_way_back_is_bit_exact():
    tensors = public()
    back = name_map.groups_to_public(name_map.groups_to_tree(tensors, GROUPS), GROUPS)
    assert_bits_equal(back, tensors)


def test_what_is_missing_or_of_another_size_is_named(tmp_path):
    tensors = public()
    del tensors["fnet.up_gru.bias"]
    with pytest.raises(UserError, match=r"missing.*'fnet\.up_gru\.bias'"):
        import_(tmp_path / "lost", tensors, "--variant=debug")
    with pytest.raises(UserError, match=r"--kind=dpflow: expected --variant=5b or debug without overrides, found demo"):
        kinds.parts_of("dpflow", "demo")
    with pytest.raises(UserError, match=r"fnet\."):
        import_(tmp_path / "in", public())


def test_public_size(golden_dir):
    (part,) = kinds.parts_of("dpflow", kinds.FULL)
    assert sum(int(np.prod(shape)) for shape in part.public().values()) == 10_021_508
    abstract = part.abstract({leaf.path: np.float32 for leaf in part.leaves})
    assert len(jax.tree.leaves(abstract)) == len(part.leaves)
