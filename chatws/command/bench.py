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

from chatws.command.agent import AgentSettings, auth_message, closed_because, subscribe_message
from chatws.command.options import add_push_options, number, push_address, push_secret, web_socket_url
from chatws.command.output import Output, count
from chatws.command.running import run_in_reactor
from chatws.command.ticket import make_ticket, ticket_secret
from chatws.errors import OperatorError
from chatws.push.addresses import parse_addresses
from chatws.push.client import PushClient

if TYPE_CHECKING:
    from chatws.server.client import WebSocketClient

__all__ = ["Measured", "percentile"]

HELP = "a quick self-test of a running server: deliveries a second, latency"
DESCRIPTION = """\
Opens connections in a conversation of its own, pushes messages to it, and measures how long each takes from the push to
each connection. It runs in one process of Python, and so measures itself, too: take the result for a lower bound, and
for a sign that all is well. The other agents see its users, chatws-bench-1 and so on, come online and go.

Where the server wants tickets, it signs its own: --secret-file, or CHATWS_SECRET. The exit status is 1 when a message
is lost.
"""
EXAMPLES = """\
  chatws bench
  chatws bench --connections 500 --messages 2000 --rate 0 --json
  chatws bench --url ws://127.0.0.1:8080/ws --secret-file /etc/chatws/secret
"""

_EVENT = "chatws_bench"
#: Fewer than the server allows to one user.
_CONNECTIONS_PER_USER = 25
#: Handshakes, and messages without an acknowledgement, at a time.
_OPENING = 50
_IN_FLIGHT = 64
#: Seconds without any delivery after which the rest is lost.
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
    parser.add_argument("--secret-file", metavar="FILE", help="signs tickets (CHATWS_SECRET, CHATWS_SECRET_FILE)")
    add_push_options(parser)


@dataclass
class Measured:
    """:ivar latencies: seconds from a push to each delivery.
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
        found = {f"p{one}_ms": round(percentile(latencies, one) * 1000, 2) for one in (50, 99)}
        return {
            "connections": self.connections,
            "messages": self.messages,
            "deliveries": len(latencies),
            "lost": self.lost,
            "seconds": round(seconds, 3),
            "deliveries_per_second": round(len(latencies) / seconds),
            **found,
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
    """The smallest value that so many percent do not exceed; 0 of nothing."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


class _Data(msgspec.Struct):
    n: int = -1
    conversation_id: int | str | None = None


class _Message(msgspec.Struct):
    event: str = ""
    data: _Data | None = None


_decode = msgspec.json.Decoder(_Message).decode


class _Bench:
    def __init__(self, arguments: argparse.Namespace, output: Output, reactor: Any) -> None:
        self._arguments = arguments
        self._output = output
        self._reactor = reactor
        self._conversation = f"chatws-bench-{secrets.token_hex(6)}"
        self._secret = ticket_secret(arguments.secret_file)
        self._sent: dict[int, float] = {}
        self._measured = Measured(arguments.connections, arguments.messages)
        self._over: Deferred[None] = Deferred()
        self._clients: list[WebSocketClient] = []
        self._is_ending = False
        self._ready = 0

    async def run(self) -> Measured:
        """:raises OperatorError: a connection cannot be had, or is lost."""
        opening = DeferredSemaphore(_OPENING)
        settings = [self._settings(one) for one in range(self._measured.connections)]
        await _all([opening.run(self._connect, one) for one in settings])
        push = self._push_client()
        try:
            # not among what is measured, and says early what is wrong
            await push.ping()
            watching = LoopingCall(self._watch)
            watching.clock = self._reactor
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
        # so that the server sees them say goodbye
        await deferLater(self._reactor, 0.05)
        return self._measured

    def _settings(self, number: int) -> AgentSettings:
        user_id = f"chatws-bench-{number // _CONNECTIONS_PER_USER + 1}"
        token = None
        if self._secret is not None:
            token = make_ticket(user_id, self._secret, int(time.time()) + 86400)
        return AgentSettings(self._arguments.url, user_id, token, [self._conversation])

    def _connect(self, settings: AgentSettings) -> Deferred[None]:
        ready: Deferred[None] = Deferred()
        refusal = ""

        def opened() -> None:
            client.send(auth_message(settings))
            client.send(subscribe_message(self._conversation))

        def received(text: str) -> None:
            nonlocal refusal
            now = time.perf_counter()
            message = _decode(text)
            if message.event == _EVENT and message.data is not None:
                self._delivered(message.data.n, now)
            elif message.event == "subscribed" and not ready.called:
                self._ready += 1
                self._output.progress(f"{self._ready} of {self._measured.connections} connections")
                ready.callback(None)
            elif message.event == "error":
                refusal = refusal or text

        def closed(code: int | None, reason: str) -> None:
            error = OperatorError(f"no connection to {settings.url}: {refusal or closed_because(code, reason)}")
            if not ready.called:
                ready.errback(error)
            elif not self._is_ending and not self._over.called:
                self._over.errback(error)

        from chatws.server.client import WebSocketClient  # takes its time, and most commands need none

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
                await deferLater(self._reactor, pause)
            data = {"conversation_id": self._conversation, "n": n}
            self._sent[n] = time.perf_counter()
            answered = push.publish(_EVENT, data, to={"conversation_id": self._conversation}, transient=True)
            publishing.append(answered.addBoth(_release, in_flight))
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
            for one in parse_addresses(push_address(self._arguments)):
                if one.tls:
                    raise ValueError(f"here it is host:port or unix:/path, not {one.text!r}")
                if one.port is None:
                    endpoints.append(UNIXClientEndpoint(self._reactor, one.host))  # type: ignore[no-untyped-call]
                else:
                    endpoints.append(HostnameEndpoint(self._reactor, one.host.encode(), one.port))
        except ValueError as error:
            raise OperatorError(f"--push: {error}") from None
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
    async def measure(reactor: Any) -> int:
        measured = await _Bench(arguments, output, reactor).run()
        output.result(measured.value(), measured.text())
        return 1 if measured.lost else 0

    return run_in_reactor(measure)
