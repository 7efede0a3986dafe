"""One connection to PostgreSQL through txpostgres, which no other module imports.

A query ends in one of five ways: with a result, `QueryFailed`, `ValueRefused`, `QueryAborted` by the server, or
`ConnectionDied`. `chatws.database.pool` builds on that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
import psycopg2.extensions
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from txpostgres import txpostgres

from chatws.database.interface import ExactText, QueryFailed, Row, ValueRefused, Values
from chatws.database.pool import ConnectionDied, QueryAborted, one_line
from chatws.errors import ConfigError, Unavailable

__all__ = ["PostgresConnection", "accepted_parameters", "connect_blocking", "connection_parameters"]

#: PgBouncer's error for `options` in the first message of a connection.
_REJECTED = "unsupported startup parameter"
_OWN_OPTION = re.compile(r" ?-c statement_timeout=\d+$")


def connection_parameters(url: str, *, timeout: float) -> dict[str, Any]:
    """Return libpq's parameters for `url` (https://www.postgresql.org/docs/current/libpq-connect.html).

    Where the URL does not set them, chatws sets keepalives, `tcp_user_timeout`, `statement_timeout` and the
    application's name.

    :param timeout: seconds.
    :raises ConfigError: the URL is invalid. The message does not quote it, as it may contain a password.
    """
    try:
        parameters: dict[str, Any] = psycopg2.extensions.parse_dsn(url)
        for port in parameters.get("port", "").split(","):
            int(port or "0")
    except (psycopg2.Error, ValueError):
        raise ConfigError(
            "the database URL is invalid; the form is postgresql://user:password@host:port/name?option=value, "
            "with special characters percent-encoded (@ is %40)"
        ) from None
    milliseconds = max(1, round(timeout * 1000))
    # a dead peer is noticed after 45 s while the connection is idle, after the timeout while data is unacknowledged
    defaults = {
        "application_name": "chatws",
        "client_encoding": "UTF8",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": str(milliseconds),
    }
    options = parameters.get("options")
    # an empty `options=` disables the parameter; see `accepted_parameters`
    if options != "" and "statement_timeout" not in (options or ""):
        parameters["options"] = f"{options or ''} -c statement_timeout={max(1, milliseconds * 8 // 10)}".strip()
    return {**defaults, **{key: value for key, value in parameters.items() if value != ""}}


class _ExactLiteral:
    """How psycopg writes an `ExactText`. Neither citext nor a collation of the column then decides."""

    def __init__(self, value: ExactText) -> None:
        self._quoted = psycopg2.extensions.QuotedString(str(value))

    def prepare(self, connection: Any) -> None:
        self._quoted.prepare(connection)

    def getquoted(self) -> bytes:
        quoted: bytes = self._quoted.getquoted()
        return b"(" + quoted + b'::text COLLATE "C")'


psycopg2.extensions.register_adapter(ExactText, _ExactLiteral)


def accepted_parameters(parameters: dict[str, Any], error: BaseException) -> dict[str, Any] | None:
    """Return parameters without `statement_timeout`, if a connection pooler has rejected it. Otherwise None.

    PgBouncer passes on no `options`, because its clients share connections. Queries then have the pool's timeout only.

    :param error: that of a connection with `parameters`.
    """
    options = str(parameters.get("options", ""))
    if _REJECTED not in str(error) or not _OWN_OPTION.search(options):
        return None
    rest = _OWN_OPTION.sub("", options)
    others = {name: value for name, value in parameters.items() if name != "options"}
    return {**others, "options": rest} if rest else others


def connect_blocking(url: str, *, timeout: float, connect_timeout: int = 10) -> Any:
    """Connect with psycopg2, for the command line and the checks at the start.

    :param timeout: seconds for a statement.
    :param connect_timeout: seconds.
    :raises psycopg2.Error: the connection failed.
    :raises ConfigError: as `connection_parameters`.
    """
    parameters = {"connect_timeout": connect_timeout, **connection_parameters(url, timeout=timeout)}
    try:
        return psycopg2.connect(**parameters)
    except psycopg2.OperationalError as error:
        accepted = accepted_parameters(parameters, error)
        if accepted is None:
            raise
        return psycopg2.connect(**accepted)


def _is_fatal(error: psycopg2.Error) -> bool:
    """Return whether the connection is unusable: the error is libpq's own, or PostgreSQL's of class 08 or 57P.

    See https://www.postgresql.org/docs/current/errcodes-appendix.html.
    """
    if error.pgcode is None:
        return not isinstance(error, psycopg2.ProgrammingError)
    return bool(error.pgcode.startswith(("08", "57P")))


class DescriptorReactor:
    """A reactor that can remove a descriptor after libpq has closed it.

    The epoll reactor raises while it removes a closed descriptor and keeps the number. The next socket with that
    number would never be read. Uses the private attributes `_selectables`, `_reads` and `_writes` of Twisted's
    reactors, where they exist.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def removeReader(self, reader: Any) -> None:
        self._remove(self._reactor.removeReader, reader)

    def removeWriter(self, writer: Any) -> None:
        self._remove(self._reactor.removeWriter, writer)

    def _remove(self, remove: Callable[[Any], None], selectable: Any) -> None:
        watched = getattr(self._reactor, "_selectables", {})
        number = selectable.fileno()
        numbers = [key for key, value in watched.items() if value is selectable] if number < 0 else [number]
        try:
            remove(selectable)
        except (KeyError, OSError):
            for number in numbers:
                if watched.get(number) is selectable:
                    del watched[number]
                if number not in watched:
                    for registry in ("_reads", "_writes"):
                        getattr(self._reactor, registry, set()).discard(number)


class PostgresConnection(txpostgres.Connection):  # type: ignore[misc]
    """One connection, which runs one query at a time.

    :ivar on_lost: called with this connection when it ends between queries.
    :ivar opened_at: when it was connected, in the reactor's seconds.
    :ivar responded_at: when it last responded.
    """

    def __init__(self, reactor: Any, on_lost: Callable[[PostgresConnection], None] | None = None) -> None:
        super().__init__(DescriptorReactor(reactor))
        self.on_lost = on_lost
        self.opened_at = self.responded_at = 0.0
        self._connecting = False
        self._closed = False

    @property
    def is_dead(self) -> bool:
        """Whether it is closed, by either side."""
        return self._closed or self._connection is None or bool(self._connection.closed)

    def connect(self, *arguments: Any, **parameters: Any) -> Deferred[Any]:
        """Connect.

        :param parameters: libpq's.
        """
        self._connecting = True
        connected: Deferred[Any] = super().connect(*arguments, **parameters)
        return connected.addBoth(self._on_connected)

    def close(self) -> None:
        """Close it. Idempotent. A running query fails with `ConnectionDied`."""
        if self._connection is not None and not self._closed:
            self._closed = True
            super().close()

    # The methods below keep the reactor from watching the socket while libpq may close it: see DescriptorReactor.

    def doRead(self) -> None:
        if self._connecting:
            # the base class would watch for reading, also while libpq waits for writing
            txpostgres._PollingMixin.doRead(self)
            return
        try:
            super().doRead()
        except (psycopg2.Error, txpostgres.UnexpectedPollResult):
            # the reactor would log a traceback for a normal event
            self._on_end()

    def connectionLost(self, reason: Failure) -> None:
        """Handle the end of the socket, by the peer or by `close`."""
        super().connectionLost(reason)
        if not self._closed and not self._connecting:
            self._on_end()

    async def _execute(self, cursor: Any, statement: str | bytes) -> None:
        self.reactor.removeReader(self)
        try:
            await cursor.execute(statement)
        finally:
            if not self.is_dead:
                self.reactor.addReader(self)

    def _on_connected(self, result: Any) -> Any:
        self._connecting = False
        return result

    def _on_end(self) -> None:
        self.close()
        if self.on_lost is not None:
            self.on_lost(self)

    async def run_query(self, sql: str | bytes, values: Values | None = None) -> tuple[list[Row], int]:
        """Return the rows, and the number of rows returned or changed.

        :raises ConnectionDied: the connection ended, and is closed.
        :raises: as `Database.query`. The connection remains usable.
        """
        cursor = None
        try:
            cursor = self.cursor()
            await self._execute(cursor, sql if values is None else self.quote(cursor, sql, values))
            rows: list[Row] = []
            if cursor.description is not None:
                names = [column[0] for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            self.responded_at = self.reactor.seconds()
            return rows, cursor.rowcount
        except (QueryFailed, Unavailable):
            raise
        except CancelledError:  # txpostgres' name for "canceling statement due to statement timeout"
            self.responded_at = self.reactor.seconds()
            raise QueryAborted("it exceeded statement_timeout") from None
        except psycopg2.Error as error:
            if self.is_dead or _is_fatal(error):
                self.close()
                raise ConnectionDied(one_line(error)) from None
            self.responded_at = self.reactor.seconds()
            if isinstance(error, psycopg2.DataError | psycopg2.IntegrityError):
                raise ValueRefused(one_line(error)) from None
            if isinstance(error, psycopg2.OperationalError):
                raise QueryAborted(one_line(error)) from None
            raise QueryFailed(one_line(error)) from None
        except Exception as error:
            # ConnectionDone after `close`, or an unknown state of txpostgres: do not use the connection again
            self.close()
            raise ConnectionDied(one_line(error)) from None
        finally:
            if cursor is not None and not self.is_dead:
                cursor.close()

    async def run_batch(self, sql: str, batch: Sequence[Values]) -> int:
        """Run `sql` for each of `batch` in one message, and return how many failed with `ValueRefused`.

        PostgreSQL runs the statements of one message as one transaction. After a `ValueRefused`, each is run again in
        a transaction of its own.

        :raises: as `run_query`, except `ValueRefused`.
        """
        statements = []
        if self.is_dead:
            raise ConnectionDied("the connection is closed")
        cursor = self.cursor()
        for values in batch:
            with suppress(ValueRefused):
                statements.append(self.quote(cursor, sql, values))
        cursor.close()
        refused = len(batch) - len(statements)
        if statements:
            try:
                # the semicolon is on its own line because the operator's SQL may end with a comment
                await self.run_query(b"\n;\n".join(statements))
            except ValueRefused:
                for statement in statements:
                    try:
                        await self.run_query(statement)
                    except ValueRefused:
                        refused += 1
        return refused

    def quote(self, cursor: Any, sql: str | bytes, values: Values) -> bytes:
        """Return `sql` with quoted values for its placeholders. Does not contact the server.

        :raises ValueRefused: a value cannot be quoted.
        :raises QueryFailed: the placeholders do not match the values.
        """
        try:
            quoted: bytes = cursor.mogrify(sql, dict(values))
        except ValueError as error:  # a NUL in a text, half of a surrogate pair
            raise ValueRefused(one_line(error)) from None
        except (KeyError, TypeError, psycopg2.ProgrammingError) as error:
            raise QueryFailed(one_line(error)) from None
        return quoted
