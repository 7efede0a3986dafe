"""SQLite through twisted.enterprise.adbapi: a few threads, each with its connection to the file.

The file is the application's: it is never created here, and its schema never touched. A query that takes too long is
interrupted, one that waits for another process's lock is given up by SQLite itself a little earlier.
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

from chatws.database.contract import QueryFailed, Row, ValueRefused, Values
from chatws.database.placeholders import to_sqlite
from chatws.errors import Unavailable

__all__ = ["SqliteDatabase"]

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


def _translated(error: Exception) -> Exception:
    """What an error of the sqlite3 module is to the caller."""
    text = str(error)[:300]
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        if code in _WRONG_VALUE:
            return ValueRefused(text)
        return QueryFailed(text) if code in _WRONG_SQL else Unavailable(f"the database cannot be asked now: {text}")
    if isinstance(error, ValueError | OverflowError):  # half of a surrogate pair; a number past 64 bits
        return ValueRefused(text)
    return error


class _Job:
    """A query on its way through a thread.

    :ivar given_up: nobody waits for it any more; a thread that takes it up leaves it at once.
    :ivar timer: gives it up.
    """

    def __init__(self) -> None:
        self.given_up = False
        self.timer: Any = None
        self._connection: adbapi.Connection | None = None
        # an interrupt that comes late would hit the connection's next query
        self._lock = Lock()

    def begin(self, connection: adbapi.Connection) -> None:
        """:raises Unavailable: it was given up before it began."""
        with self._lock:
            if self.given_up:
                raise Unavailable("the database gives no answer")
            self._connection = connection

    def end(self) -> None:
        with self._lock:
            self._connection = None

    def give_up(self) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        with self._lock:
            self.given_up = True
            if self._connection is not None:
                self._connection.interrupt()


class SqliteDatabase:
    """See chatws.database.contract.Database.

    :param path: the file. It need not be there yet.
    :param pool: threads at most.
    :param timeout: seconds.
    """

    _log = Logger()

    def __init__(self, path: str, *, pool: int, timeout: float, reactor: Any) -> None:
        # mode=rw: a mistyped path must not become an empty database
        self._uri = f"file:{quote(str(Path(path).absolute()))}?mode=rw"
        self._path = path
        self._size = pool
        self._timeout = timeout
        self._reactor = reactor
        self._pool: Any = None
        # threads whose file turned out to be broken: it may have been replaced since
        self._to_reopen: set[int] = set()
        self._jobs: dict[_Job, Deferred[Any]] = {}
        self._healthy = False
        self._trouble: str | None = None

    @property
    def healthy(self) -> bool:
        return self._healthy

    def start(self) -> Deferred[None]:
        if self._pool is None:
            self._pool = adbapi.ConnectionPool(  # type: ignore[no-untyped-call]
                "sqlite3",
                self._uri,
                uri=True,
                check_same_thread=False,  # interrupted by the reactor's thread, closed by it at the end
                timeout=self._timeout * 0.9,
                cp_reactor=self._reactor,
                cp_min=1,
                cp_max=self._size,
                cp_name="database",
            )
            # its outcome is heard by _finished
            Deferred.fromCoroutine(self.query("SELECT 1 FROM sqlite_master LIMIT 1", {})).addErrback(lambda _: None)
        return succeed(None)

    async def query(self, sql: str, values: Values) -> list[Row]:
        def work(connection: adbapi.Connection) -> list[Row]:
            cursor = connection.execute(to_sqlite(sql), dict(values))
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

        return await self._run(work)

    async def execute(self, sql: str, values: Values) -> int:
        def work(connection: adbapi.Connection) -> int:
            return int(connection.execute(to_sqlite(sql), dict(values)).rowcount)

        return await self._run(work)

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        def work(connection: adbapi.Connection) -> int:
            translated = to_sqlite(sql)
            refused = 0
            for values in batch:
                try:
                    connection.execute(translated, dict(values))
                except Exception as error:
                    if not isinstance(_translated(error), ValueRefused):
                        raise
                    refused += 1
            return refused

        return await self._run(work)

    def stop(self) -> Deferred[None]:
        pool, self._pool = self._pool, None
        if pool is None:
            return succeed(None)
        self._healthy = False
        for job in self._jobs:
            job.give_up()
        # closing joins the threads: one that still works would block the reactor. Before the reactor runs none does.
        working = list(self._jobs.values()) if pool.running else []
        return DeferredList(working).addCallback(lambda _: pool.close())

    def _run(self, work: Callable[[adbapi.Connection], T]) -> Deferred[T]:
        answer: Deferred[T] = Deferred()
        if self._pool is None:
            answer.errback(Unavailable("the database is not open"))
            return answer
        job, pool = _Job(), self._pool

        def in_thread(connection: adbapi.Connection) -> T:
            job.begin(connection)
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

        def finished(result: T | Failure) -> None:
            if job.timer is not None and job.timer.active():
                job.timer.cancel()
            del self._jobs[job]
            if isinstance(result, Failure) and isinstance(result.value, Exception):
                result = Failure(_translated(result.value))  # type: ignore[no-untyped-call]
            self._heard(result)
            if not answer.called:
                answer.callback(result)

        def too_late() -> None:
            job.give_up()
            answer.errback(Unavailable("the database gives no answer"))

        job.timer = self._reactor.callLater(self._timeout, too_late)
        running = pool.runWithConnection(in_thread)
        self._jobs[job] = running
        running.addBoth(finished)
        return answer

    def _heard(self, result: object) -> None:
        """Note how the database is."""
        if self._pool is None:
            return
        failed = isinstance(result, Failure) and isinstance(result.value, Unavailable)
        self._healthy = not failed
        trouble = result.value.message if failed else None  # type: ignore[attr-defined]
        if trouble is not None and trouble != self._trouble:
            self._log.warn("{path}: {trouble}", path=self._path, trouble=trouble)
        elif trouble is None and self._trouble is not None:
            self._log.info("{path}: the database answers again", path=self._path)
        self._trouble = trouble
