"""What a database is here: a few queries with named parameters, and honesty about whether it can be asked.

The SQL is the operator's, in psycopg's style for every engine: `%(user_id)s` stands for a value, `%%` for a percent
sign (PEP 249, paramstyle `pyformat`). `check_sql` says at start what would not work later; `other_spelling`, which
values an engine may take for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from chatws.database.placeholders import check_sql
from chatws.database.spelling import other_spelling
from chatws.errors import ChatwsError

__all__ = ["Database", "QueryFailed", "Row", "ValueRefused", "Values", "check_sql", "other_spelling"]

#: One row, by column name.
Row: TypeAlias = dict[str, Any]
#: What the placeholders stand for: integers, floats, strings, None.
Values: TypeAlias = Mapping[str, Any]


class QueryFailed(ChatwsError):
    """The database understood and said no: the SQL, the schema or a privilege is wrong. The operator's to mend.

    `str()` is the engine's own first line; it may quote a value, so it is for the log alone.
    """


class ValueRefused(QueryFailed):
    """A value cannot be one of that column's, whatever the rows are: `abc` for an integer, say, or a NUL in a text.

    Such values come from outside. The answer to "is there a row with it" is no.
    """


class Database(Protocol):
    """An engine. Every method may be called before `start` has fired, and after `stop`: then `Unavailable` rises."""

    @property
    def healthy(self) -> bool:
        """Whether the last that was heard from the database was good. False until it has answered once."""
        ...

    def start(self) -> Deferred[None]:
        """Begin to connect. Fires at once: a database that is absent is logged, and connected to when it comes."""
        ...

    async def query(self, sql: str, values: Values) -> list[Row]:
        """The rows that `sql` returns. It only reads: where a connection dies under it, it is asked again on another.

        Takes as long as the database's timeout at most, waiting for a free connection included.

        :raises Unavailable: no answer in time.
        :raises QueryFailed: it cannot be answered, now or later.
        :raises ValueRefused: it cannot be answered for these values.
        """
        ...

    async def execute(self, sql: str, values: Values) -> int:
        """Run a statement that changes rows, as one transaction; returns how many. Never run twice.

        :raises: as `query`. After `Unavailable` it may have taken effect or not.
        """
        ...

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        """Run a statement once for each of `batch`; returns how many of them were refused for their values.

        The order is kept. There is no one transaction around all of them.

        :raises: as `execute`, `ValueRefused` excepted. After that some may have taken effect.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Close every connection and end every thread. Idempotent. What still waits gets `Unavailable`."""
        ...
