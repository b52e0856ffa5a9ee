"""Where numbers lie while a layer computes, on a mesh that splits parameters and batch alike (`fsdp`).

Left to itself the compiler splits products of small batches by their inner dimension, and moves activations between
devices several times a layer. Said here instead: weights are made whole just before they are used, in the type that
they are used in, and gradients are split again as soon as they are there; activations are split by examples and nothing
else. On a mesh that splits heads (`tensor`), and where no mesh is set, nothing is said.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

EXAMPLES = PartitionSpec(("replica", "fsdp"))
LARGE = 4096
"""Smaller weights are whole everywhere."""


def whole(weight: Float[Array, "..."], dtype: Any) -> Float[Array, "..."]:
    """The weight in another type, whole on every device; its gradient is split as the weight was."""
    parts = _parts()
    free = [d for d, size in enumerate(weight.shape) if size % parts == 0]
    if parts == 1 or weight.size < LARGE or not free:
        return weight.astype(dtype)
    largest = max(free, key=lambda d: weight.shape[d])
    axes = tuple("fsdp" if d == largest else None for d in range(weight.ndim))
    return _gathered(weight, jnp.dtype(dtype), weight.dtype, PartitionSpec(*axes))


def by_example(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """Activations, split by examples."""
    parts = _parts()
    if parts == 1 or x.shape[0] % _examples_parts():
        return x
    return jax.lax.with_sharding_constraint(x, EXAMPLES)


def _parts() -> int:
    """Devices that a weight is split over, if nothing else splits it; else 1."""
    shape = jax.sharding.get_abstract_mesh().shape
    return shape.get("fsdp", 1) if shape.get("tensor", 1) == 1 else 1


def _examples_parts() -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in ("replica", "fsdp"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(weight: Array, dtype: Any, own: Any, spec: PartitionSpec) -> Array:
    del own, spec
    return jax.lax.with_sharding_constraint(weight.astype(dtype), PartitionSpec())


def _forward(weight: Array, dtype: Any, own: Any, spec: PartitionSpec) -> tuple[Array, None]:
    return _gathered(weight, dtype, own, spec), None


def _backward(dtype: Any, own: Any, spec: PartitionSpec, _: None, gradient: Array) -> tuple[Array]:
    del dtype
    # The other way round the sum over devices would not be seen to keep only a part of each.
    return (jax.lax.with_sharding_constraint(gradient, spec).astype(own),)


_gathered.defvjp(_forward, _backward)
