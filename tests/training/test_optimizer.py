"""Schedules against the public release's numbers, regex tables, clipping, decay and freezing."""

import json
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from motus_jax.errors import UserError
from motus_jax.training import optimizer
from motus_jax.weights import tree

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())
GOLDEN_ARGUMENTS = (
    dict(peak=5e-5, warmup=200, cycle=5_000_000, f_max=0.99, f_min=0.4),
    dict(peak=1e-4, warmup=4, cycle=20, f_max=1.0, f_min=0.1),
)
PARAMS = {
    "a": {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.ones(3)},
    "b": {"kernel": jnp.full((3,), -1.0)},
}


def make(params=PARAMS, **changes):
    config = ml_collections.ConfigDict({
        "name": "adamw", "b1": 0.9, "b2": 0.95, "eps": 1e-8, "clip": 1.0,
        "schedule": {"name": "constant", "peak": 0.1}, "lr_multipliers": ((".*", 1.0),),
        "weight_decay": ((".*", 0.0),), "trained": (), "frozen": (), "frozen_dtype": "float32", "mu_dtype": "float32",
        "ema": 0.9, "accumulate": 1,
    })  # fmt: skip
    config.unlock()
    config.update(changes)
    return optimizer.make_optimizer(config, params, steps=100)


def update(made, grads):
    params = tree.select(PARAMS, made.trained)
    updates, _ = made.transform.update(grads, made.transform.init(params), params)
    return updates


@pytest.mark.parametrize(("numbers", "arguments"), list(zip(GOLDEN.values(), GOLDEN_ARGUMENTS)))
def test_lambda_linear_is_the_release_with_its_first_step(numbers, arguments):
    faithful = optimizer.lambda_linear(0, upstream_first_step=True, **arguments)
    for step, rate in numbers.items():
        np.testing.assert_allclose(faithful(int(step)), rate, rtol=2e-6, err_msg=f"step {step}")


def test_lambda_linear_by_default_warms_up_from_the_first_step():
    fixed = optimizer.lambda_linear(0, **GOLDEN_ARGUMENTS[1])
    np.testing.assert_allclose([fixed(0), fixed(1)], [1e-10, 2.5000075e-5], rtol=1e-5)


@pytest.mark.parametrize("name", ["warmup_cosine", "warmup_linear"])
def test_warmup_starts_above_zero_peaks_and_ends(name):
    schedule = optimizer.SCHEDULES[name](100, peak=1e-3, warmup=10, end=1e-5)
    np.testing.assert_allclose([schedule(0), schedule(9), schedule(10)], [1e-4, 1e-3, 1e-3], rtol=1e-5)
    np.testing.assert_allclose([schedule(100), schedule(1000)], 1e-5, rtol=1e-4)
    assert 1e-5 < float(schedule(55)) < 1e-3


def test_unknown_schedule_field_is_named():
    with pytest.raises(UserError, match=r"warmup_cosine.*wormup"):
        make(schedule={"name": "warmup_cosine", "peak": 0.1, "wormup": 3, "end": 0.0})


def test_a_huge_gradient_updates_like_the_clipped_one():
    huge = jax.tree.map(lambda p: 1e4 * jnp.arange(1.0, p.size + 1).reshape(p.shape), PARAMS)
    norm = optax.tree.norm(huge)
    clipped = jax.tree.map(lambda g: g / norm, huge)
    # Adam forgets scale, so a large eps keeps it visible.
    with_clip, without = make(eps=1.0), make(eps=1.0, clip=None)
    expected = update(without, clipped)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-5), update(with_clip, huge), expected)
    assert not np.allclose(update(without, huge)["a"]["kernel"], expected["a"]["kernel"])


def test_tables_scale_decay_and_freeze_by_path():
    made = make(
        frozen=("b/.*",), lr_multipliers=((".*bias", 0.5), (".*", 1.0)), weight_decay=((".*bias", 0.0), (".*", 0.01))
    )
    assert made.trained == {"a/kernel", "a/bias"}
    updates = update(made, {"a": {"kernel": jnp.zeros((2, 3)), "bias": jnp.ones(3)}})
    np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * 0.01 * 2.0, rtol=1e-6)  # decay alone
    np.testing.assert_allclose(updates["a"]["bias"], -0.1 * 0.5, rtol=1e-5)  # halved rate, no decay
    moments = jax.tree.leaves(made.transform.init(tree.select(PARAMS, made.trained)))
    assert sum(moment.size for moment in moments) == 2 * (6 + 3) + 2  # two moments and two counters, nothing for b


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_every_optimizer_goes_downhill(name):
    made = make(name=name)
    params, state = PARAMS, made.transform.init(PARAMS)
    for _ in range(30):
        updates, state = made.transform.update(params, state, params)  # gradient of |p|^2 / 2
        params = optax.apply_updates(params, updates)
    assert optax.tree.norm(params) < 0.5 * optax.tree.norm(PARAMS)


@pytest.mark.parametrize("name", [name for name in optimizer.OPTIMIZERS if name not in optimizer.WITHOUT_MU])
def test_a_first_moment_in_bfloat16_takes_half_and_changes_the_update_by_its_rounding_alone(name):
    params = {"layers": {"kernel": jnp.full((4, 4), 2.0)}, "scale": jnp.ones(3)}
    narrow, wide = make(params, name=name, mu_dtype="bfloat16"), make(params, name=name)
    states = [made.transform.init(params) for made in (narrow, wide)]
    for seed in range(4):
        keys = jax.random.split(jax.random.key(seed))
        grads = {"layers": {"kernel": jax.random.normal(keys[0], (4, 4))}, "scale": jax.random.normal(keys[1], (3,))}
        found, expected = [made.transform.update(grads, states[i], params) for i, made in enumerate((narrow, wide))]
        states = [found[1], expected[1]]
    leaves = jax.tree_util.tree_leaves_with_path(states[0])
    kept = {(tree.path_name(path), leaf.dtype.name) for path, leaf in leaves}
    assert {dtype for path, dtype in kept if "/mu/" in path} == {"bfloat16"}
    assert {dtype for path, dtype in kept if "/nu/" in path} == {"float32"}
    difference = optax.tree.norm(optax.tree.sub(found[0], expected[0])) / optax.tree.norm(expected[0])
    assert 0 < difference < 0.05  # muon magnifies what is small


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"weight_decay": (("a/.*", 0.1),)}, "no regex matches the parameter 'b/kernel'"),
        ({"lr_multipliers": (("c/.*", 2.0), (".*", 1.0))}, "'c/.*' decides no parameter"),
        ({"lr_multipliers": ((".*", 1.0), ("a/.*", 2.0))}, "'a/.*' decides no parameter"),
        ({"frozen": ("video.*",)}, "config.optimizer.frozen.*'video.*' decides no parameter"),
        ({"frozen": ("a(",)}, "not a regular expression"),
        ({"trained": ("c/.*",)}, "config.optimizer.trained.*'c/.*' decides no parameter"),
        ({"name": "adam"}, "config.optimizer.name.*adamw"),
        ({"clip": -1.0}, "config.optimizer.clip"),
        ({"ema": 1.0}, r"config.optimizer.ema: expected a decay from 0 \(no average\) to below 1, found 1.0"),
        ({"frozen_dtype": "float16"}, "config.optimizer.frozen_dtype: expected float32 or bfloat16, found 'float16'"),
        ({"mu_dtype": "int8"}, "config.optimizer.mu_dtype: expected float32 or bfloat16, found 'int8'"),
        ({"name": "adafactor", "mu_dtype": "bfloat16"}, "mu_dtype: expected float32 with adafactor, which keeps no"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        make(**table)


ADAPTED = {**PARAMS, "a": {**PARAMS["a"], "lora_a": jnp.ones((2, 1)), "lora_b": jnp.zeros((1, 3))}}


@pytest.mark.parametrize(
    ("params", "tables", "expected"),
    [
        (PARAMS, {}, {"a/kernel", "a/bias", "b/kernel"}),
        (PARAMS, {"trained": ("a/.*",)}, {"a/kernel", "a/bias"}),
        (PARAMS, {"trained": ("a/.*",), "frozen": (".*bias",)}, {"a/kernel"}),
        (ADAPTED, {}, {"a/lora_a", "a/lora_b"}),
        (ADAPTED, {"trained": ("b/.*",)}, {"a/lora_a", "a/lora_b", "b/kernel"}),
        (ADAPTED, {"trained": ("b/.*",), "frozen": (".*lora_a",)}, {"a/lora_b", "b/kernel"}),
    ],
)
def test_what_is_trained(params, tables, expected):
    assert make(params, **tables).trained == expected


def test_only_matrices_of_layers_that_are_not_trained_are_kept_in_the_frozen_type():
    layer = {"o": {"kernel": jnp.full((2, 3, 3), 1 / 3), "bias": jnp.full(3, 1 / 3)}, "modulation": jnp.ones((6, 3))}
    params = {"motus": {"layers": {"video": layer, "action": layer}, "video": layer}}
    stored = tree.flatten(make(params, trained=("motus/layers/action/.*",), frozen_dtype="bfloat16").stored(params))
    narrow = {path for path, leaf in stored.items() if leaf.dtype == jnp.bfloat16}
    assert narrow == {"motus/layers/video/o/kernel"}
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_array_equal(stored[path], leaf.astype(stored[path].dtype))


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="nothing is left to train"):
        make(frozen=(".*",))


def test_ema_decay_warms_up_to_its_limit():
    np.testing.assert_allclose([optimizer.ema_decay(0.9, n) for n in (1, 8, 1000)], [2 / 11, 0.5, 0.9], rtol=1e-6)


@pytest.mark.parametrize("name", ["muon", "muon_polar"])
def test_muon_orthogonalises_the_matrices_of_every_layer_and_leaves_the_rest_to_adam(name):
    kernels = jax.random.normal(jax.random.key(0), (2, 6, 4)) * jnp.array([1.0, 50.0])[:, None, None]
    gradient = {
        "motus": {"layers": {"kernel": kernels}},
        "head": {"kernel": jnp.full((3, 2), 7.0)},
    }
    config = ml_collections.ConfigDict({"b1": 0.9, "b2": 0.95, "eps": 1e-8, "mu_dtype": "float32"})
    direction = optimizer.OPTIMIZERS[name](config)
    updates, _ = direction.update(gradient, direction.init(gradient), gradient)
    singular = jnp.linalg.svd(updates["motus"]["layers"]["kernel"], compute_uv=False)
    assert float(singular.min()) > 0.45 and float(singular.max()) < 1.6, "both layers, however large their gradients"
    np.testing.assert_allclose(updates["head"]["kernel"], 1.0, rtol=1e-5)
