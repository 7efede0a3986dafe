"""Opens a database by its URL."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from chatws.database.interface import Database
from chatws.errors import ConfigError
from chatws.interfaces import Reactor

if TYPE_CHECKING:
    from chatws.database.mysql_pool import MysqlDatabase
    from chatws.database.postgres_pool import PostgresDatabase

__all__ = ["open_database", "open_mysql", "open_postgres", "require_pymysql"]


def open_database(url: str, *, pool: int, timeout: float, reactor: Reactor) -> Database:
    """Return the database at `url`, not started yet.

    `postgresql://…` is a connection URI of libpq (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS),
    `mysql://…` and `mariadb://…` are described in `chatws.database.mysql_options`. `sqlite:///path` is relative to the
    working directory and `sqlite:////path` absolute.

    :param pool: connections, at least 1; threads with SQLite.
    :param timeout: seconds that a query may take, including its wait for a connection.
    :raises ConfigError: the URL is invalid. The message does not quote it, as it may contain a password.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme in ("postgresql", "postgres"):
        return open_postgres(url, pool=pool, timeout=timeout, reactor=reactor)
    if colon and scheme in ("mysql", "mariadb"):
        return open_mysql(url, pool=pool, timeout=timeout, reactor=reactor)
    if colon and scheme == "sqlite":
        from chatws.database.sqlite import SqliteDatabase

        if not rest.startswith("///") or rest == "///" or "?" in rest or "#" in rest:
            raise ConfigError("the database URL of an SQLite file is sqlite:///path, without options")
        return SqliteDatabase(unquote(rest[3:]), pool=pool, timeout=timeout, reactor=reactor)
    raise ConfigError("the database URL must begin with postgresql://, mysql://, mariadb:// or sqlite:///")


def open_postgres(url: str, *, pool: int, timeout: float, reactor: Reactor) -> PostgresDatabase:
    """Open a PostgreSQL database, as `open_database`."""
    from chatws.database.postgres_connection import connection_parameters
    from chatws.database.postgres_pool import PostgresDatabase

    _reject_unencoded_password(url)
    return PostgresDatabase(connection_parameters(url, timeout=timeout), pool=pool, timeout=timeout, reactor=reactor)


def open_mysql(url: str, *, pool: int, timeout: float, reactor: Reactor) -> MysqlDatabase:
    """Open a MySQL or MariaDB database, as `open_database`."""
    require_pymysql()
    from chatws.database.mysql_options import mysql_options
    from chatws.database.mysql_pool import MysqlDatabase

    return MysqlDatabase(mysql_options(url), pool=pool, timeout=timeout, reactor=reactor)


def require_pymysql() -> None:
    """Check that the driver for MySQL is installed.

    :raises ConfigError: it is absent.
    """
    if find_spec("pymysql") is None:
        raise ConfigError("a mysql:// database needs PyMySQL: pip install 'chatws[mysql]'")


def _reject_unencoded_password(url: str) -> None:
    """Reject an @, / or ? in the password: libpq would take a part of it for the host, and quote that in errors."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("the database URL is invalid: check the brackets around an IPv6 address") from None
    if parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query or parts.fragment:
        raise ConfigError(
            "the database URL has an unencoded character in its password: @ is %40, / is %2F, ? is %3F, # is %23"
        )
