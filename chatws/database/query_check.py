"""Tries the operator's queries without writing anything. Blocking: for `chatws check` and the start of a server.

Queries that read are run. Those that write are only planned (`EXPLAIN`), which finds wrong names, types and privileges.
PostgreSQL does both in a read-only transaction that is rolled back, SQLite with `PRAGMA query_only`. MySQL runs those
that read in a read-only transaction.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import NamedTuple, NoReturn
from urllib.parse import quote, unquote

import psycopg2
import psycopg2.errorcodes
import psycopg2.extensions

from chatws.database.blocking import connect_mysql
from chatws.database.interface import QueryFailed, QueryTest, ValueRefused, Values
from chatws.database.placeholders import to_sqlite
from chatws.database.pool import ConnectionDied, one_line
from chatws.database.postgres_connection import connect_blocking
from chatws.database.sqlite import translate_error
from chatws.errors import ConfigError, Unavailable

__all__ = ["QueryReport", "QueryStep", "check_queries"]

#: Runs one statement, with the exceptions of `Database.query`, and returns the number of rows.
_Run = Callable[[str, Values], int]

#: Errors of a comparison of a number with a text or uuid column.
_TYPE_MISMATCH = (psycopg2.errorcodes.UNDEFINED_FUNCTION, psycopg2.errorcodes.DATATYPE_MISMATCH)


class _NotANumberColumn(QueryFailed):
    """The column that an id is compared with is a text or a uuid."""


class _UnexpectedWrite(QueryFailed):
    """A query that should only read writes."""


class QueryStep(NamedTuple):
    """The connection, or one query.

    :ivar name: `connection`, or the setting.
    :ivar seconds: how long it took.
    """

    name: str
    result: str
    seconds: float


class QueryReport(NamedTuple):
    """The result of a check.

    :ivar steps: in order.
    :ivar warnings: about queries that could not be tried, a sentence each.
    """

    steps: list[QueryStep]
    warnings: list[str]


def check_queries(url: str, tests: Iterable[QueryTest], timeout: float) -> QueryReport:
    """Try each query once.

    :param url: the URL of the application's database.
    :param timeout: seconds for the connection, and for each query.
    :raises ConfigError: a query is wrong. The message has the name of the setting and the message of the database.
    """
    scheme = url.partition(":")[0]
    check = {"sqlite": _check_sqlite, "mysql": _check_mysql, "mariadb": _check_mysql}.get(scheme, _check_postgres)
    report = QueryReport([], [])
    try:
        check(url, list(tests), timeout, report)
    except Unavailable as error:
        report.warnings.append(f"the queries were not tried, because the database is unavailable: {error.message}")
    return report


def _check_postgres(url: str, tests: list[QueryTest], timeout: float, report: QueryReport) -> None:
    began = time.monotonic()
    try:
        # libpq raises a smaller connect_timeout to 2 seconds
        connection = connect_blocking(url, timeout=timeout, connect_timeout=max(2, math.ceil(timeout)))
    except psycopg2.Error as error:
        raise Unavailable(one_line(error)) from None

    def run(sql: str, values: Values) -> int:
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql, dict(values))
                return int(cursor.rowcount)
        except psycopg2.Error as error:
            _raise_translated(error)
        except (ValueError, KeyError, TypeError) as error:
            raise QueryFailed(one_line(error)) from None
        finally:
            if not connection.closed:
                connection.rollback()

    with closing(connection):
        connection.set_session(readonly=True)
        _try_all(tests, run, began, report)


def _raise_translated(error: psycopg2.Error) -> NoReturn:
    message = one_line(error)
    if error.pgcode in _TYPE_MISMATCH:
        raise _NotANumberColumn(message) from None
    if error.pgcode == psycopg2.errorcodes.READ_ONLY_SQL_TRANSACTION:
        raise _UnexpectedWrite(message) from None
    if isinstance(error, psycopg2.DataError | psycopg2.IntegrityError):
        raise ValueRefused(message) from None
    if isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        raise Unavailable(message) from None
    raise QueryFailed(message) from None


def _check_mysql(url: str, tests: list[QueryTest], timeout: float, report: QueryReport) -> None:
    from chatws.database.mysql_errors import describe, is_read_only, translate_error

    began = time.monotonic()
    driver = connect_mysql(url, timeout)

    def run(sql: str, values: Values) -> int:
        # MySQL refuses to plan a write in a read-only transaction
        is_plan = sql.startswith("EXPLAIN ")
        try:
            if not is_plan:
                driver.query("START TRANSACTION READ ONLY")
            return driver.rows(driver.bind(sql, values))[1]
        except (QueryFailed, Unavailable):
            raise
        except Exception as error:
            if is_read_only(error):
                raise _UnexpectedWrite(describe(error)) from None
            translated = translate_error(error)
            if isinstance(translated, ConnectionDied):
                raise Unavailable(one_line(translated)) from None
            raise translated from None
        finally:
            if driver.open and not is_plan:
                driver.rollback()

    with closing(driver):
        _try_all(tests, run, began, report)


def _check_sqlite(url: str, tests: list[QueryTest], timeout: float, report: QueryReport) -> None:
    path = unquote(url.removeprefix("sqlite:///"))
    began = time.monotonic()

    def run(sql: str, values: Values) -> int:
        try:
            return len(connection.execute(to_sqlite(sql), dict(values)).fetchall())
        except Exception as error:
            raise translate_error(error) from None

    try:
        # as the server opens it: a missing file is not created
        connection = sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=timeout)
    except sqlite3.Error as error:
        raise Unavailable(f"{path}: {error}") from None
    with closing(connection):
        connection.execute("PRAGMA query_only = ON")
        _try_all(tests, run, began, report)


def _try_all(tests: list[QueryTest], run: _Run, began: float, report: QueryReport) -> None:
    report.steps.append(QueryStep("connection", "the database answers", time.monotonic() - began))
    for test in tests:
        began = time.monotonic()
        sql = f"EXPLAIN {test.sql}" if test.writes else test.sql
        try:
            try:
                count = run(sql, test.values)
            except _NotANumberColumn as error:
                # if all ids are texts, the server never passes a number
                report.warnings.append(
                    f"{test.setting} fails for an id that is a number ({error}); correct if all ids are texts"
                )
                texts = {name: str(value) if type(value) is int else value for name, value in test.values.items()}
                count = run(sql, texts)
            result = "planned, not run" if test.writes else "a row" if count else "no row"
        except ValueRefused:
            result = "the test id is invalid for its column"  # the query itself is correct
        except _UnexpectedWrite as error:
            report.warnings.append(f"{test.setting} was not tried, because it writes: {error}")
            result = "not tried"
        except QueryFailed as error:
            raise ConfigError(f"{test.setting}: {error}") from None
        report.steps.append(QueryStep(test.setting, result, time.monotonic() - began))
