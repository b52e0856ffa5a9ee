"""The phases' benchmark: where its arms start, and how seeds and starts become a table and a picture."""

import cv2
import pytest

from benchmarks import phases, phases_picture


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
