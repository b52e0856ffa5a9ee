"""Properties of the model that golden numbers do not show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motus_jax.errors import UserError
from motus_jax.models.config import get_variant
from motus_jax.models.motus import REMAT_POLICIES, Motus, with_text_cache
from motus_jax.models.video_expert import VideoExpert
from motus_jax.weights.name_map import flatten

B, F, H, W, T, M, U = 2, 2, 4, 4, 6, 5, 7


def _inputs(config, seed=0):
    c, rng = config, np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    state = normal(B, c.action.state_dim) if c.action.with_state else None
    return dict(
        video=normal(B, F, H, W, c.video.latent_channels), actions=normal(B, T, c.action.action_dim), state=state,
        t_video=jnp.array([900.0, 100.0]), t_action=jnp.array([30.0, 500.0]),
        text_states=normal(B, M, c.video.text_width), text_mask=jnp.ones((B, M), bool),
        vlm_states=normal(B, U, c.understanding.input_width), vlm_mask=jnp.ones((B, U), bool),
    )


def _params(config, inputs):
    """Random, none of them zero: the heads start at zero and would hide everything."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(Motus(config).init, jax.random.key(1), **inputs)["params"]
    return jax.tree.map(lambda leaf: np.float32(rng.normal(0, 0.2, leaf.shape)), shapes)


@pytest.fixture(scope="module")
def setup():
    config = get_variant("debug")
    inputs = _inputs(config)
    return config, inputs, _params(config, inputs), jax.jit(Motus(config).apply)


def test_parameter_counts_of_the_public_layout():
    config = get_variant("5b")
    shapes = jax.eval_shape(lambda: Motus(config).init(jax.random.key(0), **_inputs(config))["params"])
    counts = {}
    for path, leaf in flatten(shapes).items():
        expert = path.removeprefix("layers/").split("/")[0]
        counts[expert] = counts.get(expert, 0) + leaf.size
    assert counts == {"video": 4_999_787_712, "action": 641_527_822, "understanding": 253_493_760}


def test_tokens_know_their_place():
    config = get_variant("debug", {"video": {"places": True}})
    expert = VideoExpert(config.video, "float32")
    latents = jnp.ones((1, F, H, W, config.video.latent_channels))  # the same everywhere
    variables = expert.init(jax.random.key(0), latents, method="embed")
    tokens = expert.apply(variables, latents, method="embed").reshape(F, H // 2 * W // 2, -1)
    places = variables["params"]["places"]["embedding"]
    assert places.shape == (H // 2, W // 2, config.video.width)
    np.testing.assert_allclose(tokens - tokens[:, :1], jnp.stack([places.reshape(4, -1) - places[0, 0]] * F), atol=1e-6)


def test_padding_changes_nothing(setup):
    _, inputs, params, apply = setup
    out = apply({"params": params}, **inputs)

    def pad(x):
        return jnp.concatenate([x, jnp.full((B, 3, *x.shape[2:]), 7.0 if x.dtype != bool else False, x.dtype)], 1)

    padded = inputs | {name: pad(inputs[name]) for name in ("text_states", "text_mask", "vlm_states", "vlm_mask")}
    for ours, other in zip(out, apply({"params": params}, **padded)):
        np.testing.assert_allclose(ours, other, atol=2e-6)
    unmasked = padded | {"vlm_mask": jnp.ones_like(padded["vlm_mask"])}
    assert np.abs(out[1] - apply({"params": params}, **unmasked)[1]).max() > 1e-3, "the mask is not what hides it"


def test_text_cache_gives_the_same_velocities(setup):
    config, inputs, params, apply = setup
    model, variables = Motus(config), {"params": params}

    @jax.jit
    def from_cache(variables, noisy, words):
        context = model.apply(variables, *words, method="context")
        cached = with_text_cache(config, variables["params"], context)
        return model.apply(variables, *noisy, cached, method="velocities")

    given = list(inputs.values())
    for ours, other in zip(from_cache(variables, given[:5], given[5:]), apply(variables, **inputs)):
        np.testing.assert_allclose(ours, other, atol=2e-6)


def _gradients(config, inputs, params):
    def loss(params):
        video, action = Motus(config).apply({"params": params}, **inputs)
        return jnp.mean(jnp.square(video)) + jnp.mean(jnp.square(action))

    return jax.jit(jax.grad(loss))(params)


RARE = ("ffn", "attention_ffn")
"""Policies that save what others of these save, too: checked with the heavy tests."""
CHANGES = [
    *(pytest.param({"remat": name}, marks=[pytest.mark.heavy] * (name in RARE))
      for name in REMAT_POLICIES if name != "full"),
    {"scan_unroll": 2},
]  # fmt: skip


@pytest.fixture(scope="module")
def reference(setup):
    return _gradients(*setup[:3])


@pytest.mark.thorough
@pytest.mark.parametrize("change", CHANGES)
def test_remat_and_unroll_change_no_gradient(setup, reference, change):
    config, inputs, params, _ = setup
    other = _gradients(dataclasses.replace(config, **change), inputs, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), reference, other)


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"depth": 1}, marks=pytest.mark.thorough),
        pytest.param({"clean_condition_timestep": True}, marks=pytest.mark.thorough),
    ],
)
def test_the_trimmed_last_layer_changes_nothing_that_is_read(setup, change):
    config = dataclasses.replace(setup[0], **change)
    inputs, params = setup[1], setup[2]
    if "depth" in change:
        params = params | {"layers": jax.tree.map(lambda leaf: leaf[:1], params["layers"])}

    def outputs_and_gradients(config):
        def loss(params):
            video, action = Motus(config).apply({"params": params}, **inputs)
            return jnp.mean(video[:, 1:] ** 2) + jnp.mean(action**2), (video[:, 1:], action)

        (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return outputs, gradients

    (ours, found), (whole, expected) = map(
        outputs_and_gradients, (dataclasses.replace(config, trim_last_layer=True), config)
    )
    for a, b in zip(ours, whole):
        np.testing.assert_allclose(a, b, atol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), found, expected)


def test_every_parameter_but_the_dead_ones_has_a_gradient(reference):
    gradients = reference
    assert [path for path, g in flatten(gradients).items() if not np.abs(g).max() > 0] == []
    last = flatten(gradients["layers"]["understanding"])
    for path in ("attention/o/kernel", "ffn/dense_0/kernel", "ffn/dense_1/bias"):
        assert np.abs(last[path][-1]).max() == 0, "nothing reads the understanding stream after the last layer"


def test_clean_condition_timestep_reaches_only_frame_0(setup):
    config, inputs, params, apply = setup
    other = jax.jit(Motus(dataclasses.replace(config, clean_condition_timestep=True)).apply)
    out = other({"params": params}, **inputs)
    assert np.abs(out[0] - apply({"params": params}, **inputs)[0]).max() > 1e-3
    at_zero = inputs | {"t_video": jnp.zeros(B)}
    for ours, same in zip(other({"params": params}, **at_zero), apply({"params": params}, **at_zero)):
        np.testing.assert_allclose(ours, same, atol=2e-6)


def test_bfloat16_compute_stays_close_and_keeps_float32_outputs(setup):
    config, inputs, params, apply = setup
    low = jax.jit(Motus(dataclasses.replace(config, dtype="bfloat16")).apply)({"params": params}, **inputs)
    for ours, exact in zip(low, apply({"params": params}, **inputs)):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - exact).max() < 0.05 * np.abs(exact).max() + 0.02


def test_state_must_fit_the_form(setup):
    config, inputs, params, _ = setup
    with pytest.raises(UserError, match="state"):
        Motus(config).apply({"params": params}, **(inputs | {"state": None}))


def test_bad_variants_are_refused():
    with pytest.raises(UserError, match="debug, demo, 5b"):
        get_variant("7b")
    with pytest.raises(UserError, match="layers"):
        get_variant("debug", {"video": {"layers": 3}})
    with pytest.raises(UserError, match="remat"):
        model = Motus(get_variant("debug", {"remat": "some"}))
        jax.eval_shape(model.init, jax.random.key(0), **_inputs(get_variant("debug")))
