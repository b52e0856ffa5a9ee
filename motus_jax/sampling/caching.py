"""Velocity caching: a step reuses the last velocities where the two before agreed.

The idea is MotuBrain's (arXiv:2604.27792), which compares cosines; a relative change also sees a velocity grow or
shrink. Each row of a batch decides for itself, from its own velocities: what a client gets does not depend on who else
is in the batch. A step saves its evaluation when all rows reuse.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from motus_jax import flow_matching
from motus_jax.flow_matching import Pair, Plan, VelocityFn

MOST_IN_A_ROW = 2
"""Steps that may reuse one velocity before the next is computed."""


def get_solver(name: str, reuse: float = 0.0) -> Callable[[VelocityFn, Pair, Plan], Pair]:
    """The solver called `name`; with a `reuse` above 0, Euler's with velocity caching."""
    return reusing_euler(reuse) if reuse else flow_matching.get_solver(name)


def reusing_euler(threshold: float) -> Callable[[VelocityFn, Pair, Plan], Pair]:
    """Euler steps, of which some take the velocities of the step before.

    A step does where the last two computed velocities differ by less than `threshold` of the newer one's norm, in every
    modality that the plan moves. The first two steps and the last one always compute, and so does one after
    `MOST_IN_A_ROW` that did not.
    """

    def solve(field: VelocityFn, x: Pair, plan: Plan) -> Pair:
        # Known while this is traced: a plan is numpy's.
        moves = [bool(np.any(delta)) for delta in (plan.delta_video, plan.delta_action)]
        steps, rows = len(plan.tau_video), len(x[0])

        def step(carry: tuple, given: tuple[Plan, Array]) -> tuple[tuple, None]:
            (x, last, agree, run), (row, is_end) = carry, given
            reuse = agree & (run < MOST_IN_A_ROW) & ~is_end
            new = jax.lax.cond(jnp.all(reuse), lambda: last, lambda: field(x, row.tau_video, row.tau_action))
            v = tuple(jnp.where(_as_rows(reuse, b), a, b) for a, b in zip(last, new))
            agree = jnp.where(reuse, agree, _change(v, last, moves) < threshold)
            run = jnp.where(reuse, run + 1, 0)
            return (flow_matching.advance(x, v, row), v, agree, run), None

        never = jnp.zeros(rows, bool), jnp.zeros(rows, jnp.int32)
        start = (x, jax.tree.map(jnp.zeros_like, x), *never)
        return jax.lax.scan(step, start, (plan, jnp.arange(steps) == steps - 1))[0][0]

    return solve


def _change(new: Pair, last: Pair, moves: list[bool]) -> Float[Array, " B"]:
    """Largest relative change of a moving modality in each row; 1 if there was no velocity before.

    The video's frame 0 is the condition frame: its velocity has no meaning.
    """
    pairs = ((new[0][:, 1:], last[0][:, 1:]), (new[1], last[1]))
    changes = [_norm(a - b) / jnp.maximum(_norm(a), 1e-12) for (a, b), moved in zip(pairs, moves) if moved]
    return jnp.max(jnp.stack(changes), axis=0)


def _norm(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _as_rows(chosen: Bool[Array, " B"], x: Array) -> Array:
    return chosen.reshape(-1, *(1,) * (x.ndim - 1))
