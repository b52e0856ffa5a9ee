"""One run of several processes on 127.0.0.1: the same losses as one process with as many devices, and the same data."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from motus_jax.training import checkpoint, metrics
from motus_jax.weights import tree

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import lerobot_fixture

REPOSITORY = pathlib.Path(__file__).parents[2]
FAKE = [sys.executable, str(REPOSITORY / "tests" / "training" / "fake_run.py"), "--config.log_every=1"]
REAL = [sys.executable, "-m", "motus_jax.train", "--config=experiments/debug.py", "--config.log_every=1"]
SHORT = ["--config.steps=6", "--config.checkpoint.every=3"]
PATIENCE = 400
"""Seconds for what takes a minute on two cores."""


def variables(devices, **more):
    """One thread a process."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    flags += f" {os.environ['XLA_FLAGS']}"
    fixed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return os.environ | fixed | more


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(count, command, workdir):
    """`count` processes with one device each."""
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=variables(1, **address, JAX_PROCESS_ID=str(number)),
        )
        for number in range(count)
    ]  # fmt: skip


def finish(processes, code=0):
    """What each printed, once all are done."""
    printed = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), "\n".join(printed)
    return printed


def losses(workdir):
    return {row["step"]: row["loss"] for row in metrics.read_curve(workdir / "metrics.jsonl") if "loss" in row}


def alone(command, workdir):
    """One process with two devices; what it printed."""
    done = subprocess.run([*command, f"--workdir={workdir}"], cwd=REPOSITORY, env=variables(2), check=True, text=True,
                          stdout=subprocess.PIPE, timeout=PATIENCE)  # fmt: skip
    return done.stdout


def assert_same_run(ours, theirs):
    """Curves and averaged parameters, to the rounding of sums in another order."""
    rows = [metrics.read_curve(workdir / "metrics.jsonl") for workdir in (ours, theirs)]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]] and len(rows[0]) >= 6
    for our, their in zip(*rows):
        assert our == pytest.approx(their, rel=1e-5, abs=1e-7)
    flat = [tree.flatten(checkpoint.load_for_inference(workdir).params) for workdir in (ours, theirs)]
    assert flat[0].keys() == flat[1].keys()
    for path, leaf in flat[0].items():
        np.testing.assert_allclose(leaf, flat[1][path], rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.thorough
def test_two_processes_make_the_run_of_one(tmp_path):
    """Losses of training and validation, and the checkpoint; only process 0 tells the story."""
    command = [*FAKE, "--config.steps=12"]
    first, second = finish(start(2, command, tmp_path / "two"))
    assert "{'replica': 1, 'fsdp': 2, 'tensor': 1} on 2 x cpu" in first and "trained to step 12" in first
    assert "step " not in second
    alone(command, tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.heavy
def test_two_processes_make_the_run_of_one_with_the_real_model(tmp_path):
    """Each host reads its half of every batch of a dataset; the run goes on with another number of hosts."""
    dataset = lerobot_fixture.write(tmp_path / "dataset")
    # Where a gradient is nothing but rounding, AdamW would take a whole step of it; this `eps` lets it stay rounding.
    command = [*REAL, f"--config.data.path={dataset}", *SHORT, "--config.validate_every=0",
               "--config.optimizer.eps=0.01"]  # fmt: skip
    finish(start(2, command, tmp_path / "two"))
    alone(command, tmp_path / "one")
    assert_same_run(tmp_path / "two", tmp_path / "one")
    for run in ("one", "two"):
        assert "restored step 6" in alone([*command, "--config.steps=8"], tmp_path / run)
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.thorough
def test_sigterm_on_one_host_stops_both_after_saving(tmp_path):
    """The notice of a preemption reaches one host; the same command goes on."""
    command = [*FAKE, "--config.steps=100000", "--config.checkpoint.every=90000", "--config.validate_every=0"]
    processes = start(2, command, tmp_path)
    lines = []
    for line in processes[0].stdout:
        lines.append(line)
        if re.match(r"step \d\d/", line):
            break
    assert processes[0].poll() is None, "".join(lines)
    processes[1].send_signal(signal.SIGTERM)
    told, _ = finish(processes, code=143)
    stopped = int(re.search(r"stopped by SIGTERM after step (\d+); saved", told)[1])
    assert checkpoint.available_steps(tmp_path) == [stopped]
    told = finish(start(2, [*command, f"--config.steps={stopped + 2}"], tmp_path))[0]
    assert f"restored step {stopped}" in told and f"trained to step {stopped + 2}" in told
    assert [row["step"] for row in metrics.read_curve(tmp_path / "metrics.jsonl")] == list(range(1, stopped + 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "error: JAX_PROCESS_ID is set: expected JAX_COORDINATOR_ADDRESS, "),
        ({"MOTUS_HOSTS": "all"}, "error: MOTUS_HOSTS: expected auto, or nothing for a single host; found 'all'"),
        ({"MOTUS_HOSTS": "auto"}, "error: the hosts of this run could not be joined: "),
    ],
)
def test_hosts_that_cannot_be_joined(given, message, tmp_path):
    done = subprocess.run([*FAKE, f"--workdir={tmp_path}"], cwd=REPOSITORY, env=variables(1, **given),
                          capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(message), done.stderr
    assert json.dumps(done.stderr).count("\\n") == 1
