"""The latency benchmark measures what it says: rows in turns, distances from the exact sampler."""

import types

import numpy as np
import pytest

from benchmarks import latency, latency_picture
from benchmarks.latency_subject import Subject, from_random
from experiments import debug

WITHOUT_UNITS = Subject("", None, None, {}, {}, [])


def answers(rng, count=3):
    return [{"actions": rng.normal(size=(1, 4, 2)), "video": rng.random((1, 5, 4, 4, 3))} for _ in range(count)]


def test_distance_of_the_same_and_of_moved_answers():
    exact = answers(np.random.default_rng(0))
    same = latency.distance(WITHOUT_UNITS, exact, exact)
    assert same["action_error"] == {"mean": 0.0, "most": 0.0} and same["video_psnr"] is None
    assert same["action_cosine"]["least"] == pytest.approx(1)
    moved = [{"actions": answer["actions"] * 2, "video": answer["video"] + 0.1} for answer in exact]
    found = latency.distance(WITHOUT_UNITS, moved, exact)
    assert found["action_cosine"]["least"] == pytest.approx(1), "a cosine does not see the length"
    assert found["action_error"]["most"] == pytest.approx(max(np.abs(a["actions"]).max() for a in exact), rel=1e-5)
    assert found["video_psnr"] == pytest.approx(20)


def test_rows_take_turns_and_each_begins_in_turn():
    order = []
    calls = {name: lambda i, name=name: order.append((i, name)) for name in "abc"}
    times, others = latency.in_turns(calls, 4)
    assert "".join(name for _, name in order) == "abcbcacababc"
    assert {name: len(each) for name, each in times.items()} == dict.fromkeys("abc", 4) and others >= 0
    assert latency.quantiles([0.001] * 99 + [0.2])["p99_ms"] > latency.quantiles([0.001] * 100)["p99_ms"]


@pytest.mark.heavy
def test_rows_of_a_small_random_model(tmp_path):
    config = debug.get_config()
    subject = from_random(config, 2, depth=2)
    given = types.SimpleNamespace(steps=3, reuse=0.1, torch=False, calls=2, rows=["tail after 2", "int8"])
    found = latency.measure(subject, "joint", given)
    assert list(found["rows"]) == [latency.LOOP, latency.EXACT, "tail after 2", "int8"]
    loop, exact, tail, int8 = found["rows"].values()
    assert loop["action_cosine"]["least"] > 0.9999 and loop["video_psnr"] > 60, "the loop samples the same"
    assert exact["action_error"]["most"] == 0 and exact["speed"] > 0
    assert tail["action_error"]["most"] > 0 and int8["action_error"]["most"] > 0
    latency_picture.draw({"modes": {"joint": found}}, tmp_path / "ladder.png")
    assert (tmp_path / "ladder.png").stat().st_size > 5000
    assert "tail after 2" in latency.table("joint", found)
