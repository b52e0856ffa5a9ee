"""Policies that need no model: what a trained one must beat from the same starts.

Each is a function of (contract, generator) that makes the policy of one episode (`closed_loop.Actor.begin`).
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from motus_jax.data.contract import Contract
from motus_jax.robots.closed_loop import Targets


def states_are_targets(contract: Contract) -> bool:
    """Whether a state can be commanded: without it nobody knows how to stay where the robot is."""
    return not contract.latent and (
        contract.state_names == contract.action_names and contract.robot_state_dim == contract.raw_action_dim
    )


def hold_the_state(contract: Contract, rng: np.random.Generator) -> Targets:
    """Keeps the measured state."""
    return lambda state: np.repeat(state[None], contract.chunk, axis=0)


def random_motion(contract: Contract, rng: np.random.Generator) -> Targets:
    """Moves smoothly to states drawn as widely as those of the training data (normal, by its scale)."""
    share = np.arange(1, contract.chunk + 1)[:, None] / contract.chunk

    def targets(state: Float[np.ndarray, " P"]) -> Float[np.ndarray, "T P"]:
        goal = contract.state.invert(rng.normal(size=state.shape))
        return state + (goal - state) * share

    return targets


@dataclasses.dataclass(frozen=True)
class MeanAction:
    """The mean training chunk, whatever is seen.

    Attributes:
      chunk: normalised.
    """

    chunk: Float[np.ndarray, "T A"]

    def __call__(self, contract: Contract, rng: np.random.Generator) -> Targets:
        return lambda state: contract.denormalise_actions(self.chunk, state)
