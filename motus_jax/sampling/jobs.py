"""What a policy can be asked for: the five modes, and planning, which runs several of them."""

import dataclasses

from motus_jax.errors import UserError
from motus_jax.modes import MODES, Mode, Role, get_mode

PLAN = "plan"
ROW = Mode(Role.DENOISED, Role.DENOISED, "plans: the best of several chunks of actions, by what the model imagines")
"""What planning is given and returns, as a row of `motus_jax.modes.MODES`."""

JOBS: dict[str, Mode] = {**MODES, PLAN: ROW}
"""Name -> what is given and returned."""

MOST_CANDIDATES = 256


@dataclasses.dataclass(frozen=True)
class Planning:
    """How candidates are drawn and judged (`motus_jax.sampling.planning`).

    Attributes:
      candidates: chunks drawn for an observation, N.
      source: the mode that draws them: vla or joint.
      inverse: weight of the error of the recovered actions.
      expected: weight of the distance to the expected video.
    """

    candidates: int = 8
    source: str = "vla"
    inverse: float = 1.0
    expected: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= MOST_CANDIDATES:
            raise UserError(f"planning: expected 1 to {MOST_CANDIDATES} candidates; found {self.candidates}")
        row = get_mode(self.source)
        if not row.returns_actions or row.video is Role.GIVEN:
            raise UserError(f"planning: expected candidates of vla or joint; found {self.source!r}")


DEFAULT = Planning()


def get_job(name: str) -> Mode:
    """The row of a mode, or of planning.

    Raises:
      UserError: there is none of this name.
    """
    if name not in JOBS:
        raise UserError(f"unknown mode {name!r}: expected one of {', '.join(JOBS)}")
    return JOBS[name]
