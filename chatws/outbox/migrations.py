"""Creates the tables of the outbox. Blocking: for the command line."""

from __future__ import annotations

import secrets

from chatws.database.blocking import Run, blocking_connection
from chatws.errors import ConfigError
from chatws.outbox.dialects import check_prefix, dialect_of

__all__ = ["LATER_VERSION", "VERSION", "outbox_version", "upgrade_outbox"]

#: Of the tables. A later version adds statements, and raises it.
VERSION = 1
LATER_VERSION = "of a later version: install that version of chatws"
#: Seconds for a statement.
TIMEOUT = 60.0


def upgrade_outbox(url: str, prefix: str) -> bool:
    """Create the tables that are missing, and return whether anything was changed. Idempotent.

    :raises ConfigError: the database is unreachable, or rejected a statement, or its tables are of a later version.
    """
    check_prefix(prefix)
    with blocking_connection(url, TIMEOUT) as run:
        version = _version(run, prefix)
        if version == VERSION:
            return False
        if version > VERSION:
            raise ConfigError(f"the tables of the outbox are {LATER_VERSION}")
        for statement in dialect_of(url).tables:
            run(statement.format(p=prefix))
        if not run(f"SELECT version FROM {prefix}chatws_schema"):
            run(f"INSERT INTO {prefix}chatws_schema VALUES (1, {VERSION}, '{secrets.token_hex(8)}', NULL)")
        return True


def outbox_version(url: str, prefix: str) -> int:
    """Return the version of the tables; 0 if they do not exist.

    :raises ConfigError: the database is unreachable.
    """
    check_prefix(prefix)
    with blocking_connection(url, TIMEOUT) as run:
        return _version(run, prefix)


def _version(run: Run, prefix: str) -> int:
    try:
        rows = run(f"SELECT version FROM {prefix}chatws_schema, (SELECT count(*) FROM {prefix}chatws_outbox) AS rows_")
    except Exception:
        return 0
    return int(rows[0][0]) if rows else 0
