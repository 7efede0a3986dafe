"""The outer of Ratchet's layers that knows a protocol: it reads the request head and decides who answers.

An upgrade on one of the WebSockets' paths, once admitted, goes to `WsServer`; everything else to twisted.web. Both get
the transport itself: nothing stays in between.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from chatws.server.admission import Admission
from chatws.server.component import HttpRequest
from chatws.server.handshake import Refusal, wants_websocket
from chatws.server.pages import Front, PlainSite, Ready
from chatws.server.request import BadHead, Headers, may_begin, parse_head
from chatws.server.wheel import Timer
from chatws.server.ws_server import WsServer
from chatws.sockets import read_now

__all__ = ["HttpServer"]

log = Logger()

#: Seconds that the peer has to read a refusal.
_LINGER = 5.0
#: Reasons that an operator may want to do something about.
_OF_THE_SETTINGS = frozenset({"address", "full", "origin"})
#: Connections accepted in one go, more or less: Twisted may add 20.
_ACCEPTS = 50
#: Seconds between two log lines for the same reason.
_NOTE_EVERY = 60.0
#: Refusals that come while the peer may still be sending.
_MORE_TO_COME = frozenset({400, 411, 413, 431})


class HttpServer(Factory):
    """A protocol factory.

    :param app: what upgraded connections are given to.
    :param resource: a twisted.web resource tree for other requests; `/healthz`, the client library and the paths of
        the WebSockets come before it, except a page of its own at `/`.
    :param ready: what does not work now, for `/readyz`; without it there is none.
    :param paths: where WebSockets are opened.
    :param admission: who may.
    :param max_head_size: bytes of a request head; a longer one gets 431.
    :param handshake_timeout: seconds that a head may take; a slower one gets 408.
    :param max_body_size: bytes of an ordinary request's body, which must state its length; a longer one gets 413.
    :param idle_timeout: seconds that an ordinary request's connection may be idle.
    :param total_timeout: seconds that it may last at all.
    """

    noisy = False

    def __init__(
        self,
        app: WsServer,
        *,
        resource: Any = None,
        ready: Callable[[], Ready] | None = None,
        paths: tuple[str, ...] = ("/", "/ws"),
        admission: Admission | None = None,
        max_head_size: int = 8192,
        handshake_timeout: float = 10.0,
        max_body_size: int = 1048576,
        idle_timeout: float = 30.0,
        total_timeout: float = 120.0,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._noted: dict[str, float] = {}
        self.app = app
        self.paths = paths
        self.admission = admission or Admission()
        self.max_head_size = max_head_size
        self.handshake_timeout = handshake_timeout
        self.max_body_size = max_body_size
        self.total_timeout = total_timeout
        self.wheel = app.wheel
        self.stats = app.stats
        self.site = PlainSite(Front(resource, paths, ready), idle_timeout, reactor)
        #: where it is reached, if an `IoServer` says so
        self.ports: list[Any] = []
        #: connections that are no WebSockets, or not yet
        self.visitors: set[_Visitor] = set()

    def buildProtocol(self, addr: IAddress | None) -> _Visitor:
        for port in self.ports:
            # Twisted accepts more at a time the more are waiting; so many newcomers would keep everybody else waiting
            if port.numberAccepts > _ACCEPTS:
                port.numberAccepts = _ACCEPTS
        return _Visitor(self, addr)

    def decide(self, request: HttpRequest, peer: Any) -> Refusal | str | None:
        """What becomes of a request: None for an ordinary one, an address for a WebSocket that is admitted (and
        counted), else why not."""
        if not wants_websocket(request):
            if "transfer-encoding" in request.headers:
                return Refusal(411, "body", "state the length of the body")
            length = request.headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()):
                return Refusal(400, "body", "Content-Length is malformed or repeated")
            if int(length[:20]) > self.max_body_size:
                return Refusal(413, "body", "the body is too long")
            return None
        if request.path not in self.paths:
            return Refusal(404, "path", "there is no WebSocket here; connect to " + " or ".join(self.paths))
        return self.app.check(request) or self.admission.admit(peer, request)

    def note(self, refusal: Refusal, request: HttpRequest, peer: Any) -> None:
        """Tell the operator whom the settings keep out: once a minute for each of them."""
        if refusal.reason not in _OF_THE_SETTINGS:
            return
        now = self._reactor.seconds()
        last = self._noted.get(refusal.reason)
        if last is None or now - last >= _NOTE_EVERY:
            self._noted[refusal.reason] = now
            log.warn(
                "refused {address}, page of {origin}: {message} ({count} so far)",
                address=self.admission.remote_address(peer, request) or "a Unix socket",
                origin=ascii(request.headers.get("origin", "no origin")[:200]),
                message=refusal.message,
                count=self.stats.refused.get(refusal.reason, 0) + 1,
            )

    def close_visitors(self) -> None:
        """Drop every connection that is not a WebSocket."""
        for visitor in list(self.visitors):
            visitor.abort()


class _Visitor(Protocol):
    """A connection before it is known what it wants, and while twisted.web answers it."""

    transport: Any

    def __init__(self, server: HttpServer, addr: IAddress | None) -> None:
        self._server = server
        self._addr = addr
        self._head = b""
        self._next: Any = None
        self._refused = False
        self._waits = 0  # for its turn, in a storm: the length of its head
        self._paused = False
        self._timer: Timer | None = None

    def connectionMade(self) -> None:
        server = self._server
        server.visitors.add(self)
        self._timer = server.wheel.schedule(server.handshake_timeout, self._head_is_due)
        # who connects asks at once: as a rule that has come by now, and need not wait for a turn of the reactor
        data = read_now(self.transport, server.max_head_size)
        if data:
            self.dataReceived(data)

    def dataReceived(self, data: bytes) -> None:
        if self._next is not None:
            # a transport that could not be told of the other protocol
            self._next.dataReceived(data)
            return
        if self._refused:
            return
        if self._waits:
            self._head += data
            self._paused = True
            self.transport.pauseProducing()
            return
        self._head = head = self._head + data if self._head else data
        if head.startswith(b"\r\n"):
            self._head = head = head[2:]  # RFC 9112 §2.2: an empty line before the request
        end = head.find(b"\r\n\r\n")
        server = self._server
        if end < 0:
            if len(head) >= server.max_head_size:
                self._refuse(Refusal(431, "head", f"a request head has at most {server.max_head_size} bytes"))
            elif not may_begin(head):
                self._refuse(Refusal(400, "head", "this is no HTTP request"))
            return
        end += 4
        if end > server.max_head_size:
            self._refuse(Refusal(431, "head", f"a request head has at most {server.max_head_size} bytes"))
            return
        self._waits = end
        server.app.when_there_is_time(self._decide)

    def _decide(self) -> None:
        """The head is complete."""
        server, head, end = self._server, self._head, self._waits
        self._waits = 0
        if not end or self._refused or self.transport is None:
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        try:
            request = parse_head(head[:end])
        except BadHead as error:
            self._refuse(Refusal(error.status, "head", error.message))
            return
        # a transport makes its address anew for whoever asks; others, such as a proxy's wrapper, know a better one
        peer = self._addr if type(self.transport) is tcp.Server else self.transport.getPeer()
        verdict = server.decide(request, peer)
        if isinstance(verdict, Refusal):
            server.note(verdict, request, peer)
            self._refuse(verdict, request.method)
        elif verdict is None:
            self._answer_plainly(head)
        else:
            self._upgrade(request, verdict, head[end:])

    def _upgrade(self, request: HttpRequest, address: str, rest: bytes) -> None:
        server = self._server
        self._leave()
        protocol = server.app.upgrade(self.transport, request, address, rest, server.admission)
        self._hand_over(protocol)
        server.app.start(protocol, request, rest)
        if isinstance(request.headers, Headers):
            request.headers.forget()

    def _answer_plainly(self, data: bytes) -> None:
        server = self._server
        server.stats.http_requests += 1
        if self._timer is not None:
            self._timer.cancel()
        self._timer = server.wheel.schedule(server.total_timeout, self.abort)
        self._head = b""
        # not `_hand_over`: this one stays in between, to end it when its time is over
        self._next = server.site.buildProtocol(self.transport.getPeer())  # type: ignore[no-untyped-call]
        self._next.makeConnection(self.transport)
        self._next.dataReceived(data)

    def _hand_over(self, protocol: Any) -> None:
        self._next = protocol
        self._head = b""
        transport: Any = self.transport
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        elif getattr(transport, "protocol", None) is self:
            transport.protocol = protocol
        self.transport = None

    def _refuse(self, refusal: Refusal, method: str = "GET") -> None:
        """Answer with an error and close; the peer has some seconds to read it."""
        server = self._server
        server.stats.refuse(refusal.reason)
        self._refused = True
        self._head = b""
        body = refusal.message.encode("utf-8") + b"\n"
        lines = [
            f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in refusal.headers),
        ]
        self.transport.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + (b"" if method == "HEAD" else body))
        if refusal.status in _MORE_TO_COME and isinstance(self.transport, tcp.Connection) and not self.transport.TLS:
            # a socket closed with something unread in it is reset, and the answer may be lost with it
            self.transport.loseWriteConnection()  # type: ignore[no-untyped-call]
        else:
            self.transport.loseConnection()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = server.wheel.schedule(_LINGER, self.abort)

    def _head_is_due(self) -> None:
        self._timer = None
        if self._head:
            self._refuse(Refusal(408, "timeout", "the request took too long"))
        else:
            # browsers open connections in advance; they have asked nothing
            self.transport.loseConnection()

    def abort(self) -> None:
        """Drop the connection."""
        if self.transport is not None:
            self.transport.abortConnection()

    def _leave(self) -> None:
        self._server.visitors.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._leave()
        self.transport = None
        if self._next is not None:
            self._next.connectionLost(reason)
