"""The search for the largest batch ends at it, with few compilations; the page has what was committed."""

import json
import pathlib

import pytest

from benchmarks import tpu_batch, tpu_table

REPOSITORY = pathlib.Path(__file__).parents[2]
COMMITTED = json.loads((REPOSITORY / tpu_batch.OUT).read_text())["rows"]


@pytest.mark.parametrize("grain", [1, 2, 4])
@pytest.mark.parametrize("bend", [0.0, 0.002, -0.001])
@pytest.mark.parametrize("limit", [30, 64, 95.7])
def test_the_largest_batch_is_found(grain, bend, limit):
    def measure(batch):
        used = 5.5 + 0.7 * batch + bend * batch**2
        row = {"batch_of_one_device": batch, "state_bytes": 5.5, "fits": used <= limit}
        # Of what it refuses the compiler says what it needs at the peak; sums of the others are up to a half more.
        return row | (
            {"used_bytes": (1.2 + batch / 200) * used, "peak_bytes": used} if used <= limit else {"used_bytes": used}
        )

    first = measure(16)
    rows = [{key: value for key, value in first.items() if key != "peak_bytes"}]
    while (batch := tpu_batch.next_batch(rows, grain, limit)) is not None:
        assert batch not in [row["batch_of_one_device"] for row in rows]
        rows.append(measure(batch))
    best = max(row["batch_of_one_device"] for row in rows if row["fits"])
    refused = min(row["batch_of_one_device"] for row in rows if not row["fits"])
    assert 1 <= refused - best <= grain
    assert len(rows) <= 9


def test_the_page_has_the_table_of_the_committed_rows(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    begin, end = tpu_batch.MARKS
    assert (REPOSITORY / tpu_table.DOCS).read_text().split(begin)[1].split(end)[0] == tpu_batch.table(COMMITTED)


def test_rows_are_of_the_step_with_another_batch(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert COMMITTED
    for key, row in COMMITTED.items():
        name, _, batch = key.rpartition(", ")
        base = tpu_batch.known(name, {})[0]
        for field in ("device", "devices", "trained_parameters", "features", "accumulate", "remat", "optimizer"):
            assert row[field] == base[field], key
        assert row["batch_size"] == int(batch) * row["devices"]
        assert row["state_bytes"] == base["state_bytes"]
        assert row["fits"] or row["used_bytes"] > row["limit_bytes"]
