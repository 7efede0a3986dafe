"""The interface of a database, its exceptions, and checks of SQL and ids.

The SQL is the operator's, with psycopg's placeholders for every engine: `%(user_id)s` for a value, `%%` for a percent
sign (PEP 249, paramstyle `pyformat`). `check_sql` finds errors at start. `equivalent_id` names values that an engine
considers equal to another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from twisted.internet.defer import Deferred

from chatws.database.id_aliases import equivalent_id
from chatws.database.placeholders import DatabaseEngine, check_sql
from chatws.errors import ChatwsError

__all__ = [
    "Database",
    "DatabaseEngine",
    "ExactText",
    "QueryFailed",
    "QueryTest",
    "Row",
    "ValueRefused",
    "Values",
    "check_sql",
    "equivalent_id",
]

#: One row, by column name.
Row: TypeAlias = dict[str, Any]
#: The values of the placeholders: integers, floats, strings, None.
Values: TypeAlias = Mapping[str, Any]


class ExactText(str):
    """A text that is compared byte by byte in a text column, whatever its collation."""

    __slots__ = ()


class QueryFailed(ChatwsError):
    """The database rejected the query: the SQL, the schema or a privilege is wrong. The operator must fix it.

    `str()` is the first line of the engine's message. It may quote a value, so it goes to the log only.
    """


class ValueRefused(QueryFailed):
    """A value is invalid for the column's type, such as `abc` for an integer or a NUL in a text.

    Clients can send such values. No row has them.
    """


class QueryTest(NamedTuple):
    """A configured query and values to try it with.

    :ivar setting: the name of its setting.
    :ivar values: values like those that the server passes.
    :ivar writes: whether it changes rows: it is then planned and not run.
    """

    setting: str
    sql: str
    values: Values
    writes: bool


class Database(Protocol):
    """A database engine. Methods may be called before `start` and after `stop`, when they raise `Unavailable`."""

    @property
    def engine(self) -> DatabaseEngine:
        """Its kind."""
        ...

    @property
    def healthy(self) -> bool:
        """Whether the last response was good. False until the first response."""
        ...

    def start(self) -> Deferred[None]:
        """Start to connect. Fires at once: an unavailable database is logged, and retried until it is available."""
        ...

    async def query(self, sql: str, values: Values) -> list[Row]:
        """Return the rows of a query that only reads. It is retried if its connection ends.

        Takes the database's timeout at most, including the wait for a free connection.

        :raises Unavailable: there was no response in time.
        :raises QueryFailed: the query is wrong.
        :raises ValueRefused: a value is invalid for its column.
        """
        ...

    async def execute(self, sql: str, values: Values) -> int:
        """Run a statement that changes rows, as one transaction, and return how many. It is never retried.

        :raises: as `query`. After `Unavailable` it may have taken effect or not.
        """
        ...

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        """Run a statement for each of `batch`, in order, and return how many failed with `ValueRefused`.

        There is no transaction around all of them.

        :raises: as `execute`, except `ValueRefused`. Some of the statements may have taken effect.
        """
        ...

    def stop(self) -> Deferred[None]:
        """Close all connections and threads. Idempotent. Pending queries fail with `Unavailable`."""
        ...
