"""A run kept in a bucket: the same as one on disk, killed and resumed, with faults, and read by whoever samples."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from fake_run import FakeSystem, get_config, make_data

from benchmarks.gcs_server import GcsServer
from motus_jax.data import run_path
from motus_jax.errors import UserError
from motus_jax.training import checkpoint, initial, loop, metrics, workdir
from motus_jax.weights import tree

REPOSITORY = pathlib.Path(__file__).parents[2]
FAKE = [sys.executable, str(pathlib.Path(__file__).with_name("fake_run.py"))]


@pytest.fixture(scope="module")
def server():
    with GcsServer() as server:
        yield server


@pytest.fixture(scope="module")
def runs(server, tmp_path_factory):
    """The same run on disk and in a bucket."""
    bucket, local = server.make_bucket("bucket-of-runs"), tmp_path_factory.mktemp("runs") / "run"
    config = get_config()
    for home in (str(local), f"{bucket}/some/run"):
        assert loop.train(config, home, FakeSystem, make_data)
    return local, f"{bucket}/some/run"


def curve(text):
    return [json.loads(line) for line in text.splitlines()]


def assert_same(local, remote):
    ours, theirs = checkpoint.load_for_inference(remote), checkpoint.load_for_inference(local)
    assert ours.step == theirs.step and ours.contracts == theirs.contracts
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.frozen, theirs.frozen)
    home = run_path.of(remote)
    assert curve((home / "metrics.jsonl").read_text()) == metrics.read_curve(pathlib.Path(local) / "metrics.jsonl")


def test_as_on_disk(runs):
    local, remote = runs
    assert_same(local, remote)
    home = run_path.of(remote)
    assert checkpoint.available_steps(remote) == checkpoint.available_steps(local) == [10, 12]  # keep is 2
    assert json.loads((home / "config.json").read_text()) == json.loads((local / "config.json").read_text())
    assert sum(1 for _ in home.glob("tensorboard/*")) == 1 and not (home / ".writable").exists()
    assert loop.train(get_config(), remote, FakeSystem, make_data)  # done already


def test_what_starts_from_it(runs, server):
    local, remote = runs
    origins = [initial.open_origin(run_path.of(home)) for home in (str(local), remote)]
    assert origins[0].shapes == origins[1].shapes and origins[0].description == origins[1].description
    targets = tree.flatten(tree.abstract(checkpoint.read_meta(local / "checkpoints", 12)["parameters"]))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    targets = {path: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for path, s in targets.items()}
    jax.tree.map(np.testing.assert_array_equal, *(origin.load(targets) for origin in origins))


def test_killed_and_resumed_under_faults(runs, server):
    """The command as a user calls it, killed after its first checkpoint; every request may fail now and then."""
    local, _ = runs
    remote = f"{server.make_bucket('bucket-of-kills')}/run"
    command = [*FAKE, f"--workdir={remote}", "--config.log_every=3"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as run:
        for line in run.stdout:
            if line.startswith("step 9/"):
                run.kill()
        run.wait()
    assert run.returncode == -9
    server.faults(rate=0.02, kinds=("status",))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    server.faults()
    assert done.returncode == 0, done.stderr
    assert_same(local, remote)


def test_a_damaged_checkpoint_is_set_aside(runs, server):
    remote = f"{server.make_bucket('bucket-of-damage')}/run"
    assert loop.train(get_config(), remote, FakeSystem, make_data)
    home = run_path.of(remote)
    (home / "checkpoints" / "12" / "meta" / "data.json").write_text("{")
    config = get_config()
    config.steps = 14
    assert loop.train(config, remote, FakeSystem, make_data)
    assert checkpoint.available_steps(remote) == [10, 14]
    assert (home / "damaged_checkpoints" / "12" / "meta" / "data.json").read_text() == "{"
    rows = curve((home / "metrics.jsonl").read_text())
    assert [row["step"] for row in rows if "loss" in row] == [3, 6, 9, 12, 14]


def test_refusals(server, tmp_path):
    with pytest.raises(UserError, match=r"gs://no-such-bucket/run: expected a bucket that exists; found none"):
        loop.train(get_config(), "gs://no-such-bucket/run", FakeSystem, make_data)
    with pytest.raises(UserError, match=r"no checkpoint in gs://no-such-bucket/run"):
        checkpoint.load_for_inference("gs://no-such-bucket/run")
    home = run_path.of("gs://bucket/run")
    with pytest.raises(UserError, match=r"--out: expected a folder of this machine, since gs://bucket/run is in"):
        workdir.local_out(home, None)
    assert workdir.local_out(home, str(tmp_path)) == tmp_path and workdir.local_out(tmp_path, None) == tmp_path
