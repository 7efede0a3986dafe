"""A pool of connections to PostgreSQL.

PostgreSQL ends slow queries itself (`statement_timeout`, below the pool's timeout). libpq resolves a list of hosts
(`h1,h2`) itself: use addresses there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred

from chatws.database.interface import DatabaseEngine, Row, Values
from chatws.database.pool import DatabasePool
from chatws.database.postgres_connection import PostgresConnection, accepted_parameters
from chatws.interfaces import Reactor

__all__ = ["PostgresDatabase"]


class PostgresDatabase(DatabasePool[PostgresConnection]):
    """See `chatws.database.interface.Database`.

    :param parameters: libpq's, from `connection_parameters`.
    :param pool: as for `DatabasePool`, like `timeout` and `jitter`.
    """

    engine = DatabaseEngine.POSTGRESQL

    def __init__(
        self,
        parameters: dict[str, Any],
        *,
        pool: int,
        timeout: float,
        reactor: Reactor,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(pool=pool, timeout=timeout, reactor=reactor, jitter=jitter)
        self._parameters = parameters

    async def connect(self, on_lost: Callable[[PostgresConnection], None] | None = None) -> PostgresConnection:
        """See `DatabasePool.connect`. Connects again without `statement_timeout` if a connection pooler rejects it."""
        used = self._parameters
        try:
            return await super().connect(on_lost)
        except Exception as error:
            accepted = accepted_parameters(used, error)
            if accepted is None:
                raise
        if self._parameters is used:
            self._parameters = accepted
            self._log.info(
                "{database} is behind a connection pooler that rejects statement_timeout: queries have the timeout of "
                "chatws only",
                database=self.name,
            )
        return await super().connect(on_lost)

    async def execute_returning(self, sql: str, values: Values, until: float | None = None) -> list[Row]:
        """Run a statement that changes rows and also returns some. Otherwise as `execute`.

        :param until: a deadline in the reactor's seconds, if that is before the timeout.
        """
        rows, _ = await self._run(lambda connection: connection.run_query(sql, values), retries=0, until=until)
        return rows

    def _host(self) -> str:
        host: str = self._parameters.get("host", "")
        is_path = "/" in host or host.startswith("@")
        return "" if is_path or "," in host or "hostaddr" in self._parameters else host

    def _open(
        self, addresses: list[str], on_lost: Callable[[PostgresConnection], None] | None
    ) -> tuple[PostgresConnection, Deferred[Any]]:
        parameters = dict(self._parameters)
        if addresses:
            parameters["host"] = ",".join([parameters["host"]] * len(addresses))
            parameters["hostaddr"] = ",".join(addresses)
        connection = PostgresConnection(self._reactor, on_lost)
        # libpq ignores its connect_timeout when the reactor polls the connection
        return connection, connection.connect(**parameters)
