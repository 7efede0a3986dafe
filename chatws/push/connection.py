"""One backend's connection: it reads lines and writes responses in the same order (docs/protocol.md §3).

The complete lines of one read are processed together. Consecutive publishes become one batch for the broker. An `op`
waits for all lines before it, and the lines after it wait for the op. A `disconnect` therefore does not overtake the
publish before it, nor a publish the `unsubscribe` before it.

Every line that was read is processed, also after the connection is lost. To limit memory, the server stops reading
while responses are unsent, while too many published events are pending, and while an op runs.

At the end of input (FIN) the last line counts also without a newline. If it was cut off, it lacks the closing brace of
its JSON object and is rejected as `bad_json`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet import protocol
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IHalfCloseableProtocol,
    IPushProducer,
    ISSLTransport,
    ITCPTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.brokers.interface import NewEvent
from chatws.errors import ClientError, ErrorCode
from chatws.interfaces import Clock, TcpTransport
from chatws.net.resettable_timer import ResettableTimer
from chatws.net.sockets import plain_socket, read_now
from chatws.push.handler import CommandHandler, PushStats
from chatws.push.line_buffer import LineBuffer
from chatws.push.operations import (
    AuthOp,
    Op,
    PingOp,
    PresenceOp,
)
from chatws.push.protocol import SIMPLE, LineError, PublishLine, parse_line
from chatws.push.response_queue import ResponseQueue, ResponseSlot
from chatws.push.responses import ErrorResponse, OpResponse, Response, encode_responses
from chatws.runtime.file_budget import BACKEND, FileBudget
from chatws.runtime.log_levels import is_debugged
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["PushConnection", "PushListener"]

#: Lines in one batch. After each batch, the connection checks whether it has to stop reading.
BATCH_LINES = 1024
#: Bytes that are read in one iteration of the reactor: the size of one read in Twisted.
MAX_READ = 65536
#: Bytes of events that wait for the broker, above which reading stops. Each event counts `EVENT_WEIGHT` bytes for its
#: objects in addition to its data.
MAX_PENDING_BYTES = 1024 * 1024
EVENT_WEIGHT = 256
#: Bytes of the first line where a secret is configured: a client without the secret cannot use more memory.
MAX_AUTH_LINE = 4096
#: Seconds for which the server discards the input of a rejected peer, so that the peer can read the response.
LINGER_TIMEOUT = 2.0
#: Seconds that a peer has to read its last responses before the connection is aborted.
CLOSE_TIMEOUT = 10.0


class PushListener(Protocol):
    """The factory of a connection, as the connection uses it: implemented by `chatws.push.listener.PushFactory`."""

    handler: CommandHandler
    stats: PushStats
    budget: FileBudget
    throttled_log: ThrottledLog
    reactor: Clock
    max_line_size: int
    auth_timeout: float

    @property
    def is_full(self) -> bool:
        """Whether there are too many connections."""
        ...

    def secret(self) -> bytes | None:
        """Return the secret that backends must have, or None."""
        ...

    def connection_done(self, connection: PushConnection) -> None:
        """Forget a connection that is closed, with all its input processed."""
        ...


def _overloaded() -> ClientError:
    return ClientError(ErrorCode.OVERLOADED, "too many connections are open")


@implementer(IHalfCloseableProtocol, IPushProducer)
class PushConnection(protocol.Protocol):
    """The protocol of one connection. It is registered as the transport's producer, to notice unsent responses.

    :ivar is_reading: whether it reads; False while too much is unsent or pending.
    :ivar input_is_closed: whether further input is discarded.
    :ivar is_lost: whether the transport is closed.
    :ivar reads: the number of reads, which tells a drain whether more data arrives.
    """

    log = Logger()
    transport: TcpTransport  # type: ignore[assignment]  # a zope interface in Twisted

    def __init__(self, factory: PushListener) -> None:
        self._factory = factory
        self._input = LineBuffer(factory.max_line_size)
        self._responses = ResponseQueue()
        self._is_admitted = False  # the first line was accepted
        self._op_is_waiting = False  # the first line of `_input` is an op that waits for `_responses`
        self._op_is_running = False
        self._output_is_full = False
        self._is_advancing = False
        self.is_reading = True
        self.input_is_closed = False
        self._on_done: Callable[[], None] | None = None  # closes the connection once all lines are processed
        self._is_rejected = False  # rejected: the remaining lines and further input are discarded
        self._is_counted = False  # admitted by the budget, and to be released at the end
        self.is_lost = False
        self._timer = ResettableTimer(factory.reactor)
        self.reads = 0

    # called by Twisted

    def connectionMade(self) -> None:
        """Count the connection, and reject it if there are too many."""
        self._factory.stats.connections += 1
        if is_debugged(__name__):
            self.log.debug("a backend connected from {address}", address=self._address)
        transport = self.transport
        transport.registerProducer(self, True)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        self._factory.budget.arrive(self, BACKEND)
        if self._factory.is_full:
            self._reject(_overloaded())
        elif self._factory.secret() is not None:
            self._input.max_line = min(self._input.max_line, MAX_AUTH_LINE)
            if self._factory.auth_timeout:
                self._timer.set(self._factory.auth_timeout, self._on_auth_timeout)
        elif not self._admit_to_budget():
            self._reject(_overloaded())

    def dataReceived(self, data: bytes) -> None:
        """Process the data, and then read and process what has arrived meanwhile.

        A busy backend has sent more by then. Another iteration of the reactor would cost nearly as much as an event.
        """
        remaining = MAX_READ
        while data:
            remaining -= len(data)
            self._on_data(data)
            can_read = remaining > 0 and self.is_reading and not self.input_is_closed
            data = read_now(self.transport, remaining) if can_read else b""

    def _on_data(self, data: bytes) -> None:
        if self.input_is_closed:
            return
        self.reads += 1
        stats = self._factory.stats
        stats.bytes += len(data)
        stats.lines += self._input.feed(data)
        self._advance()
        if self._input.overflows and not self.input_is_closed:
            self.input_is_closed = True
            self._on_done = lambda: self._reject(self._input.too_long())
            self._advance()

    def readConnectionLost(self) -> None:
        """Handle the peer's FIN: the lines before it are processed and answered."""
        if self.input_is_closed:
            if self._on_done is None:  # rejected or closing: this was the last event to wait for
                self.transport.loseConnection()
            return
        self._on_input_end()

    def writeConnectionLost(self) -> None:
        """Do nothing: after the server's FIN, the peer's input is read and discarded."""

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """Release the connection, and process the lines that were read."""
        self.is_lost = True
        if is_debugged(__name__):
            self.log.debug("the connection of a backend from {address} ended", address=self._address)
        self._factory.budget.depart(self)
        if self._is_counted:
            self._is_counted = False
            self._factory.budget.release(BACKEND)
        self._output_is_full = False  # responses are discarded
        self._timer.cancel()
        if not self.input_is_closed and isinstance(reason.value, ConnectionDone):
            self._on_input_end()  # the peer closed both directions at once
        self.input_is_closed = True
        self._input.discard_partial()
        self._advance()

    def pauseProducing(self) -> None:
        """Stop reading: responses are unsent."""
        self._output_is_full = True

    def resumeProducing(self) -> None:
        """Read again: the responses are sent."""
        self._output_is_full = False
        self._advance()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    @property
    def _address(self) -> str:
        peer = self.transport.getPeer()
        return f"{peer.host}:{peer.port}" if hasattr(peer, "host") else "a Unix socket"

    # called by the factory and the file budget

    @property
    def idle(self) -> bool:
        """Whether everything that was read is processed."""
        return not (self._input or self._responses or self._op_is_running)

    @property
    def buffered_bytes(self) -> int:
        """Bytes that were read and not yet processed."""
        return self._input.size

    def finish(self) -> None:
        """Stop reading, process and answer the lines that were read, and then close."""
        if not self.input_is_closed:
            self.input_is_closed = True
            self._input.discard_partial()
            self.transport.pauseProducing()
            self._on_done = self._close
            self._advance()

    def evict(self) -> bool:
        """See `chatws.runtime.file_budget.Newcomer`."""
        if plain_socket(self.transport) is None:
            self.abort()  # TLS would wait for the peer's close_notify
        elif self._is_rejected:
            self._close()
        else:
            self._reject(_overloaded(), linger=False)
        return True

    def abort(self) -> None:
        """Close now and discard unsent responses. Lines that were read are still processed."""
        if not self.is_lost:
            self.transport.abortConnection()

    # the order of lines

    def _advance(self) -> None:
        """Process lines until one has to wait, then close, pause or resume as needed."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._input.lines and not self._is_blocked():
                self._process(self._input.take())
        finally:
            self._is_advancing = False
        if not (self._input.lines or self._responses or self._op_is_running):
            if self.is_lost:
                self._factory.connection_done(self)
                return
            if self._on_done is not None:
                close, self._on_done = self._on_done, None
                close()
                return
        if not self.input_is_closed:
            should_read = not (self._input.lines or self._is_blocked())
            if should_read is not self.is_reading:
                self.is_reading = should_read
                if should_read:
                    self.transport.resumeProducing()
                else:
                    self.transport.pauseProducing()

    def _is_blocked(self) -> bool:
        return (
            self._output_is_full
            or self._op_is_running
            or self._responses.weight > MAX_PENDING_BYTES
            or (self._op_is_waiting and bool(self._responses))
        )

    def _process(self, lines: list[bytes]) -> None:
        """Process lines until one has to wait. That line and those after it go back to `_input`."""
        factory = self._factory
        to_new_event = factory.handler.to_new_event
        self._op_is_waiting = False
        requests: list[PublishLine | ErrorResponse] = []
        new_events: list[NewEvent] = []
        max_line = self._input.max_line
        if self._is_admitted and len(lines) <= BATCH_LINES and max(map(len, lines)) <= max_line:
            simple_events = factory.handler.parse_simple_batch(lines)
            if simple_events is not None:
                self._publish([SIMPLE] * len(simple_events), simple_events)
                return
        for position, line in enumerate(lines):
            if not line:
                continue
            request: PublishLine | Op | LineError
            try:
                request = parse_line(line) if len(line) <= max_line else self._input.too_long()
            except LineError as error:
                # a copy: the traceback of the raised one refers to this frame, a cycle that reference counts never free
                request = LineError(error.code, error.message, error.request_id)
            if not self._is_admitted:
                rejection = self._check_first_line(request)
                if rejection is not None:
                    self._reject(rejection)
                    return
            if isinstance(request, PublishLine):
                try:
                    new_events.append(to_new_event(request))
                    requests.append(request)
                except ClientError as error:
                    requests.append(factory.handler.error_response(error, request.request_id))
            elif isinstance(request, LineError) and request.code is not ErrorCode.LINE_TOO_LONG:
                requests.append(factory.handler.error_response(request, request.request_id))
            else:
                self._publish(requests, new_events)
                if self._responses:
                    self._op_is_waiting = True
                    self._input.put_back(lines[position:])
                    return
                if isinstance(request, LineError):
                    self._reject(request)
                    return
                self._run_op(request)
                if self._is_rejected:  # the secret was wrong
                    return
                max_line = self._input.max_line
                requests, new_events = [], []
            if len(requests) >= BATCH_LINES:
                self._publish(requests, new_events)
                requests, new_events = [], []
            if not requests and self._is_blocked():
                self._input.put_back(lines[position + 1 :])
                return
        self._publish(requests, new_events)

    # the first line

    def _check_first_line(self, request: PublishLine | Op | LineError) -> ClientError | None:
        """Return why the connection is rejected after its first line, or None."""
        if type(request) is LineError and request.code in (ErrorCode.BAD_JSON, ErrorCode.LINE_TOO_LONG):
            return request  # not a backend: the body of an HTTP request must not be processed as lines
        if type(request) is not AuthOp and self._factory.secret() is not None:
            return ClientError(ErrorCode.BAD_SECRET, "the first line must be op auth with the secret")
        self._is_admitted = True
        return None

    def _authenticate(self, auth: AuthOp) -> None:
        secret = self._factory.secret()
        if secret is not None and not hmac.compare_digest(auth.secret.encode(), secret):
            self._reject(LineError(ErrorCode.BAD_SECRET, "the secret is wrong", auth.request_id))
            return
        if not self._admit_to_budget():
            self._reject(LineError(ErrorCode.OVERLOADED, _overloaded().message, auth.request_id))
            return
        self._timer.cancel()
        self._input.max_line = self._factory.max_line_size
        self._write([OpResponse(True, auth.request_id)])

    def _on_auth_timeout(self) -> None:
        self._reject(ClientError(ErrorCode.BAD_SECRET, "no op auth in time"))

    # execution

    def _publish(self, requests: list[PublishLine | ErrorResponse], new_events: list[NewEvent]) -> None:
        handler = self._factory.handler
        if not new_events:
            if self._responses and requests:
                self._responses.add(0, encode_responses(requests))
            else:
                self._write(handler.acks(requests, ()))
            return
        responses = handler.publish(requests, new_events)
        if isinstance(responses, list) and not self._responses:
            self._write(responses)
            return
        slot = self._responses.add(sum(len(event.data) + EVENT_WEIGHT for event in new_events))
        if isinstance(responses, list):
            self._on_responses(slot, responses)
        else:
            responses.addCallback(lambda responses: self._on_responses(slot, responses))

    def _on_responses(self, slot: ResponseSlot, responses: Sequence[Response]) -> None:
        ready = self._responses.resolve(slot, encode_responses(responses))
        if ready and not self.is_lost:
            self.transport.write(ready)
        self._advance()

    def _run_op(self, operation: Op) -> None:
        if isinstance(operation, AuthOp):
            self._authenticate(operation)
            return
        if self.is_lost and isinstance(operation, PresenceOp | PingOp):
            return  # without effect except for a response, which cannot be sent
        self._op_is_running = True
        Deferred.fromCoroutine(self._factory.handler.execute(operation)).addCallback(self._on_op_done)

    def _on_op_done(self, response: Response) -> None:
        self._op_is_running = False
        self._write([response])
        self._advance()

    def _write(self, responses: Sequence[Response]) -> None:
        if responses and not self.is_lost:
            self.transport.write(encode_responses(responses))

    # the end

    def _on_input_end(self) -> None:
        self.input_is_closed = True
        self._factory.stats.lines += self._input.end()
        self._on_done = self._close
        self._advance()

    def _admit_to_budget(self) -> bool:
        """Count this connection as admitted, once. Return False if the budget is exhausted."""
        if not self._is_counted and not self.is_lost:
            if not self._factory.budget.admit(BACKEND):
                return False
            self._is_counted = True
            self._factory.budget.depart(self)
        return True

    def _reject(self, error: ClientError, linger: bool = True) -> None:
        """Send an error and close.

        The input is read and discarded for `LINGER_TIMEOUT`: closing a socket with unread data resets the connection,
        and the reset can destroy the response (RFC 9112 §9.6).

        :param linger: False closes as soon as the response is written.
        """
        self.input_is_closed = self._is_rejected = True
        self._on_done = None
        self._input.clear()
        response = self._factory.handler.error_response(error, getattr(error, "request_id", None))
        if self.is_lost:
            return
        transport = self.transport
        self._factory.throttled_log.warn(
            error.code,
            "rejected a backend at {address}: {reason} ({count} with this code so far)",
            address=self._address,
            reason=str(error),
            count=self._factory.stats.errors[error.code.value],
        )
        self._write([response])
        if linger and IHalfCloseableDescriptor.providedBy(transport) and not ISSLTransport.providedBy(transport):
            transport.unregisterProducer()
            transport.loseWriteConnection()
            if not self.is_reading:
                transport.resumeProducing()
            self._timer.set(LINGER_TIMEOUT, self.abort)
        else:
            self._close()

    def _close(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._timer.set(CLOSE_TIMEOUT, self.abort)
