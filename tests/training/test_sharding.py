"""The mesh and the rule table, on a mesh of eight imagined devices."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from motus_jax.errors import UserError
from motus_jax.training import sharding

EIGHT = AbstractMesh((1, 4, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        # Scanned layers: the leading layer axis stays whole.
        ("opt_state/1/mu/motus/layers/video/ffn/dense_0/kernel", (30, 64, 256), P(None, "fsdp", "tensor")),
        ("params/motus/layers/video/self_attention/o/kernel", (30, 64, 256), P(None, "tensor", "fsdp")),
        ("params/vlm/embedding", (260, 64), P("fsdp", None)),
        ("params/vlm/embedding", (257, 64), P(None, "fsdp")),  # 257 does not divide
        ("params/motus/layers/video/self_attention/q/kernel", (64, 255), P("fsdp", None)),  # nor does 255 by tensor
        ("params/odd/kernel", (67, 65), P(None, None)),
        ("params/motus/head/bias", (64,), P()),  # small
        ("params/anything", (3,), P()),
    ],
)
def test_rules_place_leaves(path, shape, spec):
    assert sharding.spec_for(path, shape, EIGHT, sharding.RULES) == spec


def test_a_large_leaf_without_a_rule_is_refused():
    with pytest.raises(UserError, match="no sharding rule for the parameter 'params/new/thing'"):
        sharding.spec_for("params/new/thing", (128, 128), EIGHT, sharding.RULES)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(sizes):
    with pytest.raises(UserError, match=r"config\.mesh"):
        sharding.make_mesh(ConfigDict(dict(zip(sharding.AXES, sizes))))


def test_minus_one_fills_the_mesh():
    mesh = sharding.make_mesh(ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1}))
    assert mesh.shape["fsdp"] == jax.device_count() and mesh.axis_types == (AxisType.Auto,) * 3


def test_a_batch_that_does_not_divide_is_refused():
    sharding.check_batch(16, 2, EIGHT)
    with pytest.raises(UserError, match=r"config\.batch_size: expected a multiple of 8 .* found 12"):
        sharding.check_batch(12, 2, EIGHT)


def test_put_batch_keeps_values():
    mesh = sharding.make_mesh(ConfigDict({"replica": 1, "fsdp": -1, "tensor": 1}))
    batch = {"x": np.arange(16, dtype=np.float32).reshape(8, 2)}
    placed = sharding.put_batch(batch, mesh)["x"]
    np.testing.assert_array_equal(placed, batch["x"])
    assert placed.sharding.spec == sharding.BATCH
