"""Training from features: the losses of pixels, the same order, exact resume, sampling from the run alone; refusals."""

import functools
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

sys.path.append(str(pathlib.Path(__file__).parents[1] / "data"))
import feature_setting
import lerobot_fixture

from motus_jax.data import __main__ as data_command
from motus_jax.data import encode_command, feature_files
from motus_jax.data.mixture import make_dataset
from motus_jax.data.pipeline import eval_batches
from motus_jax.data.sources.lerobot import LeRobotDataset
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.sampling.sampler import make_sampler
from motus_jax.training import checkpoint, inputs, loop, metrics
from motus_jax.weights import tree

pytestmark = pytest.mark.thorough

SETTINGS = {"fitted": lambda dataset, folder: feature_setting.fitted(dataset), "pretrained": feature_setting.pretrained}


class Setting:
    """A dataset, an experiment on it, and its features in every precision that a test asks for."""

    def __init__(self, name, root):
        self.root = root
        self.dataset = lerobot_fixture.write(root / "set")
        self.config = SETTINGS[name](self.dataset, root)
        self.config.update({"steps": 3, "log_every": 1, "validate_every": 0})

    def features(self, dtype=None):
        out = self.root / f"features_{dtype}"
        if not out.exists():
            encode_command.encode(self.config, out, dtype, block=32)
        return out

    @functools.cached_property
    def from_pixels(self):
        """Workdir and losses of a run that reads videos."""
        workdir = self.root / "from_pixels"
        return workdir, self.train(workdir)

    def changed(self, features=None, **changes):
        config = self.config.copy_and_resolve_references()
        config.update_from_flattened_dict({"data.features": str(features or ""), **changes})
        return config

    def train(self, workdir, features=None, **changes):
        assert loop.train(self.changed(features, **changes), workdir, System, inputs.open_data)
        return {row["step"]: row["loss"] for row in metrics.read_curve(workdir / "metrics.jsonl") if "loss" in row}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return functools.cache(lambda name: Setting(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module", params=[pytest.param("fitted", marks=pytest.mark.heavy), "pretrained"])
def setting(request, settings):
    return settings(request.param)


@pytest.fixture(scope="module")
def simple(settings):
    return settings("fitted")


@pytest.fixture(scope="module")
def simple_features(simple):
    return simple.features()


def refuse_to_decode(monkeypatch):
    def refuse(*_):
        raise AssertionError("a video was decoded")

    monkeypatch.setattr(LeRobotDataset, "frames", refuse)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(None, 1e-5), pytest.param("bfloat16", 1e-3, marks=pytest.mark.heavy)]
)
def test_losses_are_those_of_pixels(setting, dtype, tolerance, monkeypatch):
    features, (_, expected), on_devices = setting.features(dtype), setting.from_pixels, []
    refuse_to_decode(monkeypatch)
    begin = loop._loop
    monkeypatch.setattr(loop, "_loop", lambda run, *rest: on_devices.append(run.frozen) or begin(run, *rest))
    found = setting.train(setting.root / f"from_{features.name}", features)
    assert found.keys() == expected.keys() == {1, 2, 3}
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=tolerance)
    assert on_devices == [{}], "no frozen part is there while training"


def test_what_the_experts_see_is_the_same(setting):
    """Their heads start at zero: the first losses say little of text and understanding."""
    pixels, stored = (inputs.open_data(setting.changed(features)) for features in (None, setting.features()))
    system, loaded = System(setting.config), checkpoint.load_for_inference(setting.from_pixels[0])

    @jax.jit
    def see(frozen, batch):
        return system.encode(frozen, batch), system.context(loaded.params, frozen, batch)

    expected, found = see(loaded.frozen, next(pixels.batches)), see({}, next(stored.batches))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, found)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))


def test_the_bench_reads_them(simple, tmp_path, monkeypatch, capsys):
    """As a user calls it, with an experiment whose config names the features."""
    features, out = simple.features(), tmp_path / "bench.json"
    refuse_to_decode(monkeypatch)
    experiment = tmp_path / "experiment.py"
    experiment.write_text(
        "import json\nfrom motus_jax.training.checkpoint import config_from_json\n"
        f"get_config = lambda: config_from_json(json.loads({simple.config.to_json()!r}))\n"
    )
    data_command.main(["data", "bench", f"--config={experiment}", f"--config.data.features={features}",
                       "--seconds=0.3", "--step_seconds=10", f"--out={out}"])  # fmt: skip
    found = json.loads(out.read_text())
    assert found["examples_per_second"] > 0 and not found["verdict"]["starves"]
    assert f"{found['examples_per_second']:.1f} examples/s" in capsys.readouterr().out


def test_what_the_batches_hold(setting):
    data = inputs.open_data(setting.changed(setting.features()))
    all_frozen = len(setting.config.model.frozen) == 3
    for batch in (next(data.batches), *data.validation):
        assert batch["latents"].dtype == np.float32
        assert batch["latents"].shape == (4, *System(setting.config).latent_shape)
        assert ("frames" in batch) == (not all_frozen) == ("text_states" not in batch) == ("vlm_states" not in batch)
        if not all_frozen:
            assert batch["frames"].shape == (4, 1, 32, 64, 3)


def test_the_run_alone_is_enough_to_sample(simple, simple_features, tmp_path):
    """Its frozen parts are those of the features, not what the run's own seed would fit; pixels are read again."""
    features = shutil.copytree(simple_features, tmp_path / "features")
    simple.train(tmp_path / "run", features, seed=5, steps=1, validate_every=1)
    fitted = tree.flatten(feature_files.load_fitted(features))
    shutil.rmtree(features)
    loaded = checkpoint.load_for_inference(tmp_path / "run")
    assert loaded.config.data.features == str(features)
    for path, value in tree.flatten(loaded.frozen).items():
        np.testing.assert_array_equal(value, fitted[path])
    batch = eval_batches(make_dataset(loaded.config.data, "test"), 2, 2, seed=0)[0]
    sample = make_sampler(System(loaded.config), "joint", loaded.config.sampling)
    found = sample(loaded.params, loaded.frozen, batch, jax.random.key(0))
    assert np.isfinite(found["video"]).all() and found["video"].shape == (2, 5, 32, 64, 3)


def test_resume_is_exact(simple, simple_features, tmp_path, monkeypatch):
    refuse_to_decode(monkeypatch)
    changes = {"steps": 6, "checkpoint.every": 2, "checkpoint.keep": 3}
    simple.train(tmp_path / "run", simple_features, **changes)
    stopped = shutil.copytree(tmp_path / "run", tmp_path / "stopped")
    for step in (4, 6):  # as after a kill: the curve is ahead of the newest checkpoint
        shutil.rmtree(stopped / "checkpoints" / str(step))
    simple.train(stopped, simple_features, **changes)
    assert (stopped / "metrics.jsonl").read_bytes() == (tmp_path / "run" / "metrics.jsonl").read_bytes()
    loaded = [checkpoint.load_for_inference(workdir) for workdir in (tmp_path / "run", stopped)]
    jax.tree.map(np.testing.assert_array_equal, loaded[0].params, loaded[1].params)


@pytest.mark.heavy
def test_a_run_may_change_to_features(simple, simple_features, tmp_path):
    pixels, features = (shutil.copytree(simple.from_pixels[0], tmp_path / name) for name in ("pixels", "features"))
    expected, found = simple.train(pixels, steps=5), simple.train(features, simple_features, steps=5)
    assert found.keys() == {1, 2, 3, 4, 5}
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=0, atol=1e-5)


def edit_index(folder, *keys, value):
    place = record = json.loads((folder / feature_files.INDEX).read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / feature_files.INDEX).write_text(json.dumps(record))


def none(folder):
    """Nothing is wrong with the folder."""


def unfinish(folder):
    (folder / feature_files.INDEX).rename(folder / feature_files.PARTIAL)


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (none, {"data.video_hz": 10.0}, r"contract field 'video_hz': expected 5\.0 \(the features in "),
        (none, {"model.video_codec.whitening": 1.0}, r"features made with config\.model\.video_codec"),
        (none, {"model.frozen": ("video_codec", "vlm")}, r"features of vlm, which config\.model\.frozen"),
        (none, {"model.frozen": ()}, r"expected some in config\.model\.frozen, found none"),
        (lambda f: edit_index(f, "dataset", "rows", value=7), {}, r"of this dataset, with rows 144; found 7"),
        (lambda f: edit_index(f, "tables", "train", "digest", value="0"), {}, r"of the 100 chunks of split 'train'"),
        (lambda f: edit_index(f, "instructions", value={}), {}, r"'insert the peg'.*; found no such instruction"),
        (lambda f: edit_index(f, "fingerprints", "video_codec", value="0"), {}, r"by the weights of video_codec"),
        (lambda f: edit_index(f, "format", value=9), {}, r"features\.json: expected format 1, found 9"),
        (lambda f: (f / feature_files.INDEX).write_text("{"), {}, r"features\.json: expected an index of features"),
        (unfinish, {}, r"an encoding that was not finished; .* it does only what is missing"),
        (shutil.rmtree, {}, r"expected a folder of features \(python -m motus_jax\.data encode"),
        (lambda f: (f / "train" / "00001.array_record").unlink(), {}, r"train/00001\.array_record: .* no such file"),
        (lambda f: (f / feature_files.FITTED).unlink(), {}, r"fitted\.safetensors: expected the parameters"),
    ],
)  # fmt: skip
def test_refuses(simple, simple_features, tmp_path, damage, changes, message):
    features = shutil.copytree(simple_features, tmp_path / "features")
    damage(features)
    with pytest.raises(UserError, match=message):
        simple.train(tmp_path / "run", features, **changes)
    assert not (tmp_path / "run" / "config.json").exists() and not (tmp_path / "run" / "frozen").exists()


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_records_are_named(simple, simple_features, tmp_path, split):
    features = shutil.copytree(simple_features, tmp_path / "features")
    for file in (features / split).iterdir():
        content = np.fromfile(file, np.uint8)
        content[::1000] ^= 1
        content.tofile(file)
    with pytest.raises(UserError, match=rf"{split}/0000\d\.array_record: expected whole records; found .*mismatch"):
        simple.train(tmp_path / "run", features)


def test_features_by_other_imported_weights_are_refused(tmp_path):
    setting = Setting("pretrained", tmp_path)
    features = setting.features()
    (tmp_path / "other").mkdir()
    feature_setting.write_import(tmp_path / "other" / "weights", System(setting.config).frozen_shapes(), seed=1)
    rows = (("vlm/.*", str(tmp_path / "other" / "weights")), *setting.config.init_from[:2])
    with pytest.raises(UserError, match=r"expected features by the weights of vlm of this run"):
        setting.train(tmp_path / "run", features, init_from=rows)
