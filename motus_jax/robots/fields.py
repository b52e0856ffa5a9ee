"""Fields of an observation: numbers of an expected shape, and what was found instead, in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from motus_jax.errors import UserError

LARGEST_NUMBER = 1_000_000
"""Of a state or an action; no unit that robots use needs more, and float32 cannot overflow on its way."""


def numbers(name: str, value: Any, shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """`value` as float32 of the given shape."""
    try:
        given = np.asarray(value)
    except ValueError:  # lists of several lengths
        given = np.asarray(None)
    if given.dtype.kind not in "iuf" or given.shape != shape:
        raise UserError(f"{name}: expected {list(shape)} numbers; found {found(value)}")
    wrong = ~(np.abs(given) <= LARGEST_NUMBER)  # so that NaN is wrong, too
    if wrong.any():
        place = np.argwhere(wrong)[0].tolist()
        raise UserError(f"{name}: expected numbers within ±{LARGEST_NUMBER}; found {given[tuple(place)]} at {place}")
    return given.astype(np.float32)


def found(value: Any) -> str:
    """What a field holds, for a message."""
    if value is None:
        return "nothing"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, str | list | tuple | Mapping):
        return f"{type(value).__name__} of length {len(value)}"
    return f"{type(value).__name__} {value!r:.80}"
