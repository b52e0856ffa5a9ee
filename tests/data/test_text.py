"""Prompts and byte tokens."""

import logging

import pytest

from motus_jax.data import tokenizer
from motus_jax.data.prompt import TEMPLATES, build_prompt, prefix_bytes
from motus_jax.errors import UserError


def test_tokens():
    tokens, mask = tokenizer.encode("Hé\0", 8)
    assert tokens.tolist() == [0x48 + 1, 0xC3 + 1, 0xA9 + 1, 1, 0, 0, 0, 0]
    assert mask.tolist() == [True] * 4 + [False] * 4
    assert tokenizer.decode(tokens) == "Hé\0"


def test_long_text_is_cut_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        tokens, mask = tokenizer.encode("put the peg in", 7)
    assert tokenizer.decode(tokens) == "put the" and mask.all()
    assert "14 bytes cut to 7" in caplog.text and "' peg in'" in caplog.text


def test_templates():
    assert build_prompt("  lift  the cube\n") == "lift the cube"
    assert build_prompt("lift the cube", "scene").endswith("task: lift the cube")
    assert prefix_bytes("plain") == 0 and prefix_bytes("scene") == TEMPLATES["scene"].index("{")
    with pytest.raises(UserError, match="expected one of plain, scene; found 'fancy'"):
        build_prompt("x", "fancy")
