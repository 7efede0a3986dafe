"""One connection to PostgreSQL through txpostgres. The sole importer of txpostgres and psycopg2.

It says plainly what became of a query: answered, refused (and whether for a value), given up by the server, or lost
with the connection. chatws.database.postgres_pool builds on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
import psycopg2.extensions
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from txpostgres import txpostgres

from chatws.database.contract import QueryFailed, Row, ValueRefused, Values
from chatws.errors import OperatorError, Unavailable

__all__ = ["ConnectionDied", "GivenUp", "PostgresConnection", "connection_parameters", "one_line"]


class ConnectionDied(Exception):
    """The connection ended before the answer was there."""


class GivenUp(Unavailable):
    """PostgreSQL answered that it could not do it now: too slow, deadlocked, out of something."""

    def __init__(self, reason: str) -> None:
        super().__init__("the database is too busy")
        self.reason = reason


def connection_parameters(url: str, *, timeout: float) -> dict[str, Any]:
    """libpq's parameters for `url` (https://www.postgresql.org/docs/current/libpq-connect.html), with ours where the
    URL says nothing: keepalives, `tcp_user_timeout`, `statement_timeout`, the name of the application.

    :param timeout: seconds.
    :raises OperatorError: libpq does not understand the URL. The sentence quotes nothing of it: its own would.
    """
    try:
        given: dict[str, Any] = psycopg2.extensions.parse_dsn(url)
        for port in given.get("port", "").split(","):
            int(port or "0")
    except (psycopg2.Error, ValueError):
        raise OperatorError(
            "the database URL cannot be understood; it is postgresql://user:password@host:port/name?option=value, "
            "with special characters percent-encoded (@ is %40)"
        ) from None
    milliseconds = max(1, round(timeout * 1000))
    ours = {
        "application_name": "chatws",
        "client_encoding": "UTF8",
        "keepalives": "1",
        "keepalives_idle": "30",
        "keepalives_interval": "5",
        "keepalives_count": "3",
        "tcp_user_timeout": str(milliseconds),
    }
    options = given.get("options")
    # an empty `options=` means none at all: some connection poolers refuse the parameter
    if options != "" and "statement_timeout" not in (options or ""):
        given["options"] = f"{options or ''} -c statement_timeout={max(1, milliseconds * 8 // 10)}".strip()
    return {**ours, **{key: value for key, value in given.items() if value != ""}}


def one_line(error: BaseException) -> str:
    """One line for the log. libpq's sentences name hosts, users and databases, never passwords."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _is_fatal(error: psycopg2.Error) -> bool:
    """Whether the connection is done for: libpq itself complains, or PostgreSQL takes its leave (classes 08, 57P,
    https://www.postgresql.org/docs/current/errcodes-appendix.html)."""
    if error.pgcode is None:
        return not isinstance(error, psycopg2.ProgrammingError)
    return bool(error.pgcode.startswith(("08", "57P")))


class _Reactor:
    """The reactor, which forgets a descriptor also when libpq has closed it under its hands.

    epoll's reactor refuses that half way, and keeps the number in its books: whoever gets it next is not watched.
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
        numbers = [one for one, watching in watched.items() if watching is selectable] if number < 0 else [number]
        try:
            remove(selectable)
        except (KeyError, OSError):
            for number in numbers:
                if watched.get(number) is selectable:
                    del watched[number]
                if number not in watched:
                    for books in ("_reads", "_writes"):
                        getattr(self._reactor, books, set()).discard(number)


class PostgresConnection(txpostgres.Connection):  # type: ignore[misc]
    """One connection. Whoever holds it runs one query at a time.

    :ivar on_lost: called with this connection when it ends while nothing is asked of it.
    :ivar opened_at: when it was connected, in the reactor's seconds.
    :ivar heard_at: when it last answered.
    """

    def __init__(self, reactor: Any, on_lost: Callable[[PostgresConnection], None] | None = None) -> None:
        super().__init__(_Reactor(reactor))
        self.on_lost = on_lost
        self.opened_at = self.heard_at = 0.0
        self._connecting = False
        self._closed = False

    @property
    def is_dead(self) -> bool:
        return self._closed or self._connection is None or bool(self._connection.closed)

    def connect(self, *arguments: Any, **parameters: Any) -> Deferred[Any]:
        """:param parameters: libpq's."""
        self._connecting = True
        connected: Deferred[Any] = super().connect(*arguments, **parameters)
        return connected.addBoth(self._connected)

    def close(self) -> None:
        """Idempotent. A query under way fails with `ConnectionDone`."""
        if self._connection is not None and not self._closed:
            self._closed = True
            super().close()

    # What follows keeps a promise to the reactor that the base class does not: libpq closes the socket itself when it
    # fails, and must not do so while the reactor watches it. epoll refuses to remove a closed descriptor, its number
    # stays in the reactor's books, and whoever gets that number next (a browser) is never read.

    def doRead(self) -> None:
        if self._connecting:
            # the base class would watch for reading from now on, whatever libpq waits for
            txpostgres._PollingMixin.doRead(self)
            return
        try:
            super().doRead()
        except (psycopg2.Error, txpostgres.UnexpectedPollResult):
            # the base class would let the reactor log a traceback for what is an ordinary event
            self._lost()

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has seen that the peer hung up, or `close` was called."""
        super().connectionLost(reason)
        if not self._closed and not self._connecting:
            self._lost()

    async def _execute(self, cursor: Any, statement: str | bytes) -> None:
        self.reactor.removeReader(self)
        try:
            await cursor.execute(statement)
        finally:
            if not self.is_dead:
                self.reactor.addReader(self)

    def _connected(self, result: Any) -> Any:
        self._connecting = False
        return result

    def _lost(self) -> None:
        self.close()
        if self.on_lost is not None:
            self.on_lost(self)

    async def ask(self, sql: str | bytes, values: Values | None = None) -> tuple[list[Row], int]:
        """The rows, and how many there are or were changed.

        :raises ConnectionDied: the connection ended; it is closed now.
        :raises: as `Database.query`. The connection is still good.
        """
        cursor = None
        try:
            cursor = self.cursor()
            await self._execute(cursor, sql if values is None else self.quote(cursor, sql, values))
            rows: list[Row] = []
            if cursor.description is not None:
                names = [column[0] for column in cursor.description]
                rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
            self.heard_at = self.reactor.seconds()
            return rows, cursor.rowcount
        except (QueryFailed, Unavailable):
            raise
        except CancelledError:  # txpostgres' name for "canceling statement due to statement timeout"
            self.heard_at = self.reactor.seconds()
            raise GivenUp("it took too long") from None
        except psycopg2.Error as error:
            if self.is_dead or _is_fatal(error):
                self.close()
                raise ConnectionDied(one_line(error)) from None
            self.heard_at = self.reactor.seconds()
            if isinstance(error, psycopg2.DataError | psycopg2.IntegrityError):
                raise ValueRefused(one_line(error)) from None
            if isinstance(error, psycopg2.OperationalError):
                raise GivenUp(one_line(error)) from None
            raise QueryFailed(one_line(error)) from None
        except Exception as error:
            # ConnectionDone because we closed it, or txpostgres in a state unknown: not to be used again
            self.close()
            raise ConnectionDied(one_line(error)) from None
        finally:
            if cursor is not None and not self.is_dead:
                cursor.close()

    async def ask_all(self, sql: str, batch: Sequence[Values]) -> int:
        """Run `sql` for each of `batch` in one message; returns how many were refused for their values.

        PostgreSQL takes the statements of one message as one transaction: where a value is refused, the others are
        run again by themselves.

        :raises: as `ask`, `ValueRefused` excepted.
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
                # a line of its own for the semicolon: the operator's SQL may end with a comment
                await self.ask(b"\n;\n".join(statements))
            except ValueRefused:
                for statement in statements:
                    try:
                        await self.ask(statement)
                    except ValueRefused:
                        refused += 1
        return refused

    def quote(self, cursor: Any, sql: str | bytes, values: Values) -> bytes:
        """`sql` with its placeholders replaced by quoted values. Needs no answer from the server."""
        try:
            quoted: bytes = cursor.mogrify(sql, dict(values))
        except ValueError as error:  # a NUL in a text, half of a surrogate pair
            raise ValueRefused(one_line(error)) from None
        except (KeyError, TypeError, psycopg2.ProgrammingError) as error:
            raise QueryFailed(one_line(error)) from None
        return quoted
