"""What no client should send harms nobody: the server lives, does not grow, and answers others as if nothing were."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from malformed import messages, rubbish_frames
from speakers import OBSERVATION, frame_of
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from motus_jax.robots.server.protocols import PROTOCOLS
from motus_jax.robots.server.websocket import FAULT

GREETS = ("openpi", "roboarena")
"""Protocols in which the server speaks first."""
PATIENCE = 20


class Session:
    """One connection that sends raw frames, opened again when the server has closed it."""

    def __init__(self, port, protocol):
        self._address, self._greets, self.closed = f"ws://127.0.0.1:{port}", protocol in GREETS, {}
        self.open()

    def open(self):
        self._context = connect(self._address, compression=None, max_size=None, open_timeout=PATIENCE)
        self.socket = self._context.__enter__()
        if self._greets:
            self.socket.recv(timeout=PATIENCE)

    def ask(self, frame):
        """The reply as bytes; none if the connection was closed instead."""
        try:
            self.socket.send(frame)
            reply = self.socket.recv(timeout=PATIENCE)
            return reply.encode() if isinstance(reply, str) else reply
        except ConnectionClosed as error:
            code = error.rcvd.code if error.rcvd else 0
            self.closed[code] = self.closed.get(code, 0) + 1
            self.open()
            return b""

    def close(self):
        self._context.__exit__(None, None, None)


@pytest.fixture
def serve():
    """Starts the echo server of a protocol; its port and process."""
    started = []

    def start(protocol):
        command = [sys.executable, pathlib.Path(__file__).parent / "echo_server.py", protocol]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        ready = process.stdout.readline()
        assert ready.startswith("ready on "), process.communicate()
        return int(ready.rpartition(":")[2]), process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def resources(pid):
    """MiB in memory, open files, threads (Linux)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    memory, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
    return memory / 1024, len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())), threads


def harass(port, pid, protocol, count, after=0):
    """`count` malformed messages between questions of another client, which must get its own answers.

    Args:
      after: messages after which the server's resources are first taken.

    Returns:
      resources after so many messages, and at the end.
    """
    rng, healthy, strange = np.random.default_rng(1), Session(port, protocol), Session(port, protocol)
    first, refused = resources(pid), 0
    for number, frame in enumerate(messages(frame_of(protocol), count, seed=0)):
        if number == after:
            first = resources(pid)
        if number % 10 == 0:
            state = rng.normal(size=8).astype(np.float32)
            reply = healthy.ask(frame_of(protocol, OBSERVATION | {"state": state}))
            own = [state.tobytes()] if protocol != "xpolicylab" else [state[:7].tobytes(), state[7:].tobytes()]
            assert all(part in reply for part in own), f"message {number}: another answer than its own"
        reply = strange.ask(frame)
        assert FAULT.encode() not in reply, f"message {number}: {frame[:200]!r}"
        assert own[0] not in reply, f"message {number} was told another session's answer"
        refused += b"expected" in reply or b"missing" in reply
    _break_frames(port, protocol, count // 20)
    reply = healthy.ask(frame_of(protocol, OBSERVATION | {"state": state}))
    assert all(part in reply for part in own) and healthy.closed == {}
    assert refused > count / 2 and set(strange.closed) <= {1000, 1009}, strange.closed
    healthy.close()
    strange.close()
    return first, resources(pid)


def _break_frames(port, protocol, count):
    rng = np.random.default_rng(2)
    for _ in range(count):
        session = Session(port, protocol)
        session.socket.socket.sendall(rubbish_frames(rng))
        session.socket.socket.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_malformed_messages_harm_nobody(serve, protocol):
    port, process = serve(protocol)
    harass(port, process.pid, protocol, count=240)
    assert process.poll() is None
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and errors == "", errors[-2000:]


@pytest.mark.heavy
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ten_thousand_malformed_messages_leave_no_trace(serve, protocol):
    port, process = serve(protocol)
    first, last = harass(port, process.pid, protocol, count=10_000, after=2000)
    print(f"{protocol}: {first[0]:.1f} -> {last[0]:.1f} MiB, {first[1]} -> {last[1]} files")
    assert last[0] - first[0] < 10, "memory"
    assert last[1] <= first[1] and last[2] <= first[2] + 4, "files and threads"
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and errors == "", errors[-2000:]
