"""Adapters beside kernels: where they go, that they compute W + A B everywhere, and what is refused."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from experiments import debug
from motus_jax import compiler
from motus_jax.errors import UserError
from motus_jax.models.layers import Dense
from motus_jax.models.system import System
from motus_jax.training import sharding
from motus_jax.weights import lora, tree

pytestmark = pytest.mark.thorough

EVERYWHERE = ((".*", 3),)
jit = functools.partial(jax.jit, compiler_options=compiler.options())


def make_config(**overrides):
    config = debug.get_config()
    config.data.update({"action_dim": 5, "state_dim": 6})  # the narrowest kernels still take rank 3
    config.model.overrides.update({"depth": 2, **overrides})
    return config


def make_batch(config, count=2):
    rng, data = np.random.default_rng(0), config.data
    words = np.arange(data.instruction_length) < 9
    shape = (count, data.chunk, data.action_dim)
    return {
        "frames": rng.integers(0, 256, (count, 1 + data.video_frames, *data.image_size, 3), np.uint8),
        "state": rng.standard_normal((count, data.state_dim), np.float32),
        "actions": rng.standard_normal(shape, np.float32),
        "action_mask": np.ones(shape, bool),
        "instruction": np.where(words, rng.integers(1, 257, (count, len(words))), 0).astype(np.int32),
        "instruction_mask": np.tile(words, (count, 1)),
    }


class Setting:
    """A small system whose parameters are all away from zero, with adapters beside every kernel."""

    def __init__(self):
        self.config = make_config()
        self.system = System(self.config)
        self.batch = make_batch(self.config)
        self.frozen = self.system.fit_frozen(self.batch["frames"])
        # Drawn by numpy, which compiles nothing; the heads would start at zero: nothing before them would be seen.
        rng, shapes = np.random.default_rng(1), jax.eval_shape(self.system.init, jax.random.key(0))
        self.base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), leaf.dtype), shapes)
        self.added, self.moved = jit(self.with_adapters)(self.base, jax.random.key(0))
        self._velocities = jit(self.velocities, static_argnames="cache")

    def with_adapters(self, base, key):
        """The parameters with fresh adapters, and with trained ones."""
        added = lora.add(base, EVERYWHERE, key)
        return added, moved(added)

    def see(self, params, cache=False):
        """Both velocities."""
        return self._velocities(params, self.frozen, self.batch, cache=cache)

    def velocities(self, params, frozen, batch, cache):
        context = self.system.context(params, frozen, batch, cache)
        clean = self.system.encode(frozen, batch)
        tau = jnp.full(len(clean.actions), 0.5)
        return self.system.velocities(params, clean.video, clean.actions, clean.state, tau, tau, context)


@pytest.fixture(scope="module")
def setting():
    return Setting()


def moved(params):
    """B's as a training would leave them."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + 0.02 * jnp.sin(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
        if tree.path_name(path).endswith("lora_b") else x, params
    )  # fmt: skip


def merged(params):
    flat = tree.flatten(params)
    found = {path: lora.merge(flat[path], *(flat[a] for a in pair)) for path, pair in lora.adapted(flat).items()}
    return tree.unflatten({path: leaf for path, leaf in (flat | found).items() if not lora.is_adapter(path)})


def test_every_kernel_gets_its_two_leaves_and_nothing_else_changes(setting):
    base, added = tree.flatten(setting.base), tree.flatten(setting.added)
    kernels = {path for path in base if path.endswith("/kernel")}
    assert {lora.kernel_of(path) for path in added.keys() - base.keys()} == kernels == lora.adapted(added).keys()
    for path, leaf in base.items():
        np.testing.assert_array_equal(leaf, added[path])
    for path in kernels:
        *layers, width, features = base[path].shape
        a, b = (added[leaf] for leaf in lora.adapters_of(path))
        assert a.shape == (*layers, width, 3) and b.shape == (*layers, 3, features)
        assert a.dtype == b.dtype == jnp.float32 and not np.any(b)
        assert np.abs(a).max() <= width**-0.5 and np.ptp(a) > width**-0.5, "uniform in +-1/sqrt(in)"


def test_fresh_adapters_change_no_bit():
    """Of a layer alone, step by step: compiled as a whole, XLA orders the sums of two programs differently."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    params = Dense(7, "float32").init(jax.random.key(1), x)["params"]
    added = lora.add({"dense": params}, EVERYWHERE, jax.random.key(2))["dense"]
    expected, found = (Dense(7, "float32").apply({"params": tree}, x) for tree in (params, added))
    assert set(added) == {"kernel", "bias", "lora_a", "lora_b"}
    np.testing.assert_array_equal(found, expected)


def test_a_kernel_in_the_type_of_the_product_changes_no_bit():
    """Why a base may be kept in bfloat16 under layers that compute in it."""
    x, layer = jax.random.normal(jax.random.key(0), (2, 5, 8)), Dense(7, "bfloat16")
    params = layer.init(jax.random.key(1), x)["params"]
    narrow = {**params, "kernel": params["kernel"].astype(jnp.bfloat16)}
    np.testing.assert_array_equal(*(layer.apply({"params": tree}, x) for tree in (params, narrow)))


def test_fresh_adapters_change_nothing(setting):
    for a, b in zip(setting.see(setting.base), setting.see(setting.added)):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * np.abs(a).max())


def test_adapters_compute_what_the_merged_kernels_do(setting):
    see = setting.see
    expected, found, before = see(jit(merged)(setting.moved)), see(setting.moved), see(setting.base)
    for a, b, c in zip(expected, found, before):
        scale = np.abs(a).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * scale)
        assert np.abs(a - c).max() > 1e-3 * scale, "the adapters matter"


def test_the_text_cache_of_a_sampler_has_them_too(setting):
    found, cached = (setting.see(setting.moved, cache) for cache in (False, True))
    for a, b in zip(found, cached):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_no_adapter_is_without_effect(setting):
    """One kernel at a time: each one that the table can name is computed with its adapter."""
    see, before = setting.see, setting.see(setting.added)
    for path in lora.adapted(tree.flatten(setting.added)):
        b = lora.adapters_of(path)[1]
        one = tree.overlay(setting.added, tree.select(setting.moved, [b]))
        change = max(np.abs(x - y).max() for x, y in zip(before, see(one)))
        assert change > 0, path


def test_gradients_are_those_of_the_merged_kernels(setting):
    """dL/dA = dL/dW B^T and dL/dB = A^T dL/dW, through the scanned and rematerialised layers."""
    system = System(make_config(remat="full", trim_last_layer=False))  # one body to compile

    grad = jit(jax.grad(system.loss, has_aux=True))

    def gradient(params):
        return tree.flatten(grad(params, setting.frozen, setting.batch, jax.random.key(2))[0])

    found, kernels = gradient(setting.moved), gradient(jit(merged)(setting.moved))
    flat = tree.flatten(setting.moved)
    for path, pair in lora.adapted(flat).items():
        (a, b), kernel = (np.asarray(flat[leaf]) for leaf in pair), np.asarray(kernels[path])
        for leaf, expected in zip(pair, (kernel @ np.swapaxes(b, -1, -2), np.swapaxes(a, -1, -2) @ kernel)):
            np.testing.assert_allclose(found[leaf], expected, rtol=0, atol=1e-4 * np.abs(expected).max() + 1e-9)


def test_first_match_wins_and_unnamed_kernels_stay():
    leaves = {path: jax.ShapeDtypeStruct((8, 8), jnp.float32) for path in ("x/q/kernel", "x/v/kernel", "y/q/kernel")}
    assert lora.ranks((("x/q/.*", 2), ("x/.*", 4)), leaves) == {"x/q/kernel": 2, "x/v/kernel": 4}
    assert lora.ranks((), leaves) == {}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((("vidio/.*", 2),), r"config\.lora .*the regex 'vidio/\.\*' decides no parameter"),
        ((("x/modulation", 2),), r"only leaves named 'kernel' can be adapted.*'x/modulation' decides no"),
        ((("x/(", 2),), "is not a regular expression"),
        (((".*", 0),), r"the rank of '\.\*' must be a whole number from 1 on, found 0"),
        (((".*", 2.0),), "must be a whole number from 1 on, found 2.0"),
        ((("x/.*", 4),), "'x/kernel' is a matrix 4 x 9; expected a rank below 4, found 4"),
        (((".*", 2),), r"'conv/kernel' of shape \(3, 3, 4, 9\) is a convolution's; expected kernels of dense layers"),
    ],
)
def test_refuses(rows, message):
    params = {"x": {"kernel": jnp.ones((2, 4, 9)), "modulation": jnp.ones((6, 9))},
              "conv": {"kernel": jnp.ones((3, 3, 4, 9))}}  # fmt: skip
    with pytest.raises(UserError, match=message):
        lora.add(params, rows, jax.random.key(0))


def test_adapters_are_split_as_their_kernels_are():
    devices = np.array(jax.devices()[:1] * 4).reshape(1, 2, 2)
    mesh = jax.sharding.AbstractMesh(devices.shape, sharding.AXES)
    shapes = {"q/lora_a": (2, 512, 16), "q/lora_b": (2, 16, 512), "o/lora_a": (2, 512, 16), "o/lora_b": (2, 16, 512)}
    found = {path: tuple(sharding.spec_for(f"x/{path}", shape, mesh, sharding.RULES)) for path, shape in shapes.items()}
    assert found == {
        "q/lora_a": (None, "fsdp", None), "q/lora_b": (None, "fsdp", "tensor"),
        "o/lora_a": (None, "tensor", "fsdp"), "o/lora_b": (None, None, "fsdp"),
    }  # fmt: skip


def test_the_command_line_names_them(monkeypatch):
    values, change = flags.FlagValues(), "--config.lora=(('motus/.*', 4), ('vlm/.*', 2))"
    monkeypatch.setattr(sys, "argv", ["train", change])  # ml_collections looks there
    holder = config_flags.DEFINE_config_dict("config", debug.get_config(), lock_config=True, flag_values=values)
    values(sys.argv)
    leaves = {path: jnp.ones((8, 8)) for path in ("motus/q/kernel", "vlm/q/kernel", "text_encoder/q/kernel")}
    assert lora.ranks(holder.value.lora, leaves) == {"motus/q/kernel": 4, "vlm/q/kernel": 2}
