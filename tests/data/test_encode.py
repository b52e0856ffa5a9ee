"""`python -m motus_jax.data encode`: what it writes, on one host or several, killed or not, and what it refuses."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import feature_setting
import jax
import lerobot_fixture
import numpy as np
import pytest
from feature_setting import snapshot

from motus_jax.data import encode_command, feature_files
from motus_jax.data.mixture import make_dataset
from motus_jax.errors import UserError
from motus_jax.models.system import System

REPOSITORY = feature_setting.TESTS.parent
BLOCK = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return lerobot_fixture.write(tmp_path_factory.mktemp("set") / "set")


@pytest.fixture(scope="module")
def config(dataset):
    return feature_setting.fitted(dataset)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """An encoding that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "features"
    encode_command.encode(config, out, block=BLOCK)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_records_are_what_the_encoders_make_of_the_frames(config, whole):
    index = feature_files.read_index(whole)
    system, dataset = System(config), make_dataset(config.data, "train")
    read = feature_files.Reader(whole, "train", index, ("latents", "frames"))
    assert index.tables["train"].rows == len(dataset.starts) == 100 and index.tables["test"].rows == 4
    parts = {"video_codec": feature_files.load_fitted(whole)["video_codec"]}
    for row in (0, 15, 16, 99):
        example = dataset.example(*dataset.starts[row].tolist())
        expected = jax.jit(system.encode_video)(parts, example["frames"][None])[0]
        np.testing.assert_allclose(read(row)["latents"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(read(row)["frames"], example["frames"][:1])


def test_simulated_hosts_write_the_same_bytes(config, whole, tmp_path):
    with pytest.raises(UserError, match=r"5 of 8 files are missing, the first .*train/00001"):
        encode_command.encode(config, tmp_path, block=BLOCK, host=0, hosts=3)
    with pytest.raises(UserError, match=r"an encoding that was not finished; .*does only what is missing"):
        feature_files.read_index(tmp_path)
    for host in (2, 1, 0):
        encode_command.encode(config, tmp_path, block=BLOCK, host=host, hosts=3)
    assert snapshot(tmp_path) == snapshot(whole)


def environment(devices):
    flags = f"--xla_force_host_platform_device_count={devices} {os.environ['XLA_FLAGS']}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.thorough
def test_two_processes_with_two_devices_each(dataset, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "address").write_text(f"127.0.0.1:{free.getsockname()[1]}")
    command = [sys.executable, feature_setting.__file__, str(dataset), str(tmp_path), str(tmp_path / "out")]
    hosts = [subprocess.Popen([*command, str(host)], env=environment(2), stderr=subprocess.PIPE) for host in (0, 1)]
    errors = [host.communicate(timeout=300)[1].decode() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors
    found, expected = snapshot(tmp_path / "out"), snapshot(whole)
    assert found.keys() == expected.keys()
    # Fingerprints of weights that are split over devices are those of whole ones.
    for name in (feature_files.INDEX, feature_files.FITTED):
        assert found[name] == expected[name]
    index = feature_files.read_index(whole)
    ours, theirs = (feature_files.Reader(out, "train", index, ("latents",)) for out in (tmp_path / "out", whole))
    for row in (3, 99):
        np.testing.assert_allclose(ours(row)["latents"], theirs(row)["latents"], rtol=1e-5, atol=1e-5)


def test_killed_and_run_again_makes_the_same_bytes(dataset, whole, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "motus_jax.data", "encode", "--config=experiments/debug.py", f"--out={out}"]
    command += [f"--config.data.path={dataset}", "--config.data.image_size=(32,64)", f"--block={BLOCK}"]
    settings = {"env": environment(1), "cwd": REPOSITORY, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **settings) as process:
        while process.poll() is None and not (out / "train" / "00001.array_record").exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    kept = {name: (out / name).stat().st_mtime_ns for name in snapshot(out) if name.endswith(".array_record")}
    assert 2 <= len(kept) < 8 and not (out / feature_files.INDEX).exists()
    done = subprocess.run(command, **settings, check=False)
    assert done.returncode == 0, done.stderr
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "what was there is not done again"
    assert snapshot(out) == snapshot(whole)


def test_a_second_run_fills_holes_and_nothing_else(config, whole, copy, capsys):
    (copy / "train" / "00002.array_record").unlink()
    encode_command.encode(config, copy, block=BLOCK)
    assert "encoded 16 of 16" in capsys.readouterr().err
    assert snapshot(copy) == snapshot(whole)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"block": 32}, r"features with block 32, found 16; use another folder"),
        ({}, {"dtype": "bfloat16"}, r"features with tables\.test\.arrays\.latents\.dtype 'bfloat16', found 'float32'"),
        ({"data.video_hz": 10.0}, {}, r"features with contract\.video_hz 10\.0, found 5\.0; use another folder"),
        ({"model.video_codec.whitening": 1.0}, {}, r"encoders\.video_codec\.whitening 1\.0, found 0\.0"),
        ({}, {"dtype": "float16"}, r"--dtype: expected float32 or bfloat16, found 'float16'"),
        ({}, {"batch_size": 0}, r"--batch_size: expected at least 1, found 0"),
    ],
)
def test_refuses(config, copy, changes, arguments, message):
    config, before = config.copy_and_resolve_references(), snapshot(copy)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        encode_command.encode(config, copy, **{"block": BLOCK} | arguments)
    assert snapshot(copy) == before
