"""The load benchmark sees what it is there to see; (heavy) a minute of 64 clients at a real server."""

import asyncio
import json
import pathlib
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "robots")]

from fake_policy import FakePolicy  # noqa: E402
from served import serving  # noqa: E402

from benchmarks import serving_load  # noqa: E402
from motus_jax_client import codec  # noqa: E402

CLIENTS = 6


class Careless(FakePolicy):
    """In a call of several requests every other answer goes to the wrong one, or is nobody's."""

    def __init__(self, change):
        super().__init__(seconds=0.002)
        self._change = change

    def answer(self, requests):
        return self._change(super().answer(requests))


def questions():
    """As `serving_load.questions`, for the fake policy."""
    found = []
    for client in range(CLIENTS):
        own = []
        for k in range(2):
            state, name = np.array([client + 1.0, k + 1.0]), f"{client} {k}"
            frame = codec.pack({"state": state, "session_id": name})
            own.append(serving_load.Question(name, frame, np.outer(np.arange(4), state).astype(np.float32)))
        found.append(own)
    return found


def asked_of(policy, seconds=0.5, clients=64, **settings):
    looks = []
    with serving(policy, max_batch=4, max_clients=clients, wait=0.2, **settings) as server:
        address = f"ws://127.0.0.1:{server.port}"
        found = asyncio.run(serving_load.drive(address, questions(), seconds, lambda: looks.append(1)))
    assert len(looks) == 10
    return found


def test_all_is_well():
    found = asked_of(FakePolicy(0.002))
    assert found.good and len(found.seconds) >= CLIENTS
    figures = serving_load.figures(found, 0.5)
    assert figures["answers"] == len(found.seconds) and figures["lost"] == figures["mixed"] == 0
    waited = figures["milliseconds"]
    assert 2 <= waited["p50"] <= waited["p95"] <= waited["p99"] <= waited["most"]


def test_mixed_and_wrong_answers_are_seen():
    mixed = asked_of(Careless(lambda answers: answers[1:] + answers[:1]))
    assert mixed.mixed and not mixed.lost
    wrong = asked_of(Careless(lambda answers: [answer | {"actions": answer["actions"] + 0.01} for answer in answers]))
    assert wrong.wrong == len(wrong.seconds) and not wrong.mixed


def test_lost_and_refused_answers_are_seen():
    assert asked_of(FakePolicy(), clients=CLIENTS - 2).lost == 2, "two were not let in"
    late = asked_of(FakePolicy(0.3), timeout=0.05)
    assert late.refused and not late.lost


def test_expected_answers_that_could_not_be_told_apart_would_show():
    rows = [np.full((4, 2), value) for value in (0.0, 1.0, 1.25)]
    assert serving_load.nearest(rows) == 0.25


def test_the_committed_result_is_a_good_one():
    report = json.loads((REPOSITORY / "benchmarks" / "results" / "serving_load_epyc_2cores.json").read_text())
    assert report["good"] and report["clients"] == 64 and report["seconds"] >= 300
    assert not any(report[name] for name in ("lost", "mixed", "wrong", "refused"))
    assert report["nearest_expected"] > 10 * report["tolerance"]


@pytest.mark.heavy
def test_a_minute_of_64_clients(tmp_path):
    from experiments import debug
    from motus_jax.models.system import System
    from motus_jax.training import inputs, loop

    config = debug.get_config()
    config.update({"steps": 1, "validate_every": 0})
    config.data.episodes = 4
    config.model.overrides.depth = 2
    assert loop.train(config, tmp_path / "run", System, inputs.open_data)
    report = serving_load.measure(str(tmp_path / "run"), clients=64, seconds=60.0, max_batch=16)
    assert report["good"], report
    assert report["answers"] > 64 and report["nearest_expected"] > 10 * report["tolerance"]
    memory = report["server"]["memory_mib"]
    assert memory["end"] - memory["after_a_tenth"] < 50
