"""Full-size steps compile for TPU slices that are not there, fit, and need what docs/tpu.md says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import tpu_table

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMITTED = json.loads((REPOSITORY / tpu_table.OUT).read_text())["rows"]

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'libtpu==0.0.42.*'"),
]


@pytest.mark.parametrize(
    ("name", "trained"), [("phase 1, v5litepod-64", 4_999_787_712), ("phase 2, v5p-32", 5_892_690_638)]
)
def test_the_step_fits_and_is_the_one_of_the_table(tmp_path, name, trained):
    expected, row = COMMITTED[name], tpu_table.ROWS[name]
    experiment, (topology, slices) = row.phase.replace(" ", ""), tpu_table.SLICES[row.slice]
    command = [sys.executable, "-m", "motus_jax.compile", f"--config=experiments/{experiment}.py",
               f"--topology={topology}", f"--num_slices={slices}", f"--out={tmp_path / 'found.json'}"]  # fmt: skip
    # A cached program would tell nothing of the compiler.
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["fits"]
    assert (found["batch_size"], found["devices"]) == (256, expected["devices"])
    assert found["trained_parameters"] == trained
    assert found["operations"] == pytest.approx(expected["operations"], rel=0.01)
    # The compiler's own choices, which may differ a little between its versions.
    assert found["used_bytes"] == pytest.approx(expected["used_bytes"], rel=0.05)
    assert found["state_bytes"] < found["peak_bytes"] <= found["used_bytes"]
    for kind, row in expected["collectives"].items():
        assert found["collectives"][kind]["slice_bytes"] == pytest.approx(row["slice_bytes"], rel=0.05)
    assert f"memory of one device, GiB\n  argument     {found['argument_bytes'] / 2**30:8.2f}" in done.stdout


@pytest.mark.heavy
def test_the_program_is_as_long_at_any_depth():
    """Layers are scanned: what is handed to the compiler does not grow with them."""
    script = """
from experiments import phase2
from motus_jax.training import absent
chips = absent.devices("v5p:2x2x4")
for depth in (2, 30):
    config = phase2.get_config()
    config.model.overrides.depth = depth
    print(len(absent.lower(config, chips, features=True).lowered.as_text().splitlines()))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shallow, deep = map(int, done.stdout.split())
    assert shallow == deep


def test_a_chip_is_one_device_whatever_its_generation():
    """Meshes are laid over chips: a v4 has two cores, which count as one device or no mesh can be made."""
    topologies = {"v4:2x2x4": 16, "v5e:4x4": 16, "v5p:2x2x4": 16, "v6e:4x4": 16}
    script = f"""
from motus_jax.training import absent
for topology in {list(topologies)}:
    print(len(absent.devices(topology)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [int(line) for line in done.stdout.split()] == list(topologies.values())
