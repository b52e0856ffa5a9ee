"""A run killed with SIGKILL at a random step goes on bit-exactly; another number of devices restores and agrees.

Once with the tiny fake system, often killed, and once with the real command on a tiny dataset.
"""

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

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import lerobot_fixture

REPOSITORY = pathlib.Path(__file__).parents[2]
FAKE = [sys.executable, str(REPOSITORY / "tests" / "training" / "fake_run.py"), "--config.log_every=1"]
REAL = [sys.executable, "-m", "motus_jax.train", "--config=experiments/debug.py", "--config.log_every=1"]
STEPS = 60


def environment(cache=None, devices=1):
    """One thread and the same compiled programs for all, so that the same program gives the same bits."""
    xla = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    xla += f" {os.environ['XLA_FLAGS']}"
    variables = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla, "PYTHONPATH": str(REPOSITORY)}
    if cache:
        variables |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return os.environ | variables


def run(command, workdir, environment):
    command = [*command, f"--workdir={workdir}"]
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_at(step, command, workdir, environment):
    """Starts a run and kills it once it has told of `step`; the step that it is killed in varies by a few.

    A save waits for the one before: beyond two intervals at least one checkpoint is complete.
    """
    command = [*command, f"--workdir={workdir}"]
    with subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for line in process.stdout:
            found = re.match(r"step (\d+)/", line)
            if found and int(found[1]) >= step:
                process.kill()
                break
        process.wait()
    assert process.returncode == -9


def assert_same_run(ours, theirs):
    assert (ours / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
    loaded = [checkpoint.load_for_inference(workdir) for workdir in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, loaded[0].params, loaded[1].params)
    jax.tree.map(np.testing.assert_array_equal, loaded[0].frozen, loaded[1].frozen)


def losses(workdir):
    return {row["step"]: row["loss"] for row in metrics.read_curve(workdir / "metrics.jsonl") if "loss" in row}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    run([*FAKE, f"--config.steps={STEPS}"], root / "unbroken", environment(root / "cache"))
    return root / "unbroken", root / "cache"


def test_killed_twice_and_restarted_is_bit_exact(unbroken, tmp_path):
    reference, cache = unbroken
    command = [*FAKE, f"--config.steps={STEPS}"]
    for step in sorted(random.Random(0).sample(range(11, STEPS - 10), 2)):
        kill_at(step, command, tmp_path, environment(cache))
    newest = checkpoint.available_steps(tmp_path)[-1]
    assert f"restored step {newest}\n" in run(command, tmp_path, environment(cache))
    assert_same_run(tmp_path, reference)


def test_eight_devices_agree_with_one_and_four_resume_them(unbroken, tmp_path):
    reference, cache = unbroken
    command = [*FAKE, f"--config.steps={STEPS}", "--config.checkpoint.every=50"]
    output = run(command, tmp_path, environment(cache, devices=8))
    assert "'fsdp': 8" in output and re.search(r"video/dense/kernel +64x128 +float32 +(- fsdp|fsdp -)", output)
    expected, found = losses(reference), losses(tmp_path)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    # Back to step 50, on four devices.
    (tmp_path / "checkpoints" / str(STEPS)).rename(tmp_path / "set_aside")
    output = run(command, tmp_path, environment(cache, devices=4))
    assert "'fsdp': 4" in output and "restored step 50" in output
    again = losses(tmp_path)
    assert again.keys() == expected.keys()
    np.testing.assert_allclose(list(again.values()), list(found.values()), rtol=1e-4)


@pytest.mark.thorough
def test_the_real_command_killed_and_restarted_is_bit_exact(tmp_path):
    dataset = lerobot_fixture.write(tmp_path / "dataset")
    # Validation would compile five more functions; the fake runs cover it.
    changes = ["--config.steps=12", "--config.checkpoint.every=3", "--config.validate_every=0"]
    command = [*REAL, f"--config.data.path={dataset}", *changes]
    kill_at(random.Random(1).randint(7, 10), command, tmp_path / "killed", environment())
    assert "restored step" in run(command, tmp_path / "killed", environment())
    run(command, tmp_path / "unbroken", environment())
    assert_same_run(tmp_path / "killed", tmp_path / "unbroken")
