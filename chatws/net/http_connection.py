"""One HTTP connection: it reads requests with h11 and writes the responses (RFC 9112).

A connection executes one request at a time. It does not read while a request is executed or a response is unsent, so
it holds one body at most. A request is rejected from its head, before `100 Continue`. The rest of its body is
discarded for at most `LINGER_TIMEOUT`, because closing a socket with unread data resets the connection. The reset can
destroy the response before the client has read it (RFC 9112 §9.6).
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol

import h11
from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.errors import ErrorCode
from chatws.interfaces import Clock, TcpTransport
from chatws.net.http_messages import RETRY_AFTER, BodyReader, HttpError, HttpResponse, HttpStats, RequestHead
from chatws.net.resettable_timer import ResettableTimer
from chatws.runtime.file_budget import FileBudget
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["HttpComponent", "HttpConnection", "HttpListener"]

#: Seconds for which the rest of a rejected request is discarded.
LINGER_TIMEOUT = 2.0
#: Characters of h11's error texts, which can quote the request.
MAX_ERROR_TEXT = 200


class HttpComponent(Protocol):
    """Checks and executes requests. `max_body`: bytes of a body, also when inflated."""

    @property
    def max_body(self) -> int: ...

    def check_head(self, head: RequestHead) -> None:
        """Check everything that the head tells.

        :raises HttpError: the request is rejected, and its body is not needed.
        """
        ...

    async def respond(self, head: RequestHead, body: bytes) -> HttpResponse:
        """Execute a request whose head is accepted. Never fails because of the request."""
        ...

    def error_response(self, error: HttpError) -> HttpResponse:
        """Return the response for an error."""
        ...


class HttpListener(Protocol):
    """The factory of the connections: `chatws.push.http_factory.HttpFactory`.

    :ivar stats: counters since the start.
    :ivar kind: the kind of the connections in the file budget.
    :ivar max_head: bytes of a head.
    :ivar request_timeout: seconds until a request is complete, and until the client has read the response.
    :ivar idle_timeout: seconds for which a connection without a request stays open.
    """

    reactor: Clock
    stats: HttpStats
    budget: FileBudget
    throttled_log: ThrottledLog
    kind: str
    max_head: int
    request_timeout: float
    idle_timeout: float
    is_draining: bool

    @property
    def is_full(self) -> bool:
        """Whether there are too many connections."""
        ...

    def component(self, head: RequestHead | None) -> HttpComponent:
        """Return the component that a request is for. None: the request is malformed."""
        ...

    def connection_done(self, connection: HttpConnection) -> None:
        """Forget a connection that is closed, with its request processed."""
        ...


@implementer(IHalfCloseableProtocol, IPushProducer)
class HttpConnection(protocol.Protocol):
    """The protocol of one connection. It is registered as the transport's producer, to notice an unsent response.

    :ivar reads: the number of reads, which tells a drain whether more data arrives.
    """

    log = Logger()
    transport: TcpTransport  # type: ignore[assignment]  # a zope interface in Twisted

    def __init__(self, factory: HttpListener) -> None:
        self._factory = factory
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=factory.max_head)
        self._timer = ResettableTimer(factory.reactor)
        self._head: RequestHead | None = None
        self._component = factory.component(None)
        self._body: BodyReader | None = None
        self._has_input = False  # a part of the next request has arrived
        self._is_running = False
        self._is_reading = True
        self._is_advancing = False
        self._is_discarding = False  # a request was rejected: further input is discarded
        self._is_malformed = False  # h11 cannot tell where the rejected request ends
        self._is_closing = False
        self._is_counted = False  # admitted by the budget
        self._output_is_full = False
        self._is_lost = False
        self.reads = 0

    # called by Twisted

    def connectionMade(self) -> None:
        """Count the connection, and wait for a request."""
        self._factory.stats.connections += 1
        self.transport.registerProducer(self, True)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        self._factory.budget.arrive(self, self._factory.kind)
        if not self._is_closing:
            self._timer.set(self._factory.request_timeout, self._close)

    def dataReceived(self, data: bytes) -> None:
        """Process the data."""
        self.reads += 1
        self._factory.stats.bytes += len(data)
        if self._is_closing or self._is_malformed:
            return
        if not self._has_input:
            self._has_input = True
            self._wait_for_input()
        self._http.receive_data(data)
        self._advance()

    def readConnectionLost(self) -> None:
        """Handle the client's FIN: a complete request is still answered."""
        if self._is_malformed or self._is_discarding:
            self._close()
        elif not self._is_closing:
            self._http.receive_data(b"")
            self._advance()

    def writeConnectionLost(self) -> None:
        """Do nothing: the server does not close one direction alone."""

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Release the connection. A request that runs is finished without a response."""
        self._is_lost = self._is_closing = True
        self._timer.cancel()
        self._factory.budget.depart(self)
        self._release()
        if not self._is_running:
            self._factory.connection_done(self)

    def pauseProducing(self) -> None:
        """Stop reading: a response is unsent. A client that does not read it is disconnected."""
        self._output_is_full = True
        self._timer.set(self._factory.request_timeout, self.abort)

    def resumeProducing(self) -> None:
        """Read again: the response is sent."""
        self._output_is_full = False
        if not (self._is_closing or self._is_discarding):
            self._wait_for_input()
            self._advance()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    # called by the factory and the file budget

    @property
    def idle(self) -> bool:
        """Whether no request has begun."""
        return not (self._is_running or self._has_input)

    def finish(self) -> None:
        """Answer a request that runs, and then close. An incomplete request is discarded."""
        if not self._is_running:
            self._close()

    def abort(self) -> None:
        """Close now, without the rest of a response."""
        if not self._is_lost:
            self._is_closing = True
            self.transport.abortConnection()

    def evict(self) -> bool:
        """See `chatws.runtime.file_budget.Newcomer`."""
        self._close()
        return True

    # requests

    def _advance(self) -> None:
        """Process what h11 has read, until a request runs or more data is needed."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while not (self._is_running or self._is_closing or self._is_malformed or self._output_is_full):
                event = self._http.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    break
                if isinstance(event, h11.ConnectionClosed):
                    self._close()
                else:
                    self._on_event(event)
        except h11.RemoteProtocolError as error:
            self._on_malformed(error)
        finally:
            self._is_advancing = False
        should_read = not (self._is_running or self._output_is_full)
        if not self._is_closing and should_read is not self._is_reading:
            self._is_reading = should_read
            if should_read:
                self.transport.resumeProducing()
            else:
                self.transport.pauseProducing()

    def _on_event(self, event: Any) -> None:
        try:
            match event:
                case h11.Request():
                    self._on_head(event)
                case h11.Data() if self._body is not None:
                    self._body.feed(bytes(event.data))
                case h11.EndOfMessage() if self._body is not None:
                    self._on_body(self._body.finish())
                case h11.EndOfMessage():  # of a rejected request
                    self._close()
        except HttpError as error:
            self._reject(error)

    def _on_head(self, event: h11.Request) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        self._head = RequestHead(event.method.decode("latin-1"), event.target.decode("latin-1"), headers)
        self._component = component = self._factory.component(self._head)
        component.check_head(self._head)
        if not self._admit():
            raise HttpError(
                503, ErrorCode.OVERLOADED, "too many connections are open", [("Retry-After", str(RETRY_AFTER))]
            )
        self._body = BodyReader(self._head, component.max_body)
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))

    def _on_body(self, body: bytes) -> None:
        assert self._head is not None, "h11 reports a body after its head"
        self._is_running = True
        self._timer.cancel()
        responding = Deferred.fromCoroutine(self._component.respond(self._head, body))
        responding.addErrback(self._on_failure).addCallback(self._on_response)

    def _on_failure(self, failure: Failure) -> HttpResponse:
        self.log.failure("internal error while processing an HTTP request", failure)
        return self._component.error_response(HttpError(500, ErrorCode.UNAVAILABLE, "internal error"))

    def _on_response(self, response: HttpResponse) -> None:
        self._is_running = False
        self._release()
        if self._is_lost:
            self._factory.connection_done(self)
            return
        self._body = None
        self._respond(response, close=self._factory.is_draining)
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            self._close()
            return
        self._factory.budget.arrive(self, self._factory.kind)
        self._http.start_next_cycle()
        self._has_input = bool(self._http.trailing_data[0])
        if not self._output_is_full:
            self._wait_for_input()
        self._advance()

    def _wait_for_input(self) -> None:
        if self._has_input:
            self._timer.set(self._factory.request_timeout, self._on_request_timeout)
        else:
            self._timer.set(self._factory.idle_timeout, self._close)

    # errors

    def _reject(self, error: HttpError) -> None:
        """Answer a request that is not executed. The rest of it is discarded, and then the connection is closed."""
        self._is_discarding = True
        self._body = None
        self._release()
        self._factory.throttled_log.warn(
            str(error.status),
            "rejected a request to the HTTP API with status {status}: {reason} ({count} with this status so far)",
            status=error.status,
            reason=str(error),
            count=self._factory.stats.responses[error.status] + 1,
        )
        self._respond(self._component.error_response(error), close=True)
        if self._http.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._close()  # the request was read to its end
        else:
            self._timer.set(LINGER_TIMEOUT, self._close)

    def _on_malformed(self, error: h11.RemoteProtocolError) -> None:
        self._is_malformed = True
        if self._is_discarding:
            self._close()
            return
        text = f"malformed HTTP request: {error}"[:MAX_ERROR_TEXT]
        self._reject(HttpError(error.error_status_hint, ErrorCode.BAD_MESSAGE, text))

    def _on_request_timeout(self) -> None:
        if self._is_discarding:
            self._close()
            return
        seconds = self._factory.request_timeout
        self._reject(HttpError(408, ErrorCode.BAD_MESSAGE, f"the request was not complete within {seconds:g} s"))

    # writing

    def _respond(self, response: HttpResponse, *, close: bool) -> None:
        self._factory.stats.responses[response.status] += 1
        headers = [
            ("Date", formatdate(usegmt=True)),
            ("Content-Type", response.media_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
            *([("Connection", "close")] if close else []),
        ]
        reason = HTTPStatus(response.status).phrase
        is_head = self._head is not None and self._head.method == "HEAD"
        head = h11.Response(status_code=response.status, headers=headers, reason=reason.encode())
        self._write(head, *([] if is_head else [h11.Data(data=response.body)]), h11.EndOfMessage())

    def _write(self, *events: Any) -> None:
        self.transport.write(b"".join(self._http.send(event) or b"" for event in events))

    def _close(self) -> None:
        """Close when the response is sent, or after `request_timeout`."""
        if not self._is_closing:
            self._is_closing = True
            self.transport.unregisterProducer()
            self.transport.loseConnection()
            self._timer.set(self._factory.request_timeout, self.abort)

    # the file budget

    def _admit(self) -> bool:
        """Count the connection as admitted while it has a request. Between two requests it can be evicted."""
        if self._factory.is_full or not self._factory.budget.admit(self._factory.kind):
            return False
        self._is_counted = True
        self._factory.budget.depart(self)
        return True

    def _release(self) -> None:
        if self._is_counted:
            self._is_counted = False
            self._factory.budget.release(self._factory.kind)
