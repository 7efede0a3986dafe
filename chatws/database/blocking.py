"""Blocking connections, for the command line."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote, unquote

from chatws.database.factory import require_pymysql
from chatws.database.pool import ConnectFailed, one_line
from chatws.database.postgres_connection import connect_blocking
from chatws.errors import ConfigError, StartError, Unavailable

if TYPE_CHECKING:
    from chatws.database.mysql_connection import MysqlDriver

__all__ = ["Run", "blocking_connection", "connect_mysql"]

#: Executes a statement without values, and returns its rows.
Run: TypeAlias = Callable[[str], list[Any]]


def connect_mysql(url: str, timeout: float) -> MysqlDriver:
    """Connect to MySQL or MariaDB.

    :param timeout: seconds for each attempt to connect, each read and each write.
    :raises ConfigError: the URL is invalid.
    :raises Unavailable: the server is unreachable or refused the connection.
    """
    require_pymysql()
    from chatws.database.mysql_connection import open_driver
    from chatws.database.mysql_options import mysql_options

    options = mysql_options(url)
    try:
        found = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM) if options.host else []
        return open_driver(options, [str(address[4][0]) for address in found], timeout, lambda _: None)
    except (OSError, ConnectFailed) as error:
        raise Unavailable(one_line(error)) from None


@contextmanager
def blocking_connection(url: str, timeout: float) -> Iterator[Run]:
    """Connect to any database. Each statement commits by itself.

    :param timeout: seconds for a statement.
    :raises ConfigError: the database is unreachable, or rejects a statement within the block.
    """
    scheme = url.partition(":")[0]
    try:
        if scheme == "sqlite":
            uri = f"file:{quote(unquote(url.removeprefix('sqlite:///')))}?mode=rw"
            with closing(sqlite3.connect(uri, uri=True, timeout=timeout, isolation_level=None)) as file:
                yield lambda sql: file.execute(sql).fetchall()
        elif scheme in ("mysql", "mariadb"):
            with closing(connect_mysql(url, timeout)) as driver:
                yield lambda sql: [tuple(row.values()) for row in driver.rows(sql)[0]]
        else:
            with closing(connect_blocking(url, timeout=timeout)) as client:
                client.autocommit = True

                def run(sql: str) -> list[Any]:
                    with client.cursor() as cursor:
                        cursor.execute(sql)
                        return list(cursor.fetchall()) if cursor.description else []

                yield run
    except (ConfigError, GeneratorExit):
        raise
    except Unavailable as error:
        raise StartError(f"cannot connect to the database: {error.message}") from None
    except Exception as error:
        raise ConfigError(f"the database rejected a statement: {one_line(error)}") from None
