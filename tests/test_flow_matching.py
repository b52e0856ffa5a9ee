"""Schedules, the path, and the order of the solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from motus_jax import flow_matching as fm
from motus_jax.errors import UserError
from motus_jax.modes import MODES
from motus_jax.sampling.denoise import make_plan


def test_training_table_is_bit_equal_to_the_release(golden_dir):
    table = load_file(golden_dir / "common" / "fm_scheduler.safetensors")
    np.testing.assert_array_equal(fm.release_table(1000), table["train1000.sigmas"])
    np.testing.assert_array_equal(np.float32(1000) * fm.release_table(1000), table["train1000.timesteps"])


@pytest.mark.parametrize(
    ("schedule", "parameter", "median"), [("uniform", 0, 0.5), ("shift", 5.0, 5 / 6), ("logit_normal", 1.0, 0.731)]
)
def test_schedules_have_their_median(schedule, parameter, median):
    tau = np.asarray(fm.draw_tau(jax.random.key(0), (50_000,), schedule, parameter, 0.0))
    assert abs(np.median(tau) - median) < 0.01
    assert tau.min() >= 0 and tau.max() <= 1


def test_both_end_points_are_drawn_exactly():
    tau = np.asarray(fm.draw_tau(jax.random.key(0), (50_000,), "uniform", 0, 0.05))
    assert abs((tau == 0).mean() - 0.05) < 0.005
    assert abs((tau == 1).mean() - 0.05) < 0.005


def test_clean_prediction_gives_the_same_velocity():
    clean, noise = jnp.ones((3, 2)), jnp.full((3, 2), -2.0)
    tau = jnp.array([0.2, 0.6, 1.0])
    noisy = fm.interpolate(clean, noise, tau)
    np.testing.assert_allclose(fm.clean_to_velocity(clean, noisy, tau), fm.velocity(clean, noise), rtol=1e-5)


def _error(solver: str, steps: int, action_steps: int | None = None) -> float:
    """Integrates dx/dtau = -x from tau 1 to 0: the answer is e times the start."""
    plan = make_plan(MODES["joint"], steps, action_steps or steps)
    start = (jnp.ones((1, 1, 1, 1, 1)), jnp.ones((1, 1, 1)))
    end = fm.get_solver(solver)(lambda x, tau_video, tau_action: (-x[0], -x[1]), start, plan)
    return max(abs(float(part.squeeze()) - np.e) for part in end)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("adams_bashforth", 2)])
def test_solver_order(solver, order):
    assert _error(solver, 40) < 1.3 * _error(solver, 20) / 2**order


@pytest.mark.parametrize("solver", list(fm.SOLVERS))
def test_separate_step_counts_reach_the_end(solver):
    assert _error(solver, 12, 36) < _error(solver, 6, 6)
    video, action = fm.spread(fm.time_grid(2), 6), fm.spread(fm.time_grid(6), 6)
    assert np.isclose(video[1].sum(), -1) and np.isclose(action[1].sum(), -1)
    assert (video[1] == 0).sum() == 4


@pytest.mark.parametrize("mode", list(MODES))
def test_plan_pins_what_the_mode_pins(mode):
    plan, row = make_plan(MODES[mode], 3, 5), MODES[mode]
    rows = (plan.tau_video, plan.delta_video, row.video), (plan.tau_action, plan.delta_action, row.action)
    for tau, delta, role in rows:
        expected = {"DENOISED": None, "GIVEN": 0.0, "NOISE": 1.0}[role.name]
        if expected is None:
            assert np.isclose(delta.sum(), -1)
        else:
            assert (np.asarray(tau) == expected).all() and (np.asarray(delta) == 0).all()


def test_unknown_words_are_refused():
    with pytest.raises(UserError, match="heun"):
        fm.get_solver("rk")
    with pytest.raises(UserError, match="logit_normal"):
        fm.draw_tau(jax.random.key(0), (1,), "cosine", 0, 0)
    with pytest.raises(UserError, match="at least 1"):
        fm.time_grid(0)
