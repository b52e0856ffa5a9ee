"""Simulator processes that play episodes and ask a policy server, several episodes at once in each.

While one episode of a process waits for its answer, the process simulates another; the server answers all that wait
together. A process that dies takes its episodes with it: they are reported as missing, and the others go on.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from motus_jax.errors import UserError
from motus_jax.robots.closed_loop import Asking, Setting
from motus_jax_client import Client, ConnectionLost, Refused

ANSWER_WITHIN = 1200.0
"""Seconds: the first question of a kind waits until its program is compiled."""


class Job(Protocol):
    """What a process is given to do; goes to it by pickle."""

    def start(self, setting: Setting) -> Asking: ...


@dataclasses.dataclass(frozen=True)
class Server:
    """Where the policy is asked.

    Attributes:
      url: as `ws://127.0.0.1:8000`.
      api_key: empty where it asks for none.
    """

    url: str
    api_key: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """In the place of a job's result: why there is none."""

    reason: str


@dataclasses.dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    jobs: dict[int, Job] = dataclasses.field(default_factory=dict)


class Workers:
    """A context with `count` processes, started by the first job, each with `lanes` jobs at once.

    Args:
      setting: of all jobs.
      server: that they ask.
      say: takes a line for each process that dies.
    """

    def __init__(
        self, count: int, lanes: int, setting: Setting, server: Server, say: Callable[[str], None] = print
    ) -> None:
        self._count, self._lanes, self._say = count, lanes, say
        self._arguments = (setting, server, lanes)
        self._workers: list[_Worker] = []
        self._numbers, self._started = 0, False

    def __enter__(self) -> "Workers":
        return self

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        for number in range(self._count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve_jobs, args=(theirs, *self._arguments), name=f"simulator {number}", daemon=True
            )
            process.start()
            theirs.close()  # so that ours ends when the process does
            self._workers.append(_Worker(process, ours))

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Any]]:
        """Each job with its result, or `Missing`, as they end.

        Raises:
          UserError: the server refuses a question or does not answer; jobs that are not done yet are given up.
        """
        waiting = deque(jobs)
        if waiting and not self._started:
            self._started = True
            self._start()
        while waiting or any(worker.jobs for worker in self._workers):
            for worker in self._workers:
                while waiting and len(worker.jobs) < self._lanes and self._give(worker, waiting[0]):
                    waiting.popleft()
            if not self._workers:
                yield from ((job, Missing("no simulator process is left")) for job in waiting)
                return
            ready = wait([worker.connection for worker in self._workers])
            for worker in [worker for worker in self._workers if worker.connection in ready]:
                yield from self._heard(worker)

    def _give(self, worker: _Worker, job: Job) -> bool:
        self._numbers += 1
        with contextlib.suppress(OSError):  # it has died, which its connection will tell
            worker.connection.send((self._numbers, job))
            worker.jobs[self._numbers] = job
            return True
        return False

    def _heard(self, worker: _Worker) -> Iterator[tuple[Job, Any]]:
        try:
            kind, number, found = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join(5)
            reason = f"{worker.process.name} died (exit code {worker.process.exitcode})"
            self._say(f"closed loop: {reason}; {len(worker.jobs)} of its jobs are missing")
            self._workers.remove(worker)
            worker.connection.close()
            yield from ((job, Missing(reason)) for job in worker.jobs.values())
            return
        if kind == "refused":
            raise UserError(found)
        job = worker.jobs.pop(number)
        yield job, (found if kind == "done" else Missing(found))


def _serve_jobs(connection: Connection, setting: Setting, server: Server, lanes: int) -> None:
    """What a process does until the connection ends: plays up to `lanes` jobs at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted evaluation closes the connection
    os.environ["JAX_PLATFORMS"] = "cpu"  # should anything ask for a device: the accelerator is the server's
    _Process(connection, setting, server, lanes).work()
    os._exit(0)  # the renderers' own endings complain


class _Process:
    """Several jobs on their way in one process.

    All simulation runs in the main thread, for the renderer's sake; threads only wait for the server.
    """

    def __init__(self, connection: Connection, setting: Setting, server: Server, lanes: int) -> None:
        self._connection, self._setting = connection, setting
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(lanes)
        clients = (Client(server.url, server.api_key, timeout=ANSWER_WITHIN) for _ in range(lanes))
        self._free = list(clients)

    def work(self) -> None:
        threading.Thread(target=self._receive, daemon=True).start()
        while (event := self._events.get()) is not None:
            number, what = event
            try:
                what()
            except (ConnectionLost, Refused) as error:
                self._connection.send(("refused", number, str(error)))
            except UserError as error:
                self._connection.send(("missing", number, str(error)))
            except Exception as error:
                traceback.print_exc()
                self._connection.send(("missing", number, f"{type(error).__name__}: {error}"))

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, job = self._connection.recv()
                self._events.put((number, lambda number=number, job=job: self._begin(number, job)))
        self._events.put(None)

    def _begin(self, number: int, job: Job) -> None:
        self._go_on(number, job.start(self._setting), None)

    def _go_on(self, number: int, asking: Asking, answer: dict | None) -> None:
        try:
            observation = asking.send(answer)
        except StopIteration as end:
            self._connection.send(("done", number, end.value))
            return
        client = self._free.pop()
        began = time.monotonic()

        def ask() -> None:
            try:
                found = client.infer(observation)
            except Exception as error:
                self._events.put((number, lambda error=error: self._failed(client, error)))
                return
            found = {**found, "waited": time.monotonic() - began}
            self._events.put((number, lambda: self._answered(number, asking, client, found)))

        self._threads.submit(ask)

    def _answered(self, number: int, asking: Asking, client: Any, found: dict) -> None:
        self._free.append(client)
        self._go_on(number, asking, found)

    def _failed(self, client: Any, error: Exception) -> None:
        self._free.append(client)
        raise error
