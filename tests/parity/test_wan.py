"""Wan's network and its text encoder as Hugging Face publishes them: the names, and the numbers that they compute."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from motus_jax import convert  # noqa: E402
from motus_jax.models.attention import attention  # noqa: E402
from motus_jax.models.config import get_variant  # noqa: E402
from motus_jax.models.layers import rope_table  # noqa: E402
from motus_jax.models.text_encoder import TextEncoder, TextEncoderConfig  # noqa: E402
from motus_jax.models.video_expert import VideoBlock, VideoExpert  # noqa: E402
from motus_jax.weights import importer, kinds, matching, tree  # noqa: E402
from motus_jax.weights.sources import open_source  # noqa: E402

LIMIT = 3e-5
"""Largest absolute deviation in float32."""


def randomised(module, scale=0.1):
    """Every parameter random and not zero, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name))
    return module.eval()


def one_device(abstract):
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract)


def loaded(workdir, part):
    abstract = part.abstract({leaf.path: np.float32 for leaf in part.leaves})
    place = one_device(abstract)
    asked = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, place)
    return importer.load_imported(workdir, {part.subtree: asked})[part.subtree]


@pytest.fixture(scope="module")
def transformer():
    c = get_variant("debug").video
    return randomised(
        diffusers.WanTransformer3DModel(
            patch_size=c.patch, num_attention_heads=c.heads, attention_head_dim=c.head_dim,
            in_channels=c.latent_channels, out_channels=c.latent_channels, text_dim=c.text_width,
            freq_dim=c.frequencies, ffn_dim=c.mlp, num_layers=2,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", eps=c.eps, rope_max_seq_len=32,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def video_params(transformer, tmp_path_factory):
    """Saved by diffusers in shards, imported by the command."""
    folder = tmp_path_factory.mktemp("wan")
    transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")
    convert.main(["convert", "import", f"--source={folder / 'transformer'}", "--kind=wan", "--variant=debug",
                  f"--workdir={folder / 'workdir'}"])  # fmt: skip
    (record,) = importer.read_report(folder / "workdir")
    assert record["layout"] == "diffusers WanTransformer3DModel" and len(record["files"]) > 1
    (part,) = kinds.parts_of("wan", "debug")
    return loaded(folder / "workdir", part)


def wan_velocity(params, video, t, text):
    """Wan alone: our blocks with attention among the video tokens only."""
    config = get_variant("debug")
    expert, block = VideoExpert(config.video, "float32"), VideoBlock(config.video, "float32")

    def embed(method, *arguments):
        return expert.apply({"params": params["video"]}, *arguments, method=method)

    x, text = embed("embed", video), embed("embed_text", text)
    head, time = embed("embed_time", t[:, None])
    rope = rope_table(expert.grid(video.shape), config.video.head_dim)
    for layer in range(config.depth):
        weights = {"params": jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"]["video"])}
        q, k, v = block.apply(weights, x, time, rope, method="qkv")
        x = block.apply(weights, x, attention(q, k, v, None), time, method="after_attention")
        text_keys_values = block.apply(weights, text, method="text_keys_values")
        x = block.apply(weights, x, text_keys_values, None, method="cross")
        x = block.apply(weights, x, time, method="feed_forward")
    return embed("velocity", x, head, video.shape)


def test_the_video_expert_equals_diffusers(transformer, video_params):
    rng = np.random.default_rng(0)
    video, text = rng.standard_normal((2, 3, 4, 6, 8), np.float32), rng.standard_normal((2, 5, 16), np.float32)
    t = np.array([37.5, 800.0], np.float32)
    with torch.no_grad():
        theirs = transformer(torch.from_numpy(video.transpose(0, 4, 1, 2, 3)), torch.from_numpy(t),
                             torch.from_numpy(text)).sample  # fmt: skip
    with jax.default_matmul_precision("highest"):
        ours = wan_velocity(video_params, jnp.asarray(video), jnp.asarray(t), jnp.asarray(text))
    worst = np.abs(np.asarray(ours).transpose(0, 4, 1, 2, 3) - theirs.numpy()).max()
    assert np.abs(theirs.numpy()).max() > 0.1 and worst <= LIMIT, worst


def test_both_layouts_give_the_same_tree(transformer, video_params, tmp_path):
    """The same weights, exported under Wan's own names, saved by torch, imported again."""
    source = open_source_of(transformer, tmp_path)
    (part,) = kinds.parts_of("wan", "debug")
    matched = matching.match(source, "wan", [part])
    own = {name: torch.from_numpy(source.tensors[found].read()) for name, found in matched.names.items()}
    assert "blocks.1.self_attn.norm_q.weight" in own and "blocks.1.norm3.bias" in own
    torch.save({"model": own}, tmp_path / "wan.pt")
    convert.main(["convert", "import", f"--source={tmp_path / 'wan.pt'}", "--kind=wan", "--variant=debug",
                  f"--workdir={tmp_path / 'workdir'}"])  # fmt: skip
    assert importer.read_report(tmp_path / "workdir")[0]["layout"] == "Wan"
    again, expected = tree.flatten(loaded(tmp_path / "workdir", part)), tree.flatten(video_params)
    assert all(np.array_equal(again[path], value) for path, value in expected.items())


def open_source_of(module, folder):
    module.save_pretrained(folder / "theirs")
    return open_source(folder / "theirs")


def test_the_text_encoder_equals_transformers(tmp_path):
    config = transformers.UMT5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder = randomised(transformers.UMT5EncoderModel(config))
    ours = TextEncoderConfig(vocabulary=50, width=16, heads=2, head_dim=8, mlp=24, depth=2)
    part = kinds.text_part(ours)
    matched = matching.match(open_source_of(encoder, tmp_path), "umt5", [part])
    assert matched.layout == "Hugging Face UMT5EncoderModel"
    importer.import_weights(matched, [part], tmp_path / "workdir", one_device, "float32")
    params = loaded(tmp_path / "workdir", part)
    tokens = np.random.default_rng(0).integers(1, 50, (2, 40))
    mask = np.arange(40) < np.array([[40], [23]])
    with torch.no_grad():
        theirs = encoder(torch.from_numpy(tokens), torch.from_numpy(mask.astype(np.int64))).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        found = TextEncoder(ours).apply({"params": params}, tokens, mask)
    worst = np.abs(found - theirs * mask[..., None]).max()
    assert worst <= LIMIT, worst
    keys = json.loads((tmp_path / "workdir" / "imported" / "report.json").read_text())["imports"][0]["keys"]
    assert keys["shared.weight"]["becomes"] == "text_encoder/token_embedding"
