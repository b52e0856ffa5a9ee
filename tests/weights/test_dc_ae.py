"""DC-AE's public file through the converter: in, out, and the numbers that it computes afterwards."""

import jax
import numpy as np
import pytest
from dc_ae_fixture import NUMBERS, picture, weights
from public_weights import assert_bits_equal, targets
from safetensors.numpy import load_file, save_file

from motus_jax import convert
from motus_jax.errors import UserError
from motus_jax.models.flow_autoencoder import VARIANTS, FlowAutoencoder
from motus_jax.weights import dc_ae, importer, kinds
from motus_jax.weights.name_map import to_tree

SMALL = VARIANTS["debug"]
RULES = dc_ae.rules(SMALL)


def public(with_counters=True):
    shapes = {rule.source: rule.shape for rule in RULES}
    return weights(shapes | (dict.fromkeys(dc_ae.counters(SMALL), ()) if with_counters else {}))


def import_(folder, tensors, *arguments):
    """As diffusers lays the file out."""
    folder.mkdir()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    convert.main(["convert", "import", f"--source={folder}", "--kind=dc_ae", f"--workdir={folder / 'workdir'}",
                  *arguments])  # fmt: skip
    return folder / "workdir"


def restored(workdir):
    return importer.load_imported(workdir, targets(kinds.parts_of("dc_ae", "debug")))["flow_autoencoder"]


def test_import_gives_the_numbers_of_diffusers(tmp_path, golden_dir, capsys):
    tensors = public()
    workdir = import_(tmp_path / "in", tensors, "--variant=debug")
    params, expected = restored(workdir), np.load(golden_dir / NUMBERS)
    assert_bits_equal(params, to_tree(public(with_counters=False), RULES, 0))
    latent = FlowAutoencoder(SMALL).encode(params, picture())
    np.testing.assert_allclose(latent, expected["latent"], atol=1e-4 * expected["latent"].std())
    (record,) = importer.read_report(workdir)
    assert record["keys"].keys() == tensors.keys() and record["layout"] == dc_ae.DIFFUSERS
    for name in dc_ae.counters(SMALL):
        assert record["keys"][name] == {
            "becomes": "counter (nothing is computed from it)", "shape": [], "dtype": "int64",
        }  # fmt: skip
    assert "counter" in capsys.readouterr().out


def test_export_has_every_name_and_imports_again(tmp_path):
    tensors = public()
    workdir = import_(tmp_path / "in", tensors, "--variant=debug")
    convert.main(["convert", "export", f"--workdir={workdir}", f"--out={tmp_path / 'out'}"])
    exported = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    counters = dc_ae.counters(SMALL)
    assert_bits_equal(exported, tensors | {name: np.zeros((), np.int64) for name in counters})
    (part,) = kinds.parts_of("dc_ae", "debug")
    assert part.exported(16) == {name: tensor.shape for name, tensor in exported.items()}
    again = import_(tmp_path / "again", exported, "--variant=debug")
    jax.tree.map(np.testing.assert_array_equal, restored(again), restored(workdir))


def test_counters_may_be_absent_and_nothing_else(tmp_path):
    tensors = public(with_counters=False)
    restored(import_(tmp_path / "whole", tensors, "--variant=debug"))
    lost = {name: tensor for name, tensor in tensors.items() if not name.endswith("running_var")}
    with pytest.raises(UserError, match=r"first missing is 'decoder\.up_blocks\.1\.1\.norm\.running_var'"):
        import_(tmp_path / "lost", lost, "--variant=debug")
    more = tensors | {"encoder.conv_in.extra": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=r"left over.*'encoder\.conv_in\.extra'"):
        import_(tmp_path / "more", more, "--variant=debug")


@pytest.mark.parametrize("size", VARIANTS)
def test_every_size_by_name(size):
    (part,) = kinds.parts_of("dc_ae", kinds.FULL, {"size": size})
    assert part.public() == {rule.source: rule.shape for rule in dc_ae.rules(VARIANTS[size])}


def test_sizes_that_are_refused(tmp_path):
    for variant, overrides in (("demo", {}), ("5b", {"size": "f16"}), ("5b", {"channels": 8})):
        with pytest.raises(UserError, match=f"--kind=dc_ae: expected --variant=5b or debug.*f64c128.*found {variant}"):
            kinds.parts_of("dc_ae", variant, overrides)
    with pytest.raises(UserError, match=r"expected 459 tensors.*first missing"):
        import_(tmp_path / "in", public())
