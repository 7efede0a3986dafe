"""Numbered changes to a PostgreSQL schema, applied once and in order. Blocking: for the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg2

from chatws.database.pool import one_line
from chatws.database.postgres_connection import connect_blocking
from chatws.errors import ConfigError

__all__ = ["Applied", "Migration", "applied", "apply", "require_utf8", "transaction"]

#: Seconds for one statement: a migration may rewrite a table with millions of rows.
TIMEOUT = 600.0
#: Serialises concurrent upgrades. The key is an arbitrary constant of chatws.
_LOCK = "SELECT pg_advisory_xact_lock(1667785076, 0)"
_TABLE = """
CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.migrations (
    number integer PRIMARY KEY,
    name text NOT NULL,
    -- the latest migration that a program must know to work with this schema
    needs integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class Migration(NamedTuple):
    """A change to the schema.

    :ivar number: 1, 2, 3 …
    :ivar needs: the number of the migration that a program must know to work with the schema after this one.
    """

    number: int
    name: str
    sql: str
    needs: int


class Applied(NamedTuple):
    """A migration that has been applied.

    :ivar at: when, as PostgreSQL writes it.
    :ivar needs: see `Migration`.
    """

    number: int
    name: str
    at: str
    needs: int


@contextmanager
def transaction(url: str) -> Iterator[Any]:
    """Open a cursor in one transaction, which is committed at the end.

    :raises ConfigError: the database is unreachable, its encoding is not UTF8, or it rejected a statement. Nothing has
        been changed.
    """
    try:
        connection = connect_blocking(url, timeout=TIMEOUT)
    except psycopg2.Error as error:
        raise ConfigError(f"cannot connect to PostgreSQL: {one_line(error)}") from None
    try:
        # every server reports it at the start of a connection
        require_utf8(connection.info.dbname, connection.info.parameter_status("server_encoding"))
        with connection, connection.cursor() as cursor:
            yield cursor
    except psycopg2.Error as error:
        raise ConfigError(f"PostgreSQL rejected the statement, nothing was changed: {one_line(error)}") from None
    finally:
        connection.close()


def require_utf8(database: str, encoding: str) -> None:
    """Check the encoding of a database.

    :param encoding: LATIN1 cannot store every text, and SQL_ASCII does not check it.
    :raises ConfigError: it is not UTF8.
    """
    if encoding != "UTF8":
        raise ConfigError(
            f'the database "{database}" has the encoding {encoding}, and events need UTF8: '
            "create another with `createdb -E UTF8 -T template0 NAME`, and name it in --broker"
        )


def applied(cursor: Any, schema: str) -> list[Applied]:
    """Return the migrations that the database has, in order."""
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{schema}.migrations",))
    if not cursor.fetchone()[0]:
        return []
    cursor.execute(f"SELECT number, name, applied_at::text, needs FROM {schema}.migrations ORDER BY number")
    return [Applied(*row) for row in cursor.fetchall()]


def apply(cursor: Any, schema: str, migrations: Sequence[Migration]) -> list[Migration]:
    """Apply the missing migrations in the cursor's transaction, and return them."""
    cursor.execute(_LOCK)
    cursor.execute(_TABLE.format(schema=schema))
    existing = {migration.number for migration in applied(cursor, schema)}
    missing = [migration for migration in migrations if migration.number not in existing]
    for migration in missing:
        cursor.execute(migration.sql)
        cursor.execute(
            f"INSERT INTO {schema}.migrations (number, name, needs) VALUES (%s, %s, %s)",
            (migration.number, migration.name, migration.needs),
        )
    return missing
