"""Committed prefixes in training: the first actions of some chunks are shown clean, and only the others carry a loss.

A model that was trained so continues a given prefix at inference without guidance. Source: "Training-Time Action
Conditioning for Efficient Real-Time Chunking" (Black et al. 2025, arXiv:2512.05964).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from motus_jax.errors import UserError


class Prefixes(NamedTuple):
    """How prefixes are drawn (`config.noise.prefix`).

    Attributes:
      probability: share of the chunks with denoised actions that get one; 0: none does, nothing is drawn.
      longest: lengths are uniform from 1 to this one, which is below the chunk's.
    """

    probability: float = 0.0
    longest: int = 0

    @classmethod
    def of(cls, noise: Mapping[str, Any], chunk: int) -> "Prefixes":
        """Of `config.noise`; configs from before there was the field have none.

        Raises:
          UserError: a value out of range.
        """
        found = cls(**dict(noise.get("prefix") or {}))
        if not 0 <= found.probability <= 1:
            raise UserError(f"config.noise.prefix.probability: expected 0 to 1; found {found.probability}")
        if found.probability and not 1 <= found.longest < chunk:
            raise UserError(
                f"config.noise.prefix.longest: expected 1 to {chunk - 1}, less than the chunk; found {found.longest}"
            )
        return found

    @property
    def trained(self) -> bool:
        """Whether there are any."""
        return self.probability > 0

    def draw(self, key: PRNGKeyArray, denoised: Bool[Array, " B"], chunk: int) -> Bool[Array, "B T"]:
        """Which actions are shown clean; none of examples whose actions are not `denoised`."""
        key_coin, key_length = jax.random.split(key)
        chosen = denoised & (jax.random.uniform(key_coin, denoised.shape) < self.probability)
        length = jax.random.randint(key_length, denoised.shape, 1, self.longest + 1)
        return first(jnp.where(chosen, length, 0), chunk)


def first(count: Int[Array, " B"], chunk: int) -> Bool[Array, "B T"]:
    """True at the first `count` actions of each chunk."""
    return jnp.arange(chunk) < count[:, None]
