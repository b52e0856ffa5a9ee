"""What a traced program computes, whatever a compiler makes of it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call, of arrays or of shapes: nothing is computed."""
    return operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def operations(jaxpr: Any) -> float:
    """Multiplications and additions of the products and convolutions of a traced program.

    The body of a scan counts as often as it runs, of branches the dearest, the body of a `while` once. Everything else
    (norms, softmax, the optimizer) is left out, as is usual where a share of the peak is given: on these models it is
    below a hundredth.
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
    inner = [operations(part) for part in core.jaxprs_in_params(values)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (values["length"] if name == "scan" else 1)
