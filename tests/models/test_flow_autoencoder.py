"""The flow autoencoder without PyTorch: names and sizes of the release, stored numbers of diffusers, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dc_ae_fixture import COUNTER, NUMBERS, TABLE, picture, weights

from experiments import debug
from motus_jax.errors import UserError
from motus_jax.models.flow_autoencoder import MEASURED, VARIANTS, FlowAutoencoder, FlowAutoencoderConfig
from motus_jax.models.flow_autoencoder_blocks import FEW, Conv, rectified_attention
from motus_jax.training.optimizer import make_optimizer
from motus_jax.weights import dc_ae, kinds, tree
from motus_jax.weights.name_map import to_tree

PARAMETERS = 1_120_682_252
"""Of f128c512 in diffusers; its batch norms measure 12,800 numbers more."""
MEASURED_NUMBERS = 12_800
SMALL = VARIANTS["debug"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def table(golden_dir):
    """Public name -> (shape, kind) of f128c512."""
    rows = [line.split("\t") for line in (golden_dir / TABLE).read_text().splitlines()[1:]]
    return {name: (tuple(map(int, shape.split("x"))) if shape else (), kind) for name, shape, kind in rows}


@pytest.fixture(scope="module")
def full_tree():
    return tree.flatten(jax.eval_shape(FlowAutoencoder(FlowAutoencoderConfig()).init, jax.random.key(0)))


@pytest.fixture(scope="module")
def params():
    rules = dc_ae.rules(SMALL)
    return to_tree(weights({rule.source: rule.shape for rule in rules}), rules, 0)


def test_names_and_shapes_of_the_release(table, full_tree):
    config = FlowAutoencoderConfig()
    public = {rule.source: rule.shape for rule in dc_ae.rules(config)}
    counters = dc_ae.counters(config)
    assert public | dict.fromkeys(counters, ()) == {name: shape for name, (shape, _) in table.items()}
    assert all(name.endswith(COUNTER) for name in counters) and len(counters) == 15
    leaves = {leaf.path: leaf.shape for leaf in kinds.leaves(dc_ae.rules(config), 0)}
    assert leaves == {path: leaf.shape for path, leaf in full_tree.items()}
    assert {leaf.dtype.name for leaf in full_tree.values()} == {"float32"}


def test_parameters_of_the_release(table, full_tree):
    assert sum(np.prod(shape) for shape, kind in table.values() if kind == "param") == PARAMETERS
    assert sum(leaf.size for leaf in full_tree.values()) == PARAMETERS + MEASURED_NUMBERS


def test_four_tokens_of_a_picture_of_256():
    autoencoder = FlowAutoencoder(FlowAutoencoderConfig())
    shapes = jax.eval_shape(autoencoder.init, jax.random.key(0))
    latent = jax.eval_shape(autoencoder.encode, shapes, jax.ShapeDtypeStruct((3, 256, 256, 3), jnp.float32))
    assert latent.shape == (3, *autoencoder.latent_shape(256, 256)) == (3, 2, 2, 512)
    assert jax.eval_shape(autoencoder.decode, shapes, latent).shape == (3, 256, 256, 3)


def test_stored_numbers_of_diffusers(golden_dir, params):
    autoencoder, expected = FlowAutoencoder(SMALL), np.load(golden_dir / NUMBERS)
    latent = autoencoder.encode(params, picture())
    np.testing.assert_allclose(latent, expected["latent"], atol=TOLERANCE * expected["latent"].std())
    decoded = autoencoder.decode(params, expected["latent"])
    np.testing.assert_allclose(decoded, expected["decoded"], atol=TOLERANCE * expected["decoded"].std())


def test_bfloat16_stays_near_float32(golden_dir, params):
    low, expected = FlowAutoencoder(dataclasses.replace(SMALL, dtype="bfloat16")), np.load(golden_dir / NUMBERS)
    found = low.decode(params, expected["latent"])
    assert found.dtype == jnp.float32
    error = np.linalg.norm(found - expected["decoded"]) / np.linalg.norm(expected["decoded"])
    assert 1e-3 < error < 0.05, "computed in bfloat16, and no worse than that"


@pytest.mark.parametrize("places", [4, 5])
def test_attention_is_the_same_sum_in_both_orders(places):
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, places, 3, 4))
    q, k = np.maximum(q, 0), np.maximum(k, 0)
    q[0, 0] = 0
    scores = np.einsum("bsnk,btnk->bnst", q, k)
    expected = np.einsum("bnst,btnv->bsnv", scores / (scores.sum(-1, keepdims=True) + 1e-15), v)
    np.testing.assert_allclose(rectified_attention(*map(jnp.float32, (q, k, v))), expected, atol=1e-5)
    assert not expected[0, 0].any(), "a query that meets no key gets nothing"


@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_the_same_over_few_and_many_places(stride):
    """Zeros around a picture change nothing but the number of places."""
    rng, module = np.random.default_rng(0), Conv(3, "float32", stride)
    kernel, bias = rng.standard_normal((3, 3, 2, 3)), rng.standard_normal(3)
    few = rng.standard_normal((2, 8, 10, 2)).astype(np.float32)
    many = np.pad(few, ((0, 0), (4, 4), (4, 4), (0, 0)))
    assert few[0, ..., 0].size <= FEW < many[0, ..., 0].size
    found, expected = (module.apply({"params": {"kernel": kernel, "bias": bias}}, x) for x in (few, many))
    border = 4 // stride
    np.testing.assert_allclose(found, expected[:, border:-border, border:-border], atol=1e-5)


def test_frozen_or_tuned_by_config(full_tree):
    """The tables of `config.optimizer` choose all of it, nothing but what is measured, or one half."""
    parameters = tree.unflatten({"flow_autoencoder": full_tree, "head": {"kernel": jnp.zeros((512, 14))}})

    def trained(*frozen):
        settings = debug.get_config().optimizer
        with settings.unlocked():
            settings.update(frozen=frozen, lr_multipliers=((".*", 1.0),))
        return make_optimizer(settings, parameters, 10).trained

    assert trained("flow_autoencoder/.*") == {"head/kernel"}
    kept = {path for path in full_tree if f"flow_autoencoder/{path}" not in trained(MEASURED)}
    assert sum(full_tree[path].size for path in kept) == MEASURED_NUMBERS
    assert all(path.startswith(("flow_autoencoder/decoder/", "head/")) for path in trained(MEASURED, ".*/encoder/.*"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: a.encode({}, np.zeros((1, 16, 18, 3))), "16x18.*divisible by 4.*16x20"),
        (lambda a: a.encode({}, np.zeros((1, 0, 16, 3))), "0x16.*divisible by 4"),
        (lambda a: a.encode({}, np.zeros((1, 16, 16, 2))), "3 colours.*16, 16, 2"),
        (lambda a: a.decode({}, np.zeros((1, 2, 2, 4))), "8 channels last, found shape .*4"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call(FlowAutoencoder(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (128, 256)}, "encoder_blocks: expected 2 entries as in widths, found 8"),
        ({"decoder_blocks": (0, 5, 10, 2, 0, 2, 2, 2)}, "decoder_blocks: expected blocks in every stage but the first"),
        ({"channels": 96}, "channels: expected a divisor of the last width 2048, found 96"),
        ({"head_dim": 48}, "head_dim: expected a divisor of the width 512, found 48"),
        ({"windows": ((),) * 7 + ((4,),)}, r"windows: expected odd sides, found \(4,\)"),
        (
            {"widths": (128, 256, 512, 512, 1024, 1024, 2048, 768)},
            "widths: 2048 is followed by 768, expected a divisor of 8192 and a multiple of 4",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        FlowAutoencoderConfig(**changes)
