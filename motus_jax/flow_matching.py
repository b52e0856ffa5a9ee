"""Flow matching: noise schedules, the straight path between data and noise, and ODE solvers.

Path: x_tau = (1 - tau) clean + tau noise, velocity = noise - clean (paper, section 4.1; the release's
`FlowMatchScheduler`). Sampling integrates dx = velocity dtau from tau = 1 to tau = 0, in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from motus_jax.errors import UserError

TIMESTEP_SCALE = 1000.0
"""The model is told 1000 tau."""

Pair = tuple[Array, Array]
"""(video, action): two arrays that are integrated side by side."""


def shift(tau: Array, amount: float) -> Array:
    """Moves noise levels towards noise: s tau / (1 + (s - 1) tau). 1 leaves them; the release trains with 5."""
    return amount * tau / (1 + (amount - 1) * tau)


def release_table(steps: int = 1000, amount: float = 5.0) -> Float[np.ndarray, " steps"]:
    """The release's table of training noise levels, float32: `shift(1 - i / steps)`, from 1 down, never 0.

    Bit-equal to the release: its `linspace` counts from both ends in float32 with one rounding a point. A timestep is
    1000 times larger, so a rounding of 6e-8 here would show as 4e-5 in the velocities.
    """
    index = np.arange(steps)
    step = np.float64(np.float32(-1.0) / np.float32(steps))
    base = np.where(index < (steps + 1) // 2, 1 + step * index, -step * (steps - index)).astype(np.float32)
    return shift(base, np.float32(amount))


def _uniform(key: PRNGKeyArray, shape: tuple[int, ...], _: float) -> Array:
    return jax.random.uniform(key, shape)


def _shifted(key: PRNGKeyArray, shape: tuple[int, ...], amount: float) -> Array:
    return shift(jax.random.uniform(key, shape), amount)


def _logit_normal(key: PRNGKeyArray, shape: tuple[int, ...], mean: float) -> Array:
    return jax.nn.sigmoid(jax.random.normal(key, shape) + mean)


SCHEDULES: dict[str, Callable[[PRNGKeyArray, tuple[int, ...], float], Array]] = {
    "uniform": _uniform,
    "shift": _shifted,
    "logit_normal": _logit_normal,
}
"""Training densities of tau. The parameter is the shift of `shift` and the mean logit of `logit_normal`."""


def draw_tau(
    key: PRNGKeyArray, shape: tuple[int, ...], schedule: str, parameter: float, endpoint_probability: float
) -> Float[Array, " *shape"]:
    """Draws noise levels in [0, 1].

    Args:
      schedule, parameter: a row of `SCHEDULES` and its number.
      endpoint_probability: chance of exactly 0 and, separately, of exactly 1, so that both ends of the path, which
        the sampler and the pinned modes use, are trained.
    """
    if schedule not in SCHEDULES:
        raise UserError(f"unknown noise schedule {schedule!r}: expected one of {', '.join(SCHEDULES)}")
    key_tau, key_end = jax.random.split(key)
    tau = SCHEDULES[schedule](key_tau, shape, parameter)
    coin = jax.random.uniform(key_end, shape)
    tau = jnp.where(coin < endpoint_probability, 0.0, tau)
    return jnp.where(coin > 1 - endpoint_probability, 1.0, tau)


def interpolate(clean: Array, noise: Array, tau: Float[Array, "*lead"]) -> Array:
    """x_tau; the axes of `tau` are the leading ones of the data: [B], or [B, T] where tokens differ in theirs."""
    tau = _like(tau, clean)
    return (1 - tau) * clean + tau * noise


def velocity(clean: Array, noise: Array) -> Array:
    """The target: noise - clean."""
    return noise - clean


def clean_to_velocity(clean: Array, noisy: Array, tau: Float[Array, "*lead"], floor: float = 0.05) -> Array:
    """Velocity of a network that predicts clean data: (x_tau - clean) / tau, with tau (as above) at least `floor`.

    From a noise level below `floor` the division would blow up the prediction's error; there the loss weight and the
    step both stay bounded (Li and He 2025, "Back to basics", section on v-loss with x-prediction).
    """
    tau = _like(jnp.maximum(tau, floor), noisy)
    return (noisy - clean) / tau


def _like(tau: Float[Array, "*lead"], data: Array) -> Array:
    return tau.reshape(tau.shape + (1,) * (data.ndim - tau.ndim))


class Plan(NamedTuple):
    """What the integration does in each of its steps; all arrays float32 [steps], jax's or numpy's.

    A modality that is pinned, or that has fewer steps than the other, has a zero `delta` in some rows.
    """

    tau_video: Array
    delta_video: Array
    tau_action: Array
    delta_action: Array


def time_grid(steps: int, amount: float = 1.0) -> Float[np.ndarray, " steps+1"]:
    """Noise levels from 1 to 0; `amount` shifts them (the release samples with 1)."""
    if steps < 1:
        raise UserError(f"sampling steps: expected at least 1, found {steps}")
    return shift(np.linspace(1.0, 0.0, steps + 1), amount).astype(np.float32)


def spread(grid: Float[np.ndarray, " n+1"], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid of n steps laid out over `steps` >= n rows: (tau, delta), each [steps]; delta is 0 in rows that wait.

    Row i carries step j of the grid if j is the first step that ends at or before the row's own share of the way.
    """
    n = len(grid) - 1
    tau, delta = np.zeros(steps, np.float32), np.zeros(steps, np.float32)
    done = 0
    for row in range(steps):
        tau[row] = grid[done]
        if done < n and (row + 1) * n >= (done + 1) * steps:
            delta[row] = grid[done + 1] - grid[done]
            done += 1
    return tau, delta


def pinned(value: float, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(tau, delta) of a modality that stays at noise level `value`."""
    return np.full(steps, value, np.float32), np.zeros(steps, np.float32)


VelocityFn = Callable[[Pair, Array, Array], Pair]
"""(video, action), tau_video, tau_action (scalars) -> velocities of both."""


def advance(x: Pair, v: Pair, row: Plan) -> Pair:
    """One step along the velocities `v`, as long as a row of the plan says."""
    return x[0] + v[0] * row.delta_video, x[1] + v[1] * row.delta_action


def euler(field: VelocityFn, x: Pair, plan: Plan) -> Pair:
    """First order: one evaluation a step."""

    def step(x: Pair, row: Plan) -> tuple[Pair, None]:
        return advance(x, field(x, row.tau_video, row.tau_action), row), None

    return jax.lax.scan(step, x, plan)[0]


def heun(field: VelocityFn, x: Pair, plan: Plan) -> Pair:
    """Second order: two evaluations a step (explicit trapezoid)."""

    def step(x: Pair, row: Plan) -> tuple[Pair, None]:
        first = field(x, row.tau_video, row.tau_action)
        there = advance(x, first, row)
        second = field(there, row.tau_video + row.delta_video, row.tau_action + row.delta_action)
        mean = tuple((a + b) / 2 for a, b in zip(first, second))
        return advance(x, mean, row), None

    return jax.lax.scan(step, x, plan)[0]


def adams_bashforth(field: VelocityFn, x: Pair, plan: Plan) -> Pair:
    """Second order with one evaluation a step: extrapolates with the last two velocities (variable steps)."""

    def step(carry: tuple[Pair, Pair, Pair], row: Plan) -> tuple[tuple[Pair, Pair, Pair], None]:
        x, last, last_delta = carry
        now = field(x, row.tau_video, row.tau_action)
        deltas = (row.delta_video, row.delta_action)
        blended = tuple(_extrapolate(v, w, d, e) for v, w, d, e in zip(now, last, deltas, last_delta))
        kept = tuple(jnp.where(d == 0, w, v) for v, w, d in zip(now, last, deltas))
        kept_delta = tuple(jnp.where(d == 0, e, d) for d, e in zip(deltas, last_delta))
        return (advance(x, blended, row), kept, kept_delta), None

    zero = jnp.zeros((), jnp.float32)
    start = (x, jax.tree.map(jnp.zeros_like, x), (zero, zero))
    return jax.lax.scan(step, start, plan)[0][0]


def _extrapolate(now: Array, last: Array, delta: Array, last_delta: Array) -> Array:
    ratio = jnp.where(last_delta == 0, 0.0, delta / jnp.where(last_delta == 0, 1.0, last_delta))
    return now + 0.5 * ratio * (now - last)


SOLVERS: dict[str, Callable[[VelocityFn, Pair, Plan], Pair]] = {
    "euler": euler,
    "heun": heun,
    "adams_bashforth": adams_bashforth,
}


def get_solver(name: str) -> Callable[[VelocityFn, Pair, Plan], Pair]:
    """The solver called `name`; a `UserError` lists the table otherwise."""
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
