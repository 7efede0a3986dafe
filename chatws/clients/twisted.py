"""A push client for Twisted: one pipelined connection, which is replaced when it breaks. Its Deferreds always fire."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.clients.protocol import (
    AUTH_ID,
    Data,
    OnlineAgent,
    PushError,
    PushRejected,
    PushResult,
    PushUnavailable,
    To,
    auth_line,
    is_retryable,
    new_key,
    online_agents,
    op_line,
    publish_line,
    retry_pause,
)
from chatws.clients.twisted_connection import PushProtocol, make_endpoints
from chatws.ids import Id
from chatws.interfaces import Reactor, TimerHandle, default_reactor

__all__ = ["PushClient", "PushError", "PushRejected", "PushResult", "PushUnavailable"]


class _PendingRequest:
    """A line and its state.

    :ivar result: the caller's Deferred; None once it has fired or was cancelled.
    :ivar expiry: the timer of the deadline.
    :ivar retry: the timer of the next attempt, while it waits for that.
    """

    __slots__ = ("ack", "attempts", "expiry", "id", "line", "result", "retry")

    def __init__(self, line: bytes, id: int | str, ack: bool = True) -> None:
        self.line = line
        self.id = id
        self.ack = ack
        self.result: Deferred[PushResult] | None = None
        self.attempts = 0
        self.expiry: TimerHandle | None = None
        self.retry: TimerHandle | None = None


class PushClient:
    """A push client for Twisted programs. Its methods are those of `BlockingPushClient`, and return Deferreds.

    It opens the connection on first use. If the connection breaks, requests without a result are sent again over a new
    one, in the same order and with the same idempotency keys, until their deadlines.

    Several endpoints are nodes of one cluster. The client keeps to the node that worked last. If that is unreachable,
    silent, `unavailable` or `overloaded`, the client sends the requests without a result to the next node.

    Every Deferred fires with a `PushResult`, or fails with `PushRejected` or `PushUnavailable`. It may be cancelled,
    which does not take back a line that was sent.

    :param endpoint: a Twisted client endpoint, or its string description: "tcp:127.0.0.1:8081", "unix:/path" (also just
        "127.0.0.1:8081"); several descriptions separated by commas; or a list of endpoints and descriptions.
    :param secret: the push secret, if the server has one.
    :param connect_timeout: seconds that one attempt to connect may take.
    :param timeout: seconds without any response, while some are pending, after which the client opens another
        connection.
    :param deadline: seconds after which a request fails. With several endpoints, `connect_timeout` and `timeout` are at
        most an equal share of it, which leaves time for the other nodes.
    :param max_pending: pending requests; further ones fail at once.
    :raises ValueError: a description is invalid.
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
        reactor: Reactor | None = None,
    ) -> None:
        reactor = reactor or default_reactor()
        self._reactor = reactor
        self._endpoints = make_endpoints(endpoint, reactor)
        self._current = 0  # index of the endpoint in use
        self._auth = auth_line(secret)
        share = deadline / len(self._endpoints) if len(self._endpoints) > 1 else math.inf
        self._connect_timeout = min(connect_timeout, share)
        self._timeout = min(timeout, share)
        self._deadline = deadline
        self._max_pending = max_pending
        self._requests: dict[_PendingRequest, None] = {}  # all pending requests, in order
        self._unsent: deque[_PendingRequest] = deque()  # to be sent as soon as possible
        self._in_flight: deque[_PendingRequest] = deque()  # sent over the open connection, without a response
        self._is_blocked = False  # the transport's buffer is full
        self._protocol: PushProtocol | None = None
        self._connecting: Deferred[Any] | None = None
        self._reconnect: TimerHandle | None = None  # the timer of the next attempt
        self._attempts = 0  # to connect, since the last response
        self._last_error: BaseException | None = None
        self._watchdog: Any = None  # IDelayedCall, for `reset`
        self._closing: Deferred[None] | None = None

    def publish(
        self,
        event: str,
        data: Data,
        *,
        to: To | None = None,
        except_user_id: Id | None = None,
        except_contact_id: Id | None = None,
        except_connection_id: str | None = None,
        key: int | str | None = None,
        transient: bool = False,
        ack: bool = True,
    ) -> Deferred[PushResult]:
        """Publish one event. See `BlockingPushClient.publish`."""
        key = new_key() if key is None else key
        line = publish_line(
            event,
            data,
            key=key,
            to=to,
            except_user_id=except_user_id,
            except_contact_id=except_contact_id,
            except_connection_id=except_connection_id,
            transient=transient,
            ack=ack,
        )
        return self._submit(_PendingRequest(line, key, ack))

    def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> Deferred[PushResult]:
        """Close the user's connections. See `BlockingPushClient.disconnect`."""
        return self._run_op("disconnect", user_id=user_id, reason=reason, ban=ban)

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> Deferred[PushResult]:
        """Unsubscribe the user's connections from the conversation."""
        return self._run_op("unsubscribe", user_id=user_id, conversation_id=conversation_id)

    def disconnect_contact(self, contact_id: Id, reason: str = "", ban: bool = False) -> Deferred[PushResult]:
        """Close the contact's connections; `ban` tells the clients not to reconnect."""
        return self._run_op("disconnect", contact_id=contact_id, reason=reason, ban=ban)

    def unsubscribe_contact(self, contact_id: Id, conversation_id: Id) -> Deferred[PushResult]:
        """Unsubscribe the contact's connections from the conversation."""
        return self._run_op("unsubscribe", contact_id=contact_id, conversation_id=conversation_id)

    def set_status(self, user_id: Id, status: str) -> Deferred[PushResult]:
        """Set the status of an agent: "online", "away" and so on."""
        return self._run_op("status", user_id=user_id, status=status)

    def set_groups(self, user_id: Id, groups: Iterable[str]) -> Deferred[PushResult]:
        """Replace the groups of the agent's present connections."""
        return self._run_op("groups", user_id=user_id, groups=[*groups])

    def online(self) -> Deferred[list[Id]]:
        """Return the agents that are online."""
        return self._run_op("presence").addCallback(lambda result: result.online or [])

    def agents(self) -> Deferred[list[OnlineAgent]]:
        """Return the agents online with their statuses and connections, in the order of `online`."""
        return self._run_op("presence", detail=True).addCallback(online_agents)

    def ping(self) -> Deferred[PushResult]:
        """Check that the server responds and accepts the secret."""
        return self._run_op("ping")

    def close(self) -> Deferred[None]:
        """Close the connection. Pending requests fail with `PushUnavailable`, and so does every later call.

        :return: fires when the connection is closed.
        """
        if self._closing is None:
            self._closing = Deferred()
            for request in list(self._requests):
                self._fail(request, PushUnavailable("the client is closed"))
            if self._reconnect is not None:
                self._reconnect.cancel()
                self._reconnect = None
            if self._connecting is not None:
                self._connecting.cancel()
            elif self._protocol is not None:
                self._protocol.transport.unregisterProducer()
                self._protocol.transport.loseConnection()
                self._update_watchdog()
            else:
                self._closing.callback(None)
        closed: Deferred[None] = Deferred()
        self._closing.addCallback(closed.callback)
        return closed

    # requests

    def _run_op(self, op: str, **fields: Any) -> Deferred[PushResult]:
        id = new_key()
        return self._submit(_PendingRequest(op_line(op, id=id, **fields), id))

    def _submit(self, request: _PendingRequest) -> Deferred[PushResult]:
        if self._closing is not None:
            return fail(PushUnavailable("the client is closed"))
        if len(self._requests) >= self._max_pending:
            return fail(PushUnavailable(f"{self._max_pending} requests are pending"))
        result: Deferred[PushResult] = Deferred(lambda _: self._cancel(request))
        request.result = result
        request.expiry = self._reactor.callLater(self._deadline, self._expire, request)
        self._requests[request] = None
        self._send_soon(request)
        return result

    def _send_soon(self, request: _PendingRequest) -> None:
        request.retry = None
        self._unsent.append(request)
        if self._protocol is not None:
            self._flush()
        else:
            self._connect_soon(0)

    def _flush(self) -> None:
        while self._unsent and self._protocol is not None and not self._is_blocked:
            request = self._unsent.popleft()
            if request.result is None:
                continue
            if request.ack:
                self._in_flight.append(request)
            self._protocol.transport.write(request.line)
            if not request.ack:
                self._succeed(request, PushResult(True, request.id))
        self._update_watchdog()

    def _cancel(self, request: _PendingRequest) -> None:
        self._forget(request)

    def _forget(self, request: _PendingRequest) -> Deferred[PushResult] | None:
        """End the request, and return the Deferred to fire."""
        result, request.result = request.result, None
        self._requests.pop(request, None)
        for timer in (request.expiry, request.retry):
            if timer is not None and timer.active():
                timer.cancel()
        return result

    def _succeed(self, request: _PendingRequest, result: PushResult) -> None:
        deferred = self._forget(request)
        if deferred is not None:
            deferred.callback(result)

    def _fail(self, request: _PendingRequest, error: PushError) -> None:
        deferred = self._forget(request)
        if deferred is not None:
            deferred.errback(error)

    def _expire(self, request: _PendingRequest) -> None:
        error = PushUnavailable(
            f"no response within {self._deadline:g} s: {self._last_error or 'the server is silent'}"
        )
        error.__cause__ = self._last_error
        self._fail(request, error)

    # responses

    def result_received(self, result: PushResult) -> None:
        """See `ConnectionEvents`. Results arrive in order. One without a request rejects an event without `ack`."""
        if not self._in_flight or result.id not in (self._in_flight[0].id, None):
            self.log.warn("an event was rejected: {code}: {reason}", code=result.code, reason=result.message)
            return
        request = self._in_flight.popleft()
        self._update_watchdog(restart=True)
        if request.line is self._auth:
            self._on_auth_result(result)
            return
        if not is_retryable(result):
            self._attempts = 0
            self._last_error = None
        if request.result is None:
            pass  # cancelled or expired
        elif result.ok:
            self._succeed(request, result)
        elif is_retryable(result) and len(self._endpoints) > 1:
            self._abort(result.error())
        elif is_retryable(result):
            self._last_error = result.error()
            request.retry = self._reactor.callLater(retry_pause(request.attempts), self._send_soon, request)
            request.attempts += 1
        else:
            self._fail(request, result.error())

    def _on_auth_result(self, result: PushResult) -> None:
        if result.ok:
            return
        if not is_retryable(result):
            self.log.error("authentication failed: {code}: {reason}", code=result.code, reason=result.message)
            for request in list(self._requests):
                self._fail(request, PushRejected(result.code, result.message))
        self._abort(result.error())

    def invalid_response(self, error: Exception) -> None:
        """See `ConnectionEvents`. The peer is not a chatws server."""
        self._abort(error)

    # the connection

    def _connect_soon(self, seconds: float) -> None:
        if self._reconnect is None and self._connecting is None:
            self._reconnect = self._reactor.callLater(seconds, self._connect)

    def _connect(self) -> None:
        self._reconnect = None
        if not self._requests:
            return  # all requests were cancelled or expired
        self._attempts += 1
        factory = Factory.forProtocol(PushProtocol)
        factory.noisy = False
        connecting: Deferred[Any] = maybeDeferred(self._endpoints[self._current].connect, factory)
        self._connecting = connecting
        timeout = self._reactor.callLater(self._connect_timeout, connecting.cancel)

        def on_done(result: Any) -> Any:
            self._connecting = None
            if timeout.active():
                timeout.cancel()
            return result

        connecting.addBoth(on_done)
        connecting.addCallbacks(self._on_connected, self._on_connect_failed)
        connecting.addErrback(lambda failure: self.log.failure("internal error in a push client's connection", failure))

    def _on_connect_failed(self, failure: Failure) -> None:
        self._last_error = failure.value
        self._schedule_reconnect()

    def _on_connected(self, protocol: PushProtocol) -> None:
        if self._closing is not None:
            protocol.transport.abortConnection()
            self._schedule_reconnect()
            return
        self._protocol = protocol
        protocol.client = self
        if self._auth is not None:
            self._in_flight.append(_PendingRequest(self._auth, AUTH_ID))
            protocol.transport.write(self._auth)
        self._unsent = deque(request for request in self._requests if request.retry is None)
        self._flush()

    def connection_lost(self, reason: Failure) -> None:
        """See `ConnectionEvents`. Pending requests are sent again over another connection."""
        self._protocol = None
        self._is_blocked = False
        self._in_flight.clear()
        self._update_watchdog()
        if not isinstance(reason.value, ConnectionAborted):
            self._last_error = reason.value
        self._schedule_reconnect()

    def _schedule_reconnect(self) -> None:
        if self._closing is not None:
            if not self._closing.called:
                self._closing.callback(None)
        elif self._requests:
            rounds, others = divmod(self._attempts, len(self._endpoints))
            self._current = (self._current + 1) % len(self._endpoints)
            # No pause before another endpoint, nor after a connection that has worked: the server may have restarted.
            self._connect_soon(0 if others or rounds == 0 else retry_pause(rounds - 1))

    def set_blocked(self, is_blocked: bool) -> None:
        """See `ConnectionEvents`."""
        self._is_blocked = is_blocked
        self._flush()

    def _update_watchdog(self, restart: bool = False) -> None:
        """Start, restart or stop the timer that detects a silent server.

        :param restart: the server has just responded.
        """
        watchdog = self._watchdog
        is_waiting = self._in_flight or self._is_blocked or self._closing is not None
        if self._protocol is None or not is_waiting:
            if watchdog is not None:
                watchdog.cancel()
                self._watchdog = None
        elif watchdog is None:
            self._watchdog = self._reactor.callLater(self._timeout, self._on_timeout)
        elif restart:
            watchdog.reset(self._timeout)

    def _on_timeout(self) -> None:
        self._watchdog = None
        self._abort(TimeoutError(f"the server was silent for {self._timeout:g} s"))

    def _abort(self, error: Exception) -> None:
        self._last_error = error
        if self._protocol is not None:
            self._is_blocked = True  # until the connection is closed: lines written now would be lost
            self._protocol.transport.abortConnection()
