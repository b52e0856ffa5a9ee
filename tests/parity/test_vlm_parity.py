"""Qwen3-VL, its image processor and its prompts against transformers."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_tokenizers
from PIL import Image

from motus_jax.data.prompt import build_chat
from motus_jax.data.qwen_inputs import ImageProcessor, InputBuilder
from motus_jax.data.tokenizers import QwenTokenizer
from motus_jax.models.vlm import Vlm, VlmConfig
from motus_jax.weights import kinds, qwen3_vl

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
qwen2_vl = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")

LIMIT = 5e-5
PIXELS = {"min_pixels": 64, "max_pixels": 1024}
SIZES = [[(16, 24)], [(8, 32), (24, 16)], [], [(20, 11)]]
"""Heights and widths of the pictures of each prompt; the last is resized."""
CHATS = [build_chat("lift it"), build_chat("put the red cube") + build_chat("into the bowl"), "the bowl",
         build_chat("The whole scene is in a realistic style", "deploy")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    return small_tokenizers.write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def theirs(tokenizer_file):
    """transformers' model, every parameter random and large enough to matter."""
    tokenizer = QwenTokenizer(tokenizer_file)
    config = transformers.Qwen3VLConfig(
        text_config=dict(
            vocab_size=420, hidden_size=48, intermediate_size=80, num_hidden_layers=5, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6, max_position_embeddings=512,
            # A small base, so that the lowest frequencies matter in short prompts.
            rope_parameters=dict(
                rope_type="default", rope_theta=50.0, mrope_section=[4, 2, 2], mrope_interleaved=True
            ),
        ),
        vision_config=dict(
            depth=4, hidden_size=32, num_heads=2, intermediate_size=64, out_hidden_size=48, patch_size=4,
            num_position_embeddings=49, deepstack_visual_indexes=[1, 2], hidden_act="gelu_pytorch_tanh",
        ),
        image_token_id=tokenizer.image_token,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = transformers.Qwen3VLModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.2, generator=generator)
    return model


@pytest.fixture(scope="module")
def config(theirs):
    return VlmConfig.from_hf(theirs.config.to_dict())


@pytest.fixture(scope="module")
def builder(config, tokenizer_file):
    return InputBuilder(config, ImageProcessor(patch=4, **PIXELS), QwenTokenizer(tokenizer_file))


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [[rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in group] for group in SIZES]


@pytest.fixture(scope="module")
def expected(theirs, builder, pictures):
    """transformers on the same tokens and its own positions: states, and what its parts return by name."""
    batch = builder(CHATS, pictures, 60, 160, rows=1)
    grids = [builder.processor.grid(*size) for group in SIZES for size in group]
    seen = {}

    def keep(name, module):
        def hook(_, __, out):
            seen[name] = (out[0] if isinstance(out, tuple) else out).numpy()

        module.register_forward_hook(hook)

    for part, layers in (("vision", theirs.visual.blocks), ("language", theirs.language_model.layers)):
        for i, layer in enumerate(layers):
            keep(f"{part}{i}", layer)
    keep("merger", theirs.visual.merger)
    for i, merger in enumerate(theirs.visual.deepstack_merger_list):
        keep(f"deepstack{i}", merger)
    tokens = torch.from_numpy(batch.tokens).long()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = theirs(
            input_ids=tokens,
            attention_mask=torch.from_numpy(batch.mask).long(),
            pixel_values=torch.from_numpy(batch.patches[0][batch.segments[0] > 0]),
            image_grid_thw=torch.tensor([(1, *grid) for grid in grids]),
            mm_token_type_ids=(tokens == theirs.config.image_token_id).int(),
        )
    return out.last_hidden_state.numpy(), seen


@pytest.fixture(scope="module")
def params(theirs, config):
    spelling = qwen3_vl.SPELLINGS["Hugging Face Qwen3VLModel"]
    state = {kinds.rename(name, spelling): tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return jax.tree.map(jnp.asarray, qwen3_vl.to_tree(state, config))


@pytest.fixture(scope="module")
def model(config, params):
    return jax.jit(lambda inputs: Vlm(config).apply({"params": params}, inputs, mutable="intermediates"))


@pytest.mark.parametrize(("rows", "patches"), [(4, 64), (2, 96), (1, 128)])
def test_states(model, builder, pictures, expected, rows, patches):
    batch = builder(CHATS, pictures, 60, patches, rows=rows)
    found, _ = model(batch)
    assert len(set(batch.mask.sum(1))) > 2, "prompts of several lengths"
    assert np.abs(expected[0][batch.mask]).max() > 1
    np.testing.assert_allclose(found[batch.mask], expected[0][batch.mask], atol=LIMIT, rtol=0)


def test_intermediates(model, builder, pictures, expected, config):
    batch = builder(CHATS, pictures, 60, 128, rows=1)
    seen = model(batch)[1]["intermediates"]
    real = batch.segments[0] > 0
    merged = real[:: config.vision.merge**2]
    found = {"merger": seen["features"][0][0, merged]}
    found |= {f"deepstack{i}": values[0, merged] for i, values in enumerate(seen["deepstack"][0])}
    found |= {f"vision{i}": values[0, real] for i, values in enumerate(seen["vision"]["layers"]["out"][0])}
    language = {f"language{i}": values for i, values in enumerate(seen["language"]["layers"]["out"][0])}
    assert found.keys() | language.keys() == expected[1].keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[1][name], atol=LIMIT, rtol=1e-5, err_msg=name)
    for name, values in language.items():
        np.testing.assert_allclose(
            values[batch.mask], expected[1][name][batch.mask], atol=LIMIT, rtol=1e-5, err_msg=name
        )


def image_processor(**sizes):
    half = [0.5, 0.5, 0.5]
    return qwen2_vl.Qwen2VLImageProcessorPil(image_mean=half, image_std=half, merge_size=2, **sizes)


@pytest.mark.parametrize("size", [(384, 320), (360, 320), (720, 640), (480, 640), (100, 200), (40, 500), (257, 255)])
def test_image_processor(size):
    picture = np.random.default_rng(0).integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(picture).resize(size[::-1]))  # smooth, as pictures are
    limits = {"shortest_edge": 65536, "longest_edge": 350_000}
    theirs = image_processor(patch_size=16, size=limits)([Image.fromarray(picture)], return_tensors="np")
    processor = ImageProcessor(max_pixels=limits["longest_edge"])
    patches, grid = processor(picture)
    assert [1, *grid] == theirs["image_grid_thw"][0].tolist() and grid == processor.grid(*size)
    np.testing.assert_allclose(patches, theirs["pixel_values"], atol=1e-6)


def test_processor_makes_the_same_prompt(builder, tokenizer_file, pictures):
    """Tokens and patches of a whole batch against transformers' processor; it pads on the right too, with its token."""
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="<|endoftext|>")
    half = image_processor(patch_size=4, size={"shortest_edge": 64, "longest_edge": 1024})
    chats, group = CHATS[:1] + CHATS[3:], [pictures[0], pictures[3]]
    ours = builder(chats, group, 60, 64)
    theirs = half([Image.fromarray(picture) for pictures in group for picture in pictures], return_tensors="np")
    np.testing.assert_allclose(ours.patches[ours.segments > 0], theirs["pixel_values"], atol=1e-6)
    counts = theirs["image_grid_thw"].prod(1) // 4
    texts = [chat.replace("<|image_pad|>", "<|image_pad|>" * count) for chat, count in zip(chats, counts)]
    padded = tokenizer(texts, padding="max_length", max_length=60, padding_side="right")
    np.testing.assert_array_equal(np.array(padded["attention_mask"]) == 1, ours.mask)
    np.testing.assert_array_equal(np.array(padded["input_ids"])[ours.mask], ours.tokens[ours.mask])
