"""A policy served in a thread, and the simplest client of it."""

import urllib.request

import numpy as np
from fake_policy import FakePolicy
from websockets.sync.client import connect

from motus_jax.robots.server import background, codec
from motus_jax.robots.server.websocket import Settings

STATE = np.array([1.0, 2.0])


def serving(policy=None, port=0, **settings):
    """A server in a thread of its own; leaving the context drains it."""
    return background.serving(policy or FakePolicy(), Settings(port=port, **settings))


class Client:
    """As openpi's, written from its protocol, with both kinds of answers."""

    def __init__(self, port, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        uri = f"ws://127.0.0.1:{port}"
        self._context = connect(uri, compression=None, max_size=None, additional_headers=headers)
        self.socket = self._context.__enter__()
        self.metadata = codec.unpack(self.socket.recv(timeout=20))

    def send(self, frame):
        """The answer to a raw frame: text or a dictionary."""
        self.socket.send(frame)
        reply = self.socket.recv(timeout=20)
        return reply if isinstance(reply, str) else codec.unpack(reply)

    def infer(self, state=STATE, **more):
        return self.send(codec.pack({"state": np.asarray(state), **more}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._context.__exit__(None, None, None)


def http_get(port, path, **headers):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.status, response.headers["Content-Type"], response.read().decode()
