"""The menu in docs/tpu.md is what was committed, and what was committed is of the steps that the benchmark has."""

import json
import pathlib

import pytest

from benchmarks import tpu_menu, tpu_table

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMITTED = json.loads((REPOSITORY / tpu_menu.OUT).read_text())["rows"]
BASE = json.loads((REPOSITORY / tpu_table.OUT).read_text())["rows"][tpu_menu.BASE]


def test_the_page_has_the_table_of_the_committed_rows(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    text = (REPOSITORY / tpu_table.DOCS).read_text()
    begin, end = tpu_menu.MARKS
    assert text.split(begin)[1].split(end)[0] == tpu_menu.table(COMMITTED)


def test_rows_are_of_the_step_with_one_thing_changed():
    assert COMMITTED and COMMITTED.keys() <= tpu_menu.ROWS.keys()
    for name, row in COMMITTED.items():
        changes = tpu_menu.CHANGES[name]
        for key in ("device", "devices", "batch_size", "trained_parameters", "features"):
            assert row[key] == BASE[key], name
        assert row["remat"] == changes.get("model.overrides.remat", "full")
        assert row["optimizer"] == changes.get("optimizer.name", "adamw")
        assert row["accumulate"] == changes.get("optimizer.accumulate", 1)
        assert (row["host_state_bytes"] > 0) is ("optimizer.offload" in changes)


def test_what_is_offloaded_leaves_the_devices_and_crosses_twice_a_step():
    for name, row in COMMITTED.items():
        if row["host_state_bytes"]:
            assert row["state_bytes"] + row["host_state_bytes"] == BASE["state_bytes"], name
            if "fits" not in row:
                continue
            assert row["host_bytes"] == pytest.approx(row["host_state_bytes"], rel=0.02)
            assert row["host_traffic_bytes"] == pytest.approx(2 * row["host_state_bytes"], rel=0.02)
