"""The compiled sampler: exact ones equal the straightforward loop, faster ones do what they say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.plain_loop import make_plain_sampler
from experiments import phase3
from motus_jax import flow_matching
from motus_jax.models.layers import SCALE
from motus_jax.models.system import System
from motus_jax.modes import MODES
from motus_jax.sampling import precision
from motus_jax.sampling.denoise import make_plan, with_condition
from motus_jax.sampling.sampler import draw_noise, make_sampler, sampling_function
from motus_jax.sampling.settings import Settings

STEPS, KEY = 4, jax.random.key(7)


@pytest.fixture(scope="module")
def sample(small):
    """Samples of a mode with some settings, each computed once."""
    system, params, frozen, batch = small

    @functools.cache
    def sampled(mode, **settings):
        settings = Settings(**{"video_steps": STEPS, "action_steps": STEPS} | settings)
        ready = precision.prepared(system, params, settings)
        return jax.tree.map(np.asarray, make_sampler(system, mode, settings)(ready, frozen, batch, KEY))

    return sampled


@pytest.fixture(scope="module")
def plain(small):
    system, params, frozen, batch = small

    @functools.cache
    def sampled(mode):
        settings = Settings(STEPS, STEPS)
        return jax.tree.map(np.asarray, make_plain_sampler(system, mode, settings)(params, frozen, batch, KEY))

    return sampled


@pytest.mark.parametrize("mode", ["joint", "vla", pytest.param("inverse_dynamics", marks=pytest.mark.thorough)])
def test_equals_the_straightforward_loop(sample, plain, mode):
    found, expected = sample(mode), plain(mode)
    assert found.keys() == expected.keys()
    for name in expected:
        assert np.ptp(expected[name]) > 0.1
        np.testing.assert_allclose(found[name], expected[name], atol=2e-4 * np.abs(expected[name]).max())


def by_hand(small, mode, joint_steps):
    """The tail written plainly: joint steps, then the actions alone against the last joint step's memory."""
    system, params, frozen, batch = small
    plan, context = make_plan(MODES[mode], STEPS, STEPS), jax.jit(system.context)(params, frozen, batch)
    latents, state = jax.jit(system.encode_video)(frozen, batch["frames"][:, :1]), batch["state"]
    video = with_condition(draw_noise(KEY, 0, (2, *system.latent_shape)), latents)
    actions = draw_noise(KEY, 1, batch["actions"].shape)
    together, alone = jax.jit(functools.partial(system.velocities, remember=True)), jax.jit(system.action_velocities)
    for i in range(STEPS):
        row = jax.tree.map(lambda levels, i=i: levels[i], plan)
        taus = [jnp.full(2, tau) for tau in (row.tau_video, row.tau_action)]
        if i < joint_steps:
            v_video, v_actions, memory = together(params, video, actions, state, *taus, context)
            end = row.tau_video if mode == "joint" and i + 1 == joint_steps else -row.delta_video
            video = with_condition(video - end * v_video, latents)
        else:
            v_actions = alone(params, actions, state, taus[1], context, memory)
        actions = actions + row.delta_action * v_actions
    return {"actions": actions, "video": jax.jit(system.decode_video)(frozen, video, batch)}


@pytest.mark.thorough
@pytest.mark.parametrize("mode", ["joint", "vla"])
def test_the_tail_goes_on_from_the_last_joint_step(small, sample, mode):
    found, expected = sample(mode, action_tail=2), by_hand(small, mode, joint_steps=2)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4 * np.abs(value).max())
    assert np.abs(found["actions"] - sample(mode)["actions"]).max() > 1e-3, "the video does matter to the actions"


def test_the_actions_alone_have_the_same_velocity_while_nothing_else_changes(small):
    system, params, frozen, batch = small
    noisy = draw_noise(KEY, 0, (2, *system.latent_shape)), draw_noise(KEY, 1, batch["actions"].shape)
    known = np.array([[True] * 14, [False] * 14])

    @jax.jit
    def both(params, frozen, batch, noisy, tau_video, tau_action):
        context = system.context(params, frozen, batch, cache=True)
        _, whole, memory = system.velocities(
            params, *noisy, batch["state"], tau_video, tau_action, context, known, remember=True
        )
        return whole, system.action_velocities(params, noisy[1], batch["state"], tau_action, context, memory)

    whole, alone = both(params, frozen, batch, noisy, jnp.full(2, 0.9), jnp.full(2, 0.6))
    np.testing.assert_allclose(alone, whole, atol=1e-5 * np.abs(whole).max())


@pytest.mark.thorough
def test_a_tail_behind_the_end_changes_nothing(sample):
    jax.tree.map(np.testing.assert_array_equal, sample("vla", action_tail=STEPS), sample("vla"))


@pytest.mark.thorough
def test_reuse_below_every_change_changes_nothing_and_above_it_does(sample):
    exact, never, often = (sample("vla", action_steps=10, reuse=reuse)["actions"] for reuse in (0.0, 1e-9, 0.99))
    np.testing.assert_allclose(never, exact, atol=2e-4 * np.abs(exact).max())
    assert np.abs(often - exact).max() > 1e-3 and np.isfinite(often).all()


@pytest.mark.thorough
def test_bfloat16_and_8_bits_stay_near(sample):
    scale = np.abs(sample("vla")["actions"]).max()
    for change, allowed in (({"dtype": "bfloat16"}, 0.03), ({"weights": "int8"}, 0.03)):
        off = np.abs(sample("vla", **change)["actions"] - sample("vla")["actions"]).max()
        assert 0 < off < allowed * scale, change


def test_weights_are_made_smaller_once(small):
    system, params, _, _ = small
    before = params["motus"]["layers"]["video"]["ffn"]["dense_0"]["kernel"]
    low = precision.prepared(system, params, Settings(1, 1, dtype="bfloat16"))
    np.testing.assert_array_equal(
        low["motus"]["layers"]["video"]["ffn"]["dense_0"]["kernel"], before.astype(jnp.bfloat16)
    )
    assert low["motus"]["video"]["patch_embedding"]["kernel"].dtype == np.float32
    dense = precision.prepared(system, params, Settings(1, 1, weights="int8"))["motus"]["layers"]["video"]["ffn"]
    kernel, scale = (np.asarray(dense["dense_0"][name]) for name in ("kernel", SCALE))
    assert kernel.dtype == np.int8 and np.abs(kernel).max() == 127
    np.testing.assert_allclose(kernel * scale[:, None], before, atol=0.5001 * scale.max())


def test_8_bits_halve_the_experts_of_the_full_size():
    system = System(phase3.get_config())
    params = jax.eval_shape(system.init, jax.random.key(0))

    def gigabytes(weights):
        ready = jax.eval_shape(lambda tree: precision.prepared(system, tree, Settings(1, 1, weights=weights)), params)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(ready["motus"]["layers"])) / 1e9

    assert 11.5 < gigabytes("") < 11.7 and 5.75 < gigabytes("int8") < 5.85


@pytest.mark.parametrize("mode", ["joint", "vla"])
def test_the_full_size_has_the_shapes_of_its_answer(mode):
    config = phase3.get_config()
    config.sampling.update(reuse=0.1, action_tail=3)
    system, data = System(config), config.data
    params = jax.eval_shape(system.init, jax.random.key(0))
    ready = jax.eval_shape(lambda params: precision.prepared(system, params, config.sampling), params)
    batch = system.empty_batch() | {"frames": jnp.zeros((1, 9, *data.image_size, 3), jnp.uint8)}
    sample = sampling_function(system, mode, config.sampling)
    found = jax.eval_shape(sample, ready, system.frozen_shapes(), batch, jax.random.key(0))
    shapes = {name: (value.shape, value.dtype) for name, value in found.items()}
    expected = {"actions": ((1, 16, 14), np.float32)}
    assert shapes == expected | ({"video": ((1, 9, 384, 320, 3), np.float32)} if mode == "joint" else {})
    assert flow_matching.time_grid(config.sampling.video_steps).size == 11
