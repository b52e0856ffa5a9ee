"""Which steps reuse a velocity, and what that does to the result; on fields whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax import flow_matching
from motus_jax.errors import UserError
from motus_jax.modes import MODES
from motus_jax.sampling import caching
from motus_jax.sampling.denoise import make_plan
from motus_jax.sampling.settings import Settings

STEPS = 10


def run(field, rows=1, mode="joint", threshold=0.05):
    """The result, and the noise levels of the actions at which the field was evaluated."""
    seen, plan = [], make_plan(MODES[mode], STEPS, STEPS)

    def watched(x, tau_video, tau_action):
        jax.debug.callback(lambda tau: seen.append(round(float(tau), 3)), tau_action)
        return field(x, tau_video, tau_action)

    start = (jnp.ones((rows, 3, 1, 1, 1)), jnp.ones((rows, 2, 1)))
    end = jax.block_until_ready(caching.reusing_euler(threshold)(watched, start, plan))
    jax.effects_barrier()
    return end, seen


def test_a_constant_field_is_evaluated_as_rarely_as_allowed_and_integrated_exactly():
    end, seen = run(lambda x, *_: (jnp.full_like(x[0], 2.0), jnp.full_like(x[1], -3.0)))
    assert seen == [1.0, 0.9, 0.6, 0.3, 0.1], "two computed, then two reused after each one; the last is computed"
    np.testing.assert_allclose(end[0], -1.0, rtol=1e-5)
    np.testing.assert_allclose(end[1], 4.0, rtol=1e-5)


def test_a_field_that_changes_is_evaluated_in_every_step():
    def field(x, tau_video, tau_action):
        return jnp.full_like(x[0], 1.0), x[1] * 0 + 2 ** (10 * tau_action)

    end, seen = run(field)
    exact = flow_matching.euler(field, (jnp.ones((1, 3, 1, 1, 1)), jnp.ones((1, 2, 1))),
                                make_plan(MODES["joint"], STEPS, STEPS))  # fmt: skip
    assert len(seen) == STEPS
    jax.tree.map(np.testing.assert_array_equal, end, exact)


@pytest.mark.parametrize("mode", ["vla", "world_model"])
def test_a_pinned_modality_and_the_condition_frame_have_no_say(mode):
    def wild(like, tau):
        return like * 0 + 2 ** (10 * tau)

    def field(x, tau_video, tau_action):
        tau = tau_action if mode == "vla" else tau_video
        video, actions = jnp.full_like(x[0], 1.0), jnp.full_like(x[1], 1.0)
        video = video.at[:, :1].set(wild(video[:, :1], tau))
        return (wild(video, tau), actions) if mode == "vla" else (video, wild(actions, tau))

    assert len(run(field, mode=mode)[1]) == 5


def test_a_row_gets_the_same_whoever_is_beside_it():
    """Row 0 hardly changes and row 1 does: the batch computes every step, and row 0 still reuses."""
    turn = jnp.array([0.0, 1.0])[:, None, None]

    def field(x, tau_video, tau_action):
        bend = 0.02 * tau_action + turn[: len(x[1])] * 2 ** (10 * tau_action)
        return jnp.full_like(x[0], 1.0), 1 + x[1] * 0 + bend

    alone, seen = run(field)
    both, seen_both = run(field, rows=2)
    assert len(seen) == 5 and len(seen_both) == STEPS
    np.testing.assert_array_equal(both[1][0], alone[1][0])
    every_step = flow_matching.euler(field, (jnp.ones((2, 3, 1, 1, 1)), jnp.ones((2, 2, 1))),
                                     make_plan(MODES["joint"], STEPS, STEPS))  # fmt: skip
    assert np.abs(both[1][0] - every_step[1][0]).max() > 1e-4, "row 0 did reuse"


def test_settings_of_older_checkpoints_and_what_is_refused():
    class Old:
        video_steps, action_steps, solver, grid_shift = 2, 4, "heun", 5.0

    assert Settings.of(Old) == Settings(2, 4, "heun", 5.0, reuse=0.0, action_tail=0, dtype="", weights="")
    for change, message in (
        ({"reuse": 1.0}, r"sampling\.reuse: expected a share from 0 \(off\) to below 1, found 1\.0"),
        ({"action_tail": -1}, r"sampling\.action_tail: .*found -1"),
        ({"solver": "heun", "reuse": 0.1}, r"sampling\.solver: expected euler with reuse or action_tail, found heun"),
        ({"solver": "midpoint"}, "unknown solver 'midpoint'"),
        ({"dtype": "float8"}, r"sampling\.dtype: .*found 'float8'"),
        ({"weights": "int4"}, r"sampling\.weights: .*found 'int4'"),
    ):
        with pytest.raises(UserError, match=message):
            Settings(**{"video_steps": 2, "action_steps": 2} | change)
