"""The ladder in closed loop: which flags a row is, and what is said of it."""

import json

import pytest

from benchmarks import switches
from benchmarks.latency import switches as rows_of
from motus_jax import evaluate
from motus_jax.errors import UserError
from motus_jax.evaluation import acting_record, results
from motus_jax.robots.closed_loop import Result


def test_rows_become_flags_that_evaluate_takes(tmp_path):
    for change in rows_of(10, 0.1, "").values():
        args = evaluate.parse(["evaluate", f"--workdir={tmp_path}", f"--out={tmp_path}", *switches.flags(change, 10)])
        assert {name: getattr(args, name) for name in change} == change
        assert args.video_steps == change.get("video_steps", 10) and args.action_steps == change.get("action_steps", 10)


def test_each_row_is_evaluated_in_its_own_folder_and_compared_start_by_start(tmp_path, monkeypatch, capsys):
    """A stand-in for `evaluate`, whose tail succeeds at one start more."""
    asked = []

    def evaluated(argv):
        given = dict(flag.removeprefix("--").split("=") for flag in argv[1:] if "=" in flag)
        asked.append(given)
        out, tail = switches.pathlib.Path(given["out"]), int(given.get("action_tail", 0))
        (out / acting_record.FOLDER).mkdir(parents=True)
        acting_record.write(out / acting_record.FOLDER / acting_record.MANIFEST, {"policies": {"vla": "key"}})
        for seed in range(4):
            success = seed < 2 + bool(tail)
            acting_record.append(out / acting_record.FOLDER, Result("vla", "key", "t", seed, "", success, 0, 1, 1, 0.0))
        acted = {"successes": 2 + bool(tail), "episodes": 4, "interval": [0.1, 0.9], "reward": 0.5}
        facts = {"step": 7, "sampling": {"action_tail": tail}}
        errors, acting = {"normalised_mse": {"value": 0.25}}, {"policies": {"vla": acted}}
        found = {"facts": facts, "modes": {"vla": {"metrics": errors}}, "closed_loop": acting}
        results.write_metrics(out / results.METRICS_FILE, {"format": results.FORMAT, **found})

    monkeypatch.setattr(evaluate, "main", evaluated)
    command = ["switches", f"--workdir={tmp_path}", f"--out={tmp_path / 'found.json'}", "--episodes=4", "--steps=6"]
    switches.main([*command, "--rows=tail after 2"])
    assert [(given["out"], given["action_steps"]) for given in asked] == [
        (str(tmp_path / "switches" / "exact"), "6"), (str(tmp_path / "switches" / "tail_after_2"), "6")
    ]  # fmt: skip
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert rows["exact"]["ahead"] == {"value": 0, "low": 0, "high": 0}
    assert rows["tail after 2"]["ahead"]["value"] == pytest.approx(0.25)
    assert rows["tail after 2"]["sampling"] == {"action_tail": 2}
    assert "tail after 2                       3 of 4 (10 to 90 %)" in capsys.readouterr().out
    with pytest.raises(UserError, match="--rows: expected some of exact, half the steps"):
        switches.main([*command, "--rows=tail after 9"])
