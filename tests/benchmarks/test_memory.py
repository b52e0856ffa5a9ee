"""The committed memory table is of the steps that the benchmark has, and (heavy) of the step as it is today."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import memory
from motus_jax.training import absent

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMITTED = json.loads((REPOSITORY / "benchmarks" / "results" / "memory_aot.json").read_text())
SMALLEST = "lora16_batch1_h100"


def test_every_row_is_there_and_adds_up():
    assert list(COMMITTED["rows"]) == list(memory.ROWS)
    for name, row in COMMITTED["rows"].items():
        config = memory.ROWS[name].config
        assert row["batch_size"] == config.batch_size and row["remat"] == config.model.overrides.remat
        if "argument_bytes" in row:
            assert row["used_bytes"] == sum(row[part] for part in memory.PARTS)
        if not row["fits"]:
            assert row["used_bytes"] > row.get("limit_bytes", (1 - absent.RESERVED) * absent.MEMORY[row["chip"]])


def test_the_experiment_says_what_was_measured():
    text = (REPOSITORY / "experiments" / "lora.py").read_text()
    said = re.findall(r"batch (\d+) ([\d.]+) GB", text)
    assert len(said) > 2
    for batch, size in said:
        assert float(size) == round(COMMITTED["rows"][f"lora16_batch{batch}_h100"]["used_bytes"] / 1e9, 1)


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="benchmarks/memory.py says how")
def test_a_row_compiled_again_is_within_five_percent(tmp_path):
    out = tmp_path / "memory.json"
    command = [sys.executable, "-m", "benchmarks.memory", f"--out={out}", f"--row={SMALLEST}"]
    subprocess.run(command, cwd=REPOSITORY, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    found, expected = json.loads(out.read_text())["rows"][SMALLEST], COMMITTED["rows"][SMALLEST]
    assert abs(found["used_bytes"] / expected["used_bytes"] - 1) < 0.05
