"""Messages that no client should send, made from a good one: changed, cut, lying about their size, of other types."""

import struct
from collections.abc import Iterator

import msgpack
import numpy as np

LARGEST = 2**32 - 1
HEADERS = {"bin": 0xC6, "ext": 0xC9, "text": 0xDB, "list": 0xDD, "map": 0xDF}
"""msgpack's marks of what has a length of 32 bits."""
STRANGE = (
    None, True, -1, 2**63, float("nan"), float("inf"), "", "x" * 300, b"\0" * 300, [], {}, [[]], {"a": {"b": []}},
    [None] * 20, {b"__ndarray__": True}, {b"nd": True, b"type": "O", b"shape": [1], b"data": b"x"},
    {b"__ndarray__": True, b"dtype": "|O", b"shape": [1], b"data": b"12345678"},
    {"__ndarray__": True, "dtype": "<f4", "shape": [2**40, 2**40], "data": b""},
    {b"__ndarray__": True, b"dtype": "<f4", b"shape": [-8], b"data": b"\0" * 32},
    {"__image__": True, "format": "png", "data": b"\x89PNG\r\n\x1a\n" + b"\0" * 40},
)  # fmt: skip
TEXTS = ("", "{", '{"type": "observation"}', "null", "\u2603" * 50, "[" * 2000)


def messages(good: bytes, count: int, seed: int) -> Iterator[bytes | str]:
    """`count` messages of all kinds in turns; a few may still be good ones."""
    rng, makers = np.random.default_rng(seed), (_changed, _cut, _doubled, _random, _lying, _nested, _retyped, _text)
    for number in range(count):
        yield makers[number % len(makers)](good, rng)


def _changed(good: bytes, rng: np.random.Generator) -> bytes:
    frame, first = bytearray(good), rng.random() < 0.7  # the names and marks, rather than pixels
    for _ in range(rng.integers(1, 6)):
        frame[rng.integers(min(len(frame), 200) if first else len(frame))] = rng.integers(256)
    return bytes(frame)


def _cut(good: bytes, rng: np.random.Generator) -> bytes:
    return good[: rng.integers(len(good))]


def _doubled(good: bytes, rng: np.random.Generator) -> bytes:
    return good + (good if rng.random() < 0.5 else rng.bytes(rng.integers(1, 50)))


def _random(good: bytes, rng: np.random.Generator) -> bytes:
    return rng.bytes(rng.integers(0, 300))


def _lying(good: bytes, rng: np.random.Generator) -> bytes:
    """Something of four billion items, of which a few are there."""
    mark = rng.choice(list(HEADERS.values()))
    length = int(rng.choice([LARGEST, 2**31, 2**20, 70_000]))
    header = struct.pack(">BI", mark, length) + (b"\x01" if mark == HEADERS["ext"] else b"")
    inside = b"\x81\xa5state" if rng.random() < 0.5 else b""
    return inside + header + rng.bytes(rng.integers(0, 40))


def _nested(good: bytes, rng: np.random.Generator) -> bytes:
    depth = int(rng.choice([100, 600, 1100, 20_000]))
    return bytes(rng.choice([b"\x91", b"\x81\xa1a", b"\x92\x90", b"\x81\x90"])) * depth + b"\xc0"


def _retyped(good: bytes, rng: np.random.Generator) -> bytes:
    """One value of the good message, at any depth, becomes something else; or a name does."""
    message = msgpack.unpackb(good, strict_map_key=False)
    place = message
    while True:
        key = list(place)[rng.integers(len(place))]
        inner = place[key]
        if not (isinstance(inner, dict) and inner) or rng.random() < 0.3:
            break
        place = inner
    strange = STRANGE[rng.integers(len(STRANGE))]
    if rng.random() < 0.2:
        place["\0" + str(key)] = place.pop(key)
    else:
        place[key] = strange
    return msgpack.packb(message)


def _text(good: bytes, rng: np.random.Generator) -> str:
    return TEXTS[rng.integers(len(TEXTS))]


def rubbish_frames(rng: np.random.Generator) -> bytes:
    """Bytes on an open websocket that are no frames of a client, or break its rules."""
    payload = rng.bytes(rng.integers(0, 120))
    head = rng.choice([0x82, 0x81, 0x80, 0x83, 0xC2, 0x89, 0x8B, 0x88, 0x02])  # reserved bits, opcodes, lone fragments
    size = int(rng.choice([len(payload) & 0x7F, 126, 127]))
    long = {126: struct.pack(">H", int(rng.integers(2**16))), 127: struct.pack(">Q", 2 ** int(rng.integers(8, 64)) - 1)}
    masked = 0x80 if rng.random() < 0.5 else 0
    return bytes([int(head), masked | size]) + long.get(size, b"") + payload
