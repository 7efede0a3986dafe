"""One connection to MySQL or MariaDB: PyMySQL in a thread of its own, through twisted.enterprise.adbapi.

adbapi alone would keep a dead connection for ever, and open a transaction with each query, which then shows an old
snapshot. Here connections commit each statement by themselves, and the pool (`chatws.database.pool`) replaces them.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pymysql
import pymysql.connections
from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred

from chatws.database.interface import ExactText, QueryFailed, Row, ValueRefused, Values
from chatws.database.mysql_errors import describe, is_read_only, translate_connect_error, translate_error
from chatws.database.mysql_options import MysqlOptions
from chatws.database.mysql_socket import connect_socket
from chatws.database.pool import ConnectFailed, ConnectionDied, QueryAborted
from chatws.interfaces import Reactor

__all__ = ["MysqlConnection", "MysqlDriver", "open_driver"]

#: Bytes. The default of 1,024 cuts the lists of an authorizer's GROUP_CONCAT, with a warning only.
GROUP_CONCAT_MAX_LEN = 16 * 1024 * 1024
#: GROUP_CONCAT was cut all the same.
_CUT_GROUP_CONCAT = 1260
#: Unknown system variable: a server, or a proxy, that calls itself another product.
_UNKNOWN_VARIABLE = 1193
#: Seconds. The server ends a session that is idle for longer, whatever its global `wait_timeout` is. More than the age
#: at which the pool replaces connections.
WAIT_TIMEOUT = 900


class MysqlDriver(pymysql.connections.Connection):  # type: ignore[misc]
    """A connection of PyMySQL with chatws' session settings. Blocking.

    :ivar is_mariadb: whether the server is MariaDB.
    :ivar exact_collation: the collation that compares texts byte by byte, trailing spaces included.
    """

    is_mariadb = False
    exact_collation = "utf8mb4_bin"

    def settle(self, timeout: float, time_zone: str) -> None:
        """Set the session's limits, below `timeout` seconds, and its time zone."""
        version = self.get_server_info()
        self.is_mariadb = "MariaDB" in version
        if self.is_mariadb:
            self.exact_collation = "utf8mb4_nopad_bin"
        elif _version(version) >= (8, 0, 17):
            self.exact_collation = "utf8mb4_0900_bin"
        seconds = max(1, int(timeout * 0.8))
        settings = [
            f"group_concat_max_len = {GROUP_CONCAT_MAX_LEN}",
            f"lock_wait_timeout = {seconds}",
            f"innodb_lock_wait_timeout = {seconds}",
            f"wait_timeout = {WAIT_TIMEOUT}",
            # a text that is too long, or an UPDATE of '5abc', fails instead of changing another row
            "sql_mode = CONCAT_WS(',', NULLIF(@@sql_mode, ''), 'STRICT_TRANS_TABLES')",
        ]
        if time_zone:
            settings.append(f"time_zone = {self.escape(time_zone)}")
        self.query(f"SET SESSION {', SESSION '.join(settings)}")
        limits = [
            f"max_statement_time = {timeout * 0.8:.3f}",
            f"max_execution_time = {max(1, round(timeout * 800))}",
        ]
        for limit in limits if self.is_mariadb else reversed(limits):
            try:
                self.query(f"SET SESSION {limit}")
                return
            except pymysql.Error as error:
                if error.args[0] != _UNKNOWN_VARIABLE:
                    raise

    def bind(self, sql: str, values: Values) -> str:
        """Return `sql` with literals for its placeholders.

        Integers become texts too. MySQL would compare the text '5abc' of a column with the number 5 as numbers.

        :raises ValueRefused: a value cannot be written as a literal.
        :raises QueryFailed: the placeholders do not match the values.
        """
        try:
            bound: str = sql % {name: self._literal(value) for name, value in values.items()}
        except pymysql.Error as error:
            raise ValueRefused(describe(error)) from None
        except (KeyError, TypeError, ValueError) as error:
            raise QueryFailed(f"wrong placeholder: {error}") from None
        return bound

    def _literal(self, value: Any) -> str:
        if isinstance(value, int):
            value = str(int(value))
        literal: str = self.escape(value)
        return f"({literal} COLLATE {self.exact_collation})" if isinstance(value, ExactText) else literal

    def rows(self, sql: str) -> tuple[list[Row], int]:
        """Run one statement, and return its rows and how many it returned or changed.

        :raises QueryAborted: the server cut the result of GROUP_CONCAT.
        """
        with self.cursor() as cursor:
            cursor.execute(sql)
            rows: list[Row] = []
            if cursor.description is not None:
                names = [column[0] for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            count = cursor.rowcount
            if cursor.warning_count and any(warning[1] == _CUT_GROUP_CONCAT for warning in self.show_warnings()):
                raise QueryAborted("the result of GROUP_CONCAT was cut: it exceeds group_concat_max_len")
        return rows, count


def open_driver(
    options: MysqlOptions,
    addresses: Sequence[str],
    timeout: float,
    on_socket: Callable[[socket.socket], None],
) -> MysqlDriver:
    """Connect and set up the session. Blocking.

    :param addresses: those of `options.host`, tried in this order.
    :param timeout: seconds for each read and each write; half of it for connecting the socket.
    :param on_socket: called with each socket before it connects.
    :raises ConnectFailed: the server is unreachable or refused the connection.
    """
    try:
        connected = connect_socket(options, addresses, timeout, on_socket)
    except OSError as error:
        where = options.unix_socket or f"{options.host}:{options.port}"
        raise ConnectFailed(f"cannot connect to {where}: {error.strerror or error}") from None
    driver = MysqlDriver(
        host=options.host or "localhost",
        port=options.port,
        user=options.user,
        # PyMySQL encodes a str as Latin-1
        password=options.password.encode(),
        database=options.database,
        charset="utf8mb4",
        autocommit=True,
        read_timeout=timeout,
        write_timeout=timeout,
        ssl=options.tls or None,
        ssl_disabled=options.tls is False,
        program_name="chatws",
        defer_connect=True,
    )
    try:
        driver.connect(connected)
        driver.settle(timeout, options.time_zone)
    except Exception as error:
        driver.close()
        raise translate_connect_error(error) from None
    return driver


def _version(text: str) -> tuple[int, ...]:
    numbers = text.split("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())


class _AutocommitConnection(adbapi.Connection):
    """adbapi commits after each call and rolls back after each error. Here each statement commits by itself.

    :ivar driver: the connection that it wraps.
    """

    @property
    def driver(self) -> MysqlDriver:
        driver: Any = self._connection
        assert isinstance(driver, MysqlDriver)
        return driver

    def commit(self) -> None:
        """Do nothing."""

    def rollback(self) -> None:
        """Do nothing: it would raise on a connection that has ended."""


class _Thread(adbapi.ConnectionPool):
    """A pool of adbapi with one thread and one connection, which is never opened again.

    :param opening: opens the connection, in the thread.
    """

    connectionFactory = _AutocommitConnection

    def __init__(self, opening: Callable[[], MysqlDriver], reactor: Reactor) -> None:
        super().__init__("pymysql", cp_reactor=reactor, cp_min=0, cp_max=1)  # type: ignore[no-untyped-call]
        self._opening: Callable[[], MysqlDriver] | None = opening

    def connect(self) -> MysqlDriver:
        """See `adbapi.ConnectionPool`."""
        opening, self._opening = self._opening, None
        if opening is not None:
            self.connections[threading.get_ident()] = opening()
        driver: MysqlDriver | None = self.connections.get(threading.get_ident())
        if driver is None:
            raise ConnectionDied("the connection is closed")
        return driver

    def _close(self, conn: MysqlDriver) -> None:
        with suppress(pymysql.Error, OSError):
            conn.close()


class MysqlConnection:
    """See `chatws.database.pool.PooledConnection`.

    :param addresses: those of the host.
    :param timeout: seconds for connecting, for each read and each write.
    :param on_lost: called with this connection when it ends between queries.
    :param on_read_only: called when the server rejected a write because it is read-only.
    :ivar closed: fires when the thread has ended.
    :ivar is_mariadb: whether the server is MariaDB, once connected.
    """

    def __init__(
        self,
        options: MysqlOptions,
        addresses: Sequence[str],
        *,
        timeout: float,
        reactor: Reactor,
        on_lost: Callable[[MysqlConnection], None] | None = None,
        on_read_only: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_lost = on_lost
        self._on_read_only = on_read_only
        self.opened_at = self.responded_at = 0.0
        self.closed: Deferred[None] = Deferred()
        self.is_mariadb = False
        self._reactor = reactor
        self._is_closed = False
        # a duplicate of PyMySQL's socket, which may be shut down while a thread reads from it
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._is_running = False
        self._is_watched = False
        self._thread = _Thread(lambda: open_driver(options, addresses, timeout, self._set_socket), reactor)

    @property
    def is_dead(self) -> bool:
        """See `PooledConnection`."""
        return self._is_closed

    async def connect(self) -> None:
        """Connect.

        :raises ConnectFailed: the server is unreachable or refused the connection.
        """

        def note(driver: MysqlDriver) -> None:
            self.is_mariadb = driver.is_mariadb

        await self._run(note)

    async def run_query(self, sql: str, values: Values | None = None) -> tuple[list[Row], int]:
        """See `PooledConnection`."""
        result: tuple[list[Row], int] = await self._run(
            lambda driver: driver.rows(sql if values is None else driver.bind(sql, values))
        )
        return result

    async def run_batch(self, sql: str, batch: Sequence[Values]) -> int:
        """See `PooledConnection`. The statements are one transaction, without those that fail with `ValueRefused`."""
        refused: int = await self._run(lambda driver: _run_batch(driver, sql, batch))
        return refused

    def close(self) -> None:
        """See `PooledConnection`."""
        if self._is_closed:
            return
        self._is_closed = True
        self._watch(False)
        if self._is_running:
            with self._lock:
                if self._socket is not None:
                    # the thread's read or write ends at once
                    with suppress(OSError):
                        self._socket.shutdown(socket.SHUT_RDWR)
        else:
            self._end_thread()

    # --- for the reactor, which watches the idle connection ---

    def fileno(self) -> int:
        """See `IFileDescriptor`."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """See `ILoggingContext`."""
        return "MysqlConnection"

    def doRead(self) -> None:
        """Handle the end of an idle connection: no other data comes then."""
        self._on_end()

    def connectionLost(self, reason: Any) -> None:
        """See `IReadDescriptor`."""
        self._on_end()

    def _on_end(self) -> None:
        if not self._is_closed:
            self.close()
            if self.on_lost is not None:
                self.on_lost(self)

    def _watch(self, on: bool) -> None:
        if on != self._is_watched and self._socket is not None:
            self._is_watched = on
            if on:
                self._reactor.addReader(self)
            else:
                self._reactor.removeReader(self)

    # --- the thread ---

    def _set_socket(self, connecting: socket.socket) -> None:
        duplicate = socket.socket(fileno=os.dup(connecting.fileno()))
        with self._lock:
            previous, self._socket = self._socket, duplicate
        if previous is not None:
            previous.close()
        if self._is_closed:
            raise OSError("the connection is closed")

    async def _run(self, work: Callable[[MysqlDriver], Any]) -> Any:
        if self._is_closed:
            raise ConnectionDied("the connection is closed")
        self._watch(False)
        self._is_running = True
        try:
            running: Any = self._thread.runWithConnection(_translated, work)  # type: ignore[no-untyped-call]
            result = await running
        except (ConnectionDied, ConnectFailed):
            self._is_closed = True
            raise
        except _ReadOnly as error:
            # another connection may find the new primary
            self._is_closed = True
            self._on_read_only()
            raise QueryAborted(error.reason) from None
        finally:
            self._is_running = False
            if self._is_closed:
                self._end_thread()
            else:
                self.responded_at = self._reactor.seconds()
                self._watch(True)
        if self._is_closed:
            raise ConnectionDied("the connection is closed")
        return result

    def _end_thread(self) -> None:
        """Close the idle connection, and end its thread. A quick one: the thread has nothing to do."""
        self._thread.close()  # type: ignore[no-untyped-call]
        if self._socket is not None:
            self._socket.close()
        if not self.closed.called:
            self.closed.callback(None)


class _ReadOnly(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _translated(connection: _AutocommitConnection, work: Callable[[MysqlDriver], Any]) -> Any:
    """Run `work` on adbapi's connection, with the exceptions of `PooledConnection`. In the thread."""
    try:
        return work(connection.driver)
    except (QueryFailed, QueryAborted):
        raise
    except Exception as error:
        if is_read_only(error):
            raise _ReadOnly(describe(error)) from None
        raise translate_error(error) from None


def _run_batch(driver: MysqlDriver, sql: str, batch: Sequence[Mapping[str, Any]]) -> int:
    refused = 0
    driver.begin()
    try:
        for values in batch:
            try:
                driver.rows(driver.bind(sql, values))
            except Exception as error:
                if not isinstance(error, ValueRefused) and not isinstance(translate_error(error), ValueRefused):
                    raise
                refused += 1
        driver.commit()
    except Exception:
        if driver.open:
            driver.rollback()
        raise
    return refused
