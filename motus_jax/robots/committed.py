"""What an observation says of the actions that the robot is committed to, checked."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from motus_jax.data.contract import Contract
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.robots.fields import found, numbers
from motus_jax.sampling.prefix import get_method, longest, overlap_fields


@dataclasses.dataclass(frozen=True)
class Committed:
    """Which committed actions a policy takes.

    Attributes:
      method: a row of `motus_jax.sampling.prefix.METHODS`; empty: none are taken.
      longest: of `prefix`, in actions.
      soft: whether `previous` is taken, too.
    """

    method: str = ""
    longest: int = 0
    soft: bool = False

    @classmethod
    def by(cls, method: str, system: System) -> "Committed":
        """What a model can take by a method.

        Raises:
          UserError: no such method, or the model was not trained for it.
        """
        return cls(method, longest(system, method), get_method(method).soft) if method else cls()

    def facts(self) -> dict[str, Any]:
        """What clients are told; nothing where none are taken."""
        if not self.method:
            return {}
        return {"prefix": {"method": self.method, "longest": self.longest, "previous": self.soft}}

    def fields(
        self, observation: Mapping[str, Any], contract: Contract, state: Float[np.ndarray, " Pr"]
    ) -> dict[str, np.ndarray]:
        """Fields of the batch (`prefix.overlap_fields`); none where nothing is committed and nothing known.

        Raises:
          UserError: more actions than are taken, of another width, or not finite.
        """
        prefix = _targets("prefix", observation, contract, self.longest, "--prefix")
        room = contract.chunk - len(prefix) if self.soft else 0
        previous = _targets("previous", observation, contract, room, "--prefix=guided")
        return overlap_fields(contract, state, prefix, previous) if len(prefix) + len(previous) else {}


def _targets(
    name: str, observation: Mapping[str, Any], contract: Contract, most: int, flag: str
) -> Float[np.ndarray, "n Ar"]:
    width, value = contract.raw_action_dim, observation.get(name)
    try:
        count = 0 if value is None else len(value)
    except TypeError:  # a number
        count = most + 1
    if not count:
        return np.zeros((0, width), np.float32)
    if not most:
        raise UserError(f"{name}: expected none, as the policy is served without {flag}; found {found(value)}")
    if count > most:
        raise UserError(f"{name}: expected at most {most} actions of {width} numbers; found {found(value)}")
    return numbers(name, value, (count, width))
