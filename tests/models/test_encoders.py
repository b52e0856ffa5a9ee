"""Every encoder in its place: losses are finite, frozen parts are the named ones, samplers run; what is refused."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from experiments import debug
from motus_jax.data import qwen_inputs
from motus_jax.errors import UserError
from motus_jax.models.system import System
from motus_jax.sampling.sampler import make_sampler

VAE = {"kind": "wan", "width": 4, "decoder_width": 4, "multipliers": (1, 1), "temporal": (True,), "blocks": 1}
QWEN = {
    "kind": "qwen3_vl", "vision": {"depth": 2, "width": 16, "heads": 2, "mlp": 16, "taps": (0,), "positions": 4},
    "vocabulary": 64, "depth": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp": 16, "sections": (2, 1, 1),
    "image_token": 63,
}  # fmt: skip
CHAT = (5, *([63] * 2), 7, 8)
"""Two features of a 32 x 64 picture between words."""


def pretrained_kinds():
    config = debug.get_config()
    with config.unlocked():
        config.data.update({"image_size": (32, 64), "chat": "train", "chat_length": 8})
        config.model.overrides.depth = 2
        config.model.video_codec = ml_collections.ConfigDict(VAE)
        config.model.vlm = ml_collections.ConfigDict(QWEN)
        config.model.frozen = ("video_codec", "vlm")
    return config


def make_batch(config, count=2):
    rng, data = np.random.default_rng(0), config.data
    words = np.arange(data.instruction_length) < 9
    positions = qwen_inputs.token_positions(CHAT, [(1, 2)], image_token=63, merge=1)
    free = data.chat_length - len(CHAT)
    return {
        "frames": rng.integers(0, 256, (count, 1 + data.video_frames, *data.image_size, 3), np.uint8),
        "state": rng.standard_normal((count, data.state_dim), np.float32),
        "actions": rng.standard_normal((count, data.chunk, data.action_dim), np.float32),
        "action_mask": np.ones((count, data.chunk, data.action_dim), bool),
        "instruction": np.tile(np.where(words, 65, 0), (count, 1)).astype(np.int32),
        "instruction_mask": np.tile(words, (count, 1)),
        "chat": np.tile(np.pad(np.int32(CHAT), (0, free)), (count, 1)),
        "chat_mask": np.tile(np.arange(data.chat_length) < len(CHAT), (count, 1)),
        "chat_positions": np.tile(np.pad(positions, ((0, free), (0, 0))), (count, 1, 1)),
    }


@pytest.fixture(scope="module")
def setting():
    config = pretrained_kinds()
    system, rng = System(config), np.random.default_rng(0)

    def drawn(shapes):
        """Any numbers of the right shapes: the heads would start at zero, and nothing behind them would be seen."""
        return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), leaf.dtype), shapes)

    return config, system, drawn(jax.eval_shape(system.init, jax.random.key(0))), drawn(system.frozen_shapes())


def test_frozen_parts_are_loaded_and_the_others_trained(setting):
    _, system, params, frozen = setting
    assert set(params) == {"motus", "text_encoder"}
    assert set(frozen) == {"video_codec", "vlm"}
    assert system.fit_frozen(np.zeros((1, 5, 32, 64, 3), np.uint8)) == {}


def test_loss_and_gradients_are_finite_and_reach_every_trained_part(setting):
    config, system, params, frozen = setting
    batch = make_batch(config)

    step = jax.jit(jax.value_and_grad(system.loss, has_aux=True))
    (value, _), gradients = step(params, frozen, batch, jax.random.key(1))
    assert np.isfinite(value)
    for name in params:
        total = sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(gradients[name]))
        assert np.isfinite(total) and total > 0, name


def test_the_picture_and_the_chat_reach_the_understanding_stream(setting):
    config, system, params, frozen = setting
    batch = make_batch(config, 1)
    context = jax.jit(lambda *given: system.context(*given).understanding)

    def tokens(batch):
        return context(params, frozen, batch)

    usual = tokens(batch)
    other = {**batch, "frames": 255 - batch["frames"]}
    words = {**batch, "chat": np.where(batch["chat"] == 7, 9, batch["chat"])}
    for changed in (other, words):
        assert np.abs(tokens(changed) - usual).max() > 1e-6


def test_a_video_comes_out_of_the_vae_after_the_condition_frame(setting):
    config, system, params, frozen = setting
    batch = make_batch(config, 1)
    sample = make_sampler(system, "world_model", config.sampling)
    result = sample(params, frozen, batch, jax.random.key(0))
    assert result["video"].shape == (1, 5, 32, 64, 3) and np.isfinite(result["video"]).all()
    np.testing.assert_allclose(result["video"][:, 0], batch["frames"][:, 0] / 255, atol=1e-5)


def test_patches_are_those_of_the_image_processor(setting):
    _, system, *_ = setting
    picture = np.random.default_rng(1).integers(0, 256, (32, 64, 3), np.uint8)
    patches, grid = qwen_inputs.ImageProcessor(min_pixels=1)(picture)
    found, places = system.vlm._cut(jnp.asarray(picture)[None] / 127.5 - 1)
    np.testing.assert_allclose(found[0], patches, atol=1e-6)
    np.testing.assert_array_equal(places, qwen_inputs.patch_places(grid, merge=2))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.vlm.kind", "bert", r"config\.model\.vlm\.kind: expected one of compact, qwen3_vl, found 'bert'"),
        ("model.video_codec.wide", 3, r"config\.model\.video_codec: .*wide"),
        ("model.frozen", ("vlm",), r"config\.model\.frozen: expected video_codec"),
        ("data.image_size", (32, 48), r"sides divisible by 32, found 32x48"),
        ("data.chat", "", r"set data\.chat to train or deploy"),
    ],
)
def test_refuses(key, value, message):
    config = pretrained_kinds()
    with config.unlocked():
        *parents, name = key.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[name] = value
    with pytest.raises(UserError, match=message):
        jax.eval_shape(System(config).init, jax.random.key(0))
