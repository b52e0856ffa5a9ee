"""Jumps and errors are measured where they are, on answers that are known; what the committed result says."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import chunking
from motus_jax_client.fusion import FUSIONS

EVERY, COUNT, A = 4, 3, 2
TICKS = chunking.QUESTIONS * EVERY + EVERY
RECORDED = np.arange(TICKS)[None, :, None] * np.ones((COUNT, 1, A))
EPISODES = chunking.Episodes([], np.zeros(0), RECORDED, np.array([True, False]))


def answer(question, plans, committed):
    """The recording, half a unit higher with every question; what is committed stays."""
    ticks = question * EVERY + np.arange(2 * EVERY)
    chunk = np.repeat((ticks + question / 2)[None, :, None], COUNT, 0) * [1, 100]
    for row in range(COUNT * committed):
        chunk[row % COUNT, row // COUNT] = plans[row % COUNT][int(ticks[row // COUNT])]
    return chunk


@pytest.mark.parametrize("delay", range(EVERY + 1))
def test_jumps_and_errors(delay):
    commanded = chunking.act(answer, FUSIONS["latest"], COUNT, EVERY, delay)
    assert commanded.shape == (COUNT, chunking.QUESTIONS * EVERY + delay, A)
    found = chunking.measure(commanded, EPISODES, EVERY, delay)
    assert found["jump"]["value"] == 1.5 and found["step"]["value"] == found["recorded"]["value"] == 1
    behind = [((tick - delay) // EVERY if tick >= delay else 0) / 2 for tick in range(8, 20)]
    assert found["error"]["value"] == pytest.approx(np.mean(behind))


def test_a_cross_fade_has_no_jump_where_it_begins():
    jumps = [chunking.measure(chunking.act(answer, FUSIONS[name], COUNT, EVERY, 1), EPISODES, EVERY, 1)["jump"]["value"]
             for name in ("latest", "blend")]  # fmt: skip
    assert jumps[1] == pytest.approx(1 + 0.5 / 4, abs=0.1) and jumps[1] < jumps[0] == 1.5


def test_what_is_compared():
    answers = dict.fromkeys(("", "hard", "guided"))
    assert set(chunking.ways(answers, 0)) == {"synchronous", "guided", "blend", "average"}
    assert set(chunking.ways(answers, 2)) == {"synchronous", "naive", "hard", "guided", "blend", "average"}


RESULTS = sorted((pathlib.Path(chunking.__file__).parent / "results").glob("chunking_*.json"))


@pytest.mark.parametrize("file", RESULTS, ids=lambda path: path.stem)
def test_what_is_told_of_the_former_chunk_makes_the_next_one_jump_less_in_the_committed_results(file):
    found = json.loads(file.read_text())["ways"]
    trained = ("conditioned",) if "conditioned, delay 1" in found else ()
    for delay in (1, 2, 3):
        jumps = {way: found[f"{way}, delay {delay}"]["jump"]["value"]
                 for way in ("naive", "hard", "guided", "blend", *trained)}  # fmt: skip
        smooth = [jumps[way] for way in ("guided", "blend", *trained)]
        assert max(smooth) < 0.7 * jumps["naive"] and jumps["hard"] < jumps["naive"]


def test_a_model_without_and_one_with_prefixes_in_training_were_measured():
    assert {json.loads(file.read_text())["prefixes_trained"]["probability"] > 0 for file in RESULTS} == {False, True}
