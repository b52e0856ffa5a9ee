"""Pictures and chats to the arrays of Qwen3-VL."""

import dataclasses

import numpy as np
import pytest
import small_tokenizers
from safetensors.numpy import load_file

from motus_jax.data.prompt import build_chat, build_prompt
from motus_jax.data.qwen_inputs import ImageProcessor, InputBuilder, patch_places, token_positions
from motus_jax.data.tokenizers import QwenTokenizer
from motus_jax.errors import UserError
from motus_jax.models.vlm import QWEN3_VL_2B

RELEASE = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
}  # fmt: skip
"""`preprocessor_config.json` of Qwen3-VL-2B-Instruct."""

SMALL = ImageProcessor(patch=2, merge=2, min_pixels=16, max_pixels=400)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return QwenTokenizer(small_tokenizers.write_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def builder(tokenizer):
    vision = dataclasses.replace(QWEN3_VL_2B.vision, patch=2)
    return InputBuilder(dataclasses.replace(QWEN3_VL_2B, vision=vision, image_token=tokenizer.image_token), SMALL,
                        tokenizer)  # fmt: skip


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_chats_are_those_of_the_release():
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert build_chat("lift it", "train") == (
        f"<|im_start|>user\n{image}lift it<|im_end|>\n<|im_start|>assistant\n"
    )
    assert build_chat("lift it", "deploy") == f"<|im_start|>user\nlift it{image}<|im_end|>\n"
    assert build_chat("{image} {}").count("{image} {}") == 1, "braces are text"
    with pytest.raises(UserError, match="expected one of train, deploy; found 'chatty'"):
        build_chat("x", "chatty")
    with pytest.raises(UserError, match=r"found the chat marker '<\|im_end\|>'"):
        build_chat("stop<|im_end|>")


def test_a_release_config_gives_the_defaults():
    assert ImageProcessor.from_hf(RELEASE) == ImageProcessor()
    older = {name: value for name, value in RELEASE.items() if name != "size"} | {"min_pixels": 4, "max_pixels": 9}
    assert ImageProcessor.from_hf(older).min_pixels == 4 and ImageProcessor.from_hf(older).max_pixels == 9
    with pytest.raises(UserError, match="does not say merge"):
        ImageProcessor.from_hf({name: value for name, value in RELEASE.items() if name != "merge_size"})


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((384, 320), (65536, 16777216), (384, 320)),
        ((720, 640), (65536, 16777216), (704, 640)),  # 22.5 units: halves go to the even neighbour
        ((728, 644), (65536, 16777216), (736, 640)),
        ((360, 320), (65536, 16777216), (352, 320)),
        ((100, 200), (65536, 16777216), (192, 384)),
        ((3, 200), (65536, 16777216), (32, 2112)),
        ((1000, 1000), (65536, 300000), (544, 544)),
    ],
)
def test_resized(size, limits, expected):
    processor = ImageProcessor(min_pixels=limits[0], max_pixels=limits[1])
    assert processor.resized(*size) == expected
    assert processor.grid(*size) == (expected[0] // 16, expected[1] // 16)


def test_patches_and_places_agree():
    # A picture that is not resized; its colours tell the place of a pixel.
    height, width = 8, 12
    y, x = np.indices((height, width))
    pixels = np.stack([y, x, y + x], -1).astype(np.uint8)
    patches, grid = SMALL(pixels)
    assert grid == (4, 6) and patches.shape == (24, 3 * 2 * 2 * 2) and patches.dtype == np.float32
    values = np.rint((patches + 1) * 127.5).reshape(24, 3, 2, 2, 2)
    np.testing.assert_array_equal(values[:, :, 0], values[:, :, 1])
    places = patch_places(grid, 2)
    np.testing.assert_array_equal(values[:, 0, 0, 0, 0], 2 * places[:, 0])
    np.testing.assert_array_equal(values[:, 1, 0, 1, 1], 2 * places[:, 1] + 1)
    np.testing.assert_array_equal(values[:, 0, 0, 1, 0], 2 * places[:, 0] + 1)
    assert places[:5, :2].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]], "block by block"
    assert (places[:, 2:] == [4, 6]).all()


@pytest.mark.parametrize(
    "bad", [picture(8, 8).astype(np.float32), picture(8, 8)[..., 0], picture(8, 8)[..., :2], picture(8, 8)[:0]]
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(UserError, match=r"expected uint8 \[height, width, 3\]"):
        SMALL(bad)


def test_elongated_pictures_are_refused():
    with pytest.raises(UserError, match="picture of 1 x 201: expected sides that differ at most 200 times"):
        SMALL(picture(1, 201))


def test_positions_equal_the_release(golden_dir):
    data = load_file(golden_dir / "golden_a" / "extra_vlm.safetensors")
    for tokens, length, (_, *grid), positions in zip(
        data["in.input_ids"], data["in.lengths"], data["in.image_grid_thw"], data["mid.position_ids"].transpose(1, 2, 0)
    ):
        np.testing.assert_array_equal(token_positions(tokens[:length], [grid], 69, 2), positions[:length])


def test_positions_of_two_images():
    found = token_positions([5, 9, 9, 6, 9, 9, 9, 7], [(2, 4), (6, 2)], 9, 2)
    assert found.T.tolist() == [[0, 1, 1, 3, 4, 4, 4, 7], [0, 1, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 4, 4, 7]]


@pytest.mark.parametrize(
    ("tokens", "grids", "message"),
    [
        ([9, 1], [(2, 4)], "1 image tokens"),
        ([9, 9, 9], [(2, 4)], "3 image tokens"),
        ([9, 9], [(2, 4), (2, 2)], "image tokens for 1 images, expected 2"),
    ],
)
def test_positions_refuse_what_does_not_agree(tokens, grids, message):
    with pytest.raises(UserError, match=message):
        token_positions(tokens, grids, 9, 2)


# In the release 10 and 7 tokens stand around text and image features: markers, "user", "assistant" and line breaks.
@pytest.mark.parametrize(("chat", "around"), [("train", 10), ("deploy", 7)])
def test_a_batch(builder, tokenizer, chat, around):
    prompts = [build_prompt("lift it"), build_prompt("put the red cube into the bowl")]
    pictures = [[picture(8, 12)], [picture(4, 4, seed=1)]]
    batch = builder([build_chat(prompt, chat) for prompt in prompts], pictures, length=60, patches=32)
    assert [part.shape for part in batch] == [(2, 60), (2, 60), (2, 60, 3), (2, 32, 24), (2, 32), (2, 32, 4)]
    text = [len(tokenizer.encode(prompt)) for prompt in prompts]
    assert batch.mask.sum(1).tolist() == [6 + around + text[0], 1 + around + text[1]]
    assert (batch.tokens[~batch.mask] == 0).all() and (batch.positions[~batch.mask] == 0).all()
    assert (batch.tokens == tokenizer.image_token).sum(1).tolist() == [6, 1]
    assert (batch.segments > 0).sum(1).tolist() == [24, 4]
    np.testing.assert_array_equal(batch.patches[1, :4], SMALL(pictures[1][0])[0])
    assert not batch.patches[batch.segments == 0].any()
    assert batch.positions[0][batch.mask[0]].max() == batch.mask[0].sum() - 1 - 6 + 3, "an image is as long as its side"


def test_rows_share_patches(builder):
    chats = [build_chat("lift it"), "no picture", build_chat("a") + build_chat("b"), build_chat("c")]
    pictures = [[picture(8, 12)], [], [picture(4, 4, 1), picture(4, 8, 2)], [picture(4, 4, 3)]]
    apart, together = (builder(chats, pictures, 64, patches, rows) for patches, rows in ((24, 4), (40, 1)))
    for name in ("tokens", "mask", "positions"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))
    assert together.segments.tolist() == [[1] * 24 + [2] * 4 + [3] * 8 + [4] * 4]
    np.testing.assert_array_equal(together.patches[0], apart.patches[apart.segments > 0])
    np.testing.assert_array_equal(together.places[0], apart.places[apart.segments > 0])


def test_what_does_not_fit_is_refused(builder):
    chat, one = build_chat("lift it"), [picture(8, 12)]
    with pytest.raises(UserError, match="chat of 18 tokens: expected at most `length`=12"):
        builder([chat], [one], 12, 24)
    with pytest.raises(UserError, match=r"row of images with \[24\] patches: expected at most `patches`=20"):
        builder([chat], [one], 60, 20)
    with pytest.raises(UserError, match="chat with 1 image markers: expected as many as its pictures, 2"):
        builder([chat], [[*one, *one]], 60, 48)
    with pytest.raises(UserError, match="rows must divide the chats, found 2"):
        builder([chat], [one], 60, 24, rows=2)


def test_parts_that_do_not_belong_together_are_refused(builder, tokenizer):
    with pytest.raises(UserError, match=r"config\.json says patch = 2, processor or tokenizer 16"):
        InputBuilder(builder.config, ImageProcessor(), tokenizer)
    with pytest.raises(UserError, match=r"id of <\|image_pad\|> = 151655"):
        InputBuilder(QWEN3_VL_2B, ImageProcessor(), tokenizer)
