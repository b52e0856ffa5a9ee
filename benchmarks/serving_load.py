"""Many robots at one policy server: answers lost or mixed up, how long a robot waits, and the server's memory.

  python -m motus_jax.train --config=experiments/debug.py --workdir=runs/debug
  python -m benchmarks.serving_load --workdir=runs/debug --clients=64 --seconds=300 --out=runs/serving_load.json

Starts `python -m motus_jax.serve` in a process of its own. Every client asks one question after the other, as robots
do: its own pictures, states, instructions and seeds, each with an answer that was computed beforehand in this process.
An answer counts as `mixed` if it is another question's, as `wrong` if it is nobody's, as `lost` if none came. Answers
in a larger batch are the same up to rounding; the smallest distance between two expected answers is reported beside
the tolerance. Exits with 1 if anything was lost, mixed, wrong or refused.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from benchmarks.machine import cores, describe
from motus_jax import cli
from motus_jax.errors import UserError
from motus_jax_client import codec

TOLERANCE = 1e-3
"""Largest difference of an action from the expected one, in the robot's units."""
QUESTIONS = 4
"""Of each client, asked in turns."""
PATIENCE = 120.0
"""Seconds after which an answer counts as lost."""
PROMPTS = ("lift the cube", "hand the cube over", "insert the peg", "wave")


@dataclasses.dataclass(frozen=True)
class Question:
    """What a client asks, and what it must hear.

    Attributes:
      name: of the session; its answer carries it.
      frame: the message.
      expected: [T, A] in the robot's units.
    """

    name: str
    frame: bytes
    expected: Float[np.ndarray, "T A"]


@dataclasses.dataclass
class Found:
    """What the clients saw."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    lost: int = 0
    mixed: int = 0
    wrong: int = 0
    refused: int = 0

    @property
    def good(self) -> bool:
        """Every question had its own answer."""
        return not (self.lost or self.mixed or self.wrong or self.refused)


def main(argv: Sequence[str]) -> None:
    """Measures and writes the report."""
    workdir = flags.DEFINE_string("workdir", None, "a run of motus_jax.train, e.g. runs/debug")
    out = flags.DEFINE_string("out", None, "JSON file to write")
    clients = flags.DEFINE_integer("clients", 64, "connections at once", lower_bound=1)
    seconds = flags.DEFINE_float("seconds", 300.0, "how long they ask", lower_bound=1.0)
    most = flags.DEFINE_integer("max_batch", 16, "requests that the server answers by one call", lower_bound=1)
    note = flags.DEFINE_string("note", "", "of the circumstances, written into the report")
    cli.parse_flags(argv, __doc__)
    for flag in (workdir, out):
        if flag.value is None:
            raise UserError(f"--{flag.name} is missing: see --help")
    report = measure(workdir.value, clients.value, seconds.value, most.value)
    report["note"] = note.value
    pathlib.Path(out.value).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    if not report["good"]:
        sys.exit(1)


def measure(workdir: str, clients: int, seconds: float, max_batch: int) -> dict[str, Any]:
    """The report of one run."""
    asked = questions(workdir, clients)
    with server(workdir, max_batch, clients + 1) as (address, process):
        memory = [resident(process.pid)]

        def look() -> None:
            memory.append(resident(process.pid))

        found = asyncio.run(drive(address, asked, seconds, look))
        counted = urllib.request.urlopen(address.replace("ws", "http", 1) + "/metrics", timeout=60).read().decode()
        process.terminate()
        code = process.wait(60)
    return {
        "machine": describe(cores()),
        "versions": {name: metadata.version(name) for name in ("jax", "websockets", "msgpack")},
        "clients": clients,
        "max_batch": max_batch,
        **figures(found, seconds),
        "tolerance": TOLERANCE,
        "nearest_expected": nearest([question.expected for own in asked for question in own]),
        "server": {
            "mean_batch": _mean(counted, "batch_size"),
            "errors": dict(re.findall(r'errors_total\{kind="(\w+)"\} (\d+)', counted)),
            "memory_mib": {"ready": memory[0], "after_a_tenth": memory[1], "end": memory[-1], "most": max(memory)},
            "exit_code": code,
        },
        "good": found.good and code == 0,
    }


def questions(workdir: str, clients: int) -> list[list[Question]]:
    """Each client's questions, with the answers of the policy in this process."""
    from motus_jax.robots.policy import Policy
    from motus_jax.train import set_up_jax

    set_up_jax(platform="")
    policy = Policy.load(workdir, modes=("vla",), max_batch=1)
    rng, about = np.random.default_rng(0), policy.metadata
    found = []
    for client in range(clients):
        own = []
        for k in range(QUESTIONS):
            observation = {
                "prompt": PROMPTS[(client + k) % len(PROMPTS)],
                "state": rng.normal(size=about["state_dim"]).astype(np.float32),
                "images": {name: rng.integers(0, 256, (48, 64, 3), np.uint8) for name in about["cameras"]},
                "seed": client * QUESTIONS + k,
                # Another name than before begins a session anew, whose noise is that of the first draw.
                "session_id": f"client {client} question {k}",
            }
            expected = policy.infer(observation)["actions"]
            own.append(Question(observation["session_id"], codec.pack(observation), expected))
        found.append(own)
    return found


@contextlib.contextmanager
def server(workdir: str, max_batch: int, max_clients: int) -> Iterator[tuple[str, subprocess.Popen]]:
    """The command, from when it is ready; its address and process.

    Raises:
      UserError: it ended before it was ready.
    """
    options = [f"--workdir={workdir}", "--modes=vla", f"--max_batch={max_batch}", f"--max_clients={max_clients}"]
    command = [sys.executable, "-m", "motus_jax.serve", *options, "--port=0", f"--timeout={PATIENCE}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = next((line for line in process.stdout if line.startswith("ready on ")), None)
        if ready is None:
            raise UserError(f"{' '.join(command)}: ended with {process.wait()} before it was ready")
        yield ready.split()[-1], process
    finally:
        process.kill()
        process.wait()


async def drive(
    address: str, asked: Sequence[Sequence[Question]], seconds: float, look: Callable[[], None] = lambda: None
) -> Found:
    """All clients at once, each asking its questions in turns until the time is over; then each hears its last answer.

    The time begins when all are connected; one that is not let in counts as `lost`, and the others ask without it.

    Args:
      look: called ten times, evenly over the time.
    """
    found, answers = Found(), np.stack([question.expected for own in asked for question in own])
    opened = await asyncio.gather(*(_open(address) for _ in asked), return_exceptions=True)
    until = time.monotonic() + seconds

    async def watch() -> None:
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            look()

    clients = [_client(socket, own, answers, until, found) for socket, own in zip(opened, asked)]
    await asyncio.gather(watch(), *clients)
    return found


async def _open(address: str) -> ClientConnection:
    socket = await connect(address, compression=None, max_size=None, open_timeout=PATIENCE)
    await socket.recv()
    return socket


async def _client(
    socket: ClientConnection | BaseException, own: Sequence[Question], answers: Float[np.ndarray, "n T A"],
    until: float, found: Found,
) -> None:  # fmt: skip
    try:
        if isinstance(socket, BaseException):
            raise socket
        for question in itertools.cycle(own):
            started = time.monotonic()
            await socket.send(question.frame)
            reply = await asyncio.wait_for(socket.recv(), PATIENCE)
            found.seconds.append(time.monotonic() - started)
            _judge(reply, question, answers, found)
            if time.monotonic() >= until:
                break
        await socket.close()
    except (OSError, TimeoutError, WebSocketException) as error:
        found.lost += 1
        print(f"{own[0].name}: {type(error).__name__}: {error}", file=sys.stderr)


def _judge(reply: bytes | str, question: Question, answers: Float[np.ndarray, "n T A"], found: Found) -> None:
    if isinstance(reply, str):
        found.refused += 1
        print(f"{question.name}: {reply}", file=sys.stderr)
        return
    answer = codec.unpack(reply)
    if answer.get("session_id") == question.name and _same(answer["actions"], question.expected):
        return
    if any(_same(answer["actions"], other) for other in answers):
        found.mixed += 1
    else:
        found.wrong += 1


def _same(actions: Float[np.ndarray, "T A"], expected: Float[np.ndarray, "T A"]) -> bool:
    return actions.shape == expected.shape and bool(np.abs(actions - expected).max() <= TOLERANCE)


def figures(found: Found, seconds: float) -> dict[str, Any]:
    """Counts, requests a second and milliseconds of waiting."""
    waited = 1000 * np.array(found.seconds or [np.nan])
    return {
        "seconds": seconds,
        "answers": len(found.seconds),
        **{name: getattr(found, name) for name in ("lost", "mixed", "wrong", "refused")},
        "per_second": len(found.seconds) / seconds,
        "milliseconds": {
            **{f"p{share}": float(np.percentile(waited, share)) for share in (50, 95, 99)},
            "most": float(waited.max()),
        },
    }


def nearest(answers: Sequence[Float[np.ndarray, "T A"]]) -> float:
    """The smallest distance of two expected answers, as `TOLERANCE` measures it."""
    rows = np.stack(answers).reshape(len(answers), -1)
    return min(float(np.abs(rows[k + 1 :] - row).max(1).min()) for k, row in enumerate(rows[:-1]))


def resident(pid: int) -> float:
    """MiB that a process keeps in memory (Linux)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def _mean(page: str, name: str) -> float:
    total, count = (float(re.search(rf"{name}_{part} ([\d.]+)", page)[1]) for part in ("sum", "count"))
    return total / max(count, 1)


if __name__ == "__main__":
    cli.run(main)
