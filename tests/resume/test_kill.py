"""A run killed with SIGKILL at a random step goes on bit-exactly; another number of devices restores and agrees."""

import os
import pathlib
import random
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from motus_jax.training import checkpoint, metrics

SCRIPT = pathlib.Path(__file__).parents[1] / "training" / "fake_run.py"
STEPS = 60


def command(workdir, *flags):
    return [sys.executable, str(SCRIPT), f"--workdir={workdir}", "--config.log_every=1", *flags]


def environment(cache, devices=1):
    """One thread and the same compiled programs for all, so that the same program gives the same bits."""
    xla = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    return os.environ | {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(SCRIPT.parents[2]),
    }  # fmt: skip


def run(workdir, cache, *flags, devices=1):
    return subprocess.run(
        command(workdir, *flags), env=environment(cache, devices), check=True, capture_output=True, text=True
    ).stdout


def kill_at(step, workdir, cache, *flags):
    """Starts the run and kills it once it has told of `step`; the step that it is killed in varies by a few."""
    with subprocess.Popen(
        command(workdir, *flags), env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            found = re.match(r"step (\d+)/", line)
            if found and int(found[1]) >= step:
                process.kill()
                break
        process.wait()
    assert process.returncode == -9


def losses(workdir):
    return {row["step"]: row["loss"] for row in metrics.read_curve(workdir / "metrics.jsonl") if "loss" in row}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    run(root / "unbroken", root / "cache", f"--config.steps={STEPS}")
    return root / "unbroken", root / "cache"


def test_killed_twice_and_restarted_is_bit_exact(unbroken, tmp_path):
    reference, cache = unbroken
    steps = f"--config.steps={STEPS}"
    for step in sorted(random.Random(0).sample(range(2, STEPS - 10), 2)):
        kill_at(step, tmp_path, cache, steps)
    assert f"restored step {checkpoint.available_steps(tmp_path)[-1]}" in run(tmp_path, cache, steps)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (reference / "metrics.jsonl").read_bytes()
    ours, theirs = (checkpoint.load_for_inference(workdir) for workdir in (tmp_path, reference))
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_eight_devices_agree_with_one_and_four_resume_them(unbroken, tmp_path):
    reference, cache = unbroken
    output = run(tmp_path, cache, f"--config.steps={STEPS}", "--config.checkpoint.every=50", devices=8)
    assert "'fsdp': 8" in output and re.search(r"video/dense/kernel +64x128 +float32 +(- fsdp|fsdp -)", output)
    expected, found = losses(reference), losses(tmp_path)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    # Back to step 50, on four devices.
    (tmp_path / "checkpoints" / str(STEPS)).rename(tmp_path / "set_aside")
    output = run(tmp_path, cache, f"--config.steps={STEPS}", devices=4)
    assert "'fsdp': 4" in output and "restored step 50" in output
    again = losses(tmp_path)
    assert again.keys() == expected.keys()
    np.testing.assert_allclose(list(again.values()), list(found.values()), rtol=1e-4)
