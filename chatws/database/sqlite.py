"""SQLite through twisted.enterprise.adbapi: a few threads, each with a connection to the file.

The file belongs to the application. This module neither creates it nor changes its schema. A query that exceeds the
timeout is interrupted. SQLite itself ends the wait for another process's lock shortly before that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock, get_ident
from typing import Any, TypeVar
from urllib.parse import quote

from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.database.interface import DatabaseEngine, ExactText, QueryFailed, Row, ValueRefused, Values
from chatws.database.placeholders import to_sqlite
from chatws.errors import Unavailable
from chatws.interfaces import Reactor, TimerHandle

__all__ = ["SqliteDatabase", "translate_error"]

T = TypeVar("T")

# https://sqlite.org/rescode.html, primary codes
_WRONG_SQL = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}
_WRONG_VALUE = {
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_RANGE,
    sqlite3.SQLITE_TOOBIG,
}
_BROKEN_FILE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOTADB}


def translate_error(error: Exception) -> Exception:
    """Return the exception of `Database` for one of the sqlite3 module."""
    text = str(error)[:300]
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in _WRONG_VALUE:
            return ValueRefused(text)
        return QueryFailed(text) if code in _WRONG_SQL else Unavailable(f"the database is unavailable: {text}")
    if isinstance(error, ValueError | OverflowError):  # a lone surrogate, or a number beyond 64 bits
        return ValueRefused(text)
    return error


class _Job:
    """A query that runs in a thread.

    :ivar is_cancelled: its caller no longer waits; a thread that starts it ends it at once.
    :ivar timer: the timeout.
    """

    def __init__(self) -> None:
        self.is_cancelled = False
        self.timer: TimerHandle | None = None
        self._connection: adbapi.Connection | None = None
        # a late interrupt would end the connection's next query
        self._lock = Lock()

    def start(self, connection: adbapi.Connection) -> None:
        """Start it on `connection`.

        :raises Unavailable: it was cancelled before.
        """
        with self._lock:
            if self.is_cancelled:
                raise Unavailable("the database does not respond")
            self._connection = connection

    def end(self) -> None:
        """End it: the connection is free for another query."""
        with self._lock:
            self._connection = None

    def cancel(self) -> None:
        """Interrupt the query, or prevent its start."""
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        with self._lock:
            self.is_cancelled = True
            if self._connection is not None:
                self._connection.interrupt()


class SqliteDatabase:
    """See `chatws.database.interface.Database`.

    :param path: the file. It may be created later.
    :param pool: threads at most.
    :param timeout: seconds that a query may take, including its wait for a thread.
    :ivar timeout: as the parameter. A change applies to later queries, and to files that are opened later.
    """

    engine = DatabaseEngine.SQLITE
    _log = Logger()

    def __init__(self, path: str, *, pool: int, timeout: float, reactor: Reactor) -> None:
        # mode=rw does not create a file: a mistyped path must not become an empty database
        self._uri = f"file:{quote(str(Path(path).absolute()))}?mode=rw"
        self._path = path
        self._size = pool
        self.timeout = timeout
        self._reactor = reactor
        self._pool: Any = None
        # threads that must reopen the file: it was broken, and may have been replaced since
        self._to_reopen: set[int] = set()
        self._jobs: dict[_Job, Deferred[Any]] = {}
        self._healthy = False
        self._problem: str | None = None

    @property
    def healthy(self) -> bool:
        """See `Database.healthy`."""
        return self._healthy

    def start(self) -> Deferred[None]:
        """See `Database.start`."""
        if self._pool is None:
            self._pool = adbapi.ConnectionPool(  # type: ignore[no-untyped-call]
                "sqlite3",
                self._uri,
                uri=True,
                check_same_thread=False,  # the reactor's thread interrupts and closes connections
                timeout=self.timeout * 0.9,  # the wait for a lock ends with an error of its own, before the interrupt
                cp_reactor=self._reactor,
                cp_min=1,
                cp_max=self._size,
                cp_name="database",
            )
            # `_run` notes the result
            Deferred.fromCoroutine(self.query("SELECT 1 FROM sqlite_master LIMIT 1", {})).addErrback(lambda _: None)
        return succeed(None)

    async def query(self, sql: str, values: Values) -> list[Row]:
        """See `Database.query`."""

        def work(connection: adbapi.Connection) -> list[Row]:
            exact = frozenset(name for name, value in values.items() if isinstance(value, ExactText))
            cursor = connection.execute(to_sqlite(sql, exact), dict(values))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return await self._run(work)

    async def execute(self, sql: str, values: Values) -> int:
        """See `Database.execute`."""

        def work(connection: adbapi.Connection) -> int:
            return int(connection.execute(to_sqlite(sql), dict(values)).rowcount)

        return await self._run(work)

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        """See `Database.execute_many`."""

        def work(connection: adbapi.Connection) -> int:
            statement = to_sqlite(sql)
            refused = 0
            for values in batch:
                try:
                    connection.execute(statement, dict(values))
                except Exception as error:
                    if not isinstance(translate_error(error), ValueRefused):
                        raise
                    refused += 1
            return refused

        return await self._run(work)

    def stop(self) -> Deferred[None]:
        """See `Database.stop`."""
        pool, self._pool = self._pool, None
        if pool is None:
            return succeed(None)
        self._healthy = False
        for job in self._jobs:
            job.cancel()
        # `close` joins the threads, so a running query would block the reactor. None runs before the reactor does.
        running = list(self._jobs.values()) if pool.running else []
        return DeferredList(running).addCallback(lambda _: pool.close())

    def _run(self, work: Callable[[adbapi.Connection], T]) -> Deferred[T]:
        response: Deferred[T] = Deferred()
        if self._pool is None:
            response.errback(Unavailable("the database is not open"))
            return response
        job, pool = _Job(), self._pool

        def in_thread(connection: adbapi.Connection) -> T:
            job.start(connection)
            try:
                if get_ident() in self._to_reopen:
                    connection.reconnect()  # type: ignore[no-untyped-call]
                    self._to_reopen.discard(get_ident())
                return work(connection)
            except Exception as error:
                if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN_FILE:
                    self._to_reopen.add(get_ident())
                raise
            finally:
                job.end()

        def on_result(result: T | Failure) -> None:
            if job.timer is not None and job.timer.active():
                job.timer.cancel()
            del self._jobs[job]
            if isinstance(result, Failure) and isinstance(result.value, Exception):
                result = Failure(translate_error(result.value))  # type: ignore[no-untyped-call]
            self._note_health(result)
            if not response.called:
                response.callback(result)

        def on_timeout() -> None:
            job.cancel()
            response.errback(Unavailable("the database does not respond"))

        job.timer = self._reactor.callLater(self.timeout, on_timeout)
        running = pool.runWithConnection(in_thread)
        self._jobs[job] = running
        running.addBoth(on_result)
        return response

    def _note_health(self, result: object) -> None:
        """Update `healthy` and log its changes."""
        if self._pool is None:
            return
        failed = isinstance(result, Failure) and isinstance(result.value, Unavailable)
        self._healthy = not failed
        problem = result.value.message if failed else None  # type: ignore[attr-defined]
        if problem is not None and problem != self._problem:
            self._log.warn("{path}: {reason}", path=self._path, reason=problem)
        elif problem is None and self._problem is not None:
            self._log.info("{path}: the database is available again", path=self._path)
        self._problem = problem
