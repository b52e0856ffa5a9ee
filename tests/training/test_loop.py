"""Whole runs of the fake system in this process: what is written, what is refused, what is compiled."""

import dataclasses
import json
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from fake_run import CONTRACT, FRAMES, FakeSystem, get_config, make_data
from orbax.checkpoint import v1 as ocp

from motus_jax.errors import UserError
from motus_jax.modes import MODES
from motus_jax.training import checkpoint, loop, metrics
from motus_jax.weights import tree


def train(workdir, make_data=make_data, **changes):
    config = get_config()
    config.update_from_flattened_dict(changes)
    return loop.train(config, workdir, FakeSystem, make_data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps and the names of what it compiled."""
    workdir, compiled = tmp_path_factory.mktemp("finished") / "run", []
    handler = logging.Handler()
    handler.emit = lambda record: compiled.append(record.getMessage())
    logger = logging.getLogger("jax._src.interpreters.pxla")
    logger.addHandler(handler)
    with jax.log_compiles():
        assert train(workdir)
    logger.removeHandler(handler)
    return workdir, compiled


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copy")


def snapshot(workdir):
    return {path: path.read_bytes() for path in sorted(workdir.rglob("*")) if path.is_file()}


def test_a_run_compiles_each_function_once(finished):
    _, compiled = finished
    assert sum("Compiling jit(train_step)" in line for line in compiled) == 1
    assert sum("Compiling jit(eval_step)" in line for line in compiled) == 1


def test_a_run_writes_its_curve_validation_config_and_timing(finished):
    workdir, _ = finished
    curve = metrics.read_curve(workdir / "metrics.jsonl")
    assert [row["step"] for row in curve if "loss" in row] == [3, 6, 9, 12]
    validated = [row for row in curve if "val/vla/loss" in row]
    assert [row["step"] for row in validated] == [6, 12]
    assert {f"val/{mode}/loss" for mode in MODES} <= validated[0].keys()
    assert json.loads((workdir / "config.json").read_text())["steps"] == 12
    timing = metrics.read_curve(workdir / "timing.jsonl")
    assert {"examples_per_second", "data_wait_share", "rss_gib"} <= timing[0].keys() and timing[-1]["finished"]
    assert list((workdir / "tensorboard").glob("events*"))
    assert checkpoint.available_steps(workdir) == [10, 12]


def test_a_finished_run_says_so_and_does_nothing(copy, capsys):
    before = snapshot(copy)
    assert train(copy)
    assert "is trained to step 12 of 12" in capsys.readouterr().out
    assert snapshot(copy) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.width": 32}, r"config\.model\.width: .* trained with 64, expected the same, found 32"),
        ({"data.noise": 1.0}, r"config\.data\.noise"),
        ({"optimizer.schedule.peak": 1.0}, r"config\.optimizer\.schedule\.peak"),
    ],
)
def test_another_config_is_refused(copy, changes, message):
    before = snapshot(copy)
    with pytest.raises(UserError, match=message):
        train(copy, steps=20, **changes)
    assert snapshot(copy) == before


def test_what_is_younger_than_a_checkpoint_must_be_off(tmp_path):
    now = get_config()
    now.noise = {"endpoint_probability": 0.02, "prefix": {"probability": 0.0, "longest": 0}}
    saved = {"config": checkpoint.config_to_json(now)}
    del saved["config"]["noise"]["prefix"], saved["config"]["optimizer"]["mu_dtype"]
    checkpoint.check_same_run(saved, now, tmp_path)
    now.optimizer.mu_dtype = "bfloat16"
    with pytest.raises(UserError, match=r"config\.optimizer\.mu_dtype: .* trained with 'float32', .* found 'bfloat16'"):
        checkpoint.check_same_run(saved, now, tmp_path)
    now.optimizer.mu_dtype = "float32"
    now.noise.prefix.probability = 0.5
    with pytest.raises(UserError, match=r"config\.noise\.prefix\.probability: .* trained with 0.0, .* found 0.5"):
        checkpoint.check_same_run(saved, now, tmp_path)


def test_another_contract_is_refused(copy):
    def other_data(config, contracts):
        data = make_data(config)
        contracts = {"data": CONTRACT.to_json() | {"action_hz": 30.0}}
        return loop.Data(data.batches, data.validation, data.codec_frames, contracts)

    before = snapshot(copy)
    with pytest.raises(UserError, match=r"'action_hz': expected 10\.0 .*found 30\.0"):
        train(copy, other_data, steps=20)
    assert snapshot(copy) == before


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(copy, finished, capsys):
    for file in (copy / "checkpoints" / "12").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    assert checkpoint.load_for_inference(copy).step == 10
    assert train(copy)
    output = capsys.readouterr().out
    assert "12 is damaged, trying the one before" in output and "restored step 10" in output
    assert (copy / "damaged_checkpoints" / "12").is_dir()
    assert checkpoint.available_steps(copy) == [10, 12]
    assert (copy / "metrics.jsonl").read_bytes() == (finished[0] / "metrics.jsonl").read_bytes()


def test_only_damaged_checkpoints_are_an_error_and_stay(copy):
    for step in (10, 12):
        (copy / "checkpoints" / str(step) / "meta" / "data.json").write_text("{")
    before = snapshot(copy)
    with pytest.raises(UserError, match=r"none of the checkpoints 10, 12 .* can be read"):
        train(copy, steps=20)
    assert snapshot(copy) == before


def test_another_format_is_refused(copy):
    path = copy / "checkpoints" / "12" / "meta" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"expected format 3, found 99; .*train again"):
        checkpoint.load_for_inference(copy)


def test_load_for_inference_gives_average_frozen_config_and_contract(finished):
    loaded = checkpoint.load_for_inference(finished[0])
    assert loaded.step == 12 and loaded.contract() == CONTRACT.to_json()
    assert loaded.config.optimizer.frozen == ("video/fixed/.*",) and loaded.config == get_config()
    assert loaded.frozen["codec"]["mean"].shape == (2, 2, 3)
    config = get_config()
    params = FakeSystem(config).init(jax.random.key(config.seed))
    assert tree.flatten(loaded.params).keys() == tree.flatten(params).keys()
    np.testing.assert_array_equal(loaded.params["video"]["fixed"]["kernel"], params["video"]["fixed"]["kernel"])
    assert not np.allclose(loaded.params["action"]["dense"]["kernel"], params["action"]["dense"]["kernel"])
    assert checkpoint.load_for_inference(finished[0], step=10).step == 10


def test_frozen_parts_are_written_once_and_in_no_checkpoint(finished):
    workdir, _ = finished
    for step in checkpoint.available_steps(workdir):
        parts = {path.name for path in (workdir / "checkpoints" / str(step)).iterdir() if path.is_dir()}
        assert parts == {"state", "data", "meta"}
        meta = checkpoint.read_meta(workdir / "checkpoints", step)
        assert meta["frozen"] == {"codec/mean": [[2, 2, 3], "float32"]} and meta["fingerprints"].keys() == {"codec"}
    assert checkpoint.leaf_shapes(workdir)["codec/mean"] == (2, 2, 3)
    leaf = jax.ShapeDtypeStruct((2, 2, 3), np.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    found = checkpoint.load_leaves(workdir, {"codec/mean": leaf})
    np.testing.assert_array_equal(found["codec/mean"], FakeSystem(get_config()).fit_frozen(FRAMES)["codec"]["mean"])


def test_a_fitted_part_is_taken_from_an_earlier_run_where_a_row_says_so(finished, tmp_path):
    def other_data(config, contracts=None):
        data = make_data(config, contracts)
        return dataclasses.replace(data, codec_frames=lambda: 255 - FRAMES)

    def codec(**changes):
        workdir = tmp_path / str(len(changes))
        assert train(workdir, other_data, steps=1, **changes)
        return checkpoint.load_for_inference(workdir).frozen["codec"]["mean"]

    own = FakeSystem(get_config()).fit_frozen(FRAMES)["codec"]["mean"]
    np.testing.assert_allclose(codec(), 255 - own, rtol=1e-5)
    np.testing.assert_array_equal(codec(init_from=(("codec/.*", str(finished[0])),)), own)


def lose(folder):
    shutil.rmtree(folder)


def empty(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def replace(folder):
    ocp.save(folder, {"codec": {"mean": jax.numpy.ones((2, 2, 3))}}, overwrite=True)


@pytest.mark.parametrize(
    ("damage", "found"),
    [(lose, "no such folder"), (empty, "a damaged one"), (replace, "weights of codec that differ")],
)
def test_frozen_parts_that_cannot_be_used_are_one_error(copy, damage, found):
    damage(copy / "frozen")
    before = snapshot(copy / "checkpoints")
    message = rf"/frozen: expected the frozen parts that this run's start wrote; found {found}.*; restore a copy"
    with pytest.raises(UserError, match=message):
        checkpoint.load_for_inference(copy)
    with pytest.raises(UserError, match=message):
        train(copy, steps=20)
    assert snapshot(copy / "checkpoints") == before, "no checkpoint is taken for damaged"


def test_a_start_that_never_came_to_a_checkpoint_leaves_no_frozen_parts_behind(tmp_path):
    """Those of another dataset, say; the run that comes after has its own."""
    ocp.save(tmp_path / "run" / "frozen", {"other": {"x": jax.numpy.ones(3)}})
    train(tmp_path / "run", steps=1)
    assert checkpoint.load_for_inference(tmp_path / "run").frozen.keys() == {"codec"}


def test_load_for_inference_names_what_is_missing(finished, tmp_path):
    with pytest.raises(UserError, match=r"no checkpoint of step 11 .*found steps 10, 12"):
        checkpoint.load_for_inference(finished[0], step=11)
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint.load_for_inference(tmp_path)


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(copy):
    def broken_data(config, contracts):
        broken = config.copy_and_resolve_references()
        broken.data.noise = float("inf")
        return make_data(broken)

    before = snapshot(copy / "checkpoints")
    with pytest.raises(UserError, match=r"training stopped: loss = inf.* at step 13 "):
        train(copy, broken_data, steps=20)
    assert snapshot(copy / "checkpoints") == before


def test_hidden_transfers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop.sharding, "put_batch", lambda batch, mesh: dict(batch))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path / "run")


def test_sigterm_saves_and_the_next_run_goes_on(tmp_path, capsys, monkeypatch):
    next_batch, calls = loop._next_batch, []

    def terminate_at_the_fourth(run):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return next_batch(run)

    monkeypatch.setattr(loop, "_next_batch", terminate_at_the_fourth)
    assert train(tmp_path / "run") is False
    assert checkpoint.available_steps(tmp_path / "run") == [4]
    assert "stopped by SIGTERM after step 4; saved" in capsys.readouterr().out
    assert train(tmp_path / "run", steps=6)
    assert "restored step 4" in capsys.readouterr().out
