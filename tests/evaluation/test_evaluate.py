"""The command from a dataset on disk to metrics.json, with a stand-in for the model."""

import importlib.util
import json
import pathlib

import ml_collections
import numpy as np
import pytest

from motus_jax import evaluate
from motus_jax.data.mixture import make_dataset
from motus_jax.errors import UserError
from motus_jax.evaluation import results
from motus_jax.modes import MODES
from motus_jax.training.checkpoint import Loaded

DATA = {"chunk": 8, "video_frames": 4, "instruction_length": 16, "image_size": (56, 48)}
SAMPLING = {"video_steps": 2, "action_steps": 2}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """What a checkpoint would give, for a small dataset with three held-out episodes."""
    file = pathlib.Path(__file__).parents[1] / "data" / "lerobot_fixture.py"
    spec = importlib.util.spec_from_file_location("lerobot_fixture", file)
    fixture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fixture)
    path = tmp_path_factory.mktemp("data") / "set"
    fixture.write(path, lengths=(30, 32, 30, 24, 24, 26), splits={"train": "0:3", "test": "3:6"})
    config = ml_collections.ConfigDict({"data": {**DATA, "path": str(path)}, "sampling": SAMPLING})
    contract = make_dataset(config.data, "train").contract()
    return Loaded(config, {"data": contract}, {"kernel": np.zeros((3, 5))}, {}, step=7)


def nearly_right(mode, batch, key):
    """The truth with a little noise; for the videos a little brighter."""
    noise = np.random.default_rng(len(mode)).normal(0, 0.01, batch["actions"].shape)
    return {"video": np.clip(batch["frames"] / 255 + 0.002, 0, 1), "actions": batch["actions"] + noise}


@pytest.fixture
def model(monkeypatch, loaded):
    """Puts the stand-in where the checkpoint and the sampler would be."""
    monkeypatch.setattr(evaluate, "load_for_inference", lambda workdir, step: loaded)
    monkeypatch.setattr(evaluate, "make_predict", lambda loaded: nearly_right)


def run(*arguments):
    evaluate.main(["evaluate", *map(str, arguments)])


def test_writes_what_it_measured_and_a_second_run_adds_to_it(model, tmp_path, capsys):
    out = tmp_path / "out"
    common = (f"--workdir={tmp_path}", f"--out={out}", "--chunks=24", "--batch_size=10")
    run(*common, "--modes=vla,video")
    first = results.read_metrics(out / "metrics.json")
    assert first["facts"]["chunks"] == 24
    assert first["facts"]["episodes"] == 3
    assert first["facts"]["step"] == 7
    assert first["facts"]["parameters"] == 15
    assert first["machine"]["cores"] >= 1
    assert set(first["modes"]) == {"vla", "video"}
    assert first["modes"]["video"]["beats_baselines"]
    # In this dataset every chunk moves alike: baselines that know one chunk are exact, and noise of 0.01 must lose.
    vla = first["modes"]["vla"]
    assert vla["baselines"]["nearest_neighbour"]["normalised_mse"]["value"] == pytest.approx(0, abs=1e-8)
    assert vla["comparisons"]["normalised_mse"]["differences"]["hold_the_state"]["beats"]
    assert not vla["beats_baselines"]
    assert len(first["modes"]["vla"]["joints"]) == 14
    run(*common, "--modes=inverse_dynamics")
    second = results.read_metrics(out / "metrics.json")
    assert set(second["modes"]) == {"vla", "video", "inverse_dynamics"}
    assert second["modes"]["vla"] == first["modes"]["vla"]
    assert set(results.Examples.load(out / "evaluation_examples.npz").predictions) == set(second["modes"])
    run(*common, "--modes=video", "--seed=1")
    assert set(results.read_metrics(out / "metrics.json")["modes"]) == {"video"}, "another seed starts anew"
    assert "24/24 chunks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "frames", "actions"),
    [("joint", 0, 0), ("vla", 0, 0), ("video", 0, 0), ("world_model", 0, 1), ("inverse_dynamics", 1, 0)],
)
def test_model_never_gets_the_answer(mode, frames, actions):
    batch = {"frames": np.ones((2, 3, 4, 4, 3), np.uint8), "actions": np.ones((2, 4, 3)), "state": np.ones((2, 3))}
    seen = evaluate.what_is_given(mode, {**batch, "raw_actions": batch["actions"], "raw_state": batch["state"]})
    assert set(seen) == set(batch)
    assert (seen["frames"][:, 0] == 1).all()
    assert (seen["frames"][:, 1:] == frames).all()
    assert (seen["actions"] == actions).all()
    assert (seen["state"] == 1).all()
    assert (batch["frames"] == 1).all(), "the evaluator's own chunks stay as they are"


def test_failure_leaves_earlier_results_alone(model, monkeypatch, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"format": 0, "precious": True}))
    before = (tmp_path / "metrics.json").read_text()

    def breaks(mode, batch, key):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(evaluate, "make_predict", lambda loaded: breaks)
    with pytest.raises(RuntimeError):
        run(f"--workdir={tmp_path}", "--chunks=24")
    assert (tmp_path / "metrics.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_may_sample_in_another_way_than_the_training_said(model, monkeypatch, tmp_path, loaded):
    seen = []
    monkeypatch.setattr(evaluate, "make_predict", lambda now: seen.append(now.config.sampling) or nearly_right)
    common = (f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--chunks=24")
    run(*common, "--modes=vla")
    run(*common, "--modes=joint", "--action_tail=1", "--reuse=0.1")
    assert [dict(sampling) for sampling in seen] == [{**SAMPLING}, {**SAMPLING, "action_tail": 1, "reuse": 0.1}]
    found = results.read_metrics(tmp_path / "out" / "metrics.json")
    assert set(found["modes"]) == {"joint"}, "answers of another sampler are not put beside those of this one"
    assert found["facts"]["sampling"]["action_tail"] == 1
    assert loaded.config.sampling.to_dict() == SAMPLING, "the checkpoint's own stays as it is"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--modes=vla,fly", f"unknown mode 'fly': expected one of {', '.join(MODES)}"),
        ("--chunks=3", "--chunks: expected at least 16, found 3"),
        ("--batch_size=0", "--batch_size: expected at least 1, found 0"),
        ("--server=ws://127.0.0.1:9 --reuse=0", "--reuse: expected none with --server"),
    ],
)
def test_bad_arguments_are_named(tmp_path, argument, message):
    with pytest.raises(UserError, match=message):
        run(f"--workdir={tmp_path}", *argument.split())


def test_bad_sampling_is_named_before_data_is_read(model, monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "read_data", None)
    with pytest.raises(UserError, match=r"sampling\.reuse: expected a share"):
        run(f"--workdir={tmp_path}", "--reuse=2")


def test_workdir_without_a_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        run(f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []
