"""A policy served from a thread, for a process that goes on with something else."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from motus_jax.robots.server.websocket import PolicyServer, ServedPolicy, Settings


@contextlib.contextmanager
def serving(policy: ServedPolicy, settings: Settings) -> Iterator[PolicyServer]:
    """A server that listens while the context is open; leaving it lets running requests finish.

    Raises:
      UserError: the address cannot be listened on, or the protocol does not fit the policy.
    """
    up = threading.Event()
    running: list[tuple[PolicyServer, asyncio.AbstractEventLoop, asyncio.Event]] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        stop = asyncio.Event()
        async with PolicyServer(policy, settings) as server:
            running.append((server, asyncio.get_running_loop(), stop))
            up.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run, name="policy server", daemon=True)
    thread.start()
    up.wait()
    if not running:
        raise failed[0]
    server, loop, stop = running[0]
    try:
        yield server
    finally:
        with contextlib.suppress(RuntimeError):  # the loop has ended on its own
            loop.call_soon_threadsafe(stop.set)
        thread.join()
