"""Training on several real sources: a robot, a second set of the same robot that joins later, and films without any."""

import pathlib
import sys

import av
import numpy as np
import pytest
from fake_run import A, FakeSystem, T, get_config

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import lerobot_fixture

from experiments import debug
from motus_jax.data.mixture import make_mixture
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.training import checkpoint, inputs, loop, metrics

DEBUG_DATA = debug.get_config().data.to_dict()
ONE = {"top": (48, 64)}


def film(path: pathlib.Path, frames: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        for k in range(frames):
            picture = np.full((48, 64, 3), 40 + 3 * k, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def with_sources(config, data, **sources):
    """The experiment on these sources, for 2 steps."""
    config.update({"steps": 2, "log_every": 1, "validate_every": 0, "batch_size": 8})
    config.checkpoint.every = 2
    config.data = {**data, "cameras": ("top",), "threads": 2}
    config.data.sources = sources
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def arms(root):
    """Two sets of one robot; the second, whose motion is larger, is left out at first."""
    lerobot_fixture.write(root / "arm", lengths=(30, 28, 26), cameras=ONE, dim=A)
    lerobot_fixture.write(root / "more", lengths=(50, 25), cameras=ONE, dim=A)
    return with_sources(
        get_config(),
        {"image_size": (2, 2), "chunk": T, "video_frames": 2, "state_dim": A, "action_dim": A},
        arm={"path": str(root / "arm"), "embodiment": "arm", "weight": 1.0},
        more={"path": str(root / "more"), "embodiment": "arm", "weight": 0.0, "layer": 5},
    )


@pytest.mark.thorough
def test_losses_are_told_by_source_and_layer(root, tmp_path):
    lerobot_fixture.write(root / "robot", lengths=(30, 28), cameras=ONE)
    for k in range(3):
        film(root / "films" / f"{k}.mp4", 30)
    videos = {"kind": "videos", "cameras": ("video",), "action_space": "absolute", "normalisation": "none"}
    config = with_sources(
        debug.get_config(), {**DEBUG_DATA, "image_size": (32, 64)},
        robot={"path": str(root / "robot")}, films={**videos, "path": str(root / "films"), "layer": 2},
    )  # fmt: skip
    config.optimizer.name, config.model.overrides.depth = "adamw", 1  # less to compile
    assert loop.train(config, tmp_path, System, inputs.open_data)
    last = {key: value for row in metrics.read_curve(tmp_path / "metrics.jsonl") for key, value in row.items()}
    for name in ("source_robot", "source_films", "layer_2", "layer_6"):
        assert any(key.startswith("loss") and key.endswith(name) and np.isfinite(last[key]) for key in last), name


def test_a_source_that_joins_keeps_the_units_of_its_embodiment(arms, tmp_path):
    """Its rows would move the shared normalisation; the model goes on in the units that it was trained in."""
    assert loop.train(arms, tmp_path, FakeSystem, inputs.open_data)
    before = checkpoint.load_for_inference(tmp_path).contracts
    joined = arms.copy_and_resolve_references()
    joined.data.sources.more.weight, joined.data.sources.arm.weight, joined.steps = 2.0, 0.5, 4
    assert make_mixture(joined.data, "train").contracts()["arm"]["action"] != before["arm"]["action"]
    assert loop.train(joined, tmp_path, FakeSystem, inputs.open_data)
    after = checkpoint.load_for_inference(tmp_path)
    assert after.step == 4 and after.contracts["arm"] == before["arm"]
    assert after.contracts["more"]["action"] == before["arm"]["action"]

    alone = joined.copy_and_resolve_references()
    del alone.data.sources["more"]
    alone.steps = 6
    assert loop.train(alone, tmp_path, FakeSystem, inputs.open_data)
    assert checkpoint.load_for_inference(tmp_path).contracts == before
    other = alone.copy_and_resolve_references()
    other.data.sources.arm.layer, other.steps = 5, 8
    with pytest.raises(UserError, match=r"config\.data\.sources\.arm\.layer: the checkpoint in .* found 5"):
        loop.train(other, tmp_path, FakeSystem, inputs.open_data)


def test_data_may_move_but_not_change(arms, root, tmp_path):
    assert loop.train(arms, tmp_path / "run", FakeSystem, inputs.open_data)
    moved = arms.copy_and_resolve_references()
    moved.steps = 4
    moved.data.sources.arm.path = str((root / "arm").rename(root / "elsewhere"))
    assert loop.train(moved, tmp_path / "run", FakeSystem, inputs.open_data)
    (root / "elsewhere").rename(root / "arm")

    moved.steps = 6
    moved.data.sources.arm.path = str(lerobot_fixture.write(tmp_path / "other", lengths=(40, 28), cameras=ONE, dim=A))
    with pytest.raises(UserError, match=r"contract field 'state\.offset\[0\]': expected .* found "):
        loop.train(moved, tmp_path / "run", FakeSystem, inputs.open_data)
