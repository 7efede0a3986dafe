"""The middle of Ratchet's layers: connections become messages (RFC 6455), a component gets them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerFactory
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.errors import CloseCode
from chatws.server.component import HttpRequest, MessageComponent
from chatws.server.compression import Deflaters, accept_deflate, negotiate
from chatws.server.connection import WsConnection
from chatws.server.handshake import Refusal, accept_response, check_handshake
from chatws.server.stats import Stats
from chatws.server.wheel import Timer, Wheel
from chatws.server.ws_protocol import make_protocol_class

if TYPE_CHECKING:
    from chatws.server.admission import Admission

__all__ = ["WsConnection", "WsServer"]

log = Logger()

#: More to do than this within `_STORM_SECONDS` is a storm.
_STORM = 100
_STORM_SECONDS = 0.05
#: For how long a storm's connections are served, before others are.
_PORTION_SECONDS = 0.01


class WsServer:
    """
    :param component: the application. All connections share it.
    :param max_message_size: bytes of one message, inflated; a longer one closes with 1009.
    :param max_fragments: frames of one message; more close with 1009.
    :param ping_interval: seconds between pings; 0 is no pings.
    :param ping_timeout: seconds without a sign of life after a ping, after which the peer is dropped.
    :param send_buffer: bytes that may wait to be sent to one peer; with more it is closed with 4001.
    :param compression: accept permessage-deflate (RFC 7692), without context takeover.
    :param close_timeout: seconds that a closing handshake may take.
    :param wheel: where deadlines are kept; one of its own on `reactor` by default.

    :ivar connections: those that are open or closing.
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
        reactor: Any = None,
        wheel: Wheel | None = None,
        stats: Stats | None = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self.component = component
        self.on_binary: Callable[..., object] | None = getattr(component, "on_binary", None)
        self.max_fragments = max_fragments
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.close_timeout = close_timeout
        self._deflaters = Deflaters() if compression else None
        self.wheel = wheel or Wheel(reactor)
        self.stats = stats or Stats()
        self.connections: set[WsConnection] = set()
        self._resource_id = 0
        self._all_gone: list[Deferred[None]] = []
        self._patience: list[Timer] = []
        self._reactor = reactor
        self._waiting: deque[Callable[[], object]] = deque()
        self._serving = False
        self._storm_began = 0.0
        self._storm = 0
        factory = WebSocketServerFactory(server=None, reactor=reactor)  # type: ignore[no-untyped-call]
        factory.setProtocolOptions(  # type: ignore[no-untyped-call]
            versions=[13],
            maxMessagePayloadSize=max_message_size,
            maxFramePayloadSize=max_message_size,
            # a peer that breaks the protocol is told so in a close frame
            failByDrop=False,
            # timers of our own do these
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            webStatus=False,
            perMessageCompressionAccept=accept_deflate(max_message_size) if compression else None,
        )
        self._protocol = make_protocol_class(self, factory)
        self._connection: type[WsConnection] = type(
            "WsConnection",
            (WsConnection,),
            {"__slots__": (), "server": self, "stats": self.stats, "send_buffer": send_buffer},
        )

    def check(self, request: HttpRequest) -> Refusal | None:
        """Why this request for an upgrade is none (RFC 6455 §4.2.1), or None."""
        return check_handshake(request)

    def upgrade(
        self, transport: Any, request: HttpRequest, remote_address: str, rest: bytes, gate: Admission | None
    ) -> Any:
        """Turn an HTTP connection into a WebSocket.

        :param request: one that `check` has passed.
        :param rest: what came behind the request head.
        :param gate: told by `release(remote_address)` when the connection is gone.
        :returns: the protocol that the transport's data has to go to from now on; `start` it when that is so.
        """
        self._resource_id += 1
        protocol = self._protocol(transport, gate)
        connection = self._connection(self._resource_id, remote_address, request, protocol)
        protocol.connection = connection
        return protocol

    def start(self, protocol: Any, request: HttpRequest, rest: bytes) -> None:
        """Answer the handshake, open the connection and give it what came behind the head."""
        extensions = ""
        if self._deflaters is not None and "sec-websocket-extensions" in request.headers:
            extensions, window = negotiate(protocol, request.headers["sec-websocket-extensions"])
            if extensions:
                protocol.connection._deflated = self._deflaters[window]
        protocol.open(protocol.connection, accept_response(request, extensions), rest)

    def close_all(
        self, code: int = CloseCode.RESTARTING, reason: str = "the server is stopping", *, within: float = 2.0
    ) -> Deferred[None]:
        """Close every connection.

        :param within: seconds after which those are dropped that have not answered.
        :returns: fires when all are gone.
        """
        for connection in list(self.connections):
            connection.close(code, reason)
        if not self.connections and not self._waiting:
            return succeed(None)
        self._patience.append(self.wheel.schedule(within, self.abort_all))
        waiting: Deferred[None] = Deferred()
        self._all_gone.append(waiting)
        return waiting

    def abort_all(self) -> None:
        """Drop every connection."""
        for connection in list(self.connections):
            connection.abort()

    def _lost(self, connection: WsConnection) -> None:
        """A connection is gone: tell the component."""
        self.when_there_is_time(lambda: self._tell_of_loss(connection))

    def _tell_of_loss(self, connection: WsConnection) -> None:
        connection._call(self.component.on_close)
        self._count_who_is_left()

    def when_there_is_time(self, call: Callable[[], object]) -> None:
        """Do something for one connection: now or, in a storm, in small portions between other work, in order.

        Thousands may come or go at the same moment, and whatever comes next from anybody (a backend's line, say) stands
        behind them in the kernel's queue of sockets that are ready: there, as little as possible is done for each.
        """
        if self._serving:
            call()  # it follows from what has waited its turn already
            return
        now = self._reactor.seconds()
        if now - self._storm_began >= _STORM_SECONDS:
            self._storm_began, self._storm = now, 0
        self._storm += 1
        if self._storm <= _STORM and not self._waiting:
            self._serving = True
            try:
                call()
            finally:
                self._serving = False
        else:
            if not self._waiting:
                self._reactor.callLater(0, self._serve_portion)
            self._waiting.append(call)

    def _serve_portion(self) -> None:
        began = self._reactor.seconds()
        self._serving = True
        while self._waiting and self._reactor.seconds() - began < _PORTION_SECONDS:
            call = self._waiting.popleft()
            try:
                call()
            except Exception:
                log.failure("serving a connection failed")
        self._serving = False
        if self._waiting:
            self._reactor.callLater(0, self._serve_portion)
        self._count_who_is_left()

    def _count_who_is_left(self) -> None:
        if self._all_gone and not self.connections and not self._waiting:
            while self._patience:
                self._patience.pop().cancel()
            waiting, self._all_gone = self._all_gone, []
            for one in waiting:
                one.callback(None)
