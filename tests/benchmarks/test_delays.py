"""Where chunks take over, and what changes there, on targets that are known."""

import json

import numpy as np
import pytest

from benchmarks import delays
from motus_jax.evaluation import acting_record, acting_setup
from tests.evaluation import synthetic

EVERY = 2


@pytest.mark.parametrize(("delay", "looks"), [(0, 3), (1, 3), (2, 3)])
def test_jumps_are_where_a_chunk_takes_over(delay, looks):
    """Chunk k is at k + 0.1 tick, and reaches the robot `delay` ticks after its look."""
    ticks = np.arange(looks * EVERY)
    chunk_of = np.maximum((ticks - delay) // EVERY, 0)
    targets = np.stack([chunk_of + 0.1 * ticks, 0 * ticks], 1)
    at_seams, within = delays.changes(targets, EVERY, delay)
    np.testing.assert_allclose(at_seams, np.full(chunk_of[-1], 1.1))
    np.testing.assert_allclose(within, np.full(len(ticks) - 1 - chunk_of[-1], 0.1))


def test_what_is_left_of_an_evaluation_is_read(tmp_path):
    contract, folder = synthetic.contract(), tmp_path / acting_record.FOLDER
    assert acting_setup.executed(contract) == EVERY
    (folder / "episodes").mkdir(parents=True)
    own = {"successes": 3, "episodes": 4, "interval": [0.3, 0.95], "reward": 0.8, "seconds_per_answer": 0.1}
    (folder / acting_record.RESULTS).write_text(json.dumps({"policies": {"vla": own}}))
    (folder / acting_record.MANIFEST).write_text(json.dumps({"policies": {"vla": "new"}}))
    chunks = np.zeros((2, contract.chunk, contract.raw_action_dim))
    chunks[1] = 2.0
    np.savez(folder / "episodes" / "vla_reach_0_new.npz", chunks=chunks, executed=[2, 1])
    np.savez(folder / "episodes" / "vla_reach_0_old.npz", chunks=9 * chunks, executed=[2, 1])
    row = delays.result(tmp_path, contract, 0)
    assert (row["successes"], row["jump"], row["step"], row["seams"]) == (3, 2.0, 0.0, 1)
    assert delays.line("naive, delay 0", row).startswith("naive, delay 0           3 of 4 (30 to 95 %)")


def test_what_a_model_cannot_do_is_left_out():
    assert list(delays.ways(2, ["hard"])) == ["naive", "blend", "average", "hard"]
    assert delays.ways(0, ["hard"]) == {"at once": []}
