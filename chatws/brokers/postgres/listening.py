"""LISTEN on a connection of its own: kept, looked after, and replaced."""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.brokers.postgres import wire
from chatws.database.postgres import PostgresConnection, one_line
from chatws.database.postgres_pool import PostgresDatabase

__all__ = ["Listening"]

#: Seconds: the first pause after a connection was lost, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class Listening:
    """Hears what is notified on the channel `chatws`.

    A connection that ended is replaced at once; one on which a question is not answered, because something between
    swallows everything, within twice the interval.

    :param database: where to LISTEN; started.
    :param say: sends a payload to that channel over another connection: when it is not heard, LISTEN is of no use here.
    :param heard: called with each payload, and with "" when something may have been missed.
    :param interval: seconds between two questions, and for an answer.
    """

    _log = Logger()

    def __init__(
        self,
        database: PostgresDatabase,
        say: Callable[[str], Awaitable[object]],
        heard: Callable[[str], None],
        *,
        interval: float,
        reactor: Any,
    ) -> None:
        self._database = database
        self._say = say
        self._heard = heard
        self._interval = interval
        self._reactor = reactor
        self._running = False
        self._connection: PostgresConnection | None = None
        self._napping: Deferred[None] | None = None
        self._ended: Deferred[None] | None = None
        self._hello = ""
        self._greeted = False

    def start(self) -> None:
        """Begin to listen, and never end but by `stop`."""
        self._running = True
        self._ended = Deferred.fromCoroutine(self._keep())
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

    async def _keep(self) -> None:
        failures = 0
        while self._running:
            began = self._reactor.seconds()
            try:
                await self._listen()
            except Exception as error:
                self._log.debug("LISTEN failed: {error}", error=one_line(error))
            if self._reactor.seconds() - began > self._interval:
                failures = 0
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures, 10)) * random.uniform(0.5, 1)
            failures += 1
            await self._nap(pause)

    async def _listen(self) -> None:
        """One connection's life."""
        connection = await self._database.connect(self._lost)
        self._connection = connection
        try:
            connection.addNotifyObserver(self._notified)
            await self._ask(connection, wire.LISTEN)
            self._heard("")
            self._hello, self._greeted = f"hello:{secrets.token_hex(8)}", False
            await self._say(self._hello)
            await self._nap(self._interval)
            if not self._greeted and not connection.is_dead:
                self._log.warn(
                    "PostgreSQL's notifications do not arrive, so events of other nodes may be a second late: is there "
                    "a connection pooler between? Then give --broker-listen a URL past it, or set --broker-poll"
                )
            while self._running and not connection.is_dead:
                await self._ask(connection, "SELECT 1")
                # what came along with the answer
                connection.checkForNotifies()
                await self._nap(self._interval)
        finally:
            self._connection = None
            connection.close()
            self._heard("")

    def _lost(self, connection: PostgresConnection) -> None:
        if connection is self._connection:
            self._wake()

    def _notified(self, notify: Any) -> None:
        payload: str = notify.payload
        if payload.startswith("hello:"):
            self._greeted = self._greeted or payload == self._hello
        else:
            self._heard(payload)

    async def _ask(self, connection: PostgresConnection, sql: str) -> None:
        """Closing the connection is what ends a question: to cancel it would make libpq connect, and block."""
        timer = self._reactor.callLater(self._interval, connection.close)
        try:
            await connection.ask(sql)
        finally:
            if timer.active():
                timer.cancel()

    async def _nap(self, seconds: float) -> None:
        """For so many seconds, or until the connection is lost, or all is to end."""
        if not self._running or (self._connection is not None and self._connection.is_dead):
            return
        self._napping = Deferred()
        timer = self._reactor.callLater(seconds, self._wake)
        await self._napping
        if timer.active():
            timer.cancel()

    def _wake(self) -> None:
        napping, self._napping = self._napping, None
        if napping is not None:
            napping.callback(None)
