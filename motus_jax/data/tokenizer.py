"""Byte tokens: byte b becomes token b + 1, and 0 pads. No vocabulary file, any language."""

import logging

import numpy as np
from jaxtyping import Bool, Int

VOCABULARY = 257  # 256 bytes and the padding token 0

_log = logging.getLogger(__name__)


def encode(text: str, length: int) -> tuple[Int[np.ndarray, "L"], Bool[np.ndarray, "L"]]:
    """Tokens of `text`, cut or padded on the right to `length`.

    Args:
      text: any text; it is encoded as UTF-8.
      length: number of tokens L.

    Returns:
      int32 tokens [L] (0 = padding) and the mask [L], True where there is text. A text that is too long is cut with
      a warning in the log that shows what was lost.
    """
    data = text.encode("utf-8")
    if len(data) > length:
        lost = data[length:].decode("utf-8", errors="ignore")
        _log.warning("instruction of %d bytes cut to %d (data.instruction_length); lost: %r", len(data), length, lost)
        data = data[:length]
    tokens = np.zeros(length, np.int32)
    tokens[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return tokens, tokens > 0


def decode(tokens: Int[np.ndarray, "L"]) -> str:
    """The text of byte tokens [L]; padding is dropped, a character cut in the middle too."""
    kept = np.asarray(tokens)
    return bytes((kept[kept > 0] - 1).astype(np.uint8)).decode("utf-8", errors="ignore")
