"""The layer that reads a request head and decides which component answers.

A request for a WebSocket on one of the configured paths, once admitted, goes to `WsServer`. Everything else goes to
twisted.web. Both get the transport itself, so this layer costs an open WebSocket nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IAddress, IProtocolNegotiationFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.interfaces import ListeningPort, Reactor, TcpTransport, default_reactor
from chatws.net.sockets import plain_socket, read_now
from chatws.runtime.file_budget import HTTP
from chatws.runtime.throttled_log import ThrottledLog
from chatws.server.admission import Admission
from chatws.server.component import HttpRequest
from chatws.server.handshake import HttpRejection, wants_websocket
from chatws.server.http_resources import NoKeepAliveSite, ReadinessReport, RootResource, is_local_host
from chatws.server.request import BadRequest, Headers, is_plausible_prefix, parse_request_head
from chatws.server.timer_wheel import Timer
from chatws.server.ws_server import WsServer

__all__ = ["HttpServer"]

log = Logger()

#: Seconds that the peer has to read a rejection. Then the connection is dropped.
_LINGER_TIMEOUT = 5.0
#: Seconds that the peer has to read a complete response, if its file is needed for another connection.
_EVICTION_GRACE = 1.0
#: Bytes read immediately after a connection is accepted: enough for most heads.
_FIRST_READ = 8192
#: Bytes of a request line (RFC 9112 §3 recommends 8000). The line is checked with every read. With a longer limit, a
#: peer that sends single bytes would take much CPU time.
_MAX_REQUEST_LINE = 8192
#: Reasons of rejections that depend on settings: they are logged.
_LOGGED_REASONS = frozenset({"address", "full", "origin"})
#: Statuses of rejections during which the peer may still be sending.
_UNREAD_BODY_STATUSES = frozenset({400, 411, 413, 414, 431})


def _knows_peer_later(transport: Any) -> bool:
    """Return whether the transport, or one below it, waits for a header of the PROXY protocol."""
    while transport is not None and type(transport) is not tcp.Server:
        if getattr(transport, "knows_peer_later", False):
            return True
        transport = getattr(transport, "transport", None)
    return False


@implementer(IProtocolNegotiationFactory)
class HttpServer(Factory):
    """A protocol factory for HTTP connections, some of which become WebSockets.

    :param app: gets the upgraded connections.
    :param resource: a twisted.web resource tree for other requests. `/healthz`, the client library and the paths of the
        WebSockets take precedence, except over a resource for `/` itself.
    :param ready: returns the problems that `/readyz` reports. None: there is no `/readyz`.
    :param paths: paths of WebSockets.
    :param admission: decides which requests may open a WebSocket.
    :param max_head_size: bytes of a request head. A longer one gets 431.
    :param handshake_timeout: seconds until a head is complete, and again for the body of an ordinary request. A slower
        head gets 408, and a slower body no response.
    :param max_body_size: bytes of an ordinary request's body, which must have a length. A longer one gets 413.
    :param idle_timeout: seconds that the connection of an ordinary request may be idle.
    :param total_timeout: seconds that the connection of an ordinary request may last.
    :param restricts_hosts: whether `resource` answers only requests for IP addresses, `localhost` and the hosts of
        allowed origins, against DNS rebinding.

    :ivar ports: the listening ports, set by `IoServer`.
    :ivar http_connections: connections that are no WebSockets, or not yet.
    """

    noisy = False

    def __init__(
        self,
        app: WsServer,
        *,
        resource: Any = None,
        ready: Callable[[], ReadinessReport] | None = None,
        paths: tuple[str, ...] = ("/", "/ws"),
        admission: Admission | None = None,
        max_head_size: int = 32768,
        handshake_timeout: float = 10.0,
        max_body_size: int = 1048576,
        idle_timeout: float = 30.0,
        total_timeout: float = 120.0,
        restricts_hosts: bool = False,
        reactor: Reactor | None = None,
    ) -> None:
        if reactor is None:
            reactor = default_reactor()
        self._reactor = reactor
        self._log = ThrottledLog(log, reactor)
        self.app = app
        self.paths = paths
        self.admission = admission or Admission()
        self.budget = self.admission.budget
        self.max_head_size = max_head_size
        self.handshake_timeout = handshake_timeout
        self.max_body_size = max_body_size
        self.total_timeout = total_timeout
        self.timer_wheel = app.timer_wheel
        self.stats = app.stats
        self.site = NoKeepAliveSite(
            RootResource(resource, paths, ready, allows_origin=self._allows_origin, allows_host=self._allows_host),
            idle_timeout,
            reactor,
        )
        self._restricts_hosts = restricts_hosts
        self.ports: list[ListeningPort] = []
        self.http_connections: set[_HttpConnection] = set()

    def buildProtocol(self, addr: IAddress | None) -> _HttpConnection:
        self.budget.limit_accepts(self.ports)
        return _HttpConnection(self, addr)

    def acceptableProtocols(self) -> list[bytes]:
        """Return the protocols that TLS clients may select by ALPN (RFC 7301); see `IProtocolNegotiationFactory`."""
        return [b"http/1.1"]

    def route(self, request: HttpRequest, peer: object) -> HttpRejection | str | None:
        """Decide what to do with a request.

        :returns: None for an ordinary request. The client's address for a WebSocket, which has been admitted and
            counted. Otherwise the rejection.
        """
        if not wants_websocket(request):
            if "transfer-encoding" in request.headers:
                return HttpRejection(411, "body", "state the length of the body")
            length = request.headers.get("content-length", "0")
            if not (length.isascii() and length.isdigit()):
                return HttpRejection(400, "body", "the Content-Length header is malformed or repeated")
            if int(length[:20]) > self.max_body_size:
                return HttpRejection(413, "body", "the body is too long")
            return None
        if request.path not in self.paths:
            return HttpRejection(404, "path", "there is no WebSocket here; connect to " + " or ".join(self.paths))
        return self.app.check(request) or self.admission.admit(peer, request)

    def _allows_origin(self, origin: str, host: str) -> bool:
        return self.admission.allows_origin(origin, host)

    def _allows_host(self, host: str) -> bool:
        return not self._restricts_hosts or is_local_host(host) or self.admission.allows_host(host)

    def log_rejection(self, rejection: HttpRejection, request: HttpRequest, peer: object) -> None:
        """Log a rejection that depends on settings, at most once a minute for each reason."""
        if rejection.reason not in _LOGGED_REASONS:
            return
        self._log.warn(
            rejection.reason,
            "rejected a request from {address}, origin {origin}: {reason} ({count} so far)",
            address=self.admission.remote_address(peer, request) or "a Unix socket",
            origin=ascii(request.headers.get("origin", "none")[:200]),
            reason=rejection.message,
            count=self.stats.rejected.get(rejection.reason, 0) + 1,
        )

    def log_long_head(self, message: str, peer: object) -> None:
        """Log that a request head was too long, at most once a minute."""
        self._log.warn(
            "head_size",
            "rejected a request from {address}: {reason}; see max_head_size ({count} so far)",
            address=getattr(peer, "host", "a Unix socket"),
            reason=message,
            count=self.stats.rejected.get("head_size", 0) + 1,
        )

    def close_http_connections(self) -> None:
        """Drop every connection that is not a WebSocket."""
        for connection in list(self.http_connections):
            connection.abort()


class _HttpConnection(Protocol):
    """A connection until its request head is complete, and while twisted.web answers it.

    :ivar _delegate: the protocol that gets the data from now on, or None.
    :ivar _head_length: the length of a complete head that waits in a connect burst, otherwise 0.
    """

    transport: TcpTransport  # type: ignore[assignment]  # a zope interface in Twisted, and None once it is lost

    def __init__(self, server: HttpServer, addr: IAddress | None) -> None:
        self._server = server
        self._accepted_address = addr
        self._counted_address = ""
        self._head = b""
        self._delegate: Any = None
        self._is_rejected = False
        self._head_length = 0
        self._body_left = 0
        self._is_paused = False
        self._timer: Timer | None = None

    def connectionMade(self) -> None:
        server = self._server
        address = "" if _knows_peer_later(self.transport) else server.admission.direct_address(self._peer())
        if address and not self._count(address):
            server.stats.count_rejection("address")
            self.transport.abortConnection()
            return
        server.http_connections.add(self)
        server.budget.arrive(self, HTTP)
        self._timer = server.timer_wheel.schedule(server.handshake_timeout, self._on_head_timeout)
        # usually the head has arrived by now: reading it saves a turn of the reactor
        data = read_now(self.transport, _FIRST_READ)
        if data:
            self.dataReceived(data)

    def dataReceived(self, data: bytes) -> None:
        if self._delegate is not None:
            # an ordinary request, or a transport whose protocol `_replace_protocol` could not set
            if self._body_left > 0:
                self._body_left -= len(data)
                if self._body_left <= 0:
                    self._set_timer(self._server.total_timeout)
            self._delegate.dataReceived(data)
            return
        if self._is_rejected:
            return
        if self._head_length:
            self._head += data
            self._is_paused = True
            self.transport.pauseProducing()
            return
        searched = max(0, len(self._head) - 5)  # a part of the empty line, and two bytes dropped below
        self._head = head = self._head + data if self._head else data
        if head.startswith(b"\r\n"):
            self._head = head = head[2:]  # RFC 9112 §2.2: an empty line before the request
        end = head.find(b"\r\n\r\n", searched) + 4
        server = self._server
        is_complete = end > 3
        if (end if is_complete else len(head) + 1) > server.max_head_size:
            self._reject_long_head(431, f"a request head has at most {server.max_head_size} bytes")
            return
        if len(head) > _MAX_REQUEST_LINE and head.find(b"\r\n", 0, _MAX_REQUEST_LINE + 2) < 0:
            self._reject_long_head(414, f"a request line has at most {_MAX_REQUEST_LINE} bytes")
            return
        if not is_complete:
            if not is_plausible_prefix(head):
                self._reject(HttpRejection(400, "head", "this is not an HTTP request"))
            return
        self._head_length = end
        server.app.run_or_defer(self._route_request)

    def _route_request(self) -> None:
        """Answer the request: the head is complete."""
        server, head, end = self._server, self._head, self._head_length
        self._head_length = 0
        if not end or self._is_rejected or self.transport is None:
            return
        if self._is_paused:
            self._is_paused = False
            self.transport.resumeProducing()
        try:
            request = parse_request_head(head[:end])
        except BadRequest as error:
            self._reject(HttpRejection(error.status, "head", error.message))
            return
        peer = self._peer()
        decision = server.route(request, peer)
        if decision is None and not self._counted_address:
            # a connection of a trusted proxy counts from here on, for the client
            address = server.admission.remote_address(peer, request)
            if address and not self._count(address):
                decision = HttpRejection(429, "address", "too many connections from your address")
        if isinstance(decision, HttpRejection):
            server.log_rejection(decision, request, peer)
            self._reject(decision, request.method)
        elif decision is None:
            self._body_left = int(request.headers.get("content-length", "0")) - len(head) + end
            self._serve_http(head)
        else:
            self._upgrade(request, decision, head[end:])

    def _peer(self) -> IAddress | None:
        # `tcp.Server.getPeer` creates an address at each call. A proxy's wrapper knows the client's address
        transport: object = self.transport
        if type(transport) is tcp.Server:
            return self._accepted_address
        peer: IAddress | None = self.transport.getPeer()
        return peer

    def _count(self, address: str) -> bool:
        """Count the connection for its address until it is closed or a WebSocket, unless there are too many."""
        if not self._server.admission.arrive(address):
            return False
        self._counted_address = address
        return True

    def _upgrade(self, request: HttpRequest, address: str, rest: bytes) -> None:
        server = self._server
        self._release()
        protocol = server.app.upgrade(self.transport, request, address, rest, server.admission)
        self._replace_protocol(protocol)
        server.app.start(protocol, request, rest)
        if isinstance(request.headers, Headers):
            request.headers.discard_parsed()

    def _serve_http(self, data: bytes) -> None:
        server = self._server
        server.stats.http_requests += 1
        self._set_timer(server.handshake_timeout if self._body_left > 0 else server.total_timeout)
        self._head = b""
        # without `_replace_protocol`: this protocol stays, to enforce `total_timeout`
        self._delegate = server.site.buildProtocol(self.transport.getPeer())
        # max_head_size has been checked. twisted.web would reject more than 16 KiB without a log line
        self._delegate.totalHeadersSize = self._delegate.MAX_LENGTH = server.max_head_size
        self._delegate.makeConnection(self.transport)
        self._delegate.dataReceived(data)

    def _set_timer(self, seconds: float) -> None:
        """Drop the connection after a time, instead of the timer before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._server.timer_wheel.schedule(seconds, self.abort)

    def _replace_protocol(self, protocol: Any) -> None:
        self._delegate = protocol
        self._head = b""
        transport: Any = self.transport
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        elif getattr(transport, "protocol", None) is self:
            transport.protocol = protocol
        self.transport = None  # type: ignore[assignment]

    def _reject_long_head(self, status: int, message: str) -> None:
        self._server.log_long_head(message, self.transport.getPeer())
        self._reject(HttpRejection(status, "head_size", message))

    def _reject(self, rejection: HttpRejection, method: str = "GET") -> None:
        """Send an error response and close. The peer has `_LINGER_TIMEOUT` seconds to read it."""
        server = self._server
        server.stats.count_rejection(rejection.reason)
        self._is_rejected = True
        self._head = b""
        body = rejection.message.encode("utf-8") + b"\n"
        lines = [
            f"HTTP/1.1 {rejection.status} {HTTPStatus(rejection.status).phrase}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
            *(f"{name}: {value}" for name, value in rejection.headers),
        ]
        self.transport.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + (b"" if method == "HEAD" else body))
        if (
            rejection.status in _UNREAD_BODY_STATUSES
            and isinstance(self.transport, tcp.Connection)
            and not self.transport.TLS
        ):
            # closing a socket with unread data resets the connection, and the response may be lost (RFC 9112 §9.6)
            self.transport.loseWriteConnection()
        else:
            self.transport.loseConnection()
        self._set_timer(_LINGER_TIMEOUT)

    def _on_head_timeout(self) -> None:
        self._timer = None
        if self._head:
            self._reject(HttpRejection(408, "timeout", "the request took too long"))
        else:
            # browsers open connections in advance, and send no request on some of them
            self.transport.loseConnection()

    def evict(self) -> bool:
        """Close: the file is needed for another connection; see `chatws.runtime.file_budget.Newcomer`."""
        if plain_socket(self.transport) is None:
            self.abort()  # TLS would wait for the peer's close_notify
        elif self._delegate is None:
            if self._head and not self._is_rejected:
                self._reject(HttpRejection(503, "full", "the server has as many connections as it can"))
            self.transport.loseConnection()
        elif self.transport.disconnecting:
            # the response is complete, but the peer may not have received it
            self._set_timer(_EVICTION_GRACE)
            return False
        else:
            self.abort()
        return True

    def abort(self) -> None:
        """Drop the connection. Ignored if it is closed."""
        if self.transport is not None:
            self.transport.abortConnection()

    def _release(self) -> None:
        if self._counted_address:
            self._server.admission.depart(self._counted_address)
            self._counted_address = ""
        self._server.http_connections.discard(self)
        self._server.budget.depart(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._release()
        self.transport = None  # type: ignore[assignment]
        if self._delegate is not None:
            self._delegate.connectionLost(reason)
