"""A push client for asyncio: FastAPI, Django's async views and other programs. Imports neither Twisted nor the server.

::

    from chatws.clients.asyncio import AsyncPushClient, PushError

    push = AsyncPushClient("127.0.0.1:8081")
    try:
        await push.publish("new_message", {"conversation_id": 456, "message": {"id": 9, "content": "hi"}})
    except PushError:
        ...  # the server rejected it, or there was no response within the deadline
"""

from __future__ import annotations

import asyncio
import math
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from chatws.clients.addresses import Address, parse_addresses
from chatws.clients.asyncio_connection import AsyncConnection
from chatws.clients.protocol import (
    AUTH_ID,
    MAX_RESPONSE_BYTES,
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
    publish_line,
    retry_delay,
)
from chatws.ids import Id

__all__ = [
    "AsyncPushClient",
    "OnlineAgent",
    "OnlineConnection",
    "PushError",
    "PushRejected",
    "PushResult",
    "PushUnavailable",
]


class AsyncPushClient:
    """A push client with one connection per event loop, which it opens on first use and replaces when it breaks.

    Tasks may share it: their lines are sent without waiting for each other's responses. Event loops may share it too,
    as Django runs each async view in a loop of its own under WSGI. A call retries with the same idempotency key until
    `deadline`, and then raises. A call may be cancelled, which does not take back a line that was sent.

    Several addresses are nodes of one cluster. The client keeps to the node that worked last. If that is unreachable,
    silent, `unavailable` or `overloaded`, the client sends the lines without a result to the next node.

    :param address: "host:port", "[::1]:port", "tls://host:port" or "unix:/path"; several separated by commas.
    :param secret: the push secret, if the server has one.
    :param tls: for TLS with the addresses that begin with tls://, or with all if none does. The certificate must match
        the host. By default, tls:// trusts the certificate authorities of the system.
    :param connect_timeout: seconds that one attempt to connect may take.
    :param timeout: seconds without any response, while some are pending, after which the client opens another
        connection.
    :param deadline: seconds that a call may take; for `publish_many`, every hundred events. With several addresses,
        `connect_timeout` and `timeout` are at most an equal share of it, which leaves time for the other nodes.
    :param max_pending: lines without a response; further calls raise `PushUnavailable` at once.
    :raises ValueError: an address is invalid.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:8081",
        *,
        secret: str | bytes | None = None,
        tls: ssl.SSLContext | None = None,
        connect_timeout: float = 1.0,
        timeout: float = 2.0,
        deadline: float = 5.0,
        max_pending: int = 10_000,
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
        self._max_pending = max_pending
        self._pending = 0
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, _Slot] = WeakKeyDictionary()
        self._slots_lock = threading.Lock()

    async def publish(
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
        return await self._send(Request(line, key, ack))

    async def publish_many(self, publishes: Iterable[Mapping[str, Any]]) -> list[PushResult]:
        """Publish events in this order, in batches. See `BlockingPushClient.publish_many`."""
        results: list[PushResult] = []
        for requests in group_requests(publishes):
            results += await self._run(requests)
        return results

    async def disconnect(self, user_id: Id, reason: str = "", ban: bool = False) -> PushResult:
        """Close the user's connections; `ban` tells the clients not to reconnect. Raises as `publish`."""
        return await self._run_op("disconnect", user_id=user_id, reason=reason, ban=ban)

    async def unsubscribe(self, user_id: Id, conversation_id: Id) -> PushResult:
        """Unsubscribe the user's connections from the conversation. Raises as `publish`."""
        return await self._run_op("unsubscribe", user_id=user_id, conversation_id=conversation_id)

    async def disconnect_contact(self, contact_id: Id, reason: str = "", ban: bool = False) -> PushResult:
        """Close the contact's connections; `ban` tells the clients not to reconnect. Raises as `publish`."""
        return await self._run_op("disconnect", contact_id=contact_id, reason=reason, ban=ban)

    async def unsubscribe_contact(self, contact_id: Id, conversation_id: Id) -> PushResult:
        """Unsubscribe the contact's connections from the conversation. Raises as `publish`."""
        return await self._run_op("unsubscribe", contact_id=contact_id, conversation_id=conversation_id)

    async def set_status(self, user_id: Id, status: str) -> PushResult:
        """Set the status of an agent: "online", "away" and so on. Raises as `publish`."""
        return await self._run_op("status", user_id=user_id, status=status)

    async def set_groups(self, user_id: Id, groups: Iterable[str]) -> PushResult:
        """Replace the groups of the agent's present connections. Raises as `publish`."""
        return await self._run_op("groups", user_id=user_id, groups=[*groups])

    async def online(self) -> list[Id]:
        """Return the agents that are online: integers first, then strings, each sorted. Raises as `publish`."""
        return (await self._run_op("presence")).online or []

    async def agents(self) -> list[OnlineAgent]:
        """Return the agents online, their statuses and connections, in the order of `online`. Raises as `publish`."""
        return online_agents(await self._run_op("presence", detail=True))

    async def ping(self) -> PushResult:
        """Check that the server responds and accepts the secret. Raises as `publish`."""
        return await self._run_op("ping")

    async def close(self) -> None:
        """Close the connection of the running event loop. A later call opens a new one."""
        slot = self._slot()
        async with slot.lock:
            if (connection := slot.connection) is not None:
                connection.fail(ConnectionAbortedError("the client is closed"))
                await connection.wait_closed()

    async def __aenter__(self) -> AsyncPushClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    # calls

    async def _run_op(self, op: str, **fields: Any) -> PushResult:
        id = new_key()
        return await self._send(Request(op_line(op, id=id, **fields), id))

    async def _send(self, request: Request) -> PushResult:
        result = (await self._run([request]))[0]
        if not result.ok:
            raise result.error()
        return result

    async def _run(self, requests: Sequence[Request]) -> list[PushResult]:
        """Return the final results of all requests.

        :raises PushUnavailable: a request has none within the deadline, or too many are pending.
        """
        if self._pending + len(requests) > self._max_pending:
            raise PushUnavailable(f"{self._pending} requests are pending")
        self._pending += len(requests)
        results: list[PushResult | None] = [None] * len(requests)
        errors: dict[str, Exception] = {}
        try:
            async with asyncio.timeout(self._deadline):
                await self._attempt(requests, results, errors)
        except TimeoutError:
            pass  # `results` has what came within the deadline
        finally:
            self._pending -= len(requests)
        final = [result for result in results if result is not None]
        if len(final) < len(results):
            described = "; ".join(f"{address}: {error}" for address, error in errors.items()) or "the server is silent"
            error = next(reversed(errors.values()), None)
            raise PushUnavailable(f"no response within {self._deadline:g} s: {described}") from error
        return final

    async def _attempt(
        self, requests: Sequence[Request], results: list[PushResult | None], errors: dict[str, Exception]
    ) -> None:
        """Send the requests until each has a final result.

        :param results: get the result of each request.
        :param errors: get the last error of each address.
        """
        slot = self._slot()
        attempt = 0
        error: Exception | None = None
        while pending := [index for index, result in enumerate(results) if result is None or is_retryable(result)]:
            if attempt:
                await asyncio.sleep(retry_delay(attempt, len(self._addresses), isinstance(error, OSError)))
            attempt += 1
            address, error = self._addresses[self._current], None
            try:
                connection = await self._connection(slot)
                address = connection.address
                await connection.exchange(requests, pending, results, self._timeout)
                if len(self._addresses) > 1 and any(result and is_retryable(result) for result in results):
                    self._leave(slot, connection)
            except OSError as failure:
                error = errors[address.text] = failure

    def _slot(self) -> _Slot:
        """Return the slot of the running event loop."""
        with self._slots_lock:
            return self._slots.setdefault(asyncio.get_running_loop(), _Slot())

    async def _connection(self, slot: _Slot) -> AsyncConnection:
        """Return the open connection, or a new one to the current address.

        :raises OSError: the connection failed, and the next address is now the current one.
        :raises PushRejected: the secret is wrong.
        """
        async with slot.lock:
            if slot.connection is None:
                try:
                    slot.connection = await self._open(slot, self._addresses[self._current])
                except OSError:
                    self._next_address()
                    raise
            return slot.connection

    async def _open(self, slot: _Slot, address: Address) -> AsyncConnection:
        try:
            async with asyncio.timeout(self._connect_timeout):
                streams = await self._open_streams(address)
        except TimeoutError:
            raise TimeoutError(f"no connection within {self._connect_timeout:g} s") from None
        connection = AsyncConnection(address, *streams, lambda is_idle: self._on_closed(slot, connection, is_idle))
        try:
            await self._authenticate(connection)
        except BaseException:
            connection.fail(ConnectionAbortedError("not authenticated"))
            raise
        return connection

    async def _open_streams(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if address.port is None:
            return await asyncio.open_unix_connection(address.host, limit=MAX_RESPONSE_BYTES)
        context = self._tls if address.tls or self._is_all_tls else None
        return await asyncio.open_connection(
            address.host,
            address.port,
            limit=MAX_RESPONSE_BYTES,
            ssl=context,
            server_hostname=address.host if context else None,
        )

    async def _authenticate(self, connection: AsyncConnection) -> None:
        """Send the secret, if there is one.

        :raises OSError: there was no response, or the server is overloaded.
        :raises PushRejected: the secret is wrong.
        """
        if self._auth is None:
            return
        results: list[PushResult | None] = [None]
        await connection.exchange([Request(self._auth, AUTH_ID)], [0], results, self._timeout)
        for result in results:
            if result is not None and is_retryable(result):
                raise ConnectionRefusedError(f"{result.code}: {result.message}")
            if result is not None and not result.ok:
                raise result.error()

    def _on_closed(self, slot: _Slot, connection: AsyncConnection, is_idle: bool) -> None:
        """Forget a closed connection. One that closes while it is idle tells nothing about the node."""
        if slot.connection is connection:
            slot.connection = None  # it refers to the event loop, which must not outlive its program
            if not is_idle:
                self._next_address()

    def _leave(self, slot: _Slot, connection: AsyncConnection) -> None:
        """Use the next address from now on. Other calls still get their responses from `connection`."""
        if slot.connection is connection:
            slot.connection = None
            connection.retire()
            self._next_address()

    def _next_address(self) -> None:
        self._current = (self._current + 1) % len(self._addresses)


class _Slot:
    """The connection of an event loop, and the lock of the task that opens one."""

    def __init__(self) -> None:
        self.connection: AsyncConnection | None = None
        self.lock = asyncio.Lock()
