"""A robot with one arm behind any protocol, in a process of its own: an action is the state that it answers.

python tests/robots/echo_server.py PROTOCOL
"""

import pathlib
import sys

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parent)]

from fake_policy import Request  # noqa: E402

from motus_jax.errors import UserError  # noqa: E402
from motus_jax.robots.server import websocket  # noqa: E402


class Echo:
    """Refuses what the real policy refuses of an observation."""

    def __init__(self, about):
        self.metadata = about

    def prepare(self, observation, draw):
        state, images = observation.get("state"), observation.get("images")
        if not (isinstance(state, np.ndarray) and state.shape == (8,) and state.dtype.kind in "iuf"):
            raise UserError(f"state: expected [8] numbers; found {type(state).__name__}")
        if not isinstance(observation.get("prompt"), str):
            raise UserError("prompt: expected text")
        for name in self.metadata["cameras"]:
            image = images.get(name) if isinstance(images, dict) else None
            if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3):
                raise UserError(f"image {name!r}: expected uint8 [h, w, 3]; found {type(image).__name__}")
        return Request("vla", state, draw)

    def answer(self, requests):
        return [{"mode": "vla", "actions": np.float32(request.state)[None]} for request in requests]


if __name__ == "__main__":
    from speakers import ABOUT

    settings = websocket.Settings(protocol=sys.argv[1], port=0, max_batch=2, max_bytes=2**20)
    websocket.run(Echo(ABOUT), settings, lambda line: print(line, flush=True))
