"""Numbered changes to a schema in PostgreSQL, applied in order, each once. Blocking: for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg2

from chatws.database.postgres import connection_parameters, one_line
from chatws.errors import OperatorError

__all__ = ["Applied", "Migration", "applied", "apply", "transaction"]

#: Seconds for one statement, of which some may have many rows to go through.
TIMEOUT = 600.0
#: Of the advisory lock, so that two who upgrade at once do so one after the other.
_LOCK = "SELECT pg_advisory_xact_lock(1667785076, 0)"
_TABLE = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    -- programs that know an earlier migration than this cannot work with the schema any more
    needs integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class Migration(NamedTuple):
    """
    :ivar number: 1, 2, 3 …
    :ivar needs: programs must know that migration to work with the schema as it is after this one.
    """

    number: int
    name: str
    sql: str
    needs: int


class Applied(NamedTuple):
    """A migration that the database has."""

    number: int
    name: str
    at: str


@contextmanager
def transaction(url: str) -> Iterator[Any]:
    """A cursor in one transaction, which is committed at the end.

    :raises OperatorError: the database cannot be reached, or refused a statement; nothing has been changed.
    """
    parameters = connection_parameters(url, timeout=TIMEOUT)
    try:
        connection = psycopg2.connect(**parameters, connect_timeout=10)
    except psycopg2.Error as error:
        raise OperatorError(f"PostgreSQL cannot be reached: {one_line(error)}") from None
    try:
        with connection, connection.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        raise OperatorError(f"PostgreSQL refused, nothing was changed: {one_line(error)}") from None
    finally:
        connection.close()


def applied(cursor: Any, schema: str) -> list[Applied]:
    """What the database has, in order; nothing is changed."""
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.migrations",))
    if not cursor.fetchone()[0]:
        return []
    cursor.execute(f"SELECT number, name, applied_at::text FROM {schema}.migrations ORDER BY number")
    return [Applied(*row) for row in cursor.fetchall()]


def apply(cursor: Any, schema: str, migrations: Sequence[Migration]) -> list[Migration]:
    """Apply those that are missing, in one transaction.

    :return: which these were.
    """
    cursor.execute(_LOCK)
    cursor.execute(_TABLE.format(schema=schema))
    there = {one.number for one in applied(cursor, schema)}
    missing = [one for one in migrations if one.number not in there]
    for one in missing:
        cursor.execute(one.sql)
        cursor.execute(
            f"INSERT INTO {schema}.migrations (number, name, needs) VALUES (%s, %s, %s)",
            (one.number, one.name, one.needs),
        )
    return missing
