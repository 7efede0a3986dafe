"""From a URL to a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from chatws.database.contract import Database
from chatws.errors import OperatorError

if TYPE_CHECKING:
    from chatws.database.postgres_pool import PostgresDatabase

__all__ = ["open_database", "open_postgres"]


def open_database(url: str, *, pool: int, timeout: float, reactor: Any) -> Database:
    """The database at `url`, not started yet.

    `postgresql://…` is what libpq takes (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS),
    `sqlite:///path` is relative to the working directory and `sqlite:////path` absolute.

    :param pool: connections, at least 1; threads with SQLite.
    :param timeout: seconds that a query may take, waiting for a connection included.
    :raises OperatorError: the URL cannot be understood. The sentence quotes nothing of it but the scheme.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme in ("postgresql", "postgres"):
        return open_postgres(url, pool=pool, timeout=timeout, reactor=reactor)
    if colon and scheme == "sqlite":
        from chatws.database.sqlite import SqliteDatabase

        if not rest.startswith("///") or rest == "///" or "?" in rest or "#" in rest:
            raise OperatorError("the database URL of an SQLite file is sqlite:///path, without options")
        return SqliteDatabase(unquote(rest[3:]), pool=pool, timeout=timeout, reactor=reactor)
    raise OperatorError("the database URL must begin with postgresql:// or sqlite:///")


def open_postgres(url: str, *, pool: int, timeout: float, reactor: Any) -> PostgresDatabase:
    """As `open_database`, for `postgresql://…` alone."""
    from chatws.database.postgres import connection_parameters
    from chatws.database.postgres_pool import PostgresDatabase

    _refuse_stray_at(url)
    return PostgresDatabase(connection_parameters(url, timeout=timeout), pool=pool, timeout=timeout, reactor=reactor)


def _refuse_stray_at(url: str) -> None:
    """An @ or / or ? left unencoded in a password moves a piece of it to where libpq quotes it: to host or database."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise OperatorError("the database URL cannot be understood: the brackets around an IPv6 address?") from None
    if parts.netloc.count("@") > 1 or "@" in parts.path or "@" in parts.query or parts.fragment:
        raise OperatorError(
            "the database URL has an unencoded character in its password: @ is %40, / is %2F, ? is %3F, # is %23"
        )
