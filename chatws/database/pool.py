"""A pool of connections to a database server, which replaces dead ones. The engines subclass it.

- The reactor watches idle connections, so the end of one (server stop, `pg_terminate_backend`, `KILL`) is noticed at
  once.
- A connection that does not respond within the timeout is closed, together with the idle ones that have not responded
  since. The cause (a firewall that dropped its state, a frozen host) normally affects all of them.
- Missing connections are opened one at a time, with exponential backoff and jitter after failures. One attempt and the
  longest pause together take less than the timeout. A query sent when the database is back therefore succeeds.
- The server ends slow queries itself, below the pool's timeout. Closing the socket would not stop the query, and
  abandoned ones would accumulate.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.defer import TimeoutError as TwistedTimeoutError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.database.interface import DatabaseEngine, Row, Values
from chatws.database.resolve import resolve
from chatws.errors import Unavailable
from chatws.interfaces import Reactor, zope_clock
from chatws.runtime.backoff import backoff
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["ConnectFailed", "ConnectionDied", "DatabasePool", "PooledConnection", "QueryAborted", "one_line"]

T = TypeVar("T")

#: Queries that wait for a connection. Further ones fail at once, which bounds memory.
MAX_WAITING = 10_000
#: Retries of a query after its connection died: one that kills its backend must not do so for ever.
MAX_RETRIES = 2
#: Statements of `execute_many` in one message: few enough to end within `statement_timeout`.
BATCH_SIZE = 100
#: The part of the timeout after which a silent connection is considered dead: `statement_timeout` (0.8) would have
#: ended the query. Below 1, so that a caller that retries at the timeout does not get another dead connection.
DEAD_AFTER = 0.95
#: Seconds: the first and the longest pause after a failed attempt to connect.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: Seconds. A connection that ends sooner counts as a failed attempt to connect: a pooler or a full server does that.
MIN_LIFETIME = 1.0


class ConnectionDied(Exception):
    """The connection ended before the response."""


class ConnectFailed(Exception):
    """The server refused a connection.

    :ivar pause: seconds until the next attempt at least.
    """

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class QueryAborted(Unavailable):
    """The server aborted the query: it exceeded the server's time limit, deadlocked, or lacked a resource."""

    def __init__(self, reason: str) -> None:
        super().__init__("the database is too busy")
        self.reason = reason


def one_line(error: BaseException) -> str:
    """Return one line for the log. The messages name hosts, users and databases, never passwords."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


class PooledConnection(Protocol):
    """One connection, which runs one query at a time.

    :ivar opened_at: when it was connected, in the reactor's seconds.
    :ivar responded_at: when it last responded.
    """

    opened_at: float
    responded_at: float

    @property
    def is_dead(self) -> bool:
        """Whether it is closed, by either side."""
        ...

    def close(self) -> None:
        """Close it. Idempotent. A running query fails with `ConnectionDied`."""
        ...

    async def run_query(self, sql: str, values: Values | None = None) -> tuple[list[Row], int]:
        """Return the rows, and the number of rows returned or changed.

        :raises ConnectionDied: the connection ended, and is closed.
        :raises: as `Database.query`. The connection remains usable unless `is_dead`.
        """
        ...

    async def run_batch(self, sql: str, batch: Sequence[Values]) -> int:
        """Run `sql` for each of `batch` in order, and return how many failed with `ValueRefused`.

        :raises: as `run_query`, except `ValueRefused`.
        """
        ...


C = TypeVar("C", bound=PooledConnection)


class DatabasePool(Generic[C]):
    """See `chatws.database.interface.Database`.

    :param pool: connections that are kept open.
    :param timeout: seconds that a query may take, from the call to the response.
    :param jitter: returns a number from 0 to 1.
    :cvar engine: see `Database`.
    :cvar max_age: seconds after which a connection is replaced; 0 for never.
    :ivar name: the name in log lines.
    :ivar timeout: as the parameter. A change applies to later queries and connections.
    """

    engine: DatabaseEngine
    max_age = 0.0
    _log = Logger()

    def __init__(
        self,
        *,
        pool: int,
        timeout: float,
        reactor: Reactor,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._size = pool
        self.timeout = timeout
        self._reactor: Reactor = reactor
        self._jitter = jitter
        self._running = False
        self._idle: list[C] = []
        self._busy: set[C] = set()
        self._connecting: set[C] = set()
        self._queue: deque[Deferred[C]] = deque()
        self._serving = False
        self._filling = False
        # connections in a row that ended within MIN_LIFETIME
        self._early_losses = 0
        # pauses and name lookups, which `stop` cancels
        self._pauses: set[Deferred[Any]] = set()
        self._healthy = False
        self._problem: str | None = None
        self.name = "the database"
        self._throttled_log = ThrottledLog(self._log, reactor)

    # --- Database ---

    @property
    def healthy(self) -> bool:
        """See `Database.healthy`."""
        return self._healthy

    @property
    def problem(self) -> str:
        """Why it is unavailable, as in the log; empty if it is available."""
        return self._problem or ""

    def start(self) -> Deferred[None]:
        """See `Database.start`."""
        self._running = True
        self._fill()
        return succeed(None)

    async def query(self, sql: str, values: Values) -> list[Row]:
        """See `Database.query`."""
        rows, _ = await self._run(lambda connection: connection.run_query(sql, values), retries=MAX_RETRIES)
        return rows

    async def execute(self, sql: str, values: Values) -> int:
        """See `Database.execute`."""
        _, count = await self._run(lambda connection: connection.run_query(sql, values), retries=0)
        return count

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        """See `Database.execute_many`."""
        refused = 0
        for start in range(0, len(batch), BATCH_SIZE):
            part = batch[start : start + BATCH_SIZE]
            refused += await self._run_batch(sql, part)
        return refused

    def _run_batch(self, sql: str, batch: Sequence[Values]) -> Coroutine[Any, Any, int]:
        return self._run(lambda connection: connection.run_batch(sql, batch), retries=0)

    def stop(self) -> Deferred[None]:
        """See `Database.stop`."""
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

    async def connect(self, on_lost: Callable[[C], None] | None = None) -> C:
        """Open a connection outside the pool, for a session of its own.

        :param on_lost: called with the connection when it ends between queries.
        :raises Exception: (of many types) the connection failed.
        """
        limit = self.timeout / 2
        until = self._reactor.seconds() + limit
        addresses = await self._addresses(limit)
        if not self._running:
            raise Unavailable("the server is stopping")
        connection, opened = self._open(addresses, on_lost)
        # the drivers' own time-outs do not cover all of it
        timer = self._reactor.callLater(max(0.0, until - self._reactor.seconds()), connection.close)
        self._connecting.add(connection)
        try:
            await opened
        except Exception as error:
            connection.close()
            if timer.active():
                raise
            raise TimeoutError(f"no connection within {limit:g} s") from error
        finally:
            self._connecting.discard(connection)
            if timer.active():
                timer.cancel()
        connection.opened_at = connection.responded_at = self._reactor.seconds()
        return connection

    # --- the engine ---

    def _host(self) -> str:
        """Return the host name to resolve; empty if there is none."""
        raise NotImplementedError

    def _open(self, addresses: list[str], on_lost: Callable[[C], None] | None) -> tuple[C, Deferred[Any]]:
        """Begin to connect to the first of `addresses` that answers.

        :param addresses: those of `_host`; empty if it is empty.
        """
        raise NotImplementedError

    # --- the pool ---

    async def _addresses(self, limit: float) -> list[str]:
        """Resolve the host in the reactor, because the drivers would block in getaddrinfo."""
        host = self._host()
        if not host:
            return []
        try:
            addresses = await self._cancellable(
                resolve(self._reactor, host).addTimeout(limit, zope_clock(self._reactor))
            )
        except TwistedTimeoutError:
            addresses = []
        if not addresses:
            raise OSError(f"cannot resolve the database's host name {host}")
        return addresses

    async def _cancellable(self, deferred: Deferred[T]) -> T:
        """Wait for `deferred`; `stop` cancels it."""
        self._pauses.add(deferred)
        try:
            return await deferred
        finally:
            self._pauses.discard(deferred)

    def _fill(self) -> None:
        """Open the missing connections, in the background."""
        if self._running and not self._filling and len(self._idle) + len(self._busy) < self._size:
            self._filling = True
            Deferred.fromCoroutine(self._open_missing()).addErrback(self._on_fill_failed)

    def _on_fill_failed(self, failure: Failure) -> None:
        self._log.failure(
            "cannot open connections to {database}; retrying on the next query", failure, database=self.name
        )

    async def _open_missing(self) -> None:
        try:
            failures = self._early_losses
            while self._running and len(self._idle) + len(self._busy) < self._size:
                try:
                    if self._early_losses:
                        await self._back_off(self._early_losses)
                    connection = await self.connect(self._on_lost)
                except Exception as error:
                    if self._running:
                        self._on_connect_failed(one_line(error))
                        await self._back_off(failures, error.pause if isinstance(error, ConnectFailed) else 0.0)
                        failures += 1
                else:
                    failures = 0
                    self._mark_up()
                    self._idle.append(connection)
                    self._serve()
        finally:
            self._filling = False

    async def _back_off(self, failures: int, shortest: float = 0.0) -> None:
        longest = min(LONGEST_PAUSE, self.timeout / 4)
        pause = max(shortest, backoff(failures, FIRST_PAUSE, longest, self._jitter))
        with suppress(CancelledError):
            await self._cancellable(deferLater(zope_clock(self._reactor), pause))

    def _on_lost(self, connection: C) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
            self._count_loss(connection)
            self._fill()

    def _count_loss(self, connection: C) -> None:
        """Count early losses: a server that accepts and closes connections is retried with a pause."""
        if self._running:
            self._throttled_log.warn(
                "loss", "{database} or the network has closed a connection, a new one is opened", database=self.name
            )
        is_early = self._reactor.seconds() - connection.opened_at < MIN_LIFETIME
        self._early_losses = self._early_losses + 1 if is_early else 0

    def _acquire(self, until: float) -> Deferred[C]:
        if self._running and len(self._queue) < MAX_WAITING:
            waiter: Deferred[C] = Deferred(self._queue.remove)
            self._queue.append(waiter)
            self._within(waiter, until)
            self._serve()
            self._fill()
            return waiter
        return fail(Unavailable("the database is unavailable"))

    def _serve(self) -> None:
        """Give idle connections to waiting queries. A loop and not recursion, as a query may end at once."""
        if self._serving:
            return
        self._serving = True
        try:
            while self._idle and self._queue:
                connection = self._idle.pop()
                if self._is_too_old(connection):
                    connection.close()
                    self._fill()
                elif not connection.is_dead:
                    self._busy.add(connection)
                    self._queue.popleft().callback(connection)
        finally:
            self._serving = False

    def _is_too_old(self, connection: C) -> bool:
        age: float = self._reactor.seconds() - connection.opened_at
        return 0.0 < self.max_age <= age

    async def _run(
        self,
        work: Callable[[C], Coroutine[Any, Any, T]],
        *,
        retries: int,
        until: float | None = None,
    ) -> T:
        started_at = self._reactor.seconds()
        limit = started_at + self.timeout
        until = limit if until is None else min(until, limit)
        while True:
            connection = await self._acquire(until)
            try:
                return await self._use(connection, work, until)
            except ConnectionDied as error:
                if retries <= 0 or not self._running or self._reactor.seconds() >= until:
                    raise Unavailable("the database is unavailable") from error
                # connections from before the query do not count: the failure may have ended all of them at once
                if connection.opened_at >= started_at:
                    retries -= 1
            except QueryAborted as error:
                self._warn("{database} aborted a query: {reason}", error.reason)
                raise

    def _use(
        self,
        connection: C,
        work: Callable[[C], Coroutine[Any, Any, T]],
        until: float,
    ) -> Deferred[T]:
        """Run `work` on a connection. The caller's timeout ends at `until`; the connection has a timeout of its own."""
        response: Deferred[T] = Deferred()
        limit = self.timeout * DEAD_AFTER
        watchdog = self._reactor.callLater(limit, self._close_stale, connection, self._reactor.seconds())

        def on_result(result: T | Failure) -> None:
            if watchdog.active():
                watchdog.cancel()
            self._busy.discard(connection)
            if not connection.is_dead and self._running:
                self._mark_up()
                self._early_losses = 0
                self._idle.append(connection)
            else:
                connection.close()
                self._count_loss(connection)
            if not response.called:
                response.callback(result)
            self._serve()
            self._fill()

        Deferred.fromCoroutine(work(connection)).addBoth(on_result)
        return self._within(response, until)

    def _close_stale(self, connection: C, started_at: float) -> None:
        self._mark_down(f"no response to a query within {self.timeout:g} s")
        for other in [other for other in self._idle if other.responded_at < started_at]:
            self._idle.remove(other)
            other.close()
        connection.close()

    def _within(self, deferred: Deferred[T], until: float) -> Deferred[T]:
        """Fail `deferred` with `Unavailable` at `until`."""

        def on_timeout(_: object, seconds: float) -> Failure:
            return Failure(Unavailable("the database does not respond"))  # type: ignore[no-untyped-call]

        return deferred.addTimeout(max(0.0, until - self._reactor.seconds()), zope_clock(self._reactor), on_timeout)

    # --- log ---

    def _on_connect_failed(self, reason: str) -> None:
        if self._idle or self._busy:
            self._warn("cannot open another connection to {database}: {reason}", reason)
        else:
            self._mark_down(reason)

    def _mark_down(self, reason: str) -> None:
        self._healthy = False
        if self._problem != reason:
            self._problem = reason
            self._log.warn("{database} is unavailable: {reason}", database=self.name, reason=reason)

    def _mark_up(self) -> None:
        self._healthy = True
        if self._problem is not None:
            self._problem = None
            self._log.info("{database} is available again", database=self.name)

    def _warn(self, text: str, reason: str) -> None:
        self._throttled_log.warn("query", text, database=self.name, reason=reason)
