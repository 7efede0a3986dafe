"""A database that is asked, and answers when the test says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, succeed

from chatws.database.interface import DatabaseEngine, Row


class FakeDatabase:
    """Keeps what it is asked. Each question waits for `answer` or `fail`, unless `rows` or `error` is set.

    :ivar asked: the questions that wait: (sql, values, Deferred).
    :ivar queries: all questions: (sql, values).
    :ivar written: the batches of `execute_many` that were taken.
    """

    healthy = True
    engine = DatabaseEngine.POSTGRESQL

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows = rows
        self.error: Exception | None = None
        self.count = 0
        self.queries: list[tuple[str, dict[str, Any]]] = []
        self.asked: list[tuple[str, dict[str, Any], Deferred[Any]]] = []
        self.written: list[tuple[str, list[dict[str, Any]]]] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    def stop(self) -> Deferred[None]:
        return succeed(None)

    async def query(self, sql: str, values: Mapping[str, Any]) -> list[Row]:
        self.count += 1
        self.queries.append((sql, dict(values)))
        if self.error is not None:
            raise self.error
        if self.rows is not None:
            return self.rows
        waiting: Deferred[list[Row]] = Deferred()
        self.asked.append((sql, dict(values), waiting))
        return await waiting

    async def execute(self, sql: str, values: Mapping[str, Any]) -> int:
        await self.execute_many(sql, [values])
        return 1

    async def execute_many(self, sql: str, batch: Sequence[Mapping[str, Any]]) -> int:
        self.count += 1
        if self.error is not None:
            raise self.error
        self.written.append((sql, [dict(item) for item in batch]))
        return 0

    def answer(self, *rows: Row) -> None:
        """Answer the question that has waited longest."""
        self.asked.pop(0)[2].callback(list(rows))

    def fail(self, error: Exception) -> None:
        self.asked.pop(0)[2].errback(error)
