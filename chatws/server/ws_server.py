"""The middle of Ratchet's layers: it gives a component the messages of WebSocket connections (RFC 6455)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.errors import CloseCode
from chatws.interfaces import Clock, TcpTransport, default_reactor
from chatws.server.admission import Admission
from chatws.server.autobahn_base import make_protocol_class
from chatws.server.broadcasts import Broadcasts
from chatws.server.component import HttpRequest, MessageComponent
from chatws.server.compression import Deflaters, accept_deflate, inflates_correctly, negotiate
from chatws.server.connection import WsConnection
from chatws.server.handshake import HttpRejection, accept_response, check_handshake
from chatws.server.idle_limits import IdleLimitWatch
from chatws.server.server_stats import ServerStats
from chatws.server.timer_wheel import Timer, TimerWheel
from chatws.server.ws_protocol import WsProtocol

__all__ = ["WsConnection", "WsServer"]

log = Logger()

#: More calls than this within `_BURST_SECONDS` are a burst. 2000 calls a second are more than normal traffic causes,
#: and the calls before a burst is noticed take the reactor for a few milliseconds only.
_BURST_LIMIT = 100
_BURST_SECONDS = 0.05
#: Seconds for which deferred calls run before the reactor serves other sockets: a delay that no user notices.
_BATCH_SECONDS = 0.01


class WsServer:
    """Gives the messages of its connections to a component.

    :param component: the application. All connections share it.
    :param max_message_size: bytes of one message, uncompressed. A longer one closes the connection with 1009.
    :param max_fragments: frames of one message. More close the connection with 1009.
    :param ping_interval: seconds between pings. 0: no pings.
    :param ping_timeout: seconds after a ping. If no data comes, the connection is dropped.
    :param send_buffer: bytes that may wait to be sent to one peer. More close the connection with 4001.
    :param compression: accept permessage-deflate (RFC 7692), without context takeover.
    :param close_timeout: seconds that a closing handshake may take.
    :param broadcasts: `FanOut.broadcasts`, if the component sends with a `FanOut` that works in steps.
    :param node: begins the ids of connections in logs; empty: the ids are numbers.
    :param timer_wheel: has the deadlines of the connections. By default a new one on `reactor`.

    :ivar connections: the connections that are open or closing.
    """

    def __init__(
        self,
        component: MessageComponent,
        *,
        max_message_size: int = 65536,
        max_fragments: int = 64,
        ping_interval: float = 30.0,
        ping_timeout: float = 20.0,
        send_buffer: int = 1048576,
        compression: bool = False,
        close_timeout: float = 5.0,
        reactor: Clock | None = None,
        timer_wheel: TimerWheel | None = None,
        stats: ServerStats | None = None,
        broadcasts: Broadcasts | None = None,
        node: str = "",
    ) -> None:
        if reactor is None:
            reactor = default_reactor()
        self.component = component
        self.node = node
        self.on_binary: Callable[..., object] | None = getattr(component, "on_binary", None)
        self.max_fragments = max_fragments
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.close_timeout = close_timeout
        self._deflaters = Deflaters() if compression else None
        self.timer_wheel = timer_wheel or TimerWheel(reactor)
        self.stats = stats or ServerStats()
        self.connections: set[WsConnection] = set()
        self._resource_id = 0
        self._close_waiters: list[Deferred[None]] = []
        self._abort_timers: list[Timer] = []
        self._reactor = reactor
        self.idle_limits = IdleLimitWatch(reactor, ping_interval)
        self._deferred_calls: deque[Callable[[], object]] = deque()
        self._is_running = False
        self._burst_started = 0.0
        self._burst = 0
        factory = WebSocketServerFactory(server=None, reactor=reactor)  # type: ignore[no-untyped-call]
        factory.setProtocolOptions(  # type: ignore[no-untyped-call]
            versions=[13],
            maxMessagePayloadSize=max_message_size,
            maxFramePayloadSize=max_message_size,
            # a peer that breaks the protocol gets a close frame
            failByDrop=False,
            # `WsProtocol` has a timer of its own
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            webStatus=False,
            perMessageCompressionAccept=accept_deflate(max_message_size) if compression else None,
        )
        self._protocol_class = make_protocol_class(WsProtocol, self, factory)
        self._connection_class: type[WsConnection] = type(
            "WsConnection",
            (WsConnection,),
            {
                "__slots__": (),
                "server": self,
                "stats": self.stats,
                "send_buffer": send_buffer,
                "broadcasts": broadcasts,
            },
        )

    def check(self, request: HttpRequest) -> HttpRejection | None:
        """Return why this request for a WebSocket is invalid (RFC 6455 §4.2.1), or None."""
        return check_handshake(request)

    def upgrade(
        self,
        transport: TcpTransport,
        request: HttpRequest,
        remote_address: str,
        rest: bytes,
        admission: Admission | None,
    ) -> Any:
        """Turn an HTTP connection into a WebSocket.

        :param request: a request that `check` has accepted.
        :param rest: the data that followed the request head.
        :param admission: `release(remote_address)` is called when the connection is closed.
        :returns: the protocol for the transport's data from now on. Call `start` when it gets the data.
        """
        self._resource_id += 1
        protocol = self._protocol_class(transport, admission)
        connection = self._connection_class(self._resource_id, remote_address, request, protocol)
        protocol.connection = connection
        return protocol

    def start(self, protocol: Any, request: HttpRequest, rest: bytes) -> None:
        """Answer the handshake, open the connection and give it the data that followed the request head.

        :param protocol: the result of `upgrade`.
        """
        extensions = ""
        headers = request.headers
        if self._deflaters is not None and "sec-websocket-extensions" in headers:
            if inflates_correctly(headers.get("user-agent", "")):
                extensions, window = negotiate(protocol, headers["sec-websocket-extensions"])
            if extensions:
                protocol.connection._compress = self._deflaters[window]
        protocol.open(protocol.connection, accept_response(request, extensions), rest)

    def close_all(
        self, code: int = CloseCode.RESTARTING, reason: str = "the server is stopping", *, within: float = 2.0
    ) -> Deferred[None]:
        """Close every connection.

        :param within: seconds after which connections are dropped whose peers have not answered.
        :returns: a Deferred that fires when all connections are closed.
        """
        for connection in list(self.connections):
            connection.close(code, reason)
        if not self.connections and not self._deferred_calls:
            return succeed(None)
        self._abort_timers.append(self.timer_wheel.schedule(within, self.abort_all))
        all_closed: Deferred[None] = Deferred()
        self._close_waiters.append(all_closed)
        return all_closed

    def abort_all(self) -> None:
        """Drop every connection."""
        for connection in list(self.connections):
            connection.abort()

    def connection_lost(self, connection: WsConnection) -> None:
        """Call the component's `on_close`, at once or in a deferred batch."""
        self.run_or_defer(lambda: self._notify_closed(connection))

    def _notify_closed(self, connection: WsConnection) -> None:
        connection._call(self.component.on_close)
        self._check_all_closed()

    def run_or_defer(self, call: Callable[[], object]) -> None:
        """Run `call`, which serves one connection: now or, in a burst, in a batch between other work. Keeps the order.

        In a connect or disconnect burst thousands of sockets become ready at once. Other ready sockets, such as those
        of backends, are behind them in the kernel's queue. So per-connection work is deferred until those are served.
        """
        if self._is_running:
            call()  # caused by a call that has been deferred already
            return
        now = self._reactor.seconds()
        if now - self._burst_started >= _BURST_SECONDS:
            self._burst_started, self._burst = now, 0
        self._burst += 1
        if self._burst <= _BURST_LIMIT and not self._deferred_calls:
            self._is_running = True
            try:
                call()
            finally:
                self._is_running = False
        else:
            if not self._deferred_calls:
                self._reactor.callLater(0, self._run_deferred_batch)
            self._deferred_calls.append(call)

    def _run_deferred_batch(self) -> None:
        began = self._reactor.seconds()
        self._is_running = True
        while self._deferred_calls and self._reactor.seconds() - began < _BATCH_SECONDS:
            call = self._deferred_calls.popleft()
            try:
                call()
            except Exception:
                log.failure("a deferred call for a connection failed")
        self._is_running = False
        if self._deferred_calls:
            self._reactor.callLater(0, self._run_deferred_batch)
        self._check_all_closed()

    def _check_all_closed(self) -> None:
        if self._close_waiters and not self.connections and not self._deferred_calls:
            while self._abort_timers:
                self._abort_timers.pop().cancel()
            waiters, self._close_waiters = self._close_waiters, []
            for waiter in waiters:
                waiter.callback(None)
