"""Every kernel gives the same attention and the same gradients, padding or not; what is lowered for which platform."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.models import attention as module
from motus_jax.models.attention import KERNELS, attention, cudnn, plain, splash
from motus_jax.training import flops

REPOSITORY = pathlib.Path(__file__).parents[2]
B, S, M, N, K = 2, 70, 150, 2, 16
KERNELS_HERE = {
    "splash": lambda *given: splash(*given, interpret=True),
    "cudnn": lambda *given: cudnn(*given, implementation="xla"),
}
"""What runs without the chip of either."""


def drawn(dtype=jnp.float32, batch=B):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(batch, length, N, K)), dtype) for length in (S, M, M)]


def masks(batch=B):
    """Padding behind, and holes as an unknown state leaves them."""
    real = np.arange(M) < np.linspace(M, M // 3, batch)[:, None]
    real[:, 3] = np.arange(batch) % 2 == 0
    return jnp.asarray(real)


def value_and_gradients(attend, mask):
    def loss(q, k, v):
        return jnp.sum(jnp.sin(3 * attend(q, k, v, mask)))

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize("mask", [None, masks()], ids=["all real", "padded"])
@pytest.mark.parametrize("name", KERNELS_HERE)
def test_a_kernel_gives_what_plain_products_give(name, mask):
    assert name in KERNELS
    expected = value_and_gradients(plain, mask)(*drawn())
    found = value_and_gradients(KERNELS_HERE[name], mask)(*drawn())
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-3)
    for own, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5)
    if mask is not None:
        padded = ~np.asarray(mask)
        assert not np.asarray(found[1][1])[padded].any() and not np.asarray(found[1][2])[padded].any()


def test_lengths_that_take_several_blocks(monkeypatch):
    monkeypatch.setattr(module, "LONGEST_BLOCK", 128)
    expected = value_and_gradients(plain, masks())(*drawn())
    found = value_and_gradients(KERNELS_HERE["splash"], masks())(*drawn())
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


ON_MESHES = """
import sys
import jax, numpy as np
from motus_jax.models.attention import plain
from motus_jax.training import flops
from tests.models import test_attention as given
for shape, batch in (((1, 2, 1), 2), ((2, 1, 1), 2), ((1, 1, 2), 2), ((2, 2, 1), 4), ((1, 2, 1), 3)):
    mesh = jax.make_mesh(shape, ("replica", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
        run = given.value_and_gradients(given.KERNELS_HERE["splash"], given.masks(batch))
        found = run(*given.drawn(batch=batch))
        counted = flops.count(run, *given.drawn(batch=batch))
    if batch == 2:
        assert counted == flops.count(run, *given.drawn(batch=batch)), "operations of all devices"
    expected = given.value_and_gradients(plain, given.masks(batch))(*given.drawn(batch=batch))
    for own, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4, err_msg=str((shape, batch)))
    print("as without a mesh", shape, batch)
"""


def test_on_a_mesh_every_device_attends_for_its_own():
    """By examples and by heads; a batch that cannot be split is whole everywhere."""
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ON_MESHES]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as without a mesh") == 5


@pytest.mark.parametrize("name", KERNELS)
def test_without_its_chip_a_kernel_is_plain(name):
    assert module.platform() == "cpu"
    assert (attention(*drawn(), masks(), name) == plain(*drawn(), masks())).all()
    assert module.words(name) == {"xla": "xla"}.get(name, f"xla: there is no {name} on cpu")


@pytest.mark.parametrize(
    ("name", "platform", "call"), [("splash", "tpu", "tpu_custom_call"), ("cudnn", "cuda", "__cudnn$fmhaSoftmax")]
)
def test_on_its_chip_forward_and_backward_are_the_kernel(monkeypatch, name, platform, call):
    versions = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(versions, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(module, "platform", lambda: {"cuda": "gpu"}.get(platform, platform))
    run = value_and_gradients(lambda *given: attention(*given, name), masks())
    unchecked = [jax.export.DisabledSafetyCheck.custom_call(name) for name in (call, f"{call}Backward")]
    made = jax.export.export(run, platforms=[platform], disabled_checks=unchecked)
    assert made(*drawn(jnp.bfloat16)).mlir_module().count(f"@{call}") >= 2, "forward and backward"


def test_the_platform_is_that_of_the_mesh(monkeypatch):
    class Device:
        platform = "cuda"

    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: type("Mesh", (), {"abstract_device": Device}))
    assert module.platform() == "gpu"


def test_what_is_refused():
    with pytest.raises(UserError, match="attention: expected one of xla, cudnn, splash; found 'flash'"):
        attention(*drawn(), None, "flash")
    with pytest.raises(UserError, match=r"attention=cudnn: expected bfloat16 \(model.overrides.dtype\); found float32"):
        cudnn(*drawn(), None)


def test_kernels_are_counted(monkeypatch):
    """Products of queries with keys or of that size: forward 2; backward 5, of which splash makes two twice."""
    versions = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(versions, "check_cudnn_version", lambda: 91000)
    lengths = {"xla": (S, M), "cudnn": (S, M), "splash": (128, 256)}
    for name, products in (("xla", 7), ("cudnn", 7), ("splash", 9)):
        run = value_and_gradients(KERNELS[name].compute, masks())
        s, m = lengths[name]
        assert flops.count(run, *drawn(jnp.bfloat16)) == pytest.approx(products * 2 * B * N * s * m * K, rel=1e-3)
