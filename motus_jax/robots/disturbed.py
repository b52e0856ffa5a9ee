"""The ALOHA experts while something pushes the arms: what a policy has to know of coming back on its way.

An episode of an expert that never errs shows no way back. Here the arms follow the expert's targets plus a slow random
push, and the action that is recorded is the expert's own target, as in DART (Laskey et al. 2017, arXiv:1703.09327). The
recorded actions are therefore what should have been done, not what was: good for policies, wrong for world models.
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from motus_jax.robots import rollout
from motus_jax.robots.aloha import ARM_JOINTS
from motus_jax.robots.episode import Episode

PUSH = 0.02
"""Standard deviation of the push on every joint of an arm, rad: some one centimetre at the hand."""
MEMORY = 0.8
"""Correlation of the push with that of the row before."""


def record_expert(name: str, seed: np.random.SeedSequence) -> Episode:
    """`rollout.record_expert` of a task under pushes that are drawn from `seed`, too."""
    rng = np.random.default_rng(seed.spawn(1)[0])
    push = np.zeros(14)

    def pushed(target: Float[np.ndarray, "14"]) -> Float[np.ndarray, "14"]:
        nonlocal push
        fresh = np.zeros(14)
        for joints, first in zip(ARM_JOINTS, (0, 7), strict=True):
            fresh[first : first + len(joints)] = rng.normal(0, PUSH * np.sqrt(1 - MEMORY**2), len(joints))
        push = MEMORY * push + fresh
        return target + push

    return rollout.record_expert(name, seed, pushed)


ROBOT = dataclasses.replace(rollout.ROBOT, record=record_expert)
