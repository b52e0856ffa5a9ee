"""`config.sampling` as the sampler reads it."""

import dataclasses
from typing import Any

from motus_jax.errors import UserError
from motus_jax.flow_matching import get_solver

DTYPES = ("", "float32", "bfloat16")
WEIGHTS = ("", "int8")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a model is sampled. The defaults are those of checkpoints whose config is older than a field.

    Attributes:
      video_steps, action_steps: of each modality where it is denoised.
      solver: a row of `flow_matching.SOLVERS`.
      grid_shift: see `flow_matching.time_grid`.
      reuse: velocities that change by less than this share are reused in the next step (`sampling.caching`); 0 is off.
      action_tail: steps after which the actions go on alone, against what the other streams were in the last of these
        steps (`sampling.tail`); 0 is off. Modes that denoise no actions are not changed.
      dtype: of the experts' products; empty is the model's own.
      weights: int8 keeps the layers' matrices in 8 bits (`sampling.precision`); empty keeps them as they are.
    """

    video_steps: int
    action_steps: int
    solver: str = "euler"
    grid_shift: float = 1.0
    reuse: float = 0.0
    action_tail: int = 0
    dtype: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        get_solver(self.solver)
        if not 0 <= self.reuse < 1:
            raise UserError(f"sampling.reuse: expected a share from 0 (off) to below 1, found {self.reuse}")
        if self.action_tail < 0:
            raise UserError(f"sampling.action_tail: expected 0 (off) or a number of steps, found {self.action_tail}")
        if self.solver != "euler" and (self.reuse or self.action_tail):
            raise UserError(f"sampling.solver: expected euler with reuse or action_tail, found {self.solver}")
        for name, known in (("dtype", DTYPES), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise UserError(f"sampling.{name}: expected one of {known}, found {getattr(self, name)!r}")

    @classmethod
    def of(cls, sampling: Any) -> "Settings":
        """From `config.sampling`, or anything with its fields as attributes.

        Raises:
          UserError: a value out of range, named.
        """
        fields = dataclasses.fields(cls)
        return cls(**{field.name: getattr(sampling, field.name) for field in fields if hasattr(sampling, field.name)})
