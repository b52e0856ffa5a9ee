"""The phases' benchmark: where its arms start, and how seeds and starts become a table and a picture."""

import cv2
import pytest

from benchmarks import phases, phases_picture
from motus_jax.evaluation import acting_record
from motus_jax.robots.closed_loop import Result


def test_an_arm_starts_from_the_runs_of_its_size():
    assert phases.starts("scratch", "lift") == (("video_codec/.*", "runs/phase1_lift"),)
    rows = phases.starts("both, action ends new", "demo")
    assert rows[0] == ("motus/action/(action_encoder|decoder)/.*", "new"), "before the row of the experts"
    assert {run for _, run in rows} == {"new", "runs/phase2_demo"}
    with pytest.raises(KeyError):
        phases.starts("phase 4", "demo")


def test_successes_of_all_starts_have_one_interval(tmp_path):
    def run(success, error):
        return {"vla normalised_mse": error, phases.SUCCESS: success}

    found = {"scratch": [run(0.1, 0.3), run(0.2, 0.5)], "both": [run(0.4, 0.1), run(0.6, 0.1)]}
    report = phases.summary(found, 50)
    assert report["scratch"]["vla normalised_mse"] == {"mean": pytest.approx(0.4), "seeds": [0.3, 0.5]}
    row = report["both"][phases.SUCCESS]
    assert row["starts"] == 100 and row["mean"] == pytest.approx(0.5)
    assert row["interval"] == pytest.approx([0.404, 0.596], abs=1e-3), "Wilson's of 50 of 100"
    phases_picture.draw(report, tmp_path / "phases.png")
    picture = cv2.imread(str(tmp_path / "phases.png"))
    colours = (picture.reshape(-1, 3)[:, ::-1] == (0x4C, 0x78, 0xA8)).all(1).sum()
    assert colours > 50, "the means"


def test_arms_are_compared_start_by_start():
    """One arm succeeds wherever the other does, and at every fourth start besides."""
    starts = [("lift", seed) for seed in range(40)]
    often = [{start: start[1] % 2 == 0 for start in starts}] * 2
    oftener = [{start: start[1] % 2 == 0 or start[1] % 4 == 1 for start in (*starts, ("lift", 99))}] * 2
    found = {"often": [{phases.SUCCESS: 0.5}] * 2, "oftener": [{phases.SUCCESS: 0.75}] * 2}
    report = phases.summary(found, 40, {"often": often, "oftener": oftener})
    assert report["often"][phases.SUCCESS]["ahead"] == {}
    row = report["oftener"][phases.SUCCESS]["ahead"]["often"]
    assert row["value"] == pytest.approx(0.25), "the start that only one played does not count"
    assert 0.05 < row["low"] < 0.2 and 0.3 < row["high"] < 0.45
    assert phases.ahead(often, often) == (0, 0, 0)
    assert "  ahead of often                     0.2500   (0." in phases.describe(report)


def test_outcomes_are_those_of_the_newest_evaluation(tmp_path):
    closed_loop = tmp_path / acting_record.FOLDER
    closed_loop.mkdir()
    acting_record.write(closed_loop / acting_record.MANIFEST, {"policies": {"vla": "new"}})
    for key, seed, success in (("old", 0, True), ("new", 0, False), ("new", 1, True)):
        acting_record.append(closed_loop, Result("vla", key, "lift", seed, "", success, 0.0, 1, 1, 0.0))
    assert phases.outcomes(tmp_path) == {("lift", 0): False, ("lift", 1): True}
