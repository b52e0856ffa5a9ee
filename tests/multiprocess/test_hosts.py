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

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import lerobot_fixture

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "motus_jax.train", "--config=experiments/debug.py", "--config.log_every=1"]
PATIENCE = 400
"""Seconds for what takes one minute on two cores."""

pytestmark = pytest.mark.thorough


def variables(devices, cache, **more):
    """One thread a process; programs are compiled once for all that have the same devices."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_multi_thread_eigen=false"
    fixed = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    return os.environ | fixed | {"JAX_COMPILATION_CACHE_DIR": str(cache)} | more


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(count, workdir, cache, *changes):
    """`count` processes with one device each."""
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [*COMMAND, f"--workdir={workdir}", *changes], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=variables(1, cache / str(number), **address, JAX_PROCESS_ID=str(number)),
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


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    dataset = lerobot_fixture.write(tmp_path_factory.mktemp("data") / "dataset")
    return [f"--config.data.path={dataset}", "--config.steps=6", "--config.checkpoint.every=3",
            "--config.validate_every=6"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, changes, cache):
    """One process with two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    subprocess.run([*COMMAND, f"--workdir={workdir}", *changes], cwd=REPOSITORY, env=variables(2, cache / "alone"),
                   check=True, stdout=subprocess.PIPE)  # fmt: skip
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory, changes, cache):
    workdir = tmp_path_factory.mktemp("two")
    first, second = finish(start(2, workdir, cache, *changes))
    assert "{'replica': 1, 'fsdp': 2, 'tensor': 1} on 2 x cpu" in first and "trained to step 6" in first
    assert "step " not in second, "only process 0 tells the story"
    return workdir


def test_two_processes_have_the_losses_of_one(alone, two):
    """Of training and validation: each host reads its half of every batch."""
    ours, theirs = (metrics.read_curve(workdir / "metrics.jsonl") for workdir in (two, alone))
    assert [row.keys() for row in ours] == [row.keys() for row in theirs] and len(ours) >= 6
    for our, their in zip(ours, theirs):
        assert our == pytest.approx(their, rel=1e-5, abs=1e-7)


def test_the_checkpoint_of_two_processes_is_that_of_one(alone, two):
    ours, theirs = (checkpoint.load_for_inference(workdir) for workdir in (two, alone))
    flat = [{path: leaf for path, leaf in checkpoint.tree.flatten(one.params).items()} for one in (ours, theirs)]
    assert flat[0].keys() == flat[1].keys()
    for path, leaf in flat[0].items():
        np.testing.assert_allclose(leaf, flat[1][path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_sigterm_on_one_host_stops_both_after_saving_and_one_process_goes_on(alone, changes, cache, tmp_path):
    """The notice of a preemption reaches one host; the run then goes on with another number of hosts."""
    # Validation would compile: not what is measured here.
    changes = [*changes, "--config.steps=2000", "--config.validate_every=0", "--config.checkpoint.every=1500"]
    processes = start(2, tmp_path, cache, *changes)
    lines = []
    for line in processes[0].stdout:
        lines.append(line)
        if re.match(r"step [4-9]/", line):
            break
    assert processes[0].poll() is None, "".join(lines)
    processes[1].send_signal(signal.SIGTERM)
    told, _ = finish(processes, code=143)
    stopped = int(re.search(r"stopped by SIGTERM after step (\d+); saved", told)[1])
    assert checkpoint.available_steps(tmp_path) == [stopped]
    changes = [*changes, f"--config.steps={stopped + 2}"]
    done = subprocess.run([*COMMAND, f"--workdir={tmp_path}", *changes], cwd=REPOSITORY, check=True, text=True,
                          env=variables(2, cache / "alone"), stdout=subprocess.PIPE)  # fmt: skip
    assert f"restored step {stopped}" in done.stdout and f"trained to step {stopped + 2}" in done.stdout
    expected, found = losses(alone), losses(tmp_path)
    # The schedule knows how long the run is: only the first step has the same rate.
    assert found[1] == pytest.approx(expected[1], rel=1e-5) and sorted(found) == list(range(1, stopped + 3))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"JAX_PROCESS_ID": "0"}, "error: JAX_PROCESS_ID is set: expected JAX_COORDINATOR_ADDRESS, "),
        ({"MOTUS_HOSTS": "all"}, "error: MOTUS_HOSTS: expected auto, or nothing for a single host; found 'all'"),
        ({"MOTUS_HOSTS": "auto"}, "error: the hosts of this run could not be joined: "),
    ],
)
def test_hosts_that_cannot_be_joined(given, message, tmp_path, cache):
    done = subprocess.run([*COMMAND, f"--workdir={tmp_path}"], cwd=REPOSITORY, env=variables(1, cache, **given),
                          capture_output=True, text=True, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(message), done.stderr
    assert json.dumps(done.stderr).count("\\n") == 1
