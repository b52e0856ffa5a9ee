"""State that waits in the host's memory: where it lies, the same numbers, resuming with and without, refusals."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fake_run import FakeSystem, get_config, make_data

from motus_jax.errors import UserError
from motus_jax.training import checkpoint, loop, offload, sharding
from motus_jax.training.optimizer import make_optimizer
from motus_jax.training.plan import make_plan
from motus_jax.training.step import init_state
from motus_jax.weights import tree

REPOSITORY = pathlib.Path(__file__).parents[2]
MOMENTS = "opt_state/.*/(mu|nu)/.*"
ALL = (MOMENTS, "ema/.*")
PLACED = """
ema/action/dense/bias            12       device
ema/action/dense/kernel          128x12   device
ema/video/dense/kernel           64x128   pinned_host
opt_state/1/count                         device
opt_state/1/mu/action/dense/bias 12       device
opt_state/1/mu/action/dense/kernel 128x12 device
opt_state/1/mu/video/dense/kernel 64x128  pinned_host
opt_state/1/nu/action/dense/bias 12       device
opt_state/1/nu/action/dense/kernel 128x12 device
opt_state/1/nu/video/dense/kernel 64x128  pinned_host
opt_state/4/count                         device
params/action/dense/bias         12       device
params/action/dense/kernel       128x12   device
params/video/dense/kernel        64x128   device
step                                      device
"""


def config_with(rows=(), **changes):
    config = get_config()
    config.update_from_flattened_dict({"checkpoint.keep": 3, **changes})
    config.optimizer.offload = rows
    return config


def plan_of(config):
    mesh = sharding.make_mesh(config.mesh)
    return make_plan(config, FakeSystem(config), mesh)


def leaves(state):
    """(path, leaf) of every leaf of a state."""
    flat, _ = jax.tree_util.tree_flatten_with_path(state)
    return [(tree.path_name(path), leaf) for path, leaf in flat]


def test_only_what_rows_match_and_is_large_leaves_the_devices():
    found = [
        f"{path} {'x'.join(map(str, leaf.shape))} {leaf.sharding.memory_kind}"
        for path, leaf in leaves(plan_of(config_with(ALL)).state)
    ]
    assert [line.split() for line in found] == [line.split() for line in PLACED.strip().splitlines()]


def test_a_leaf_is_split_as_on_the_devices():
    near, far = (leaves(plan_of(config_with(rows)).state) for rows in ((), ALL))
    for (path, here), (_, there) in zip(near, far, strict=True):
        assert there.sharding.with_memory_kind("device") == here.sharding, path


@pytest.mark.parametrize(("name", "moved"), [("adamw", 2 * 2), ("muon", 1 + 2), ("adafactor", 0)])
def test_the_moments_of_every_optimizer_have_these_names_and_are_updated(name, moved):
    """Of one matrix of the layers and one outside: two moments each, of muon's matrices one."""
    kernel = jax.ShapeDtypeStruct((64, 128), jnp.float32)
    params = {"motus": {"layers": {"video": {"o": {"kernel": kernel}}}, "video": {"head": {"kernel": kernel}}}}
    config = config_with()
    config.optimizer.update({"name": name, "frozen": (), "lr_multipliers": ((".*", 1.0),)})
    config.optimizer.weight_decay = ((".*", 0.0),)
    optimizer = make_optimizer(config.optimizer, params, 10)
    mesh = sharding.make_mesh(config.mesh)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    state = sharding.targets(state, mesh, ((".*", sharding.SPLIT),))
    if moved:
        placed = [leaf for _, leaf in leaves(offload.place(state, (MOMENTS,), mesh)) if offload.in_host_memory(leaf)]
        assert len(placed) == moved and all(leaf.shape == kernel.shape for leaf in placed)
    else:
        with pytest.raises(UserError, match="decides no parameter"):
            offload.place(state, (MOMENTS,), mesh)

    def step(state, grads):
        def update(old):
            updates, new = optimizer.transform.update(grads, old["opt_state"], old["params"])
            return {**old, "params": optax.apply_updates(old["params"], updates), "opt_state": new}

        return offload.update(update, state, grads)

    everything = offload.place(state, ("(opt_state|ema)/.*",), mesh)
    made = jax.jit(step).trace(everything, state["params"]).jaxpr.out_avals
    spaces = [aval.memory_space is jax.memory.Space.Host for aval in made]
    assert spaces == [offload.in_host_memory(leaf) for leaf in jax.tree.leaves(everything)] and any(spaces)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("opt_state/.*/momentum/.*",), "regex 'opt_state/.*/momentum/.*' decides no parameter .* ema, opt_state$"),
        (("params/.*",), "regex 'params/.*' decides no parameter"),
        ((".*/bias",), "regex '.*/bias' decides no parameter"),  # too small to be worth a copy
        (("(opt_state|ema)/.*", "ema/.*"), "regex 'ema/.*' decides no parameter"),
        (("ema/(",), "is not a regular expression"),
    ],
)
def test_a_row_that_decides_nothing_is_refused(rows, message):
    with pytest.raises(UserError, match=rf"^config\.optimizer\.offload: .*{message}"):
        plan_of(config_with(rows))


def test_devices_without_such_memory_are_refused(monkeypatch):
    monkeypatch.setattr(offload, "KIND", "elsewhere")
    with pytest.raises(UserError, match=r"^config\.optimizer\.offload: expected devices with memory 'elsewhere'"):
        plan_of(config_with(ALL))


def run(workdir, rows=(), **changes):
    config = config_with(rows, **changes)
    assert loop.train(config, workdir, FakeSystem, make_data)
    return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(without, with): the same run of 12 steps, and what the second printed."""
    root = tmp_path_factory.mktemp("offload")
    return run(root / "without"), run(root / "with", ALL)


def state_of(workdir, rows=()):
    """The state of the newest checkpoint, where `rows` say."""
    config = config_with(rows)
    with checkpoint.Checkpoints(workdir, 5, 3) as checkpoints:
        return checkpoints.restore(plan_of(config).state, make_data(config).batches).state


def curve(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


def assert_same_state(ours, theirs):
    for (path, one), (_, other) in zip(leaves(ours), leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=path)


def test_losses_validation_and_state_are_the_same_bit_for_bit(runs):
    without, offloaded = runs
    assert b"val/vla/loss" in curve(without) and curve(without) == curve(offloaded)
    assert_same_state(state_of(without), state_of(offloaded, ALL))


def test_a_restored_state_lies_where_the_rows_say(runs):
    """Whatever the rows of the run that wrote it."""
    for workdir, rows in zip(runs, (ALL, ())):
        kinds = {path: leaf.sharding.memory_kind for path, leaf in leaves(state_of(workdir, rows))}
        assert (kinds["opt_state/1/mu/video/dense/kernel"] == offload.KIND) is bool(rows)
        assert kinds["params/video/dense/kernel"] == "device"


@pytest.mark.parametrize("first", [0, 1], ids=["then offloaded", "then no longer"])
def test_a_run_goes_on_with_other_rows(runs, first, tmp_path, capsys):
    """From step 5, in both directions, as if nothing had happened; the start says what each row takes away."""
    workdir = shutil.copytree(runs[first], tmp_path / "run")
    for step in (10, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    run(workdir, (ALL, ())[first])
    assert curve(workdir) == curve(runs[0])
    assert_same_state(state_of(workdir), state_of(runs[0]))
    printed = capsys.readouterr().out
    assert "restored step 5" in printed and ("in the host's memory between updates:" in printed) is (first == 0)
    assert (f"{MOMENTS}  2 leaves  0.00 GiB  0.00 GiB of each device" in printed) is (first == 0)


@pytest.mark.thorough
def test_eight_devices_agree_bit_for_bit_with_and_without(tmp_path):
    xla = f"--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false {os.environ['XLA_FLAGS']}"
    environment = os.environ | {"XLA_FLAGS": xla, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(REPOSITORY / "tests" / "training" / "fake_run.py"), "--config.log_every=1"]
    for name, rows in (("without", ()), ("with", ALL)):
        asked = [f"--workdir={tmp_path / name}", f"--config.optimizer.offload={rows!r}"]
        done = subprocess.run([*command, *asked], env=environment, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "'fsdp': 8" in done.stdout and (rows != ()) is ("in the host's memory" in done.stdout)
    assert curve(tmp_path / "with") == curve(tmp_path / "without")


SCRIPT = """
import functools, json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from fake_run import FakeSystem, get_config
from motus_jax.training import absent, program, sharding, step
from motus_jax.training.plan import make_plan
from motus_jax.weights import tree

chips, config = absent.devices("v5e:2x2"), get_config()
config.model.width = 256
config.optimizer.offload = tuple(sys.argv[1:])
mesh, system = sharding.make_mesh(config.mesh, chips), FakeSystem(config)
with jax.set_mesh(mesh):
    plan, shape = make_plan(config, system, mesh), jax.ShapeDtypeStruct
    frozen = tree.overlay(sharding.targets(system.fitted_shapes(), mesh), plan.base)
    batch = {"frames": shape((8, 3, 2, 2, 3), jnp.uint8), "actions": shape((8, 4, 3), jnp.float32)}
    batch = absent.placed(batch, NamedSharding(mesh, sharding.BATCH))
    key = absent.placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh))
    train_step = step.make_train_step(system, plan.optimizer, config.optimizer, mesh, plan.placements)
    compiled = train_step.lower(plan.state, frozen, batch, key).compile()
    first = functools.partial(step.init_state, optimizer=plan.optimizer)
    begin = jax.jit(first, out_shardings=plan.placements, donate_argnames="params")
    begun = begin.lower(params=plan.params).compile()
    weights = absent.placed(jax.ShapeDtypeStruct((6,), jnp.float32), sharding.replicated(mesh))
    evaluated = step.make_eval_step(system, mesh).lower(plan.state, frozen, batch, key, weights).compile()
memory = compiled.memory_analysis()
print(json.dumps({
    "begun": begun.memory_analysis().host_output_size_in_bytes,
    "evaluated": program.Program(evaluated.as_text()).host_traffic(),
    "host": memory.host_argument_size_in_bytes, "replaced": memory.host_alias_size_in_bytes,
    "copied": program.Program(compiled.as_text()).host_traffic(),
}))
"""


@pytest.mark.compiler
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install 'libtpu==0.0.42.*'")
def test_tpus_keep_it_at_the_host_and_copy_it_there_and_back():
    """For a slice of four that is not there; each device has a quarter of the large kernels."""
    path = f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'training'}"
    done = subprocess.run([sys.executable, "-c", SCRIPT, *ALL], cwd=REPOSITORY, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": path})  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Two moments and the average of [256, 512] and of [512, 12], which lies in tiles of 8 x 128, turned: 12 as 16.
    assert found["host"] == 3 * 4 * (256 * 512 + 512 * 16) // 4
    assert found["replaced"] == found["host"], "the new values take the place of the old"
    assert found["begun"] == found["host"], "where the first state is made"
    assert found["evaluated"] == 4 * (256 * 512 + 512 * 12) // 4, "the average, once"
    assert found["copied"] == 2 * 3 * 4 * (256 * 512 + 512 * 12) // 4, "there and back"
