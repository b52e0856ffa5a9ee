"""A policy served over a websocket, in any of the protocols of `motus_jax.robots.server.protocols`.

After a bad message the connection stays open; after a fault of the server itself it is closed with code 1011. `GET
/healthz` and `GET /metrics` are answered over HTTP on the same port.
"""

import asyncio
import contextlib
import dataclasses
import hmac
import http
import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from motus_jax.errors import UserError
from motus_jax.robots.server.batcher import Answer, Batcher, Request
from motus_jax.robots.server.dialect import Dialect, Frame, Kind, Turn
from motus_jax.robots.server.metrics import Metrics
from motus_jax.robots.server.protocols import get_protocol

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LONGEST_SESSION_ID = 200
FAULT = "the server failed on this request; its log says why"

_log = logging.getLogger(__name__)

# The library's own logger tells of every port scan with a traceback; what matters is counted and logged here.
_quiet = logging.getLogger(f"{__name__}.handshakes")
_quiet.setLevel(logging.CRITICAL + 1)


class ServedPolicy(Protocol):
    """What the server needs of a policy (`motus_jax.robots.policy.Policy`)."""

    metadata: Mapping[str, Any]

    def prepare(self, observation: Mapping[str, Any], draw: int) -> Request: ...

    def answer(self, requests: Sequence[Any]) -> Sequence[Answer | Exception]: ...


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
      protocol: a row of `protocols.PROTOCOLS`.
      host: address to listen on; only this machine by default.
      port: 0 takes a free one.
      api_key: what `Authorization: Api-Key KEY` must say; empty lets everybody in.
      max_batch: requests a call of the policy.
      wait: seconds that a request waits for others.
      max_bytes: of a frame.
      max_clients: connections at once.
      timeout: seconds within which a request is answered, or a frame sent.
      drain: seconds that running requests get when the server is told to stop.
    """

    protocol: str = "openpi"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    max_batch: int = 1
    wait: float = 0.005
    max_bytes: int = 64 * 2**20
    max_clients: int = 64
    timeout: float = 60.0
    drain: float = 30.0


def run(policy: ServedPolicy, settings: Settings, say: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or SIGINT; running requests are answered first.

    Raises:
      UserError: the address cannot be listened on.
    """
    asyncio.run(_run(policy, settings, say))


async def _run(policy: ServedPolicy, settings: Settings, say: Callable[[str], None]) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with PolicyServer(policy, settings) as server:
        say(f"ready on ws://{settings.host}:{server.port}")
        await stop.wait()
        say(f"stopping: {len(server)} clients, at most {settings.drain:g} s for running requests")


class PolicyServer:
    """Serves while its context is open; leaving it stops listening and lets running requests finish.

    Raises:
      UserError: an unknown protocol, or one that has no words for this policy.
    """

    def __init__(self, policy: ServedPolicy, settings: Settings) -> None:
        self.metrics = Metrics()
        self._policy, self._settings = policy, settings
        self._speaks = get_protocol(settings.protocol)
        self._speaks(policy.metadata)
        self._batcher = Batcher(policy.answer, settings.max_batch, settings.wait, self.metrics.batch.observe)
        self._clients: dict[ServerConnection, asyncio.Task] = {}
        self._idle: set[ServerConnection] = set()
        self._draining = False
        self._server: Server | None = None

    def __len__(self) -> int:
        """Clients connected."""
        return len(self._clients)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> "PolicyServer":
        settings = self._settings
        try:
            self._server = await serve(
                self._session, settings.host, settings.port, process_request=self._http, compression=None,
                max_size=settings.max_bytes, ping_timeout=self._speaks.pong_timeout, logger=_quiet,
                open_timeout=min(10.0, settings.timeout),
                # A web page in a browser on this machine could connect too; it cannot hide its Origin.
                origins=[None],
            )  # fmt: skip
        except (OSError, OverflowError) as error:
            raise UserError(f"--host={settings.host} --port={settings.port}: cannot listen there ({error})") from error
        self._worker = asyncio.create_task(self._batcher.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._draining = True
        self._server.close(close_connections=False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended(), self._settings.drain)
        left = (self._worker, *self._clients.values())
        for connection in self._clients:
            connection.transport.abort()
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _ended(self) -> None:
        await asyncio.gather(*map(_go_away, tuple(self._idle)))
        while self._clients:
            await asyncio.sleep(0.01)

    def _http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answers plain HTTP and refuses strangers; None goes on with the websocket's handshake."""
        if request.path in self._speaks.pages:
            return _page(connection, *self._speaks.pages[request.path])
        if not self._knows(request):
            self.metrics.errors["unauthorized"] += 1
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "expected the header Authorization: Api-Key KEY\n")
        if request.path == "/metrics":
            return _page(connection, METRICS_TYPE, self.metrics.text(self._gauges()))
        return None

    def _gauges(self) -> dict[str, float]:
        return {"queue": len(self._batcher), "clients": len(self)}

    def _knows(self, request: HttpRequest) -> bool:
        if not self._settings.api_key:
            return True
        given = request.headers.get_all("Authorization")
        expected = f"Api-Key {self._settings.api_key}".encode()
        return len(given) == 1 and hmac.compare_digest(given[0].encode(errors="surrogateescape"), expected)

    async def _session(self, connection: ServerConnection) -> None:
        if len(self) >= self._settings.max_clients:
            self.metrics.errors["full"] += 1
            await connection.close(CloseCode.TRY_AGAIN_LATER, f"full: {len(self)} clients are connected")
            return
        self._clients[connection] = asyncio.current_task()
        self._batcher.joined(1)
        try:
            await self._talk(connection, self._speaks(self._policy.metadata), _Session())
        except (ConnectionClosed, TimeoutError):
            connection.transport.abort()
        finally:
            del self._clients[connection]
            self._idle.discard(connection)
            self._batcher.joined(-1)

    async def _talk(self, connection: ServerConnection, dialect: Dialect, session: "_Session") -> None:
        await self._send(connection, dialect.greeting())
        while not self._draining:
            self._idle.add(connection)
            frame = await connection.recv()
            self._idle.discard(connection)
            started = time.monotonic()
            reply = await self._reply(frame, dialect, session, started)
            await self._send(connection, reply.frame)
            session.last_total = time.monotonic() - started
            self.metrics.latency.observe(session.last_total)
            if reply.close is not None:
                await connection.close(reply.close, reply.reason)
        await _go_away(connection)

    async def _send(self, connection: ServerConnection, frame: Frame | None) -> None:
        if frame is not None:
            await asyncio.wait_for(connection.send(frame), self._settings.timeout)

    async def _reply(self, frame: Frame, dialect: Dialect, session: "_Session", started: float) -> "_Reply":
        """What is said to a message, or about what is wrong with it."""
        message: Any = None
        kind: Kind = "message"
        try:
            async with asyncio.timeout(self._settings.timeout):
                message = await asyncio.to_thread(dialect.read, frame)
                turn = dialect.turn(message)
                kind = "request"
                if turn.begins:
                    session.begin()
                if turn.observation is None:
                    return _Reply(turn.reply, CloseCode.NORMAL_CLOSURE if turn.ends else None)
                answer = await self._ask(turn, session)
            answer["server_timing"] = session.timing(started)
            self.metrics.requests[answer["mode"]] += 1
            return _Reply(dialect.answer(message, answer))
        except UserError as error:
            self.metrics.errors["request"] += 1
            return _Reply(dialect.error(message, kind, str(error)))
        except TimeoutError:
            self.metrics.errors["timeout"] += 1
            line = f"no answer within {self._settings.timeout:g} s: {len(self._batcher)} requests are waiting"
            return _Reply(dialect.error(message, "timeout", line))
        except Exception:
            self.metrics.errors["internal"] += 1
            _log.exception("a request failed")
            return _Reply(dialect.error(message, "internal", FAULT), CloseCode.INTERNAL_ERROR, FAULT)

    async def _ask(self, turn: Turn, session: "_Session") -> Answer:
        draw = session.next_draw(turn.observation)
        request = await asyncio.to_thread(self._policy.prepare, turn.observation, draw)
        answer = dict(await self._batcher.ask(request))
        return answer if session.name is None else answer | {"session_id": session.name}


def _page(connection: ServerConnection, kind: str, text: str) -> Response:
    response = connection.respond(http.HTTPStatus.OK, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response


class _Reply(NamedTuple):
    """What is said to a message, and whether the connection is closed then."""

    frame: Frame | None
    close: CloseCode | None = None
    reason: str = ""


async def _go_away(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.close(CloseCode.GOING_AWAY, "the server is stopping")


class _Session:
    """What is remembered of one connection.

    Attributes:
      name: the client's `session_id`, None while it sent none.
      last_total: seconds that the previous request took, its sending included.
    """

    def __init__(self) -> None:
        self.name: str | int | None = None
        self.last_total: float | None = None
        self._draws = 0

    def begin(self) -> None:
        """A new episode: its requests are counted anew."""
        self._draws = 0

    def next_draw(self, observation: Mapping[str, Any]) -> int:
        """Number of the request in its session, from 0; another `session_id` than before begins anew.

        The noise depends on this number and not on other clients, so that a session can be repeated.
        """
        name = observation.get("session_id", self.name)
        if not (name is None or type(name) is int or (isinstance(name, str) and len(name) <= LONGEST_SESSION_ID)):
            raise UserError(f"session_id: expected a number or at most {LONGEST_SESSION_ID} characters")
        if name != self.name:
            self.name, self._draws = name, 0
        self._draws += 1
        return self._draws - 1

    def timing(self, started: float) -> dict[str, float]:
        """openpi's `server_timing`, milliseconds: this request so far, and the whole of the one before."""
        timing = {"infer_ms": 1000 * (time.monotonic() - started)}
        return timing if self.last_total is None else timing | {"prev_total_ms": 1000 * self.last_total}
