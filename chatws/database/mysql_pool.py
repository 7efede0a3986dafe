"""A pool of connections to MySQL or MariaDB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.python.failure import Failure

from chatws.database.interface import DatabaseEngine
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

    engine = DatabaseEngine.MYSQL
    #: A demoted primary keeps its connections, and its name leads to another server.
    max_age = 600.0

    def __init__(self, options: MysqlOptions, *, pool: int, timeout: float, reactor: Reactor) -> None:
        super().__init__(pool=pool, timeout=timeout, reactor=reactor)
        self._options = options
        self._threads: set[Deferred[None]] = set()
        # which of the host's addresses is tried first
        self._turn = 0

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
        first = self._turn % max(1, len(addresses))
        connection = MysqlConnection(
            self._options,
            [*addresses[first:], *addresses[:first]],
            timeout=self.timeout,
            reactor=self._reactor,
            on_lost=on_lost,
            on_read_only=self._try_next_address,
        )
        self._threads.add(connection.closed)
        connection.closed.addCallback(lambda _: self._threads.discard(connection.closed))
        opened: Deferred[Any] = Deferred.fromCoroutine(connection.connect())
        return connection, opened.addErrback(self._on_open_failed)

    def _on_open_failed(self, failure: Failure) -> Failure:
        self._try_next_address()
        return failure

    def _try_next_address(self) -> None:
        """Begin with another address of the host: this one accepts connections, and is silent or a replica."""
        self._turn += 1
