"""`chatws bench`."""

from __future__ import annotations

import argparse
import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.task import LoopingCall, deferLater

from chatws.cli.agent_client import AgentSettings, auth_message, closed_because, subscribe_message
from chatws.cli.options import add_push_options, number, push_address, push_secret, web_socket_url
from chatws.cli.output import Output, count
from chatws.cli.reactor_run import run_in_reactor
from chatws.cli.token import make_token, signing_secret
from chatws.clients.addresses import parse_addresses
from chatws.clients.twisted import PushClient
from chatws.errors import ConfigError
from chatws.interfaces import Reactor, zope_clock

if TYPE_CHECKING:
    from chatws.server.websocket_client import WebSocketClient

__all__ = ["Measured", "percentile"]

HELP = "a quick self-test of a running server: deliveries a second, latency"
DESCRIPTION = """\
Opens connections in its own conversation, pushes messages to it, and measures the time from each push to each delivery.
It runs in one Python process and its own time is included, so the result is a lower bound of the server's speed. Other
agents see its users, chatws-bench-1 and so on, come online and go offline.

If the server requires tokens, it signs them with --secret-file or CHATWS_SECRET. The exit status is 1 if a message is
lost.
"""
EXAMPLES = """\
  chatws bench
  chatws bench --connections 500 --messages 2000 --rate 0 --json
  chatws bench --url ws://127.0.0.1:8080/ws --secret-file /etc/chatws/secret
"""

_EVENT = "chatws_bench"
#: Connections of one user: fewer than the server's default limit for one user.
_CONNECTIONS_PER_USER = 25
#: Concurrent handshakes, and messages without an acknowledgement.
_OPENING = 50
_IN_FLIGHT = 64
#: Seconds without a delivery after which the remaining ones count as lost.
_SILENCE = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", type=web_socket_url, default="ws://127.0.0.1:8080/ws", help="the server's WebSocket")
    parser.add_argument(
        "--connections", type=number(int, 1, 20_000), default=100, metavar="N", help="how many (default 100)"
    )
    parser.add_argument(
        "--messages", type=number(int, 1, 10**6), default=500, metavar="M", help="how many (default 500)"
    )
    parser.add_argument(
        "--rate",
        type=number(float, 0, 10**6),
        default=100.0,
        metavar="N",
        help="messages a second (default 100); 0: as fast as they are acknowledged, which makes them wait in line",
    )
    parser.add_argument("--secret-file", metavar="FILE", help="signs tokens (CHATWS_SECRET, CHATWS_SECRET_FILES)")
    add_push_options(parser)


@dataclass
class Measured:
    """The measurements of a run.

    :ivar latencies: seconds from a push to each delivery.
    :ivar began, ended: of the first push, and of the last delivery.
    """

    connections: int
    messages: int
    latencies: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def lost(self) -> int:
        return self.connections * self.messages - len(self.latencies)

    def value(self) -> dict[str, Any]:
        """For programs."""
        seconds = max(self.ended - self.began, 1e-9)
        latencies = sorted(self.latencies)
        percentiles = {f"p{percent}_ms": round(percentile(latencies, percent) * 1000, 2) for percent in (50, 99)}
        return {
            "connections": self.connections,
            "messages": self.messages,
            "deliveries": len(latencies),
            "lost": self.lost,
            "seconds": round(seconds, 3),
            "deliveries_per_second": round(len(latencies) / seconds),
            **percentiles,
            "max_ms": round(latencies[-1] * 1000, 2) if latencies else 0.0,
        }

    def text(self) -> str:
        """For people."""
        value = self.value()
        lost = f", {value['lost']} LOST" if self.lost else ""
        return (
            f"{count(self.messages, 'message')} to {count(self.connections, 'connection')} in {value['seconds']:g} s: "
            f"{value['deliveries']} deliveries{lost}, {value['deliveries_per_second']} a second\n"
            f"latency p50 {value['p50_ms']:g} ms, p99 {value['p99_ms']:g} ms, max {value['max_ms']:g} ms "
            "(this program's own time included)"
        )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the smallest value that `percent` of the values do not exceed, 0 if there are none."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


class _EventData(msgspec.Struct):
    n: int = -1
    conversation_id: int | str | None = None


class _BenchMessage(msgspec.Struct):
    event: str = ""
    data: _EventData | None = None


_decode = msgspec.json.Decoder(_BenchMessage).decode


class _Bench:
    def __init__(self, arguments: argparse.Namespace, output: Output, reactor: Reactor) -> None:
        self._arguments = arguments
        self._output = output
        self._reactor = reactor
        self._conversation = f"chatws-bench-{secrets.token_hex(6)}"
        self._secret = signing_secret(arguments.secret_file)
        self._sent: dict[int, float] = {}
        self._measured = Measured(arguments.connections, arguments.messages)
        self._over: Deferred[None] = Deferred()
        self._clients: list[WebSocketClient] = []
        self._is_ending = False
        self._ready = 0

    async def run(self) -> Measured:
        """Connect, push and measure.

        :raises ConfigError: a connection cannot be opened, or is lost.
        """
        opening = DeferredSemaphore(_OPENING)
        settings = [self._settings(number) for number in range(self._measured.connections)]
        await _all([opening.run(self._connect, agent) for agent in settings])
        push = self._push_client()
        try:
            # not measured: it reports a wrong address or secret early
            await push.ping()
            watching = LoopingCall(self._watch)
            watching.clock = zope_clock(self._reactor)
            watching.start(0.25)
            self._measured.began = self._measured.ended = time.perf_counter()
            await self._send(push)
            await self._over
            watching.stop()
        finally:
            self._is_ending = True
            await push.close()
            for client in self._clients:
                client.close()
        # the server receives the close frames
        await deferLater(zope_clock(self._reactor), 0.05)
        return self._measured

    def _settings(self, number: int) -> AgentSettings:
        user_id = f"chatws-bench-{number // _CONNECTIONS_PER_USER + 1}"
        token = None
        if self._secret is not None:
            token = make_token(user_id, self._secret, int(time.time()) + 86400)
        return AgentSettings(self._arguments.url, user_id, token, [self._conversation])

    def _connect(self, settings: AgentSettings) -> Deferred[None]:
        ready: Deferred[None] = Deferred()
        rejection = ""

        def opened() -> None:
            client.send(auth_message(settings))
            client.send(subscribe_message(self._conversation))

        def received(text: str) -> None:
            nonlocal rejection
            now = time.perf_counter()
            message = _decode(text)
            if message.event == _EVENT and message.data is not None:
                self._delivered(message.data.n, now)
            elif message.event == "subscribed" and not ready.called:
                self._ready += 1
                self._output.progress(f"{self._ready} of {self._measured.connections} connections")
                ready.callback(None)
            elif message.event == "error":
                rejection = rejection or text

        def closed(code: int | None, reason: str) -> None:
            error = ConfigError(f"no connection to {settings.url}: {rejection or closed_because(code, reason)}")
            if not ready.called:
                ready.errback(error)
            elif not self._is_ending and not self._over.called:
                self._over.errback(error)

        from chatws.server.websocket_client import WebSocketClient  # slow to import, and most commands do not need it

        client = WebSocketClient(
            settings.url, reactor=self._reactor, on_open=opened, on_message=received, on_close=closed
        )
        self._clients.append(client)
        client.connect()
        return ready

    def _delivered(self, number: int, now: float) -> None:
        measured = self._measured
        measured.latencies.append(now - self._sent[number])
        measured.ended = now
        if measured.lost == 0 and not self._over.called:
            self._over.callback(None)

    async def _send(self, push: PushClient) -> None:
        rate = self._arguments.rate
        in_flight = DeferredSemaphore(_IN_FLIGHT if not rate else self._measured.messages)
        began = time.perf_counter()
        publishing: list[Deferred[Any]] = []
        for n in range(self._measured.messages):
            await in_flight.acquire()
            pause = began + n / rate - time.perf_counter() if rate else 0
            if pause > 0:
                await deferLater(zope_clock(self._reactor), pause)
            data = {"conversation_id": self._conversation, "n": n}
            self._sent[n] = time.perf_counter()
            result = push.publish(_EVENT, data, to={"conversation_id": self._conversation}, transient=True)
            publishing.append(result.addBoth(_release, in_flight))
        await _all(publishing)

    def _watch(self) -> None:
        measured = self._measured
        total = measured.connections * measured.messages
        self._output.progress(f"{len(measured.latencies)} of {total} deliveries")
        is_all_sent = len(self._sent) == measured.messages
        if is_all_sent and time.perf_counter() - measured.ended > _SILENCE and not self._over.called:
            self._over.callback(None)

    def _push_client(self) -> PushClient:
        endpoints: list[Any] = []
        try:
            for address in parse_addresses(push_address(self._arguments)):
                if address.tls:
                    raise ValueError(f"bench needs host:port or unix:/path, not {address.text!r}")
                if address.port is None:
                    endpoints.append(UNIXClientEndpoint(self._reactor, address.host))  # type: ignore[no-untyped-call]
                else:
                    endpoints.append(HostnameEndpoint(self._reactor, address.host.encode(), address.port))
        except ValueError as error:
            raise ConfigError(f"--push: {error}") from None
        return PushClient(
            endpoints, secret=push_secret(self._arguments), deadline=self._arguments.timeout, reactor=self._reactor
        )


def _release(result: Any, semaphore: DeferredSemaphore) -> Any:
    semaphore.release()
    return result


async def _all(waiting: list[Deferred[Any]]) -> None:
    """Wait for all; the first failure is raised as it is."""
    try:
        await gatherResults(waiting, consumeErrors=True)
    except Exception as error:
        inner = getattr(error, "subFailure", None)
        if inner is None:
            raise
        raise inner.value from None


def run(arguments: argparse.Namespace, output: Output) -> int:
    async def measure(reactor: Reactor) -> int:
        measured = await _Bench(arguments, output, reactor).run()
        output.result(measured.value(), measured.text())
        return 1 if measured.lost else 0

    return run_in_reactor(measure)
