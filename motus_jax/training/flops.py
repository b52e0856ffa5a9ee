"""What a traced program computes, whatever a compiler makes of it."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.extend import core

from motus_jax.weights import tree

CUDNN = {"dot_product_attention_fwd_wrapper": 2, "dot_product_attention_bwd_wrapper": 5}
"""Primitive of cuDNN's attention -> its products of queries with keys, or of the same size."""


def of_training(
    make_system: Callable[[ml_collections.ConfigDict], Any], config: ml_collections.ConfigDict, *arguments: Any
) -> float:
    """Operations that the gradient of one batch needs, whatever `model.overrides` has for `remat` and `attention`.

    What a device does per second of these, as a share of its peak, is its MFU.

    Args:
      make_system: the network of a config (`motus_jax.training.step.Trainable`).
      arguments: trained parameters, what is not trained, batch and key, as arrays or shapes.
    """
    config = config.copy_and_resolve_references()
    if "overrides" in config.model:
        with config.unlocked():
            config.model.overrides.update(remat="none", attention="xla")
    system = make_system(config)

    def loss(trained: tree.Tree, frozen: tree.Tree, batch: Any, key: Any) -> Any:
        return system.loss(tree.overlay(frozen, trained), frozen, batch, key)

    return count(jax.grad(loss, has_aux=True), *arguments)


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call, of arrays or of shapes: nothing is computed."""
    return operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def operations(jaxpr: Any) -> float:
    """Multiplications and additions of the products and convolutions of a traced program.

    The body of a scan counts as often as it runs, a Pallas kernel as often as its grid has places, what is written for
    one device as often as there are devices, of branches the dearest, the body of a `while` once; cuDNN's attention as
    its products do, with the scores that its backward pass computes again. Everything else (norms, softmax, the
    optimizer) is left out, as is usual where a share of the peak is given: on these models it is below a hundredth.
    """
    return sum(_operations(equation) for equation in jaxpr.eqns)


def _operations(equation: Any) -> float:
    name, values = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = values["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2.0 * equation.outvars[0].aval.size * float(np.prod([shape[axis] for axis in contracted]))
    if name == "conv_general_dilated":
        kernel, where = equation.invars[1].aval, values["dimension_numbers"].rhs_spec
        return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[where[0]]
    if name in CUDNN:
        q, k = (x.aval.shape for x in equation.invars[:2])
        return CUDNN[name] * 2.0 * float(np.prod(q)) * k[1]  # [B, S, N, K], [B, M, N, K]
    if name == "shard_map":  # written for one of the devices
        return sum(operations(part) for part in core.jaxprs_in_params(values)) * values["mesh"].size
    if name == "pallas_call":
        return operations(values["jaxpr"]) * float(np.prod(values["grid_mapping"].grid))
    inner = [operations(part) for part in core.jaxprs_in_params(values)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (values["length"] if name == "scan" else 1)
