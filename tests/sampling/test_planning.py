"""Planning with a model whose imagination is known: every number can be worked out by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.modes import MODES
from motus_jax.sampling.jobs import Planning
from motus_jax.sampling.planning import errors_of, planning_function, scores_of
from motus_jax.sampling.sampler import sampling_function

HOPED, WALL = 0.4, 0.0
ROWS, STEPS, DIMS = 2, 3, 2
SAMPLING = types.SimpleNamespace(video_steps=1, action_steps=1, grid_shift=1.0, solver="euler")


class Known:
    """Drawn actions are their own noise; the world model paints their mean, the instruction alone `HOPED`. What is
    painted beyond `WALL` looks like `WALL` to inverse dynamics."""

    latent_shape = (2, 1, 1, 1)
    supported_modes = tuple(MODES)

    def encode_video(self, frozen, frames):
        return jnp.zeros((len(frames), frames.shape[1], 1, 1, 1))

    def state(self, batch):
        return None

    def context(self, params, frozen, batch, cache):
        return jnp.float32(0)

    def with_time_cache(self, params, context, *levels):
        return context

    def decode_video(self, frozen, latents, batch):
        return latents

    def velocities(self, params, video, actions, state, tau_video, tau_action, context, known, **wanted):
        at = lambda tau, x: tau.reshape(-1, *[1] * (x.ndim - 1))  # noqa: E731
        mean = actions.mean(axis=(1, 2)).reshape(-1, 1, 1, 1, 1)
        painted = jnp.where(at(tau_action, video) == 0, mean, HOPED)
        seen = jnp.minimum(video[:, 1:].mean(axis=(1, 2, 3, 4)), WALL).reshape(-1, 1, 1)
        found = jnp.where(at(tau_video, actions) == 0, jnp.broadcast_to(seen, actions.shape), actions)
        return video - painted, actions - found


@pytest.fixture(scope="module")
def asked():
    batch = {
        "frames": jnp.zeros((ROWS, 2, 1, 1, 3), jnp.uint8),
        "actions": jnp.zeros((ROWS, STEPS, DIMS)),
        "action_mask": jnp.ones((ROWS, STEPS, DIMS), bool),
    }
    return ({}, {}, batch, jax.random.split(jax.random.key(1), ROWS))


def drawn_by_hand(keys, count):
    """Candidate n of row b, [N, B, T, A]: noise of the stream 2 n + 1."""
    return np.stack([
        np.stack([jax.random.normal(jax.random.fold_in(key, 2 * n + 1), (STEPS, DIMS)) for key in keys])
        for n in range(count)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def plan(asked):
    """(weight of the recovered actions, weight of the expected video) -> what is planned of six candidates."""

    def planned(inverse, expected, *given):
        return planning_function(Known(), SAMPLING, Planning(6, inverse=inverse, expected=expected))(*given)

    compiled = jax.jit(planned)
    return lambda inverse, expected: compiled(inverse, expected, *asked)


@pytest.mark.parametrize(("inverse", "expected"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 20.0)])
def test_the_candidate_that_its_imagination_explains_best(plan, asked, inverse, expected):
    found = plan(inverse, expected)
    candidates = drawn_by_hand(asked[-1], 6)
    mean = candidates.mean(axis=(2, 3))
    recovered = np.minimum(mean, WALL)[..., None, None]
    errors = np.stack([np.square(recovered - candidates).mean(axis=(2, 3)), np.square(mean - HOPED)], axis=-1)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found["errors"]), 1, 0), errors, atol=1e-5)
    score = (errors / errors.mean(axis=0)) @ [inverse, expected]
    best = score.argmin(axis=0)
    np.testing.assert_allclose(found["actions"], candidates[best, range(ROWS)], atol=1e-6)
    np.testing.assert_allclose(found["video"][:, 1].ravel(), mean[best, range(ROWS)], atol=1e-6)
    assert (np.asarray(found["video"])[:, 0] == 0).all(), "the condition frame stays"


def test_weights_change_the_choice(plan):
    assert np.abs(plan(1.0, 0.0)["actions"] - plan(0.0, 1.0)["actions"]).max() > 0.1


def test_one_candidate_is_what_its_mode_draws(asked):
    alone, acted = (
        jax.jit(sample)(*asked)["actions"]
        for sample in (planning_function(Known(), SAMPLING, Planning(1)), sampling_function(Known(), "vla", SAMPLING))
    )
    np.testing.assert_allclose(alone, acted, atol=1e-6)


def test_errors_leave_out_what_is_not_real_and_the_condition_frame():
    drawn, recovered = np.zeros((2, 2, 1, 3, 2))
    recovered[0, 0, 2] = 100
    recovered[1, 0, 0, 0] = 3
    imagined, expected = np.zeros((2, 2, 1, 3, 1, 1, 1))
    imagined[0, 0, 0] = 50
    expected[:, 0, 1] = [[[[2]]], [[[4]]]]
    mask = np.array([[[True, True], [True, True], [False, False]]])
    errors = errors_of(*map(jnp.asarray, (drawn, recovered, imagined, expected, mask)))
    np.testing.assert_allclose(errors[:, 0], [[0, 4.5], [9 / 4, 4.5]])
    assert np.isfinite(scores_of(jnp.zeros((2, 1, 2)), Planning())).all(), "equal candidates are no division by 0"


def test_what_cannot_plan_is_refused():
    for arguments, message in (
        ((0,), "expected 1 to 256 candidates; found 0"),
        ((8, "world_model"), "expected candidates of vla or joint; found 'world_model'"),
        ((8, "inverse_dynamics"), "found 'inverse_dynamics'"),
        ((8, "dance"), "unknown mode 'dance'"),
    ):
        with pytest.raises(UserError, match=message):
            Planning(*arguments)
    system = Known()
    system.supported_modes = ("video",)
    with pytest.raises(UserError, match="expected a model that can do vla; found video"):
        planning_function(system, SAMPLING, Planning())
