"""A push client for Twisted: one connection, pipelined, replaced when it breaks; Deferreds that never hang."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.ids import Id
from chatws.push.client_protocol import PushProtocol, make_endpoints
from chatws.push.requests import (
    AUTH_ID,
    Answer,
    Data,
    PushError,
    PushRefused,
    PushUnavailable,
    To,
    auth_line,
    backoff,
    is_passing,
    new_key,
    operation_line,
    publish_line,
)

__all__ = ["PushClient"]


class _Request:
    """A line and what becomes of it.

    :ivar answered: what the caller waits for; None as soon as it was fired or given up.
    :ivar pause: the timer, while it waits to be sent again.
    """

    __slots__ = ("ack", "answered", "attempts", "expiry", "id", "line", "pause")

    def __init__(self, line: bytes, id: int | str, ack: bool = True) -> None:
        self.line = line
        self.id = id
        self.ack = ack
        self.answered: Deferred[Answer] | None = None
        self.attempts = 0
        self.expiry: Any = None
        self.pause: Any = None


class PushClient:
    """Publishes from a Twisted program. The methods are those of `BlockingPushClient`, and return Deferreds.

    The connection is opened when first needed. When it breaks, what is unanswered is sent again over a new one, in
    the same order and with the same idempotency keys, until each one's deadline has passed.

    Of several endpoints each belongs to a node of one chatws. The one that worked last is taken; where it cannot be
    reached, is silent, or answers `unavailable` or `overloaded`, what is unanswered goes to the next.

    Every Deferred fails with `PushRefused` or `PushUnavailable` if not with success, and may be cancelled (what was
    sent stays sent).

    :param endpoint: a Twisted client endpoint, or its string description: "tcp:127.0.0.1:8081", "unix:/path" (also just
        "127.0.0.1:8081"); several descriptions with commas between them; or a list of endpoints and descriptions.
    :param secret: the push secret, where the server has one.
    :param connect_timeout: seconds that one attempt to connect may take.
    :param timeout: seconds without any answer, while some are due, after which another connection is tried.
    :param deadline: seconds after which a request fails. With several endpoints both times above are at most an equal
        share of it, so that one that is silent leaves time for the others.
    :param max_pending: requests that may be unanswered at a time; one more fails at once.
    :raises ValueError: a description is none.
    """

    log = Logger()

    def __init__(
        self,
        endpoint: IStreamClientEndpoint | str | Sequence[IStreamClientEndpoint | str],
        *,
        secret: str | bytes | None = None,
        connect_timeout: float = 1.0,
        timeout: float = 2.0,
        deadline: float = 5.0,
        max_pending: int = 10_000,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor: Any = reactor
        self._endpoints = make_endpoints(endpoint, reactor)
        self._at = 0  # the one in use
        self._auth = auth_line(secret)
        share = deadline / len(self._endpoints) if len(self._endpoints) > 1 else math.inf
        self._connect_timeout = min(connect_timeout, share)
        self._timeout = min(timeout, share)
        self._deadline = deadline
        self._max_pending = max_pending
        self._requests: dict[_Request, None] = {}  # all that wait for something, in order
        self._unsent: deque[_Request] = deque()  # those to be sent as soon as possible
        self._in_flight: deque[_Request] = deque()  # those that the open connection owes an answer
        self._full = False  # the server does not read fast enough
        self._protocol: PushProtocol | None = None
        self._connecting: Deferred[Any] | None = None
        self._reconnect: Any = None  # the timer of the next attempt
        self._attempts = 0  # to connect, since the last answer
        self._problem: BaseException | None = None  # the last that was
        self._watchdog: Any = None
        self._closing: Deferred[None] | None = None

    def publish(
        self,
        event: str,
        data: Data,
        *,
        to: To | None = None,
        except_user_id: Id | None = None,
        key: int | str | None = None,
        transient: bool = False,
        ack: bool = True,
    ) -> Deferred[Answer]:
        """Publish one event. See `BlockingPushClient.publish`."""
        key = new_key() if key is None else key
        line = publish_line(event, data, key=key, to=to, except_user_id=except_user_id, transient=transient, ack=ack)
        return self._submit(_Request(line, key, ack))

    def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> Deferred[Answer]:
        """Close the user's connections. See `BlockingPushClient.disconnect`."""
        return self._operate("disconnect", user_id=user_id, reason=reason, ban=ban)

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> Deferred[Answer]:
        """Take the conversation away from the user's connections."""
        return self._operate("unsubscribe", user_id=user_id, conversation_id=conversation_id)

    def online(self) -> Deferred[list[Id]]:
        """Who is online."""
        return self._operate("presence").addCallback(lambda answer: answer.online or [])

    def ping(self) -> Deferred[Answer]:
        """Is the server there, and does it take our secret?"""
        return self._operate("ping")

    def close(self) -> Deferred[None]:
        """Stop. What is unanswered fails with `PushUnavailable`, and so does every later call.

        :return: fires when the connection is closed.
        """
        if self._closing is None:
            self._closing = Deferred()
            for request in list(self._requests):
                self._fail(request, PushUnavailable("the client was closed"))
            if self._reconnect is not None:
                self._reconnect.cancel()
                self._reconnect = None
            if self._connecting is not None:
                self._connecting.cancel()
            elif self._protocol is not None:
                self._protocol.transport.unregisterProducer()
                self._protocol.transport.loseConnection()
                self._watch()
            else:
                self._closing.callback(None)
        closed: Deferred[None] = Deferred()
        self._closing.addCallback(closed.callback)
        return closed

    # requests

    def _operate(self, op: str, **fields: Any) -> Deferred[Answer]:
        id = new_key()
        return self._submit(_Request(operation_line(op, id=id, **fields), id))

    def _submit(self, request: _Request) -> Deferred[Answer]:
        if self._closing is not None:
            return fail(PushUnavailable("the client was closed"))
        if len(self._requests) >= self._max_pending:
            return fail(PushUnavailable(f"{self._max_pending} requests are unanswered"))
        answered: Deferred[Answer] = Deferred(lambda _: self._give_up(request))
        request.answered = answered
        request.expiry = self._reactor.callLater(self._deadline, self._expire, request)
        self._requests[request] = None
        self._send_soon(request)
        return answered

    def _send_soon(self, request: _Request) -> None:
        request.pause = None
        self._unsent.append(request)
        if self._protocol is not None:
            self._flush()
        else:
            self._connect_soon(0)

    def _flush(self) -> None:
        while self._unsent and self._protocol is not None and not self._full:
            request = self._unsent.popleft()
            if request.answered is None:
                continue
            if request.ack:
                self._in_flight.append(request)
            self._protocol.transport.write(request.line)
            if not request.ack:
                self._succeed(request, Answer(True, request.id))
        self._watch()

    def _give_up(self, request: _Request) -> None:
        self._forget(request)

    def _forget(self, request: _Request) -> Deferred[Answer] | None:
        """The request is over. Returns what is to be fired."""
        answered, request.answered = request.answered, None
        self._requests.pop(request, None)
        for timer in (request.expiry, request.pause):
            if timer is not None and timer.active():
                timer.cancel()
        return answered

    def _succeed(self, request: _Request, answer: Answer) -> None:
        answered = self._forget(request)
        if answered is not None:
            answered.callback(answer)

    def _fail(self, request: _Request, error: PushError) -> None:
        answered = self._forget(request)
        if answered is not None:
            answered.errback(error)

    def _expire(self, request: _Request) -> None:
        error = PushUnavailable(f"no answer within {self._deadline:g} s: {self._problem or 'silence'}")
        error.__cause__ = self._problem
        self._fail(request, error)

    # answers

    def answer_received(self, answer: Answer) -> None:
        """Answers come in order. One that is nobody's is that of an event without `ack`, refused."""
        if not self._in_flight or answer.id not in (self._in_flight[0].id, None):
            self.log.warn("refused: {code}: {message}", code=answer.code, message=answer.message)
            return
        request = self._in_flight.popleft()
        self._watch(anew=True)
        if request.line is self._auth:
            self._authenticated(answer)
            return
        if not is_passing(answer):
            self._attempts = 0
            self._problem = None
        if request.answered is None:
            pass  # given up meanwhile
        elif answer.ok:
            self._succeed(request, answer)
        elif is_passing(answer) and len(self._endpoints) > 1:
            self._abort(answer.error())
        elif is_passing(answer):
            self._problem = answer.error()
            request.pause = self._reactor.callLater(backoff(request.attempts), self._send_soon, request)
            request.attempts += 1
        else:
            self._fail(request, answer.error())

    def _authenticated(self, answer: Answer) -> None:
        if answer.ok:
            return
        if not is_passing(answer):
            self.log.error("The push server refuses us: {code}: {message}", code=answer.code, message=answer.message)
            for request in list(self._requests):
                self._fail(request, PushRefused(answer.code, answer.message))
        self._abort(answer.error())

    def garbage_received(self, problem: Exception) -> None:
        """The other side is no chatws."""
        self._abort(problem)

    # the connection

    def _connect_soon(self, seconds: float) -> None:
        if self._reconnect is None and self._connecting is None:
            self._reconnect = self._reactor.callLater(seconds, self._connect)

    def _connect(self) -> None:
        self._reconnect = None
        if not self._requests:
            return  # nobody waits any more
        self._attempts += 1
        factory = Factory.forProtocol(PushProtocol)
        factory.noisy = False
        connecting: Deferred[Any] = maybeDeferred(self._endpoints[self._at].connect, factory)
        self._connecting = connecting
        too_slow = self._reactor.callLater(self._connect_timeout, connecting.cancel)

        def done(result: Any) -> Any:
            self._connecting = None
            if too_slow.active():
                too_slow.cancel()
            return result

        connecting.addBoth(done)
        connecting.addCallbacks(self._connected, self._not_connected)
        connecting.addErrback(lambda failure: self.log.failure("A push client's connection failed", failure))

    def _not_connected(self, failure: Failure) -> None:
        self._problem = failure.value
        self._try_again()

    def _connected(self, protocol: PushProtocol) -> None:
        if self._closing is not None:
            protocol.transport.abortConnection()
            self._try_again()
            return
        self._protocol = protocol
        protocol.client = self
        if self._auth is not None:
            self._in_flight.append(_Request(self._auth, AUTH_ID))
            protocol.transport.write(self._auth)
        self._unsent = deque(request for request in self._requests if request.pause is None)
        self._flush()

    def connection_lost(self, reason: Failure) -> None:
        """What was not answered is sent over another connection."""
        self._protocol = None
        self._full = False
        self._in_flight.clear()
        self._watch()
        if not isinstance(reason.value, ConnectionAborted):
            self._problem = reason.value
        self._try_again()

    def _try_again(self) -> None:
        if self._closing is not None:
            if not self._closing.called:
                self._closing.callback(None)
        elif self._requests:
            rounds, others = divmod(self._attempts, len(self._endpoints))
            self._at = (self._at + 1) % len(self._endpoints)
            # Another one need not wait for this one. After a connection that had worked, at once, too: the server may
            # just have been restarted.
            self._connect_soon(0 if others or rounds == 0 else backoff(rounds - 1))

    def set_full(self, full: bool) -> None:
        """The transport has more, or has no more, to send than it likes."""
        self._full = full
        self._flush()

    def _watch(self, anew: bool = False) -> None:
        """See to it that a server that owes something, and is silent, does not go unnoticed.

        :param anew: it has just given a sign of life.
        """
        watchdog = self._watchdog
        owing = self._in_flight or self._full or self._closing is not None
        if self._protocol is None or not owing:
            if watchdog is not None:
                watchdog.cancel()
                self._watchdog = None
        elif watchdog is None:
            self._watchdog = self._reactor.callLater(self._timeout, self._bite)
        elif anew:
            watchdog.reset(self._timeout)

    def _bite(self) -> None:
        self._watchdog = None
        self._abort(TimeoutError(f"the server was silent for {self._timeout:g} s"))

    def _abort(self, problem: Exception) -> None:
        self._problem = problem
        if self._protocol is not None:
            self._full = True  # until it is gone: what is written now would be lost
            self._protocol.transport.abortConnection()
