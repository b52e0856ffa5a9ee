"""Weights made whole where they are used: the same numbers on 1 to 8 devices, and the bytes that this predicts."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
SCRIPT = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from experiments import demo
from motus_jax.models.system import System
from motus_jax.training import absent, sharding
from motus_jax.training.program import Program, by_kind
from motus_jax.weights import tree

def gathers(jaxpr):
    found = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sharding_constraint" and not any(equation.params["sharding"].spec):
            found += equation.outvars[0].aval.size * equation.outvars[0].aval.dtype.itemsize
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        found += times * sum(gathers(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
    return found

config = demo.get_config()
config.batch_size = 8
config.mode = "joint"
config.model.overrides.update({"remat": "full", "depth": 3, "trim_last_layer": False})
system = System(config)
random = np.random.default_rng(0)
def drawn(shapes):  # by numpy: nothing to compile
    return jax.tree.map(lambda leaf: random.normal(0, 0.05, leaf.shape).astype(np.float32), shapes)
params = drawn({"motus": jax.eval_shape(system.init, jax.random.key(0))["motus"]})
shapes = absent.batch_shapes(config, system, features=False)
widths = system.motus_config.video.text_width, system.motus_config.understanding.input_width
text, vlm = (8, config.data.instruction_length, widths[0]), (8, 20, widths[1])
shapes |= {"text_states": jax.ShapeDtypeStruct(text, np.float32), "vlm_states": jax.ShapeDtypeStruct(vlm, np.float32),
           "vlm_mask": jax.ShapeDtypeStruct(vlm[:2], bool)}
def fill(shape):
    if shape.dtype == bool:
        return np.ones(shape.shape, bool)
    return random.integers(0, 200, shape.shape).astype(shape.dtype) if np.issubdtype(shape.dtype, np.integer) else (
        random.normal(size=shape.shape).astype(shape.dtype))
batch = {name: fill(shape) for name, shape in shapes.items()}
frozen = drawn(system.fitted_shapes())
def step(params, frozen, batch, key):
    (loss, _), gradient = jax.value_and_grad(system.loss, has_aux=True)(params, frozen, batch, key)
    return loss, gradient
for count in map(int, sys.argv[1:]):
    mesh = Mesh(np.array(jax.devices()[:count]).reshape(1, count, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
        whole = sharding.replicated(mesh)
        places = whole, NamedSharding(mesh, sharding.BATCH), whole
        given = placed, *jax.device_put((frozen, batch, jax.random.key(1)), places)
        traced = jax.jit(step, out_shardings=(whole, sharding.tree_shardings(params, mesh))).trace(*given)
        compiled = traced.lower().compile()
        loss, gradient = compiled(*given)
        norms = {path: float(np.linalg.norm(leaf)) for path, leaf in tree.flatten(gradient).items()}
        moved = by_kind(Program(compiled.as_text()).collectives())
        print(json.dumps({"loss": float(loss), "norms": norms, "moved": moved,
                          "predicted": gathers(traced.jaxpr.jaxpr) * (count - 1) / count}))
"""


@pytest.fixture(scope="module", params=[(1, 8), pytest.param((1, 2, 4, 8), marks=pytest.mark.heavy)])
def found(request):
    """Devices -> what one gradient of a small model gives, and what its experts move; a batch of 8 in all."""
    counts = request.param
    xla = f"--xla_force_host_platform_device_count=8 {os.environ['XLA_FLAGS']}"
    variables = {"XLA_FLAGS": xla, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, counts)], env=os.environ | variables,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(zip(counts, map(json.loads, done.stdout.splitlines())))


@pytest.mark.thorough
def test_losses_and_gradients_do_not_depend_on_the_devices(found):
    for count in list(found)[1:]:
        assert found[count]["loss"] == pytest.approx(found[1]["loss"], rel=1e-5)
        for path, norm in found[1]["norms"].items():
            assert found[count]["norms"][path] == pytest.approx(norm, rel=2e-4, abs=1e-6), path


@pytest.mark.thorough
def test_weights_move_as_predicted_and_activations_do_not(found):
    """All-gathers are those of weights, forward and again in the backward pass; nothing is sent from each to each."""
    assert found[1]["moved"] == {} and found[1]["predicted"] == 0
    for count in list(found)[1:]:
        moved = {name: row["slice_bytes"] for name, row in found[count]["moved"].items()}
        assert moved["all-gather"] == pytest.approx(found[count]["predicted"], rel=0.05)
        assert moved.get("all-to-all", 0) + moved.get("collective-permute", 0) < 0.02 * moved["all-gather"]
