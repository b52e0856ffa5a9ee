"""Labelling: every row its latent action or a reason, the same for any hosts and after a kill, and read by training."""

import json
import pathlib
import shutil

import av
import cv2
import numpy as np
import pytest
from dpflow_fixture import weights
from safetensors.numpy import save_file

from experiments import latent_action
from motus_jax import convert
from motus_jax.data import __main__ as command
from motus_jax.data import label_command, latent_labels, storage
from motus_jax.data.label_command import NO_CHANGE, NO_FRAME, pairs
from motus_jax.data.mixture import make_dataset
from motus_jax.data.source import BrokenData
from motus_jax.data.sources import open_source
from motus_jax.errors import UserError
from motus_jax.models.flow_network import VARIANTS
from motus_jax.models.latent_system import LatentActionSystem
from motus_jax.training import checkpoint, inputs, loop
from motus_jax.weights import dpflow

SIZE = 32
LENGTHS = (30, 12, 1, 26, 18)


def film(path, length, seed, still=range(0)):
    """A texture that wanders; nothing moves in the rows `still`."""
    random = np.random.default_rng(seed)
    soft = cv2.GaussianBlur(random.integers(0, 256, (96, 96, 3)).astype(np.float32), (0, 0), 2)
    canvas = np.clip((soft - 128) * 4 + 128, 0, 255).astype(np.uint8)
    steps = np.array([[0, 0] if t in still else [random.integers(-1, 2), 1] for t in range(length)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "0", "g": "12"})
        stream.width = stream.height = SIZE
        for row, column in 30 + np.cumsum(steps, 0):
            picture = np.ascontiguousarray(canvas[row : row + SIZE, column : column + SIZE])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films") / "set"
    folder.mkdir()
    for k, length in enumerate(LENGTHS):
        film(folder / f"{k}.mp4", length, k, still=range(5, 15) if k == 0 else range(0))
    return folder


@pytest.fixture(scope="module")
def config(films):
    config = latent_action.get_config()
    config.data.sources = config.data.layers = {}
    config.update({"steps": 2, "log_every": 1, "validate_every": 0, "batch_size": 4})
    config.data.update({"kind": "videos", "path": str(films), "cameras": ("video",), "image_size": (16, 16),
                        "action_space": "absolute", "normalisation": "none"})  # fmt: skip
    config.model.flow_autoencoder.variant = "debug"
    config.model.latent_action.hidden = 16
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert loop.train(config, workdir, LatentActionSystem, inputs.open_data)
    return workdir


@pytest.fixture(scope="module")
def labels(run, films, tmp_path_factory):
    """As a user calls it."""
    out = tmp_path_factory.mktemp("latents") / "out"
    command.main(["data", "label", f"--workdir={run}", f"--path={films}", "--kind=videos", f"--out={out}", "--block=2"])
    return out


def test_pairs_go_by_time():
    even = np.arange(10) / 10
    assert [side.tolist() for side in pairs(even, 0.2)] == [list(range(8)), list(range(2, 10))]
    assert [side.tolist() for side in pairs(even[:2], 0.2)] == [[], []] == [s.tolist() for s in pairs(even[:1], 0.2)]
    uneven = np.array([0, 0.1, 0.31, 0.5, 0.9])
    assert [side.tolist() for side in pairs(uneven, 0.2)] == [[1, 2], [2, 3]]  # 0.2 after 0 s and 0.5 s there is none
    assert [side.tolist() for side in pairs(np.arange(5) / 5, 0.2)] == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_every_row_has_a_latent_action_or_a_reason(labels, films, run):
    source = open_source("videos", str(films), {"latents": str(labels)})
    index = latent_labels.read_index(labels)
    assert source.latent_dim == index.dim == 14 and index.rows == sum(LENGTHS)
    assert index.unknown == {NO_FRAME: 2 * 4 + 1, NO_CHANGE: 9}
    assert index.known == sum(LENGTHS) - 9 - 9 and not index.dropped
    rows = source.rows(0)
    assert rows.has_latent.tolist() == [not 4 <= t <= 12 and t < 28 for t in range(30)]
    assert not rows.latent[~rows.has_latent].any() and np.abs(rows.latent[rows.has_latent]).min(1).all()
    assert not source.rows(2).has_latent.any()  # a single frame
    known = np.concatenate([source.rows(k).latent[source.rows(k).has_latent] for k in range(len(LENGTHS))])
    np.testing.assert_allclose(index.mean, known.mean(0), atol=1e-6)
    np.testing.assert_allclose(index.std, known.std(0), atol=1e-6)
    assert index.settings == {"cameras": ["video"], "image_size": [16, 16], "flow": "dis"}
    assert "latent_action" in index.model and "flow_autoencoder" in index.model


def test_they_are_what_the_model_says(labels, films, run, config):
    """Of the very pairs that training sees."""
    loaded = checkpoint.load_for_inference(run)
    system, dataset = LatentActionSystem(loaded.config), make_dataset(config.data, "train")
    source = open_source("videos", str(films), {"latents": str(labels)})
    for episode, row in ((0, 0), (3, 7)):
        example = dataset.example(episode, row)
        mean, _ = system.encode(loaded.params, loaded.frozen, {"flow": example["flow"][None]})
        np.testing.assert_allclose(source.rows(episode).latent[row], mean[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", ["latent", "latent_delta"])
def test_training_takes_them(space, labels, films, config):
    """As the actions of phase 2, in units of their own spread; where there are none, no loss."""
    data = config.data.to_dict() | {
        "options": {"latents": str(labels)}, "action_space": space, "normalisation": "meanstd", "flow": "",
        "chunk": 4, "video_frames": 4, "action_hz": 5.0, "starts": "all",
    }  # fmt: skip
    dataset = make_dataset(data, "train")
    rows = dataset.source.rows(0)
    example = dataset.example(0, 1)
    assert example["action_mask"].all(1).tolist() == [True, True, False, False]  # rows 1, 3, 5, 7
    raw = dataset.denormalise_actions(example["actions"], np.zeros(0))
    np.testing.assert_allclose(raw[:2], rows.latent[[1, 3]], rtol=1e-4, atol=1e-5)
    seen = [dataset.example(*start) for start in dataset.starts.tolist()]
    values = np.concatenate([one["actions"][one["action_mask"].all(1)] for one in seen])
    assert np.abs(values.mean(0)).max() < 0.05 and np.abs(values.std(0) - 1).max() < 0.05
    masks = np.array([one["action_mask"].all(1) for one in seen])
    resumed = (masks[:, 1:] & ~masks[:, :-1]).any()  # a step known after one that is not
    assert resumed == (space == "latent")
    if space == "latent_delta":
        added = dataset.spec.action.invert(example["actions"])
        np.testing.assert_allclose(added[1], rows.latent[[1, 3]].sum(0), rtol=1e-4, atol=1e-5)


def test_hosts_and_a_kill_change_nothing(labels, films, run, tmp_path, capsys):
    def files(folder):
        return {file.name: file.read_bytes() for file in pathlib.Path(folder).rglob("*") if file.is_file()}

    def label(out, **hosts):
        label_command.label(str(run), open_source("videos", str(films)), str(out), block=2, **hosts)

    label(tmp_path / "two", host=1, hosts=2)
    assert "2 of 3 files are other hosts' work" in capsys.readouterr().out
    with pytest.raises(UserError, match="labelling that was not finished: run it again"):
        open_source("videos", str(films), {"latents": str(tmp_path / "two")})
    label(tmp_path / "two", host=0, hosts=2)
    assert files(tmp_path / "two") == files(labels)
    shutil.copytree(labels, tmp_path / "killed")
    index = json.loads((tmp_path / "killed" / "labels.json").read_text())
    (tmp_path / "killed" / "labels.json.partial").write_text(
        json.dumps({key: index[key] for key in ("dataset", "model", "seconds", "settings", "block", "episodes")})
    )
    (tmp_path / "killed" / "labels.json").unlink()
    (tmp_path / "killed" / "blocks" / "00001.safetensors").unlink()
    label(tmp_path / "killed")
    assert files(tmp_path / "killed") == files(labels)
    label(tmp_path / "killed")
    assert "labelled before" in capsys.readouterr().out


def test_films_that_cannot_be_read_are_listed(films, run, tmp_path, capsys):
    shutil.copytree(films, tmp_path / "set")
    source = open_source("videos", str(tmp_path / "set"))  # the film goes bad afterwards
    data = (tmp_path / "set" / "3.mp4").read_bytes()
    (tmp_path / "set" / "3.mp4").write_bytes(data[: len(data) // 2])
    label_command.label(str(run), source, str(tmp_path / "out"), block=2)
    assert "episode 3 left out: " in capsys.readouterr().out
    index = latent_labels.read_index(storage.path(tmp_path / "out"))
    assert [episode for episode, _ in index.dropped] == [3]
    found = latent_labels.Labels(storage.path(tmp_path / "out"), source)
    with pytest.raises(BrokenData, match=r"latent actions of episode 3 in .* expected a film that can be read"):
        found(3)
    assert found(4)[1].any()


def test_refusals(labels, films, run, tmp_path):
    def refused(*arguments):
        with pytest.raises(UserError) as error:
            command.main(["data", "label", *arguments])
        return str(error.value)

    given = [f"--workdir={run}", f"--path={films}", "--kind=videos"]
    assert "--out is missing" in refused(*given)
    assert "--batch_size: expected at least 1, found 0" in refused(*given, f"--out={tmp_path}", "--batch_size=0")
    assert "camera 'eye'" in refused(*given, f"--out={tmp_path / 'new'}", "--cameras=eye")
    assert "expected latent actions with block 64, found 2" in refused(*given, f"--out={labels}")
    film(tmp_path / "other.mp4", 20, 9)
    with pytest.raises(UserError, match=r"expected latent actions of .*, with episodes 1; found those of data with 5"):
        open_source("videos", str(tmp_path), {"latents": str(labels)})


@pytest.mark.heavy
def test_with_flow_of_an_imported_network(config, films, tmp_path):
    """Import of DPFlow's weights, training with flow estimated inside the step, labelling with the same network."""
    rules = [(rule, depth) for rules, depth in dpflow.groups(VARIANTS["debug"]) for rule in rules]
    tensors = weights({name: rule.shape for rule, depth in rules for name in rule.names(depth)})
    save_file(tensors, tmp_path / "dpflow.safetensors")
    convert.main(["convert", "import", f"--source={tmp_path / 'dpflow.safetensors'}", "--kind=dpflow",
                  "--variant=debug", f"--workdir={tmp_path / 'dpflow'}"])  # fmt: skip
    config = config.copy_and_resolve_references()
    config.data.flow, config.model.flow_network = "", "debug"
    with pytest.raises(UserError, match=r"flow_network is not trained, so config\.init_from must say where"):
        loop.train(config, tmp_path / "none", LatentActionSystem, inputs.open_data)
    config.init_from = (("flow_network/.*", str(tmp_path / "dpflow")), (".*", "new"))
    assert loop.train(config, tmp_path / "run", LatentActionSystem, inputs.open_data)
    label_command.label(str(tmp_path / "run"), open_source("videos", str(films), {}), str(tmp_path / "out"))
    index = latent_labels.read_index(tmp_path / "out")
    assert index.settings["flow"] == "debug" and "flow_network" in index.model
    loaded, example = checkpoint.load_for_inference(tmp_path / "run"), make_dataset(config.data, "train").example(3, 7)
    seen = {"frames": example["frames"][None]}
    mean, _ = LatentActionSystem(loaded.config).encode(loaded.params, loaded.frozen, seen)
    found = open_source("videos", str(films), {"latents": str(tmp_path / "out")}).rows(3).latent[7]
    np.testing.assert_allclose(found, mean[0], rtol=1e-3, atol=1e-4)
