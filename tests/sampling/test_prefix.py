"""Going on from committed actions, on data whose answer is known: Gaussian chunks whose steps are correlated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax import compiler
from motus_jax.errors import UserError
from motus_jax.modes import get_mode
from motus_jax.sampling.denoise import denoise, make_plan
from motus_jax.sampling.prefix import METHODS, Overlap, get_method, guidance_weight, guided, inpaint, soft_mask

B, T, A = 33, 6, 2
COVARIANCE = np.exp(-np.abs(np.subtract.outer(np.arange(T), np.arange(T))) / 4)
VIDEO = jnp.zeros((B, 2, 1, 1, 1))
RNG = np.random.default_rng(0)
CHUNK = np.float32(np.linalg.cholesky(COVARIANCE) @ RNG.normal(size=(B, T, A)))
NOISE = jnp.float32(RNG.normal(size=(B, T, A)))


def field(video, actions, tau_video, tau_action):
    """The exact velocity: (x - E[clean | x]) / tau, also where tokens have noise levels of their own."""
    tau = jnp.maximum(jnp.broadcast_to(tau_action.reshape(B, -1), (B, T)), 1e-3)
    share = 1 - tau
    seen = share[:, :, None] * COVARIANCE * share[:, None] + jax.vmap(jnp.diag)(tau**2)
    clean = COVARIANCE * share[:, None] @ jnp.linalg.solve(seen, actions)
    return jnp.zeros_like(video), (actions - clean) / tau[..., None]


def batch(committed, known=None):
    committed = np.resize(np.int32(committed), B)
    known = committed if known is None else np.resize(np.int32(known), B)
    actions = np.where(np.arange(T)[None, :, None] < known[:, None, None], CHUNK, 0)
    mask = np.ones((B, T, A), bool)
    return {"overlap_actions": actions, "committed": committed, "known": known, "action_mask": mask}


PLAN = make_plan(get_mode("vla"), 1, 10)


@functools.cache
def plain():
    run = jax.jit(lambda: denoise(field, VIDEO, NOISE, VIDEO[:, :1], PLAN)[1], compiler_options=compiler.options())
    return np.asarray(run())


@functools.cache
def sampler(method, solver):
    def run(given):
        held, finish = inpaint(method, field, given, NOISE)
        return finish(denoise(held, VIDEO, NOISE, VIDEO[:, :1], PLAN, solver)[1])

    return jax.jit(run, compiler_options=compiler.options())


def sample(method, given, solver="euler"):
    return np.asarray(sampler(method, solver)(given))


def expected(committed):
    """Mean of the other steps where the first ones are known."""
    rest = COVARIANCE[committed:, :committed] @ np.linalg.inv(COVARIANCE[:committed, :committed])
    return rest @ CHUNK[:, :committed]


def rms(values):
    return np.sqrt(np.mean(values**2))


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_from_the_prefix(method):
    """The first free step is much nearer to what the prefix foretells than without."""
    found = sample(method, batch(3))
    if get_method(method).exact:
        np.testing.assert_array_equal(found[:, :3], CHUNK[:, :3])
    apart = [rms(actions[:, :3] - CHUNK[:, :3]) for actions in (found, plain())]
    assert apart[0] < 0.15 * apart[1], "the committed steps"
    next_step = [rms(actions[:, 3] - expected(3)[:, 0]) for actions in (found, plain())]
    # 0.74, 0.53 and 0.46 of what it is without; a sample of the true conditional has 0.5.
    assert next_step[0] < {"hard": 0.85, "guided": 0.65, "conditioned": 0.55}[method] * next_step[1]


@pytest.mark.parametrize("method", METHODS)
def test_no_committed_action_is_no_prefix(method):
    np.testing.assert_allclose(sample(method, batch(0)), plain(), atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_each_row_has_its_own_length(method):
    mixed = sample(method, batch([0, 2, 5], [0, 4, 6]))
    for row, (committed, known) in enumerate(((0, 0), (2, 4), (5, 6))):
        np.testing.assert_allclose(mixed[row::3], sample(method, batch(committed, known))[row::3], atol=1e-5)


@pytest.mark.parametrize("solver", ["heun", "adams_bashforth"])
def test_other_solvers(solver):
    for method, row in METHODS.items():
        found = sample(method, batch(3), solver=solver)
        assert np.isfinite(found).all()
        assert rms(found[:, :3] - CHUNK[:, :3]) < (1e-6 if row.exact else 0.2)


def test_what_is_known_behind_the_prefix_pulls_less_and_less():
    free, held = sample("guided", batch(2)), sample("guided", batch(2, 6))
    apart = [np.abs(actions[:, 2:] - CHUNK[:, 2:]).mean(axis=(0, 2)) for actions in (held, free)]
    share = apart[0] / apart[1]
    assert share[0] < 0.5 and (np.diff(share) > 0).all() and share[-1] < 0.9
    for method in ("hard", "conditioned"):
        np.testing.assert_array_equal(sample(method, batch(2, 6)), sample(method, batch(2)))


def test_the_mask_of_the_paper():
    found = np.asarray(soft_mask(jnp.array([2, 0, 3]), jnp.array([5, 0, 3]), 6))
    c = np.array([3, 2, 1]) / 4
    np.testing.assert_allclose(found[0], [1, 1, *(c * (np.exp(c) - 1) / (np.e - 1)), 0], atol=1e-6)
    np.testing.assert_array_equal(found[1:], [[0] * 6, [1, 1, 1, 0, 0, 0]])


def test_the_weight_of_the_paper():
    tau = np.array([0.9, 0.5, 0.2])
    square = tau**2 / (tau**2 + (1 - tau) ** 2)
    np.testing.assert_allclose(guidance_weight(jnp.float32(tau)), np.minimum(5, tau / ((1 - tau) * square)), rtol=1e-5)
    np.testing.assert_array_equal(guidance_weight(jnp.array([0.0, 1.0])), [5, 5])


def test_guidance_is_the_error_through_the_transposed_jacobian():
    given, tau = Overlap.of(batch(2, 4)), jnp.resize(jnp.array([0.8, 0.5, 0.3]), B)
    given = given._replace(real=given.real & (np.arange(A) == 0), actions=jnp.asarray(given.actions))
    velocity = field(VIDEO, NOISE, tau, tau)[1]
    bent = guided(field, given, NOISE)(VIDEO, NOISE, tau, tau)[1]
    mask = soft_mask(given.committed, given.known, T)
    for row in range(3):
        t = float(tau[row])
        jacobian = (1 - t) * COVARIANCE @ np.linalg.inv((1 - t) ** 2 * COVARIANCE + t**2 * np.eye(T))
        error = np.zeros((T, A))
        error[:, 0] = mask[row] * (given.actions[row] - jacobian @ NOISE[row])[:, 0]
        wanted = velocity[row] - float(guidance_weight(tau[row])) * jacobian.T @ error
        np.testing.assert_allclose(bent[row], wanted, atol=1e-4)


def test_an_unknown_method():
    with pytest.raises(UserError, match="prefix: expected one of hard, guided, conditioned; found 'soft'"):
        get_method("soft")
