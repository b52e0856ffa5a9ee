"""From what a robot sees now to a batch for the sampler: what the data pipeline does, without a dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from motus_jax.data.cameras import tile_cameras
from motus_jax.data.contract import Contract
from motus_jax.data.texts import Texts
from motus_jax.errors import UserError


def observe(
    contract: Contract,
    texts: Texts,
    frames: Mapping[str, UInt8[np.ndarray, "B h w 3"]],
    states: Float[np.ndarray, "B Pr"],
    instructions: Sequence[str],
) -> dict[str, np.ndarray]:
    """A batch of the schema `motus_jax.data.example`; the future is black and the actions are zero.

    Args:
      contract: of the checkpoint.
      texts: of the same contract.
      frames: RGB pictures by camera name; cameras that the contract does not know are ignored.
      states: measured, in the robot's units.
      instructions: one per row.

    Raises:
      UserError: a camera is missing, or the state has another width than the contract's.
    """
    for camera in contract.cameras:
        if camera not in frames:
            raise UserError(f"observation: expected camera {camera!r}; found {', '.join(sorted(frames)) or 'none'}")
    count = len(states)
    picture = tile_cameras([frames[camera] for camera in contract.cameras], contract.image_size)
    fields = [texts(text) for text in instructions]
    future = np.zeros((count, contract.video_frames, *contract.image_size, 3), np.uint8)
    real = np.arange(contract.action_dim) < contract.robot_action_dim
    nothing = np.zeros(count, np.int32)
    return {
        "frames": np.concatenate([picture[:, None], future], axis=1),
        "state": contract.normalise_state(states),
        "state_mask": np.tile(np.arange(contract.state_dim) < contract.robot_state_dim, (count, 1)),
        "unseen": np.zeros((count, 3, 4), np.float32),
        "actions": np.zeros((count, contract.chunk, contract.action_dim), np.float32),
        "action_mask": np.tile(real, (count, contract.chunk, 1)),
        **{name: np.stack([row[name] for row in fields]) for name in fields[0]},
        **dict.fromkeys(("episode", "frame", "source", "layer", "embodiment"), nothing),
    }
