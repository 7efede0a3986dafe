"""Queries of the operator whose result is a yes or a no: whether they return a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from twisted.logger import Logger

from chatws.auth.cache import RepeatedErrorLog
from chatws.database.exact_ids import is_exact_match
from chatws.database.interface import Database, DatabaseEngine, QueryFailed, Row, ValueRefused, check_sql, equivalent_id
from chatws.errors import Unavailable
from chatws.interfaces import Clock

__all__ = ["ExistsQuery"]


class ExistsQuery:
    """One of the operator's queries, which says yes by returning a row.

    :param name: the setting that it comes from.
    :param allowed: the placeholders that it may have.
    :ivar placeholders: those that it has.
    :raises ConfigError: the query has another placeholder.
    """

    _log = Logger()

    def __init__(self, database: Database, name: str, sql: str, allowed: Collection[str], clock: Clock) -> None:
        self.placeholders = check_sql(name, sql, allowed, database.engine)
        self._database = database
        self._name = name
        self._sql = sql
        self._error_log = RepeatedErrorLog(self._log, clock)

    async def run(self, values: Mapping[str, Any]) -> Row | None:
        """Return the first row that the query returns for exactly these values, or None.

        A typed column treats some different texts as equal: "007" and 7 in an integer column, the spellings of a
        UUID. The query then returns a row for another id than the given one. It returns that row for the equivalent
        id too, which is how such a match is recognised and denied. MySQL needs more: see `chatws.database.exact_ids`.

        :raises Unavailable: the database does not respond, or the query is wrong. The log says what is wrong with it.
        """
        try:
            rows = await self._rows(values)
            if not rows:
                return None
            if self._database.engine is DatabaseEngine.MYSQL:
                is_match = await is_exact_match(self._rows, rows, values, self.placeholders)
                return rows[0] if is_match else None
            for name in self.placeholders:
                other_id = equivalent_id(values[name])
                if other_id is not None and await self._rows({**values, name: other_id}):
                    return None
            return rows[0]
        except QueryFailed as error:
            self._error_log.make(f"{self._name} fails; access is denied until it is fixed: {error}")
            raise Unavailable("the database query failed") from None

    async def _rows(self, values: Mapping[str, Any]) -> list[Row]:
        try:
            return await self._database.query(self._sql, values)
        except ValueRefused:
            return []
