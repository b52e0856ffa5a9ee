"""Tokenizers read from `tokenizer.json`."""

import logging

import pytest
import small_tokenizers
from tokenizers import Tokenizer

from motus_jax.data.prompt import build_chat
from motus_jax.data.tokenizers import QwenTokenizer, Umt5Tokenizer, clean
from motus_jax.errors import UserError


@pytest.fixture(scope="module")
def qwen_file(tmp_path_factory):
    return small_tokenizers.write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def umt5_file(tmp_path_factory):
    return small_tokenizers.write_umt5(tmp_path_factory.mktemp("umt5"))


def test_qwen_keeps_markers_whole_and_text_lossless(qwen_file):
    tokenizer, library = QwenTokenizer(qwen_file.parent), Tokenizer.from_file(str(qwen_file))
    chat = build_chat("Lege den Würfel 🎲 in die Schale")
    ids = tokenizer.encode(chat)
    assert library.decode(ids, skip_special_tokens=False) == chat
    assert ids.count(tokenizer.image_token) == 1
    assert library.token_to_id("<|image_pad|>") == tokenizer.image_token
    markers = [library.id_to_token(i) for i in ids if library.id_to_token(i) in small_tokenizers.MARKERS]
    opening, image = ["<|im_start|>"], ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>"]
    assert markers == [*opening, *image, "<|im_end|>", *opening]


def test_umt5_ends_and_pads(umt5_file):
    tokenizer, library = Umt5Tokenizer(umt5_file), Tokenizer.from_file(str(umt5_file))
    tokens, mask = tokenizer.encode("  put the\n cube into &amp;amp; ", 12)
    assert tokens.shape == mask.shape == (12,) and tokens.dtype == "int32"
    pieces = [library.id_to_token(i) for i in tokens[mask]]
    assert pieces[:5] == ["▁put", "▁the", "▁cube", "▁into", "▁"] and pieces[5:] == ["<unk>", "</s>"]
    assert tokens[~mask].tolist() == [0] * 5 and not mask[7:].any()
    assert tokenizer.encode("lift it")[0].shape == (512,), "Wan's length"


def test_umt5_cuts_before_the_end_with_a_warning(umt5_file, caplog):
    tokenizer = Umt5Tokenizer(umt5_file)
    whole, _ = tokenizer.encode("put the red cube into the bowl", 8)
    assert (whole != 0).all() and not caplog.text, "seven words and the end fit exactly"
    with caplog.at_level(logging.WARNING):
        tokens, mask = tokenizer.encode("put the red cube into the bowl", 5)
    assert tokens.tolist() == [*whole[:4], 1] and mask.all()
    assert "8 tokens cut to 5" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a \t b\n\nc ", "a b c"),
        ("&lt;b&gt; &amp;lt;", "<b> <"),
        ("“the robot’s arm”", "\"the robot's arm\""),
        ("Wu\u0308rfel\x00", "Würfel"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


def test_wrong_files_are_refused(tmp_path, qwen_file, umt5_file):
    with pytest.raises(UserError, match="does not exist"):
        QwenTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"expected a Hugging Face tokenizer\.json"):
        Umt5Tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"expected '<\|im_start\|>' to be one token"):
        QwenTokenizer(umt5_file)
    with pytest.raises(UserError, match="expected <pad> to be token 0 and a token </s>, found None and None"):
        Umt5Tokenizer(qwen_file)
