"""The mesh and the one table that says how parameters lie on it.

Mesh axes: `replica` (copies of everything, between slices), `fsdp` (parameters, moments and batch split), `tensor`
(attention heads and MLP columns split). Axis types are `Auto`: the compiler places intermediates, we place arguments
and results. A rule's template names the axes of the *last* dimensions of a leaf, so that the leading layer axis of
scanned parameters needs no rule of its own; `fsdp` then goes to the largest dimension that is still free and divisible.
Which memory a leaf of the state lies in is `motus_jax.training.offload`'s.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from motus_jax.errors import UserError
from motus_jax.weights import tree

AXES = ("replica", "fsdp", "tensor")
BATCH = PartitionSpec(("replica", "fsdp"))
LARGE = 4096
"""Leaves with fewer elements are replicated: splitting them costs more in messages than it saves in memory."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Template for the last dimensions; `fsdp` = also split the largest free dimension over that axis."""

    last: tuple[str | None, ...] = ()
    fsdp: bool = True


COLUMNS, ROWS, SPLIT = Rule((None, "tensor")), Rule(("tensor", None)), Rule()
RULES: tuple[tuple[str, Rule], ...] = (
    # Heads and hidden units split by columns going in and by rows coming out: one reduction per block.
    (r".*/(q|k|v|qkv_projection|ffn/dense_0|gate|up)/(kernel|lora_b)", COLUMNS),
    (r".*/(o|ffn/dense_1|down)/(kernel|lora_a)", ROWS),
    (r".*/(kernel|lora_a|lora_b|bias|scale|modulation|registers|position|position_bias|\w*embedding)", SPLIT),
)
"""Path regex -> rule, first match wins; a leaf of `LARGE` elements or more that nothing matches is an error."""

FROZEN_RULES: tuple[tuple[str, Rule], ...] = ((r".*", SPLIT),)


def make_mesh(config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`, a dict of the three axis sizes of which one may be -1 (= what is left).

    On several slices of a TPU `replica` runs over them first, so that what crosses the data-centre network is one sum
    of gradients a step; it must be a multiple of their number.

    Args:
      devices: all that there are, by default.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or slices would be torn.
    """
    sizes = [int(config[axis]) for axis in AXES]
    devices = jax.devices() if devices is None else devices
    asked = f"config.mesh {dict(zip(AXES, sizes))}"
    if sizes.count(-1) > 1 or any(size == 0 or size < -1 for size in sizes):
        raise UserError(f"{asked}: expected positive sizes and at most one -1")
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(f"{asked}: expected sizes whose product is the number of devices, found {len(devices)} devices")
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(f"{asked}: expected replica to be a multiple of the {slices} slices, found {sizes[0]}")
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def tree_shardings(abstract: Any, mesh: Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> Any:
    """A sharding for every leaf of a tree of arrays or shapes.

    Leaf paths may have anything in front (`opt_state/1/mu/...`), so the moments lie as their parameters do.

    Raises:
      UserError: no rule for a large leaf.
    """

    def place(key_path: Sequence[Any], leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, spec_for(tree.path_name(key_path), leaf.shape, mesh, rules))

    return jax.tree_util.tree_map_with_path(place, abstract)


def targets(shapes: Any, mesh: Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> Any:
    """The tree as `jax.ShapeDtypeStruct`s that say where each leaf is to lie."""
    return with_shardings(shapes, tree_shardings(shapes, mesh, rules))


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """The tree as `jax.ShapeDtypeStruct`s, with a tree of shardings of the same form."""
    return jax.tree.map(lambda s, placed: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placed), shapes, shardings)


def bytes_of_one_device(placed: Any) -> int:
    """Bytes that one device holds of a tree of arrays or shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(placed)
    )


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[tuple[str, Rule]]) -> PartitionSpec:
    """The `PartitionSpec` of one leaf; an axis that does not divide its dimension is left out."""
    if math.prod(shape) < LARGE:
        return PartitionSpec()
    rule = tree.first_match(path, rules)
    if rule is None:
        raise UserError(f"no sharding rule for the parameter {path!r} of shape {shape}: add one to sharding.RULES")
    axes: list[str | None] = [None] * len(shape)
    for dimension, axis in zip(range(-len(rule.last), 0), rule.last):
        parts = mesh.shape[axis] if axis else 1
        if parts > 1 and len(shape) >= -dimension and shape[dimension] % parts == 0:
            axes[dimension] = axis
    free = [d for d, axis in enumerate(axes) if axis is None and shape[d] % mesh.shape["fsdp"] == 0]
    if rule.fsdp and free and mesh.shape["fsdp"] > 1:
        axes[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*axes)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises `UserError` if a (micro)batch does not divide over the devices that split it."""
    parts = mesh.shape["replica"] * mesh.shape["fsdp"] * accumulate
    if batch_size % parts:
        raise UserError(
            f"config.batch_size: expected a multiple of {parts} (replica x fsdp devices x optimizer.accumulate),"
            f" found {batch_size}"
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's examples as a global batch, split over (replica, fsdp)."""
    sharding = NamedSharding(mesh, BATCH)
    # Meant, though the transfer guard of the loop does not see it: with several processes JAX does not say so itself.
    with jax.transfer_guard_host_to_device("allow"):
        return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}
