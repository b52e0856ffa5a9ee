"""Goodput over restarts, stalls, traces, programs compiled, and the operations that MFU is computed from."""

import json
import shutil
import time

import jax
import pytest
from fake_run import FakeSystem, get_config, make_data

from experiments import phase2
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.training import absent, flops, loop, metrics, telemetry
from motus_jax.weights import tree


def train(workdir, **changes):
    config = get_config()
    config.update_from_flattened_dict(changes)
    return loop.train(config, workdir, FakeSystem, make_data)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A run of 12 steps that lost its last checkpoint and was started again."""
    workdir = tmp_path_factory.mktemp("twice") / "run"
    assert train(workdir)
    shutil.rmtree(workdir / "checkpoints" / "12")
    time.sleep(0.2)
    assert train(workdir)
    return workdir


def test_the_ledger_goes_on_over_a_restart(twice):
    first, second = json.loads((twice / telemetry.ATTEMPTS).read_text())
    assert (first["first"], first["last"], second["first"], second["last"]) == (0, 12, 10, 12)
    report = metrics.read_curve(twice / "timing.jsonl")[-1]["run"]
    assert report["lost"] == pytest.approx(first["seconds"]["step"] * 2 / 12, abs=0.002)
    assert report["down"] >= 0.2 and 0 < report["goodput"] < 1
    parts = sum(seconds for name, seconds in report.items() if name not in ("wall", "goodput"))
    assert parts == pytest.approx(report["wall"], rel=0.02, abs=0.1)


def test_goodput():
    """100 s of which 30 count: 10 of the first attempt's 20 were for nothing, 30 nobody was there."""
    attempts = [
        {"begun": 0.0, "seen": 30.0, "first": 0, "last": 20, "seconds": {"step": 20.0, "init": 10.0}},
        {"begun": 60.0, "seen": 100.0, "first": 10, "last": 30, "seconds": {"step": 20.0, "init": 15.0, "wall": 40.0}},
    ]  # fmt: skip
    found = telemetry.goodput(attempts)
    assert found == {"steps": 30, "lost": 10, "down": 30, "init": 25, "wall": 100, "goodput": 0.3}  # fmt: skip
    assert telemetry.goodput([{"begun": 0, "seen": 1, "first": 0, "last": 0, "seconds": {}}])["goodput"] == 0


def test_nothing_is_compiled_once_every_function_has_run(tmp_path):
    """Not by later validations and not by checkpoints: each function runs once within the first six steps."""
    assert train(tmp_path, **{"steps": 24, "validate_every": 6, "checkpoint.every": 5, "log_every": 2})
    rows = {row["step"]: row["compiled_programs"] for row in metrics.read_curve(tmp_path / "timing.jsonl")}
    later = {step: count for step, count in rows.items() if step > 6}
    assert len(later) >= 5 and set(later.values()) == {max(rows.values())}


def test_a_stall_is_told_once(tmp_path, capsys):
    with telemetry.Watchdog(0.3, tmp_path) as watchdog:
        for _ in range(8):
            time.sleep(0.1)
            watchdog.alive()
        assert not list(tmp_path.iterdir())
        time.sleep(0.8)
    (file,) = tmp_path.iterdir()
    assert "test_a_stall_is_told_once" in file.read_text() and file.name.startswith("stall.0.")
    assert capsys.readouterr().err.count("nothing has happened for") == 1


def test_a_trace_of_some_steps(tmp_path, capsys):
    assert train(tmp_path, **{"profile.first": 4, "profile.steps": 2, "steps": 6, "validate_every": 0})
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert f"trace of steps 4 to 5 in {tmp_path / 'profile'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"stall_seconds": -1.0}, r"config\.stall_seconds"), ({"profile.steps": -1}, r"config\.profile: expected first")],
)  # fmt: skip
def test_bad_settings(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tmp_path, **changes)


def test_the_progress_says_what_share_of_the_peak_is_used():
    ledger = metrics.Ledger()
    progress = metrics.Progress(10, 4, ledger, 0)
    assert "mfu" not in progress.report(1)
    progress.operations, progress.peak = 3e12, 100e12
    time.sleep(0.1)
    speed = progress.report(3)
    assert speed["tflops_per_device"] == pytest.approx(3 / speed["seconds_per_step"])
    assert speed["mfu"] == pytest.approx(0.03 / speed["seconds_per_step"])
    assert f"MFU {speed['mfu']:.1%}  eta" in progress.line(3, {"loss": 1.0}, speed)


@pytest.mark.thorough
@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_of_the_full_width_model_are_those_that_the_compiler_counts(remat):
    """Two layers of it, unrolled, since XLA counts the body of a scan once. Nothing is compiled."""
    config = phase2.get_config()
    config.batch_size = 1
    config.model.overrides.update({"depth": 2, "scan_unroll": 2, "remat": remat})
    system = System(config)
    params = jax.eval_shape(system.init, jax.random.key(0))
    batch = absent.batch_shapes(config, system, features=True)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def gradient(params, batch, key):
        return jax.grad(lambda params: system.loss(tree.overlay({}, params), {}, batch, key)[0])(params)

    theirs = jax.jit(gradient).lower(params, batch, key).cost_analysis()["flops"]
    assert flops.count(gradient, params, batch, key) == pytest.approx(theirs, rel=0.02)
    useful = flops.of_training(System, config, params, {}, batch, key)
    again = flops.count(gradient, params, batch, key) / useful
    assert again == pytest.approx(1, rel=1e-6) if remat == "none" else 1.2 < again < 1.34
