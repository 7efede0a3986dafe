"""Checks the outbox for `chatws check`: its tables, and whether its lock excludes other connections. Blocking."""

from __future__ import annotations

import secrets
from contextlib import suppress

from chatws.database.blocking import blocking_connection
from chatws.errors import ConfigError
from chatws.outbox.dialects import NOT_EXCLUSIVE, NOT_INNODB, SEVERAL_WRITERS, dialect_of
from chatws.outbox.migrations import LATER_VERSION, VERSION, outbox_version
from chatws.outbox.session import is_single_writer

__all__ = ["check_outbox"]


def check_outbox(url: str, prefix: str, timeout: float) -> None:
    """Check the tables and the lock of the outbox.

    :param timeout: seconds for a statement.
    :raises ConfigError: they cannot be used. The message has the remedy.
    """
    dialect = dialect_of(url)
    version = outbox_version(url, prefix)
    if version > VERSION:
        raise ConfigError(f"--outbox: its tables are {LATER_VERSION}")
    if version != VERSION:
        raise ConfigError("--outbox: its tables are missing or older: run chatws db upgrade --database URL")
    lock = dialect.lock.replace("%(name)s", f"'chatws:check:{secrets.token_hex(8)}'")
    with blocking_connection(url, timeout) as run, blocking_connection(url, timeout) as run_other:
        if dialect.engine and run(dialect.engine.format(p=prefix))[0][0] != "InnoDB":
            raise ConfigError(f"--outbox: {NOT_INNODB}")
        # the lock of a SQLite file is not one of the database
        if "%(name)s" in dialect.lock and run(lock)[0][0] and run_other(lock)[0][0]:
            raise ConfigError(f"--outbox: {NOT_EXCLUSIVE}")
        if not is_single_writer(url):
            for statement in dialect.clusters:
                value = None
                with suppress(Exception):  # no such variable: no such cluster
                    value = run(statement)[0][0]
                if value == 1:
                    raise ConfigError(f"--outbox: {SEVERAL_WRITERS}")
