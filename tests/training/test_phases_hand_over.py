"""Phase 1 -> 2 -> 3 by the tables of the experiments, at the smallest size: what each takes over and what is new."""

import jax
import ml_collections
import numpy as np
import pytest

from experiments import debug, phase1, phase2, phase3
from motus_jax.models.system import System
from motus_jax.training import checkpoint, loop
from motus_jax.training.inputs import open_data
from motus_jax.weights import tree
from tests.data import lerobot_fixture

pytestmark = pytest.mark.thorough


def small(experiment, data, runs, start=None):
    """The experiment's own modes, forms and tables, with the sizes and encoders of `debug`; nothing moves."""
    config, tiny = experiment.get_config(), debug.get_config()
    with config.unlocked():
        overrides = {**tiny.model.overrides.to_dict(), **config.model.overrides.to_dict(), "depth": 1}
        config.data, config.model = tiny.data, tiny.model
        config.data.update({"path": str(data), "action_space": "absolute"})
        config.model.overrides = ml_collections.ConfigDict(overrides)
        rows = config.init_from if start is None else start
        config.init_from = tuple(
            (regex, source if source == "new" else str(runs / source.removeprefix("runs/")))
            for regex, source in rows
            if regex not in dict(phase3.ENCODERS)
        )
        config.update({"steps": 1, "batch_size": 4, "seed": int(experiment.__name__[-1]), "validate_every": 0})
        config.optimizer.schedule.update({"peak": 1e-12, "end": 1e-13, "warmup": 0})
        config.optimizer.name = "adamw"  # nothing moves: what compiles fastest
    return config


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Leaves after each phase."""
    runs = tmp_path_factory.mktemp("runs")
    data = lerobot_fixture.write(tmp_path_factory.mktemp("data") / "set")
    found = {}
    starts = {"phase1": (), "phase2": None, "phase3": None}  # Wan's weights are not here: phase 1 starts fresh
    for experiment in (phase1, phase2, phase3):
        name = experiment.__name__.split(".")[-1]
        config = small(experiment, data, runs, starts[name])
        assert loop.train(config, runs / name, System, open_data)
        found[name] = tree.flatten(checkpoint.load_for_inference(runs / name).params)
        jax.clear_caches()
    return found


def same(a, b):
    return {path for path in a.keys() & b.keys() if np.allclose(a[path], b[path], atol=1e-6)}


def experts(paths, *names):
    return {path for path in paths if any(f"/{name}/" in path for name in names)}


def drawn(leaves):
    """Leaves that another seed makes differently; others are constants."""
    return {path for path, leaf in leaves.items() if np.std(leaf) > 1e-4}


def test_phase_2_takes_the_video_expert_and_nothing_else(trees):
    before, after = trees["phase1"], trees["phase2"]
    video = experts(after, "video")
    assert video <= same(before, after) and video & drawn(after)
    assert not (experts(after, "action", "understanding") & drawn(after)) & same(before, after)


def test_phase_3_takes_all_but_state_and_registers(trees):
    before, after = trees["phase2"], trees["phase3"]
    new = {path for path in after if path.startswith(("motus/action/state_encoder/", "motus/action/registers"))}
    assert new and not new & before.keys()
    assert experts(after, "video", "action", "understanding") - new <= same(before, after)
    kept = {path for path in after if path.startswith(("motus/action/action_encoder/", "motus/action/decoder/"))}
    assert kept & drawn(after)
