"""One backend's connection: lines come in, answers go out in the same order (docs/protocol.md §3).

All complete lines of one read are taken together, and consecutive publishes of them become one batch for the broker.
An `op` waits until everything before it is done, and what stands behind it waits for the op: a `disconnect` does not
overtake the publish before it, nor a publish the `unsubscribe` before it.

No line that was read is dropped, whatever becomes of the connection. What bounds memory is that reading stops: while
answers stand unsent, while published events are unresolved, while an op is under way.

At the end of input (FIN) the last line counts also without a newline: if it was cut off, it lacks the brace that ends
a JSON object, and is refused as `bad_json`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

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

from chatws.brokers.contract import Draft
from chatws.errors import ClientError, ErrorCode
from chatws.push.answers import Answer, Done, Refused, encode_answers
from chatws.push.deadline import Deadline
from chatws.push.lines import PLAIN, Auth, LineError, Operation, Ping, Presence, Publish, parse_line
from chatws.push.pending import Batch, Pending
from chatws.sockets import read_now

if TYPE_CHECKING:
    from chatws.push.listener import PushFactory

__all__ = ["PushConnection"]

#: Lines that are handed over at once; between two such batches it is seen whether answers pile up.
BATCH_LINES = 1024
#: Bytes that are read in one turn of the reactor: what Twisted reads at once, if so much is there.
MAX_READ = 65536
#: Bytes of events under way to the broker above which reading stops; each event weighs `EVENT_WEIGHT` more.
MAX_UNRESOLVED = 1024 * 1024
EVENT_WEIGHT = 256
#: Bytes that may be read before `op auth` where a secret is configured.
MAX_AUTH_LINE = 4096
#: Seconds for which a refused peer may finish sending, so that it comes to read the answer, before it is cut off.
LINGER_SECONDS = 2.0
#: Seconds for which a closing connection may take to read its last answers.
CLOSE_SECONDS = 10.0


@implementer(IHalfCloseableProtocol, IPushProducer)
class PushConnection(protocol.Protocol):
    """The protocol of one connection. It is its transport's producer: it answers, the transport says when to stop.

    :ivar reads: how many there were, so that a drain sees whether more comes.
    """

    log = Logger()
    transport: Any

    def __init__(self, door: PushFactory) -> None:
        self._door = door
        self._max_line = door.max_line_size
        self._rest = bytearray()  # the line under way
        self._backlog: list[bytes] = []  # lines read and not yet done with
        self._pending = Pending()
        self._admitted = False  # the first line has come, and was good
        self._op_waits = False  # the first of `_backlog` waits for `_pending`
        self._operating = False  # an op is under way
        self._output_full = False
        self._advancing = False
        self._reading = True
        self._input_over = False  # nothing that comes now counts
        self._end: Callable[[], None] | None = None  # how to close, once all lines are done with
        self._sent_away = False  # refused: neither lines behind nor input that comes now count
        self._lost = False
        self._deadline = Deadline(door.reactor)
        self.reads = 0

    # what Twisted calls

    def connectionMade(self) -> None:
        self._door.stats.connections += 1
        transport = self.transport
        transport.registerProducer(self, True)
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        if self._door.is_full:
            self._refuse(ClientError(ErrorCode.OVERLOADED, "too many backends are connected"))
        elif self._door.secret() is not None:
            self._max_line = min(self._max_line, MAX_AUTH_LINE)
            if self._door.auth_timeout:
                self._deadline.set(self._door.auth_timeout, self._auth_timed_out)

    def dataReceived(self, data: bytes) -> None:
        """Take this, and then what has come meanwhile: a backend with much to say has said more by then, and to come
        back for it in another turn of the reactor costs nearly as much as an event."""
        left = MAX_READ
        while data:
            left -= len(data)
            self._received(data)
            more = left > 0 and self._reading and not self._input_over
            data = read_now(self.transport, left) if more else b""

    def _received(self, data: bytes) -> None:
        if self._input_over:
            return
        self.reads += 1
        stats = self._door.stats
        stats.bytes += len(data)
        if b"\n" in data:
            if self._rest:
                data = bytes(self._rest) + data
                self._rest.clear()
            if b"\r\n" in data:
                data = data.replace(b"\r\n", b"\n")
            lines = data.split(b"\n")
            data = lines.pop()
            stats.lines += len(lines)
            self._backlog = self._backlog + lines if self._backlog else lines
        if data:
            self._rest += data
        self._advance()
        if len(self._rest) > self._max_line + 1 and not self._input_over:  # a line may have \r besides
            self._input_over = True
            self._end = self._too_long
            self._advance()

    def readConnectionLost(self) -> None:
        """The other side has sent FIN. The lines before it count, and are answered."""
        if self._input_over:
            if self._end is None:  # it was only waited for this
                self.transport.loseConnection()
            return
        self._input_ended()

    def writeConnectionLost(self) -> None:
        """Our own FIN is out; what the peer still sends is read and thrown away."""

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        self._lost = True
        self._output_full = False  # nobody waits for answers any more
        self._deadline.cancel()
        if not self._input_over and isinstance(reason.value, ConnectionDone):
            self._input_ended()  # TLS knows no half-close
        self._input_over = True
        self._rest.clear()
        self._advance()

    def pauseProducing(self) -> None:
        """Answers stand unsent."""
        self._output_full = True

    def resumeProducing(self) -> None:
        """They are sent."""
        self._output_full = False
        self._advance()

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows."""

    # what the factory calls

    @property
    def idle(self) -> bool:
        """Everything that was read is done with."""
        return not (self._rest or self._backlog or self._pending or self._operating)

    def finish(self) -> None:
        """Take nothing more; what was read is done and answered, then the connection closed."""
        if not self._input_over:
            self._input_over = True
            self._rest.clear()
            self.transport.pauseProducing()
            self._end = self._close
            self._advance()

    def abort(self) -> None:
        """Close now, whatever stands unsent. Lines that were read are done all the same."""
        if not self._lost:
            self.transport.abortConnection()

    # which lines, when

    def _advance(self) -> None:
        """Go on with what waits, as far as possible now."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._backlog and not self._is_held():
                lines, self._backlog = self._backlog, []
                self._process(lines)
        finally:
            self._advancing = False
        if not (self._backlog or self._pending or self._operating):
            if self._lost:
                self._door.gone(self)
                return
            if self._end is not None:
                end, self._end = self._end, None
                end()
                return
        if not self._input_over:
            reading = not (self._backlog or self._is_held())
            if reading is not self._reading:
                self._reading = reading
                if reading:
                    self.transport.resumeProducing()
                else:
                    self.transport.pauseProducing()

    def _is_held(self) -> bool:
        return (
            self._output_full
            or self._operating
            or self._pending.weight > MAX_UNRESOLVED
            or (self._op_waits and bool(self._pending))
        )

    def _process(self, lines: list[bytes]) -> None:
        """Take lines until one must wait; that one and those behind it go back into the backlog."""
        door = self._door
        make_draft = door.executor.draft
        self._op_waits = False
        requests: list[Publish | Refused] = []
        drafts: list[Draft] = []
        max_line = self._max_line
        if self._admitted and len(lines) <= BATCH_LINES and max(map(len, lines)) <= max_line:
            plain = door.executor.plain_drafts(lines)
            if plain is not None:
                self._hand_over([PLAIN] * len(plain), plain)
                return
        for position, line in enumerate(lines):
            if not line:
                continue
            request: Publish | Operation | LineError
            try:
                request = parse_line(line) if len(line) <= max_line else self._line_too_long()
            except LineError as error:
                request = error
            if not self._admitted:
                refusal = self._admit(request)
                if refusal is not None:
                    self._refuse(refusal)
                    return
            if isinstance(request, Publish):
                try:
                    drafts.append(make_draft(request))
                    requests.append(request)
                except ClientError as error:
                    requests.append(door.executor.refused(error, request.request_id))
            elif isinstance(request, LineError) and request.code is not ErrorCode.LINE_TOO_LONG:
                requests.append(door.executor.refused(request, request.request_id))
            else:
                self._hand_over(requests, drafts)
                if self._pending:
                    self._op_waits = True
                    self._backlog = lines[position:] + self._backlog
                    return
                if isinstance(request, LineError):
                    self._refuse(request)
                    return
                self._operate(request)
                if self._sent_away:  # it was a wrong secret
                    return
                max_line = self._max_line
                requests, drafts = [], []
            if len(requests) >= BATCH_LINES:
                self._hand_over(requests, drafts)
                requests, drafts = [], []
            if not requests and self._is_held():
                self._backlog = lines[position + 1 :] + self._backlog
                return
        self._hand_over(requests, drafts)

    def _line_too_long(self) -> LineError:
        return LineError(ErrorCode.LINE_TOO_LONG, f"a line may have {self._max_line} bytes")

    def _too_long(self) -> None:
        self._refuse(self._line_too_long())

    # the first line

    def _admit(self, request: Publish | Operation | LineError) -> ClientError | None:
        """Whether the connection may go on after its first line; or why not."""
        if type(request) is LineError and request.code in (ErrorCode.BAD_JSON, ErrorCode.LINE_TOO_LONG):
            return request  # no backend: an HTTP request, say, whose body is not to be taken for lines
        if type(request) is not Auth and self._door.secret() is not None:
            return ClientError(ErrorCode.BAD_SECRET, "the first line must be op auth with the secret")
        self._admitted = True
        return None

    def _authenticate(self, auth: Auth) -> None:
        secret = self._door.secret()
        if secret is not None and not hmac.compare_digest(auth.secret.encode(), secret):
            self._refuse(LineError(ErrorCode.BAD_SECRET, "the secret is wrong", auth.request_id))
            return
        self._deadline.cancel()
        self._max_line = self._door.max_line_size
        self._write([Done(True, auth.request_id)])

    def _auth_timed_out(self) -> None:
        self._refuse(ClientError(ErrorCode.BAD_SECRET, "no op auth came in time"))

    # what they do

    def _hand_over(self, requests: list[Publish | Refused], drafts: list[Draft]) -> None:
        executor = self._door.executor
        if not drafts:
            if self._pending and requests:
                self._pending.add(0, encode_answers(requests))
            else:
                self._write(executor.receipts(requests, ()))
            return
        answers = executor.publish(requests, drafts)
        if isinstance(answers, list) and not self._pending:
            self._write(answers)
            return
        batch = self._pending.add(sum(len(draft.data) + EVENT_WEIGHT for draft in drafts))
        if isinstance(answers, list):
            self._resolved(batch, answers)
        else:
            answers.addCallback(lambda answers: self._resolved(batch, answers))

    def _resolved(self, batch: Batch, answers: Sequence[Answer]) -> None:
        ready = self._pending.resolve(batch, encode_answers(answers))
        if ready and not self._lost:
            self.transport.write(ready)
        self._advance()

    def _operate(self, operation: Operation) -> None:
        if isinstance(operation, Auth):
            self._authenticate(operation)
            return
        if self._lost and isinstance(operation, Presence | Ping):
            return  # a question whose answer nobody waits for
        self._operating = True
        Deferred.fromCoroutine(self._door.executor.perform(operation)).addCallback(self._operated)

    def _operated(self, answer: Answer) -> None:
        self._operating = False
        self._write([answer])
        self._advance()

    def _write(self, answers: Sequence[Answer]) -> None:
        if answers and not self._lost:
            self.transport.write(encode_answers(answers))

    # the end

    def _input_ended(self) -> None:
        self._input_over = True
        if self._rest:
            self._backlog.append(bytes(self._rest))
            self._rest.clear()
            self._door.stats.lines += 1
        self._end = self._close
        self._advance()

    def _refuse(self, error: ClientError) -> None:
        """Answer, and close. What the peer still sends is thrown away for a while: closing a socket with unread data
        resets the connection, and the reset can overtake the answer (RFC 9112 §9.6)."""
        self._input_over = self._sent_away = True
        self._end = None
        self._backlog.clear()
        self._rest.clear()
        answer = self._door.executor.refused(error, getattr(error, "request_id", None))
        if self._lost:
            return
        transport = self.transport
        shown = f"{peer.host}:{peer.port}" if hasattr(peer := transport.getPeer(), "host") else "a Unix socket"
        self.log.info("A backend at {peer} was sent away: {error}", peer=shown, error=str(error))
        self._write([answer])
        if IHalfCloseableDescriptor.providedBy(transport) and not ISSLTransport.providedBy(transport):
            transport.unregisterProducer()
            transport.loseWriteConnection()
            if not self._reading:
                transport.resumeProducing()
            self._deadline.set(LINGER_SECONDS, self.abort)
        else:
            self._close()

    def _close(self) -> None:
        self.transport.unregisterProducer()
        self.transport.loseConnection()
        self._deadline.set(CLOSE_SECONDS, self.abort)
