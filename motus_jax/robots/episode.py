"""What a simulator hands to the recorder."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode; row t of all arrays belongs to time t / fps.

    Attributes:
      state: measured state at row t.
      action: command issued at row t, reached at row t + 1.
      frames: pictures at row t by camera's short name.
      instruction: what the robot was told.
      task: name in the robot's task table.
      success: whether the task was fulfilled at the end.
    """

    state: Float[np.ndarray, "T P"]
    action: Float[np.ndarray, "T A"]
    frames: dict[str, UInt8[np.ndarray, "T H W 3"]]
    instruction: str
    task: str
    success: bool
