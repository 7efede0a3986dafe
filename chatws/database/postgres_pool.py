"""A pool of connections to PostgreSQL that heals itself.

txpostgres own pool never replaces a connection that died, so this one is ours. What it does when something breaks:

- A connection that ends (the server stopped, `pg_terminate_backend`) is noticed at once, as each idle one is watched.
- A connection that is silent beyond the timeout is closed, and with it the idle ones not heard from since: whatever
  swallowed one (a firewall that forgot, a frozen host) has most likely swallowed them all.
- Missing connections are opened one at a time, after a failure with a growing and jittered pause. The time one attempt
  may take plus the longest pause is less than the timeout, so that a query that is asked when the database is back
  finds a connection before its time is up.
- A query that is too slow is ended by PostgreSQL itself (`statement_timeout`, a little below ours): closing a socket
  does not stop a backend, and the abandoned ones would pile up.

A host name is resolved by the reactor: libpq would block in getaddrinfo, and every browser with it. A list of hosts
(`h1,h2`) is left to libpq: there, give addresses.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TwistedTimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.database.contract import Row, Values
from chatws.database.postgres import ConnectionDied, GivenUp, PostgresConnection, one_line
from chatws.database.resolve import resolve
from chatws.errors import Unavailable

__all__ = ["PostgresDatabase"]

T = TypeVar("T")

#: Queries that may wait for a connection. One more is refused at once.
MAX_WAITING = 10_000
#: How often a query is asked again because its connection died under it.
MAX_RETRIES = 2
#: Statements of `execute_many` that travel together.
CHUNK = 100
#: The part of the timeout after which a connection without an answer is suspect. By then `statement_timeout` would have
#: given one; and a caller who is told at the timeout, and asks again, does not get another connection as dead.
SILENCE = 0.95
#: Seconds: the first pause after a failed attempt to connect, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: Seconds. A connection that ends sooner was hardly one.
YOUNG = 1.0
#: Seconds between two complaints of the lesser sort.
COMPLAINT_INTERVAL = 60.0


class PostgresDatabase:
    """See chatws.database.contract.Database.

    :param parameters: as `connection_parameters` gives.
    :param pool: how many connections are kept open.
    :param timeout: seconds that a query may take, from the call to the answer.
    :param jitter: gives a number from 0 to 1.
    :ivar name: what the log calls it.
    """

    _log = Logger()

    def __init__(
        self,
        parameters: dict[str, Any],
        *,
        pool: int,
        timeout: float,
        reactor: Any,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._parameters = parameters
        self._size = pool
        self._timeout = timeout
        self._reactor = reactor
        self._jitter = jitter
        self._running = False
        self._idle: list[PostgresConnection] = []
        self._busy: set[PostgresConnection] = set()
        self._connecting: set[PostgresConnection] = set()
        self._queue: deque[Deferred[PostgresConnection]] = deque()
        self._serving = False
        self._filling = False
        # connections in a row that ended as soon as they were there
        self._stillborn = 0
        # what attempts to connect wait for, apart from the connection itself
        self._pauses: set[Deferred[Any]] = set()
        self._healthy = False
        self._trouble: str | None = None
        self.name = "the database"
        self._complained_at = float("-inf")

    # --- the contract ---

    @property
    def healthy(self) -> bool:
        return self._healthy

    @property
    def trouble(self) -> str:
        """Why it cannot be asked, as the log says it; empty when nothing is known to be wrong."""
        return self._trouble or ""

    def start(self) -> Deferred[None]:
        self._running = True
        self._fill()
        return succeed(None)

    async def query(self, sql: str, values: Values) -> list[Row]:
        rows, _ = await self._run(lambda connection: connection.ask(sql, values), retries=MAX_RETRIES)
        return rows

    async def execute(self, sql: str, values: Values) -> int:
        _, count = await self._run(lambda connection: connection.ask(sql, values), retries=0)
        return count

    async def once(self, sql: str, values: Values, until: float | None = None) -> list[Row]:
        """As `execute`, for a statement that changes rows and also returns some.

        :param until: the reactor's seconds at which to give up, if that is sooner than the timeout.
        """
        rows, _ = await self._run(lambda connection: connection.ask(sql, values), retries=0, until=until)
        return rows

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        refused = 0
        for start in range(0, len(batch), CHUNK):
            part = batch[start : start + CHUNK]
            refused += await self._run(partial(PostgresConnection.ask_all, sql=sql, batch=part), retries=0)
        return refused

    def stop(self) -> Deferred[None]:
        self._running = False
        self._healthy = False
        for pause in [*self._pauses]:
            pause.cancel()
        for connection in [*self._connecting, *self._idle, *self._busy]:
            connection.close()
        self._idle.clear()
        while self._queue:
            self._queue.popleft().errback(Unavailable("the server is stopping"))
        return succeed(None)

    async def connect(self, on_lost: Callable[[PostgresConnection], None] | None = None) -> PostgresConnection:
        """One more connection, outside the pool and not watched over by it: for LISTEN.

        :raises Exception: of many kinds; the database cannot be reached now.
        """
        limit = self._timeout / 2
        until = self._reactor.seconds() + limit
        parameters = await self._resolved(limit)
        if not self._running:
            raise Unavailable("the server is stopping")
        connection = PostgresConnection(self._reactor, on_lost)
        # libpq's connect_timeout binds its own loop alone, not one that polls as the reactor does
        timer = self._reactor.callLater(max(0.0, until - self._reactor.seconds()), connection.close)
        self._connecting.add(connection)
        try:
            await connection.connect(**parameters)
        except Exception as error:
            connection.close()
            if timer.active():
                raise
            raise TimeoutError(f"no answer to an attempt to connect within {limit:g} s") from error
        finally:
            self._connecting.discard(connection)
            if timer.active():
                timer.cancel()
        connection.opened_at = connection.heard_at = self._reactor.seconds()
        return connection

    # --- the pool ---

    async def _resolved(self, limit: float) -> dict[str, Any]:
        """The parameters with the host's addresses, so that libpq need not look for them."""
        host = self._parameters.get("host", "")
        if not host or "/" in host or host.startswith("@") or "," in host or "hostaddr" in self._parameters:
            return dict(self._parameters)
        try:
            found = await self._paused(resolve(self._reactor, host).addTimeout(limit, self._reactor))
        except TwistedTimeoutError:
            found = []
        if not found:
            raise OSError(f"the name of the database's host, {host}, cannot be resolved")
        return {**self._parameters, "host": ",".join([host] * len(found)), "hostaddr": ",".join(found)}

    async def _paused(self, deferred: Deferred[T]) -> T:
        self._pauses.add(deferred)
        try:
            return await deferred
        finally:
            self._pauses.discard(deferred)

    def _fill(self) -> None:
        """See to it that missing connections are opened."""
        if self._running and not self._filling and len(self._idle) + len(self._busy) < self._size:
            self._filling = True
            Deferred.fromCoroutine(self._open_missing()).addErrback(self._gave_up)

    def _gave_up(self, failure: Failure) -> None:
        self._log.failure("connections to {database} are not opened until the next query", failure, database=self.name)

    async def _open_missing(self) -> None:
        try:
            failures = self._stillborn
            while self._running and len(self._idle) + len(self._busy) < self._size:
                try:
                    if self._stillborn:
                        await self._back_off(self._stillborn)
                    connection = await self.connect(self._lost)
                except Exception as error:
                    if self._running:
                        self._cannot_connect(one_line(error))
                        await self._back_off(failures)
                        failures += 1
                else:
                    failures = 0
                    self._well()
                    self._idle.append(connection)
                    self._serve()
        finally:
            self._filling = False

    async def _back_off(self, failures: int) -> None:
        longest = min(LONGEST_PAUSE, self._timeout / 4)
        pause = min(longest, FIRST_PAUSE * 2 ** min(failures, 20)) * (0.5 + self._jitter() / 2)
        with suppress(CancelledError):
            await self._paused(deferLater(self._reactor, pause))

    def _lost(self, connection: PostgresConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
            self._note_death(connection)
            self._fill()

    def _note_death(self, connection: PostgresConnection) -> None:
        """Whoever lets one in only to drop it is not to be asked again without a pause."""
        young = self._reactor.seconds() - connection.opened_at < YOUNG
        self._stillborn = self._stillborn + 1 if young else 0

    def _acquire(self, until: float) -> Deferred[PostgresConnection]:
        if self._running and len(self._queue) < MAX_WAITING:
            waiter: Deferred[PostgresConnection] = Deferred(self._queue.remove)
            self._queue.append(waiter)
            self._within(waiter, until)
            self._serve()
            self._fill()
            return waiter
        return fail(Unavailable("the database cannot be asked now"))

    def _serve(self) -> None:
        """Hand idle connections to those who wait. A loop, as a query may be over before it was begun."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._idle and self._queue:
                connection = self._idle.pop()
                if not connection.is_dead:
                    self._busy.add(connection)
                    self._queue.popleft().callback(connection)
        finally:
            self._serving = False

    async def _run(
        self,
        work: Callable[[PostgresConnection], Coroutine[Any, Any, T]],
        *,
        retries: int,
        until: float | None = None,
    ) -> T:
        began = self._reactor.seconds()
        limit = began + self._timeout
        until = limit if until is None else min(until, limit)
        while True:
            connection = await self._acquire(until)
            try:
                return await self._use(connection, work, until)
            except ConnectionDied as error:
                if retries <= 0 or not self._running or self._reactor.seconds() >= until:
                    raise Unavailable("the database cannot be asked now") from error
                # one from before may have died of what ended them all; there are only so many of those
                if connection.opened_at >= began:
                    retries -= 1
            except GivenUp as error:
                self._complain("{database} gave a query up: {reason}", error.reason)
                raise

    def _use(
        self,
        connection: PostgresConnection,
        work: Callable[[PostgresConnection], Coroutine[Any, Any, T]],
        until: float,
    ) -> Deferred[T]:
        """Work with a connection. The caller's time ends at `until`; the connection has one of its own."""
        answer: Deferred[T] = Deferred()
        limit = self._timeout * SILENCE
        watchdog = self._reactor.callLater(limit, self._suspect, connection, self._reactor.seconds())

        def finished(result: T | Failure) -> None:
            if watchdog.active():
                watchdog.cancel()
            self._busy.discard(connection)
            if not connection.is_dead and self._running:
                self._well()
                self._stillborn = 0
                self._idle.append(connection)
            else:
                connection.close()
                self._note_death(connection)
            if not answer.called:
                answer.callback(result)
            self._serve()
            self._fill()

        Deferred.fromCoroutine(work(connection)).addBoth(finished)
        return self._within(answer, until)

    def _suspect(self, connection: PostgresConnection, asked_at: float) -> None:
        self._in_trouble(f"no answer to a query within {self._timeout:g} s")
        for other in [one for one in self._idle if one.heard_at < asked_at]:
            self._idle.remove(other)
            other.close()
        connection.close()

    def _within(self, deferred: Deferred[T], until: float) -> Deferred[T]:
        """Let `deferred` fail with `Unavailable` at `until`."""

        def too_late(_: object, seconds: float) -> Failure:
            return Failure(Unavailable("the database gives no answer"))  # type: ignore[no-untyped-call]

        return deferred.addTimeout(max(0.0, until - self._reactor.seconds()), self._reactor, too_late)

    # --- what the operator hears ---

    def _cannot_connect(self, reason: str) -> None:
        if self._idle or self._busy:
            self._complain("no further connection to {database} can be opened: {reason}", reason)
        else:
            self._in_trouble(reason)

    def _in_trouble(self, reason: str) -> None:
        self._healthy = False
        if self._trouble != reason:
            self._trouble = reason
            self._log.warn("{database} cannot be asked: {reason}", database=self.name, reason=reason)

    def _well(self) -> None:
        self._healthy = True
        if self._trouble is not None:
            self._trouble = None
            self._log.info("{database} answers again", database=self.name)

    def _complain(self, text: str, reason: str) -> None:
        now = self._reactor.seconds()
        if now - self._complained_at >= COMPLAINT_INTERVAL:
            self._complained_at = now
            self._log.warn(text, database=self.name, reason=reason)
