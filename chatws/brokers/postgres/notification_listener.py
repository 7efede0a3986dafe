"""LISTEN on a connection of its own, which is checked and replaced."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.brokers.postgres import messages
from chatws.database.pool import one_line
from chatws.database.postgres_connection import PostgresConnection
from chatws.database.postgres_pool import PostgresDatabase
from chatws.interfaces import Clock
from chatws.runtime.backoff import backoff
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["NotificationListener"]

#: Seconds before a new connection: the first pause and the longest. POLL_INTERVAL bounds the delay of events anyway.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class NotificationListener:
    """Receives the notifications on the channel `chatws`.

    A connection that ended is replaced at once. A connection without a response, because a device in between drops
    packets, is replaced within twice the interval.

    :param database: where to LISTEN; started.
    :param notify: sends a payload to that channel over another connection, to check that notifications arrive.
    :param on_payload: called with each payload, and with "" when notifications may have been missed.
    :param interval: seconds between two checks of the connection, and for each response.
    """

    _log = Logger()

    def __init__(
        self,
        database: PostgresDatabase,
        notify: Callable[[str], Awaitable[object]],
        on_payload: Callable[[str], None],
        *,
        interval: float,
        reactor: Clock,
    ) -> None:
        self._database = database
        self._notify = notify
        self._on_payload = on_payload
        self._interval = interval
        self._reactor = reactor
        self._throttled_log = ThrottledLog(self._log, reactor)
        self._running = False
        self._connection: PostgresConnection | None = None
        self._sleeping: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        self._probe = ""
        self._probe_received = False

    def start(self) -> None:
        """Begin to listen, until `stop`."""
        self._running = True
        self._ended = Deferred.fromCoroutine(self._run())
        self._ended.addErrback(lambda failure: self._log.failure("LISTEN has ended", failure))

    async def stop(self) -> None:
        """Close the connection. Idempotent."""
        self._running = False
        if self._connection is not None:
            self._connection.close()
        self._wake()
        ended, self._ended = self._ended, None
        if ended is not None:
            await ended

    async def _run(self) -> None:
        failures = 0
        while self._running:
            started_at = self._reactor.seconds()
            reason = "it was closed"
            try:
                await self._listen()
            except Exception as error:
                reason = one_line(error)
            if self._running:
                self._throttled_log.warn(
                    "failed",
                    "the connection for PostgreSQL's notifications has failed, events of other nodes may be a second "
                    "late until there is a new one: {reason}",
                    reason=reason,
                )
            if self._reactor.seconds() - started_at > self._interval:
                failures = 0
            pause = backoff(failures, FIRST_PAUSE, LONGEST_PAUSE)
            failures += 1
            await self._sleep(pause)

    async def _listen(self) -> None:
        """Open one connection and listen until it ends."""
        connection = await self._database.connect(self._lost)
        self._connection = connection
        try:
            connection.addNotifyObserver(self._notified)
            await self._query(connection, messages.LISTEN)
            self._on_payload("")
            self._probe, self._probe_received = f"hello:{secrets.token_hex(8)}", False
            await self._notify(self._probe)
            await self._sleep(self._interval)
            if not self._probe_received and not connection.is_dead:
                self._log.warn(
                    "PostgreSQL's notifications do not arrive, so events of other nodes may be a second late: is there "
                    "a connection pooler between? Then give --broker-listen a URL past it, or set --broker-poll"
                )
            while self._running and not connection.is_dead:
                await self._query(connection, "SELECT 1")
                # psycopg2 queues the notifications that arrived with the response
                connection.checkForNotifies()
                await self._sleep(self._interval)
        finally:
            self._connection = None
            connection.close()
            self._on_payload("")

    def _lost(self, connection: PostgresConnection) -> None:
        if connection is self._connection:
            self._wake()

    def _notified(self, notify: Any) -> None:
        payload: str = notify.payload
        if payload.startswith("hello:"):
            self._probe_received = self._probe_received or payload == self._probe
        else:
            self._on_payload(payload)

    async def _query(self, connection: PostgresConnection, sql: str) -> None:
        """Query with a time-out that closes the connection. To cancel a query, libpq would connect and block."""
        timer = self._reactor.callLater(self._interval, connection.close)
        try:
            await connection.run_query(sql)
        finally:
            if timer.active():
                timer.cancel()

    async def _sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, or until the connection is lost or `stop` is called."""
        if not self._running or (self._connection is not None and self._connection.is_dead):
            return
        self._sleeping = Deferred()
        timer = self._reactor.callLater(seconds, self._wake)
        await self._sleeping
        if timer.active():
            timer.cancel()

    def _wake(self) -> None:
        sleeping, self._sleeping = self._sleeping, None
        if sleeping is not None:
            sleeping.callback(None)
