"""The numbers that a sampler computes with: `config.sampling.dtype` and `config.sampling.weights`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

from motus_jax.models.layers import SCALE
from motus_jax.models.system import Params, System
from motus_jax.sampling.settings import Settings
from motus_jax.weights import tree

LAYERS = re.compile(r"motus/layers/.*kernel")
"""What is kept in fewer bits: nearly all of the experts' weights. The rest is computed in float32 or small."""
LARGEST = 127


def in_dtype(system: System, settings: Settings) -> System:
    """The system with the experts' products in `settings.dtype`."""
    if not settings.dtype or settings.dtype == system.motus_config.dtype:
        return system
    config = system.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.overrides.dtype = settings.dtype
    return System(config)


def prepared(system: System, params: Params, sampling: Any) -> Params:
    """The parameters with the layers' matrices as the sampler's products read them: made once, not in every call.

    Without 8-bit weights the samples are the same bit for bit: the products would round the numbers themselves.
    """
    settings = Settings.of(sampling)
    dtype = jnp.dtype(in_dtype(system, settings).motus_config.dtype)
    flat = tree.flatten(params)
    for path in [path for path in flat if LAYERS.fullmatch(path)]:
        if settings.weights == "int8":
            flat[path], flat[path.removesuffix("kernel") + SCALE] = _int8(flat[path])
        else:
            flat[path] = flat[path].astype(dtype)
    return tree.unflatten(flat)


@jax.jit
def _int8(kernel: Float[Array, "L in out"]) -> tuple[Int8[Array, "L in out"], Float[Array, "L out"]]:
    """The nearest multiples of one number for each column, of which no entry needs more than 127."""
    kernel = kernel.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(kernel), axis=-2), jnp.finfo(jnp.float32).tiny) / LARGEST
    return jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale
