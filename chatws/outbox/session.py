"""Opens the connection that holds the outbox: one of its own, outside the pool of queries."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import unquote

from twisted.internet.defer import Deferred

from chatws.database.factory import open_database
from chatws.database.interface import Row, Values
from chatws.database.pool import DatabasePool
from chatws.database.sqlite import SqliteDatabase
from chatws.errors import Unavailable
from chatws.interfaces import Reactor

__all__ = ["DatabaseSession", "OutboxDatabase", "is_single_writer"]


#: Seconds for a statement on a SQLite file, where any transaction of the application blocks every write.
FILE_TIMEOUT = 2.0


class DatabaseSession(Protocol):
    """A connection, as `chatws.database.pool.PooledConnection`."""

    async def run_query(self, sql: str, values: Values | None = None) -> tuple[list[Row], int]:
        """Return the rows, and the number of rows returned or changed."""
        ...

    async def run_batch(self, sql: str, batch: Sequence[Values]) -> int:
        """Run `sql` for each of `batch`, in order."""
        ...

    def close(self) -> None:
        """Close it. Idempotent."""
        ...


class _SqliteSession:
    """A session on a SQLite file. Its lock is on a file beside it, and the kernel releases it with the process."""

    def __init__(self, database: SqliteDatabase, path: str) -> None:
        import fcntl  # absent on Windows

        self._database = database
        self._descriptor = os.open(f"{path}-chatws-outbox", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise

    async def run_query(self, sql: str, values: Values | None = None) -> tuple[list[Row], int]:
        rows = await self._database.query(sql, values or {})
        return rows, len(rows)

    async def run_batch(self, sql: str, batch: Sequence[Values]) -> int:
        return await self._database.execute_many(sql, batch)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_single_writer(url: str) -> bool:
    """Return whether the operator says in the URL that it leads to one server of a cluster only."""
    if not url.startswith(("mysql:", "mariadb:")):
        return False
    from chatws.database.mysql_options import mysql_options

    return mysql_options(url).single_writer


class OutboxDatabase:
    """The application's database, for sessions of the outbox.

    :param timeout: seconds for connecting, and for a statement.
    :ivar is_single_writer: see `MysqlOptions`.
    """

    def __init__(self, url: str, *, timeout: float, reactor: Reactor) -> None:
        is_file = url.startswith("sqlite:")
        self._database: Any = open_database(
            url,
            pool=1 if is_file else 0,  # without a pool: only sessions are opened
            timeout=min(timeout, FILE_TIMEOUT) if is_file else timeout,
            reactor=reactor,
        )
        self.is_single_writer = is_single_writer(url)
        self._path = unquote(url.removeprefix("sqlite:///"))
        self._is_started = False

    async def open(self) -> DatabaseSession | None:
        """Open a session. None if another process holds the lock of a SQLite file.

        :raises Exception: (of many types) the connection failed.
        """
        if not self._is_started:
            self._is_started = True
            await self._database.start()
        if isinstance(self._database, DatabasePool):
            session: DatabaseSession = await self._database.connect()
            return session
        if not os.path.exists(self._path):
            raise Unavailable(f"{self._path} does not exist")
        try:
            return _SqliteSession(self._database, self._path)
        except BlockingIOError:
            return None

    def stop(self) -> Deferred[None]:
        """Close all sessions."""
        stopped: Deferred[None] = self._database.stop()
        return stopped
