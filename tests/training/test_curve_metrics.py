"""The curve across crashes, the non-finite check, and the clock."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.training import metrics


def scalars(value):
    return {"loss": jnp.float32(value), "loss/band": jnp.float32(np.nan if value < 2 else value)}


def write_curve(directory, start, rows, first, last):
    """Steps first..last in windows of 3; returns what the open window holds."""
    writer = metrics.Writer(directory, start)
    curve = metrics.Curve(writer, rows)
    for step in range(first, last + 1):
        curve.add(step, scalars(step))
        if step % 3 == 0:
            curve.end_window(step)
    curve.flush()
    writer.close()
    return curve.rows


def test_a_window_is_the_same_when_a_restart_falls_into_it(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for directory in (unbroken, broken):
        directory.mkdir()
    write_curve(unbroken, 0, [], 1, 9)
    rows = write_curve(broken, 0, [], 1, 5)
    write_curve(broken, 5, json.loads(json.dumps(rows)), 6, 7)  # lost: computed again below
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # cut short by a crash
    write_curve(broken, 5, json.loads(json.dumps(rows)), 6, 9)
    assert (broken / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    curve = metrics.read_curve(unbroken / "metrics.jsonl")
    assert curve[0] == {"step": 3, "loss": 2.0, "loss/band": 2.5}  # NaN is left out of the mean
    assert [row["step"] for row in curve] == [3, 6, 9]


def test_windows_are_read_one_late(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    curve = metrics.Curve(writer, [])
    curve.add(1, scalars(1))
    assert curve.end_window(1) is None and not (tmp_path / "metrics.jsonl").exists()
    curve.add(2, scalars(2))
    assert curve.end_window(2) == (1, pytest.approx({"loss": 1.0, "loss/band": np.nan}, nan_ok=True))
    writer.close()


def test_a_loss_that_is_not_finite_stops_with_its_name_and_steps(tmp_path):
    writer = metrics.Writer(tmp_path, 0)
    curve = metrics.Curve(writer, [])
    for step, value in ((4, 1.0), (5, np.inf)):
        curve.add(step, {"loss": jnp.float32(value), "loss/video": jnp.float32(value)})
    with pytest.raises(UserError, match=r"loss = inf, loss/video = inf at step 5 .*steps 4-5"):
        curve.flush()
    writer.close()


def test_the_ledger_adds_up():
    ledger = metrics.Ledger()
    with ledger.time("step"):
        pass
    report = ledger.report()
    assert report["wall"] == pytest.approx(sum(v for name, v in report.items() if name != "wall"), abs=0.005)


def test_progress_measures_steps_and_not_checkpoints(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    ledger = metrics.Ledger()
    progress = metrics.Progress(total_steps=100, batch_size=8, ledger=ledger, start_step=10)
    for name, seconds in (("step", 3.0), ("data_wait", 1.0), ("checkpoint", 50.0)):
        with ledger.time(name):
            clock[0] += seconds
    speed = progress.report(14)
    assert speed["seconds_per_step"] == 1.0 and speed["examples_per_second"] == 8.0
    assert speed["data_wait_share"] == 0.25 and speed["eta_seconds"] == 86.0
    line = progress.line(14, {"loss": 1.5, "loss/video": 0.5, "loss/action": math.nan, "lr": 0.1}, speed)
    assert "loss 1.5000  loss/video 0.5000  8.0 examples/s" in line, "no action loss where there are no actions"
    assert "step 14/100 (14%)" in line and "loss 1.5000" in line and "eta 0:01:26" in line
