"""A push client for scripts, Django and other programs that may block. Imports neither Twisted nor the server.

::

    from chatws.clients.blocking import BlockingPushClient, PushError

    push = BlockingPushClient("127.0.0.1:8081")
    try:
        push.publish("new_message", {"conversation_id": 456, "message": {"id": 9, "content": "hi"}})
    except PushError:
        ...  # the server rejected it, or there was no response within the deadline
"""

from __future__ import annotations

import logging
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from chatws.clients.addresses import parse_addresses
from chatws.clients.protocol import (
    MAX_RESPONSE_BYTES,
    ClusterNode,
    Data,
    OnlineAgent,
    OnlineConnection,
    PushError,
    PushRejected,
    PushResult,
    PushUnavailable,
    Request,
    To,
    auth_line,
    group_requests,
    is_retryable,
    new_key,
    online_agents,
    op_line,
    parse_result,
    publish_line,
    retry_delay,
)
from chatws.ids import Id

__all__ = [
    "BlockingPushClient",
    "OnlineAgent",
    "OnlineConnection",
    "PushError",
    "PushRejected",
    "PushResult",
    "PushUnavailable",
]

log = logging.getLogger(__name__)


class BlockingPushClient:
    """A push client with one connection, which it opens on first use and replaces when it breaks.

    Threads may share it (one call runs at a time), and forked processes may inherit it (each opens a connection of its
    own). A call retries with the same idempotency key until `deadline`, and then raises. It never takes longer.

    Several addresses are nodes of one cluster. The client keeps to the node that worked last. If that is unreachable,
    silent, `unavailable` or `overloaded`, the client sends the lines without a result to the next node.

    :param address: "host:port", "[::1]:port", "tls://host:port" or "unix:/path"; several separated by commas.
    :param secret: the push secret, if the server has one.
    :param tls: for TLS with the addresses that begin with tls://, or with all if none does. The certificate must match
        the host. By default, tls:// trusts the certificate authorities of the system.
    :param connect_timeout: seconds that one attempt to connect may take.
    :param timeout: seconds that one response may take before the client opens another connection.
    :param deadline: seconds that a call may take; for `publish_many`, every hundred events. With several addresses,
        `connect_timeout` and `timeout` are at most an equal share of it, which leaves time for the other nodes.
    :raises ValueError: an address is invalid.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8081",
        *,
        secret: str | bytes | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout: float = 0.2,
        timeout: float = 0.5,
        deadline: float = 5.0,
    ) -> None:
        self._addresses = parse_addresses(address)
        self._current = 0  # index of the address in use
        self._auth = auth_line(secret)
        self._is_all_tls = not any(address.tls for address in self._addresses)
        self._tls = tls if tls or self._is_all_tls else ssl.create_default_context()
        share = deadline / len(self._addresses) if len(self._addresses) > 1 else math.inf
        self._connect_timeout = min(connect_timeout, share)
        self._timeout = min(timeout, share)
        self._deadline = deadline
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._process = os.getpid()

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
    ) -> PushResult:
        """Publish one event.

        :param to: its audience, if not the default one of the event.
        :param except_user_id: an agent whose connections do not get it.
        :param except_contact_id: a contact whose connections do not get it.
        :param except_connection_id: a connection that does not get it: that of the page that caused it.
        :param key: idempotency key: a second publish with the same key within 10 minutes is not sent. Pass one if the
            program may publish the same event again; by default, every call has a new one.
        :param transient: do not store it for clients that are offline.
        :param ack: wait until it is stored and delivered. Otherwise the result is `ok` as soon as the line is sent,
            and a later rejection is only logged.
        :raises PushRejected: the event is invalid, and a retry would fail too.
        :raises PushUnavailable: there was no final response within the deadline.
        :raises TypeError: `data` cannot be encoded as JSON.
        :raises ValueError: `data` is bytes that are not a JSON object in UTF-8.
        """
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
        return self._send(Request(line, key, ack))

    def publish_many(self, publishes: Iterable[Mapping[str, Any]]) -> list[PushResult]:
        """Publish events in this order, in batches.

        :param publishes: the arguments of `publish` by name, without `ack`: `{"event": …, "data": …, "to": …}`.
        :return: the results, in the same order. Rejected events are results too: check `ok`.
        :raises PushUnavailable: some of the events were not published. A retry is only safe with keys of your own.
        """
        return [result for window in group_requests(publishes) for result in self._run(window)]

    def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> PushResult:
        """Close the user's connections; `ban` tells the clients not to reconnect. Raises as `publish`."""
        return self._run_op("disconnect", user_id=user_id, reason=reason, ban=ban)

    def unsubscribe(self, user_id: Id, conversation_id: Id) -> PushResult:
        """Unsubscribe the user's connections from the conversation. Raises as `publish`."""
        return self._run_op("unsubscribe", user_id=user_id, conversation_id=conversation_id)

    def disconnect_contact(self, contact_id: Id, reason: str = "", ban: bool = False) -> PushResult:
        """Close the contact's connections; `ban` tells the clients not to reconnect. Raises as `publish`."""
        return self._run_op("disconnect", contact_id=contact_id, reason=reason, ban=ban)

    def unsubscribe_contact(self, contact_id: Id, conversation_id: Id) -> PushResult:
        """Unsubscribe the contact's connections from the conversation. Raises as `publish`."""
        return self._run_op("unsubscribe", contact_id=contact_id, conversation_id=conversation_id)

    def set_status(self, user_id: Id, status: str) -> PushResult:
        """Set the status of an agent: "online", "away" and so on. Raises as `publish`."""
        return self._run_op("status", user_id=user_id, status=status)

    def set_groups(self, user_id: Id, groups: Iterable[str]) -> PushResult:
        """Replace the groups of the agent's present connections. Raises as `publish`."""
        return self._run_op("groups", user_id=user_id, groups=[*groups])

    def sync_webhooks(self) -> PushResult:
        """Make the server send the whole state to the receiver of its webhooks. Raises as `publish`."""
        return self._run_op("webhook_sync")

    def online(self) -> list[Id]:
        """Return the agents that are online: integers first, then strings, each sorted. Raises as `publish`."""
        return self._run_op("presence").online or []

    def agents(self) -> list[OnlineAgent]:
        """Return the agents online, their statuses and connections, in the order of `online`. Raises as `publish`."""
        return online_agents(self._run_op("presence", detail=True))

    def nodes(self) -> list[ClusterNode]:
        """Return the nodes that share the broker. Raises as `publish`."""
        return self._run_op("nodes").nodes or []

    def rebalance(self, node: str, count: int, *, seconds: float = 30.0, drain: bool = False) -> None:
        """Close connections of a node over some seconds. Raises as `publish`.

        :param node: the id of the node.
        :param drain: the node accepts no WebSockets until the next rebalance.
        """
        self._run_op("rebalance", node=node, count=count, seconds=seconds, drain=drain)

    def send_lines(self, lines: Sequence[tuple[bytes, int | str]]) -> tuple[list[PushResult | None], str]:
        """Send encoded lines, such as those of a spool.

        :param lines: each with its newline, and its `id`. Each must have `ack`. At most `WINDOW_LINES` with
            `WINDOW_BYTES` together, or a single line.
        :return: the results, None for a line without one within the deadline; and the error, empty if there was none.
        :raises PushRejected: the secret is wrong.
        """
        results, _, description = self._attempt([Request(line, id) for line, id in lines])
        return results, description if None in results else ""

    def ping(self) -> PushResult:
        """Check that the server responds and accepts the secret. Raises as `publish`."""
        return self._run_op("ping")

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        with self._lock:
            self._drop()

    def __enter__(self) -> BlockingPushClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # calls

    def _run_op(self, op: str, **fields: Any) -> PushResult:
        id = new_key()
        return self._send(Request(op_line(op, id=id, **fields), id))

    def _send(self, request: Request) -> PushResult:
        result = self._run([request])[0]
        if not result.ok:
            raise result.error()
        return result

    def _run(self, requests: Sequence[Request]) -> list[PushResult]:
        """Return the results of all requests.

        :raises PushUnavailable: a request has none within the deadline.
        """
        results, error, description = self._attempt(requests)
        final = [result for result in results if result is not None]
        if len(final) < len(results):
            raise PushUnavailable(f"no response within {self._deadline:g} s: {description}") from error
        return final

    def _attempt(self, requests: Sequence[Request]) -> tuple[list[PushResult | None], Exception | None, str]:
        """Send the requests until each has a final result, or the deadline has passed.

        :return: the results, the last error, and its description: with several addresses, the last error of each.
        """
        self._check_fork()
        until = time.monotonic() + self._deadline
        results: list[PushResult | None] = [None] * len(requests)
        last_error: Exception | None = None
        errors: dict[str, Exception] = {}
        has_others = len(self._addresses) > 1
        if not self._lock.acquire(timeout=self._deadline):
            raise PushUnavailable("the pushes of other threads took the whole deadline")
        try:
            for attempt in range(1_000_000):
                pending = [index for index, result in enumerate(results) if result is None or is_retryable(result)]
                if not pending:
                    break
                if attempt:
                    pause = retry_delay(attempt, len(self._addresses), isinstance(last_error, OSError))
                    if time.monotonic() + pause >= until:
                        break
                    time.sleep(pause)
                try:
                    self._exchange(requests, pending, results, until)
                    last_error = None
                    if has_others and any(is_retryable(result) for result in results if result is not None):
                        self._next_address()
                except (OSError, msgspec.DecodeError) as error:
                    last_error = errors[self._addresses[self._current].text] = error
                    self._next_address()
                except BaseException:
                    self._drop()  # a late response must not be taken for that of another call
                    raise
        finally:
            self._lock.release()
        if last_error is None or not has_others:
            return results, last_error, str(last_error or "the server is silent")
        return results, last_error, "; ".join(f"{address}: {error}" for address, error in errors.items())

    def _exchange(
        self, requests: Sequence[Request], pending: Sequence[int], results: list[PushResult | None], until: float
    ) -> None:
        """Send the requests at the positions `pending`, and put their results into `results`."""
        is_new = self._open(until)
        lines = b"".join(requests[index].line for index in pending)
        connection = self._socket_until(until)
        connection.sendall(self._auth + lines if is_new and self._auth else lines)
        if is_new and self._auth:
            result = self._read_result(until)
            if is_retryable(result):
                raise ConnectionRefusedError(f"{result.code}: {result.message}")
            if not result.ok:
                raise result.error()
        for index in pending:
            request = requests[index]
            if not request.ack:
                results[index] = PushResult(True, request.id)
                continue
            while (result := self._read_result(until)).id not in (request.id, None):
                log.warning("an event was rejected: %s: %s (id %s)", result.code, result.message, result.id)
            results[index] = result
            if result.code == "line_too_long":
                raise ConnectionAbortedError("the server closed the connection after a line that was too long")

    def _read_result(self, until: float) -> PushResult:
        while (end := self._buffer.find(b"\n")) < 0:
            received = self._socket_until(until).recv(65536)
            if not received:
                raise ConnectionResetError("the server closed the connection")
            self._buffer += received
            if len(self._buffer) > MAX_RESPONSE_BYTES:
                raise ConnectionAbortedError("the response is too long")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return parse_result(line)

    # the connection

    def _socket_until(self, until: float) -> socket.socket:
        """Return the socket, with the timeout of the next operation.

        :raises TimeoutError: the deadline has passed.
        """
        assert self._socket is not None
        remaining = until - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline has passed")
        self._socket.settimeout(min(self._timeout, remaining))
        return self._socket

    def _open(self, until: float) -> bool:
        """Open a connection if there is none. Return whether it is new."""
        if self._socket is not None and not self._is_alive(self._socket):
            self._drop()
        if self._socket is not None:
            return False
        seconds = min(self._connect_timeout, until - time.monotonic())
        if seconds <= 0:
            raise TimeoutError("the deadline has passed")
        address = self._addresses[self._current]
        self._socket = address.connect(seconds, self._tls if address.tls or self._is_all_tls else None)
        return True

    def _is_alive(self, connection: socket.socket) -> bool:
        """Return whether the server has not closed the connection. Late rejections go into the buffer."""
        connection.settimeout(0)
        try:
            received = connection.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        self._buffer += received
        return bool(received)

    def _check_fork(self) -> None:
        """Reset the client in a forked process: its connection and its lock belong to the parent."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._lock = threading.Lock()
            self._drop()

    def _next_address(self) -> None:
        """Close the connection, and use the next address from now on."""
        self._drop()
        self._current = (self._current + 1) % len(self._addresses)

    def _drop(self) -> None:
        self._buffer.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
