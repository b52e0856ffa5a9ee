"""Adapters trained on the base of an earlier run: what moves, what stays, what is stored; resume, merging, export."""

import functools
import shutil

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from fake_run import CONTRACT
from orbax.checkpoint import v1 as ocp
from safetensors.numpy import load_file

from experiments import debug
from motus_jax import compiler, convert
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.training import checkpoint, initial, loop, metrics, sharding
from motus_jax.training.plan import make_plan
from motus_jax.weights import importer, kinds, lora, tree

pytestmark = pytest.mark.thorough

ROWS = (("motus/layers/(video|action)/.*", 3), ("motus/understanding/.*", 2))
EXTRA = ("motus/action/(action_encoder|decoder)/.*",)
COUNT = 2


def make_config(**changes):
    config = debug.get_config()
    config.model.overrides = ml_collections.ConfigDict({"remat": "full", "dtype": "float32"})
    with config.unlocked():
        config.update_from_flattened_dict({
            "data.chunk": CONTRACT.chunk, "data.image_size": (32, 32), "data.instruction_length": 16,
            "batch_size": COUNT, "log_every": 1, "validate_every": 0, "checkpoint.every": 2, "steps": 2,
            "optimizer.schedule": {"name": "constant", "peak": 1e-2}, "optimizer.name": "adamw", **changes,
        })  # fmt: skip
    return config


def example(config, index):
    rng, data = np.random.default_rng(index), config.data
    shape = (data.chunk, data.action_dim)
    return {
        "frames": rng.integers(0, 256, (1 + data.video_frames, *data.image_size, 3), np.uint8),
        "state": rng.standard_normal(data.state_dim, np.float32),
        "actions": rng.standard_normal(shape, np.float32),
        "action_mask": np.ones(shape, bool),
        "instruction": rng.integers(1, 257, data.instruction_length).astype(np.int32),
        "instruction_mask": np.arange(data.instruction_length) < 9,
    }


def make_data(config, contracts):
    del contracts
    source = grain.MapDataset.range(16).repeat().map(functools.partial(example, config)).batch(config.batch_size)
    frames = np.stack([example(config, index)["frames"] for index in range(16)])
    return loop.Data(iter(source.to_iter_dataset()), [], lambda: frames, {"data": CONTRACT.to_json()})


def train(workdir, **changes):
    assert loop.train(make_config(**changes), workdir, System, make_data)
    return workdir


def losses(workdir):
    return {row["step"]: row["loss"] for row in metrics.read_curve(workdir / "metrics.jsonl") if "loss" in row}


def params_of(workdir):
    return tree.flatten(checkpoint.load_for_inference(workdir).params)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run that trains everything."""
    return train(tmp_path_factory.mktemp("base") / "run", seed=1)


def tune(workdir, base, **changes):
    usual = {"lora": ROWS, "init_from": ((".*", str(base)),), "optimizer.trained": EXTRA}
    return train(workdir, **usual | {"optimizer.schedule.peak": 0.1} | changes)


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """Four steps of adapters and the ends of the action expert on that."""
    return tune(tmp_path_factory.mktemp("tuned") / "run", base, steps=4)


def stored_state(workdir, number):
    """The state in a checkpoint, as it lies there."""
    folder = workdir / "checkpoints" / str(number)
    return ocp.load_checkpointables(folder, {"state": ocp.checkpointables_metadata(folder).metadata["state"]})["state"]


def plan_for(**changes):
    """A config, its system and the plan of a run of it."""
    config = make_config(**changes)
    system = System(config)
    return config, system, make_plan(config, system, sharding.make_mesh(config.mesh))


def loss_of(system, workdir):
    """Loss of any parameters on one batch with the frozen parts of a run."""
    frozen = checkpoint.load_for_inference(workdir).frozen
    batch = jax.tree.map(lambda *rows: np.stack(rows), *(example(system.config, i) for i in range(COUNT)))
    return jax.jit(lambda params: system.loss(params, frozen, batch, jax.random.key(5))[0],
                   compiler_options=compiler.options())  # fmt: skip


def test_the_first_loss_is_that_of_the_base(base, tuned, tmp_path):
    """To the rounding of two programs: XLA orders the sums of each as it likes."""
    whole = train(tmp_path / "whole", steps=1, init_from=((".*", str(base)),))
    np.testing.assert_allclose(losses(tuned)[1], losses(whole)[1], rtol=1e-6)
    assert abs(losses(tuned)[4] - losses(tuned)[1]) > 1e-3


def test_only_adapters_and_what_is_named_besides_move(base, tuned):
    before, after = params_of(base), params_of(tuned)
    config, _, plan = plan_for(lora=ROWS, **{"optimizer.trained": EXTRA})
    fresh = tree.flatten(plan.init(jax.random.key(config.seed)))
    assert after.keys() == fresh.keys() and before.keys() == {path for path in after if not lora.is_adapter(path)}
    named = {path for path in before if path.startswith(("motus/action/action_encoder", "motus/action/decoder"))}
    for path, leaf in after.items():
        start = fresh[path] if lora.is_adapter(path) else before[path]
        if lora.is_adapter(path) or path in named:
            assert not np.array_equal(leaf, start), path
        else:
            assert np.asarray(leaf).tobytes() == np.asarray(start).tobytes(), path


def test_checkpoints_hold_what_is_trained_and_the_rest_is_kept_once(base, tuned):
    _, _, plan = plan_for(lora=ROWS, **{"optimizer.trained": EXTRA})
    trained = plan.optimizer.trained
    for number in checkpoint.available_steps(tuned):
        root = tuned / "checkpoints" / str(number)
        state = ocp.checkpointables_metadata(root).metadata["state"]
        stored = {tree.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
        parts = {name: {path.removeprefix(f"{name}/") for path in stored if path.startswith(f"{name}/")}
                 for name in ("params", "ema")}  # fmt: skip
        assert parts == {"params": trained, "ema": trained}
        sizes = {path: np.prod(leaf.shape) for path, leaf in tree.flatten(plan.params).items()}
        numbers = sum(np.prod(leaf.shape) for leaf in stored.values())
        assert numbers < 4.1 * sum(sizes[path] for path in trained) + 100, "parameters, average and two moments"
    kept = ocp.load(tuned / "base")
    assert tree.flatten(kept).keys() == tree.flatten(plan.params).keys() - trained
    assert not (base / "base").exists(), "where everything is trained there is nothing to keep"


def test_resume_is_bit_exact(base, tuned, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(tuned, again)
    shutil.rmtree(again / "checkpoints" / "4")
    tune(again, base, steps=4)
    straight, resumed = (stored_state(run, 4) for run in (tuned, again))
    for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert losses(again) == losses(tuned)


def test_a_base_of_other_weights_is_noticed(tuned, tmp_path):
    shutil.copytree(tuned, tmp_path / "run")
    kept = ocp.load(tmp_path / "run" / "base")
    ocp.save(tmp_path / "run" / "base", jax.tree.map(lambda x: x + 1, kept), overwrite=True)
    with pytest.raises(UserError, match=r"/base: expected the frozen parts .*; found weights of motus that differ"):
        checkpoint.load_for_inference(tmp_path / "run")


def test_a_run_without_adapters_gets_them_merged(base, tuned):
    _, system, plan = plan_for()
    paths = tree.flatten(plan.params)
    found = initial.load(((".*", str(tuned)),), {**plan.params}, paths)
    adapted = params_of(tuned)
    assert found.keys() == paths.keys()
    changed = {path for path in paths if not np.array_equal(found[path], adapted[path])}
    assert changed == lora.adapted(adapted).keys(), "all other leaves are taken as they are"
    loss = loss_of(system, tuned)
    expected = loss(tree.unflatten(adapted))
    np.testing.assert_allclose(loss(tree.unflatten(found)), expected, rtol=1e-5)
    assert abs(loss(checkpoint.load_for_inference(base).params) - expected) > 1e-4 * expected


def test_a_run_with_the_same_adapters_goes_on_with_them(tuned):
    _, _, plan = plan_for(lora=ROWS, **{"optimizer.trained": EXTRA})
    found = initial.load(((".*", str(tuned)),), {**plan.params}, tree.flatten(plan.params))
    for path, leaf in params_of(tuned).items():
        np.testing.assert_array_equal(found[path], leaf)


def test_adapters_of_another_rank_are_refused_or_merged_and_begun_anew(tuned):
    _, _, plan = plan_for(lora=((".*layers/video/ffn/.*", 5),))
    flat = tree.flatten(plan.params)
    with pytest.raises(UserError, match=r"lora_a': expected shape .*, found .*; let it start fresh with a row before"):
        initial.load(((".*", str(tuned)),), {**plan.params}, flat)
    rows = ((".*/lora_[ab]", "new"), (".*", str(tuned)))
    found = initial.load(rows, {**plan.params}, flat)
    assert found.keys() == {path for path in flat if not lora.is_adapter(path)}
    before, path = params_of(tuned), "motus/layers/video/ffn/dense_0/kernel"
    expected = lora.merge(*(before[leaf] for leaf in (path, *lora.adapters_of(path))))
    np.testing.assert_allclose(found[path], expected, rtol=1e-6, atol=1e-7)


def test_export_has_them_merged_and_comes_back_as_it_was(tuned, tmp_path):
    convert.main(["convert", "export", f"--workdir={tuned}", f"--out={tmp_path / 'out'}"])
    convert.main(["convert", "import", f"--source={tmp_path / 'out'}", "--kind=motus_stage3", "--variant=debug",
                  f"--workdir={tmp_path / 'back'}"])  # fmt: skip
    _, _, plan = plan_for()
    motus = {"motus": plan.params["motus"]}
    back = tree.flatten(importer.load_imported(tmp_path / "back", motus))
    merged = initial.load(((".*", str(tuned)),), {**plan.params}, tree.flatten(motus))
    assert back.keys() == merged.keys()
    for path, leaf in back.items():
        assert np.asarray(leaf).tobytes() == np.asarray(merged[path]).tobytes(), path


@pytest.mark.heavy
def test_a_bfloat16_base_without_an_average(base, tmp_path):
    """The base is kept as it is asked for; what an export merges is float32."""
    changes = {"model.overrides.dtype": "bfloat16", "optimizer.frozen_dtype": "bfloat16", "optimizer.ema": 0.0}
    run = tune(tmp_path / "run", base, **changes)
    found, before = params_of(run), params_of(base)
    path = "motus/layers/video/ffn/dense_0/kernel"
    assert found[path].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found[path], before[path].astype(jnp.bfloat16))
    state = stored_state(run, 2)
    assert not state.get("ema")
    b = lora.adapters_of(path)[1]
    np.testing.assert_array_equal(found[b], tree.flatten(state["params"])[b])
    assert np.abs(found[b]).max() > 0
    convert.main(["convert", "export", f"--workdir={run}", f"--out={tmp_path / 'out'}"])
    exported = load_file(tmp_path / "out" / "model-00001-of-00001.safetensors")
    names = {f"motus/{leaf.path}": leaf.names for leaf in kinds.motus_part(plan_for()[1].motus_config).leaves}
    merged = lora.merge(*(found[leaf] for leaf in (path, *lora.adapters_of(path))))
    for name, expected in zip(names[path], merged, strict=True):
        np.testing.assert_allclose(exported[name].T, expected, rtol=1e-6, atol=1e-7)


def test_adapters_beside_random_kernels_are_refused(tmp_path):
    message = r"config\.lora: adapters are trained beside 'motus/layers/action/.*/kernel', which is not, so config"
    with pytest.raises(UserError, match=message):
        train(tmp_path / "run", lora=ROWS)
    fresh = {"x/kernel", "x/lora_a", "x/lora_b"}
    initial.refuse_random_kernels(fresh, trained=fresh)  # a kernel that is trained as well may be random
    initial.refuse_random_kernels(fresh - {"x/kernel"}, trained=fresh - {"x/kernel"})
