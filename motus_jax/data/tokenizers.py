"""Tokenizers of the pretrained encoders, read from a local Hugging Face `tokenizer.json`; nothing is downloaded."""

import html
import logging
import pathlib
import re
import unicodedata

import numpy as np
import tokenizers
from jaxtyping import Bool, Int

from motus_jax.data.prompt import IMAGE_TOKEN
from motus_jax.errors import UserError

QWEN_MARKERS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE_TOKEN)

_QUOTES = dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
"""Typographic quotes -> straight ones, for `str.translate`."""

_log = logging.getLogger(__name__)


class QwenTokenizer:
    """Qwen's byte-level BPE with its chat markers.

    Args:
      path: `tokenizer.json` of a Qwen3-VL release, or the folder that holds it.

    Raises:
      UserError: no such file, or not a tokenizer with Qwen's markers.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self._tokenizer = _load(path)
        for marker in QWEN_MARKERS:
            if self._tokenizer.encode(marker, add_special_tokens=False).tokens != [marker]:
                raise UserError(f"tokenizer {path}: expected {marker!r} to be one token; is it Qwen3-VL's?")
        self.image_token: int = self._tokenizer.token_to_id(IMAGE_TOKEN)

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered chat, markers included, nothing added."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids


class Umt5Tokenizer:
    """umT5's unigram pieces, as Wan2.2 prepares its texts.

    Args:
      path: `tokenizer.json` of google/umt5-xxl, or the folder that holds it.

    Raises:
      UserError: no such file, or not a tokenizer whose `<pad>` is 0 and which has `</s>`.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        self._tokenizer = _load(path)
        self._end = self._tokenizer.token_to_id("</s>")
        pad = self._tokenizer.token_to_id("<pad>")
        if pad != 0 or self._end is None:
            raise UserError(
                f"tokenizer {path}: expected <pad> to be token 0 and a token </s>, found {pad} and {self._end}; is it"
                " umT5's?"
            )

    def encode(self, text: str, length: int = 512) -> tuple[Int[np.ndarray, " L"], Bool[np.ndarray, " L"]]:
        """Token ids of `clean(text)` and `</s>`, int32, padded on the right with 0, and the mask of real tokens.

        A text that is too long is cut before `</s>`, with a warning in the log.
        """
        ids = self._tokenizer.encode(clean(text), add_special_tokens=False).ids
        if len(ids) >= length:
            _log.warning("text of %d tokens cut to %d: %r", len(ids) + 1, length, text)
        ids = [*ids[: length - 1], self._end]
        tokens = np.zeros(length, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(length) < len(ids)

    def decode(self, tokens: Int[np.ndarray, " L"]) -> str:
        """The text of token ids; `</s>` and padding are dropped."""
        return self._tokenizer.decode([int(token) for token in tokens if token not in (0, self._end)])


def clean(text: str) -> str:
    """Text as Wan cleans it before umT5: HTML entities resolved twice, white space collapsed and cut at the ends.

    Wan also runs the library ftfy. Of its repairs this does what changes sound text: straight quotes, composed
    characters (NFC), no control characters. Ligatures and full-width forms are left to the tokenizer's own
    normalisation; text in a wrong encoding ("â€™") is not repaired.
    """
    text = html.unescape(html.unescape(text)).translate(_QUOTES)
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    return "".join(c for c in text if unicodedata.category(c) != "Cc").strip()


def _load(path: str | pathlib.Path) -> tokenizers.Tokenizer:
    file = pathlib.Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"tokenizer {file} does not exist; expected the tokenizer.json of the model's release")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"tokenizer {file}: expected a Hugging Face tokenizer.json, found: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
