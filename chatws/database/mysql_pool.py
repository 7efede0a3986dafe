"""A pool of connections to MySQL or MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList

from chatws.database.mysql_connection import MysqlConnection
from chatws.database.mysql_options import MysqlOptions
from chatws.database.pool import DatabasePool
from chatws.interfaces import Reactor

__all__ = ["MysqlDatabase"]


class MysqlDatabase(DatabasePool[MysqlConnection]):
    """See `chatws.database.interface.Database`.

    :param options: from `mysql_options`.
    :param pool: as for `DatabasePool`, like `timeout`.
    """

    coerces_ids = True
    #: A demoted primary keeps its connections, and its name leads to another server.
    max_age = 600.0

    def __init__(self, options: MysqlOptions, *, pool: int, timeout: float, reactor: Reactor) -> None:
        super().__init__(pool=pool, timeout=timeout, reactor=reactor)
        self._options = options
        self._threads: set[Deferred[None]] = set()

    def stop(self) -> Deferred[None]:
        """See `Database.stop`."""
        super().stop()
        ends: Any = DeferredList([*self._threads])
        done: Deferred[None] = ends.addCallback(lambda _: None)
        return done

    def _host(self) -> str:
        return self._options.host

    def _open(
        self, addresses: list[str], on_lost: Callable[[MysqlConnection], None] | None
    ) -> tuple[MysqlConnection, Deferred[Any]]:
        connection = MysqlConnection(
            self._options,
            addresses,
            timeout=self.timeout,
            reactor=self._reactor,
            on_lost=on_lost,
        )
        self._threads.add(connection.closed)
        connection.closed.addCallback(lambda _: self._threads.discard(connection.closed))
        return connection, Deferred.fromCoroutine(connection.connect())
