"""Queries of the operator whose result is a yes or a no: whether they return a row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from twisted.logger import Logger

from chatws.auth.cache import RepeatedErrorLog
from chatws.database.exact_ids import has_equal_texts, is_exact_match
from chatws.database.interface import (
    Database,
    DatabaseEngine,
    ExactText,
    QueryFailed,
    Row,
    ValueRefused,
    check_sql,
    equivalent_id,
)
from chatws.errors import Unavailable
from chatws.interfaces import Clock

__all__ = ["ExistsQuery"]

#: Seconds after which the type of a column is determined again. With PostgreSQL, that writes an error to its log.
TYPED_SECONDS = 3600.0


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
        self._clock = clock
        self._typed_until: dict[str, float] = {}  # placeholders that are compared with another type than text
        self._writes_integers_as_texts = False
        self._error_log = RepeatedErrorLog(self._log, clock)

    async def run(self, values: Mapping[str, Any]) -> Row | None:
        """Return the first row that the query returns for exactly these values, or None.

        A typed column treats some different texts as equal: "007" and 7 in an integer column, the spellings of a
        UUID. The query then returns a row for another id than the given one. It returns that row for the equivalent
        id too, which is how such a match is recognised and denied. A text column may ignore case or trailing spaces
        (citext, `COLLATE NOCASE`, char(n)). It returns no row for a text that is compared byte by byte. MySQL needs
        more: see `chatws.database.exact_ids`.

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
                if not await self._has_exact_row(values, name):
                    return None
            return rows[0]
        except QueryFailed as error:
            self._error_log.make(f"{self._name} fails; access is denied until it is fixed: {error}")
            raise Unavailable("the database query failed") from None

    async def _has_exact_row(self, values: Mapping[str, Any], name: str) -> bool:
        """Return whether the query returns a row if a text is compared byte by byte."""
        value = values[name]
        now = self._clock.seconds()
        if not has_equal_texts(value) or now < self._typed_until.get(name, now):
            return True
        try:
            return bool(await self._rows({**values, name: ExactText(value)}))
        except QueryFailed:  # PostgreSQL does not compare the column with a text: it has another type
            self._typed_until[name] = now + TYPED_SECONDS
            return True

    async def _rows(self, values: Mapping[str, Any]) -> list[Row]:
        try:
            if self._writes_integers_as_texts:
                return await self._database.query(self._sql, _with_texts(values))
            try:
                return await self._database.query(self._sql, values)
            except ValueRefused:
                raise
            except QueryFailed:
                texts = _with_texts(values)
                if texts == values or self._database.engine is not DatabaseEngine.POSTGRESQL:
                    raise
                # PostgreSQL compares no uuid or text with an integer. A quoted 5 is a value of the column's type, or
                # refused by it.
                try:
                    rows = await self._database.query(self._sql, texts)
                except ValueRefused:
                    rows = []
                self._writes_integers_as_texts = True
                return rows
        except ValueRefused:
            return []


def _with_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, int) else value for name, value in values.items()}
