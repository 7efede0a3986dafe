"""Publishes the rows of the outbox, on the one node that holds its lock.

- A row is published once it is committed, in id order within a transaction: each poll is one statement, so it sees
  either all rows of a transaction or none.
- A row is deleted by its id when the broker has stored it. If the node dies in between, the next holder publishes it
  again with the same idempotency key.
- The database ends the session of a holder whose connection is silent. Rows that were read longer ago than that are
  read again, because another node may hold the lock by then.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from chatws.brokers.interface import KEY_SECONDS, Event, NewEvent
from chatws.database.interface import QueryFailed, Row
from chatws.database.pool import QueryAborted, one_line
from chatws.errors import ClientError, ErrorCode, Unavailable
from chatws.interfaces import Reactor, zope_clock
from chatws.outbox.dialects import NOT_EXCLUSIVE, NOT_INNODB, SEVERAL_WRITERS, Dialect
from chatws.outbox.full_scan import FullScan
from chatws.outbox.online import OnlineTable
from chatws.outbox.rows import parse_row
from chatws.outbox.session import DatabaseSession, OutboxDatabase
from chatws.outbox.watermark import Watermark
from chatws.push.operations import Op
from chatws.push.protocol import PublishLine
from chatws.push.responses import ErrorResponse
from chatws.runtime.backoff import backoff
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["OutboxHandler", "OutboxReader", "OutboxSettings", "OutboxStats"]

#: Seconds of silence after which the database ends the holder's session. A statement that takes longer is given up.
LEASE = 10
#: Seconds after which rows that were read are no longer sent: the lease, less the time for sending them.
FRESH = LEASE * 0.6
#: Seconds between two attempts to get the lock: another node takes over within that time and the lease.
LOCK_INTERVAL = 2.0
#: Seconds between two polls: after a row, and when nothing has come for a while.
SHORTEST_POLL, LONGEST_POLL = 0.02, 0.2
#: Rows of a poll.
BATCH_SIZE = 100
#: Seconds between attempts after a failure.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
#: Published rows whose deletion failed. Of further ones, the broker knows the idempotency keys.
MAX_UNFINISHED = 1000
#: Seconds that a stop waits for the present batch.
STOP_TIMEOUT = 2.0
#: Seconds for which the broker knows rows if they are sent whatever their age is.
LONGEST_KEY = 86_400.0
#: Characters of the column `error`.
_ERROR_LENGTH = 400


class OutboxHandler(Protocol):
    """Executes requests: `chatws.push.handler.CommandHandler`."""

    def to_new_event(self, request: PublishLine) -> NewEvent:
        """Return the event to publish."""
        ...

    async def execute(self, operation: Op) -> Any:
        """Execute an operation. Never fails."""
        ...


class OutboxTarget(Protocol):
    """Publishes events: the chat server."""

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """Publish events."""
        ...


class OutboxSettings(NamedTuple):
    """Settings.

    :ivar prefix: of the table names.
    :ivar max_age: seconds; older rows are not sent. 0 for no limit.
    :ivar max_size: bytes of a row.
    """

    prefix: str
    max_age: float
    max_size: int

    @property
    def key_seconds(self) -> float:
        """Seconds for which the broker knows a row that it has stored: as long as the row is sent at all."""
        return max(KEY_SECONDS, self.max_age or LONGEST_KEY)


class OutboxStats:
    """Counters since the start.

    :ivar is_holder: whether this node holds the lock.
    :ivar sent: rows sent.
    :ivar rejected: rows that got an error.
    :ivar polls: polls.
    """

    def __init__(self) -> None:
        self.is_holder = False
        self.sent = 0
        self.rejected = 0
        self.polls = 0


class _NotHeld(Exception):
    """Another session holds the lock, or this one has lost it."""


class OutboxReader:
    """Polls the outbox while this node holds its lock.

    :param online: maintains the table of the agents online.
    """

    _log = Logger()

    def __init__(
        self,
        database: OutboxDatabase,
        dialect: Dialect,
        settings: OutboxSettings,
        *,
        target: OutboxTarget,
        handler: OutboxHandler,
        online: OnlineTable,
        reactor: Reactor,
    ) -> None:
        self.stats = OutboxStats()
        self._database = database
        self._dialect = dialect
        self._settings = settings
        self._target = target
        self._handler = handler
        self._online = online
        self._reactor: Reactor = reactor
        self._throttled_log = ThrottledLog(self._log, reactor, max_reasons=100)
        self._is_running = False
        self._pause: Deferred[None] | None = None
        self._loop: Deferred[None] | None = None
        self._session: DatabaseSession | None = None
        # published rows that are not deleted yet, with their nonces
        self._unfinished: dict[int, int] = {}
        self._table_id = ""

    def start(self) -> None:
        """Begin to wait for the lock, and then to poll."""
        self._is_running = True
        self._loop = Deferred.fromCoroutine(self._run())
        self._loop.addErrback(lambda failure: self._log.failure("the outbox has stopped", failure))

    async def stop(self) -> None:
        """Finish the present batch, and release the lock."""
        self._is_running = False
        if self._pause is not None:
            self._pause.cancel()
        if self._loop is not None:
            timer = self._reactor.callLater(STOP_TIMEOUT, self._close_session)
            await self._loop
            if timer.active():
                timer.cancel()
        await self._database.stop()

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()

    async def _run(self) -> None:
        failures = 0
        while self._is_running:
            session = None
            try:
                session = self._session = await self._database.open()
                if session is None:
                    raise _NotHeld
                await self._hold(session)
            except _NotHeld:
                failures = 0
                await self._sleep(LOCK_INTERVAL)
            except QueryFailed as error:
                self._warn(
                    f"the outbox cannot be read: run chatws db upgrade --database, or grant privileges ({error})"
                )
                await self._sleep(LONGEST_PAUSE)
            except Exception as error:
                if self._is_running:
                    self._warn(f"the outbox is unavailable: {one_line(error)}")
                    await self._sleep(backoff(failures, FIRST_PAUSE, LONGEST_PAUSE, random.random))
                    failures += 1
            finally:
                self.stats.is_holder = False
                self._session = None
                if session is not None:
                    session.close()

    async def _hold(self, session: DatabaseSession) -> None:
        """Wait for the lock, and poll while this session has it."""
        for statement in self._dialect.lease:
            with suppress(QueryFailed):  # PostgreSQL before 14 has no idle_session_timeout
                await self._query(session, statement.format(seconds=LEASE))
        while self._is_running and not await self._lock(session):
            await self._sleep(LOCK_INTERVAL)
        if not self._is_running:
            return
        await self._check_engine(session)
        await self._check_exclusive(session)
        self.stats.is_holder = True
        self._log.info("this node holds the outbox {table_id}", table_id=self._table_id)
        self._online.reset()
        # a row without a commit for longer than max_age is not sent
        watermark = Watermark(self._settings.max_age)
        sql = partial(self._dialect.scan, self._settings.prefix)
        scan = FullScan(self._database.open, session, sql, self._reactor, self._warn)
        try:
            await self._poll_repeatedly(session, watermark, scan)
        finally:
            scan.close()

    async def _poll_repeatedly(self, session: DatabaseSession, watermark: Watermark, scan: FullScan) -> None:
        pause = SHORTEST_POLL
        while self._is_running:
            if scan.is_due:
                if not await self._lock(session):
                    raise _NotHeld
                scan.start(watermark.highest)
            found = scan.take()
            if found is not None:
                watermark.lower(found)
            count = await self._poll(session, watermark)
            await self._update_online(session)
            pause = SHORTEST_POLL if count else min(LONGEST_POLL, pause * 1.3)
            if count < BATCH_SIZE:
                await self._sleep(pause)

    async def _update_online(self, session: DatabaseSession) -> None:
        """Update the agents online. A lock on their table does not delay the events."""
        try:
            await self._online.update(lambda sql, values=None: self._query(session, sql, values), self._reactor)
        except (QueryFailed, Unavailable) as error:
            self._online.forget()
            reason = error.reason if isinstance(error, QueryAborted) else one_line(error)
            self._warn(f"chatws_online is not up to date: {reason}")

    async def _check_engine(self, session: DatabaseSession) -> None:
        """Check that the table has transactions.

        :raises Unavailable: it has none, as after a restore with another storage engine.
        """
        if self._dialect.engine:
            sql = self._dialect.engine.format(p=self._settings.prefix)
            rows, _ = await self._query(session, sql)
            if rows and rows[0]["engine"] != "InnoDB":
                raise Unavailable(NOT_INNODB)

    async def _lock(self, session: DatabaseSession) -> bool:
        prefix = self._settings.prefix
        (schema, *_), _ = await self._query(session, f"SELECT table_id FROM {prefix}chatws_schema")
        self._table_id = str(schema["table_id"])
        (row, *_), _ = await self._query(session, self._dialect.lock, {"name": await self._lock_name(session)})
        return bool(row["held"])

    async def _lock_name(self, session: DatabaseSession) -> str:
        (database, *_), _ = await self._query(session, self._dialect.database)
        # a lock of MySQL is known in the whole server, and its name has up to 64 characters, as a database's may have
        digest = hashlib.sha256(str(database["name"]).encode()).hexdigest()[:32]
        return f"chatws:{self._table_id}:{digest}"

    async def _check_exclusive(self, session: DatabaseSession) -> None:
        """Check that a second connection does not get the lock, and that no other server of a cluster gives it.

        :raises Unavailable: the lock is not exclusive.
        """
        name = await self._lock_name(session)
        other = await self._database.open()
        if other is None:
            return
        try:
            (row, *_), _ = await self._query(other, self._dialect.lock, {"name": name})
        finally:
            other.close()
        if row["held"]:
            raise Unavailable(NOT_EXCLUSIVE)
        if self._database.is_single_writer:
            return
        for statement in self._dialect.clusters:
            with suppress(QueryFailed):  # no such variable: no such cluster
                rows, _ = await self._query(session, statement)
                if rows and rows[0]["value"] == 1:
                    raise Unavailable(SEVERAL_WRITERS)

    async def _poll(self, session: DatabaseSession, watermark: Watermark) -> int:
        """Send the rows that are there, and return how many there were."""
        self.stats.polls += 1
        began = self._reactor.seconds()
        sql = self._dialect.poll(self._settings.prefix, watermark.where(began), BATCH_SIZE)
        rows, _ = await self._query(session, sql)
        now = self._reactor.seconds()
        # older rows are read again: another node may have the lock
        if rows and now - began <= FRESH:
            await self._send(session, rows, began + FRESH)
            watermark.note((int(row["id"]) for row in rows), now)
        return len(rows)

    async def _send(self, session: DatabaseSession, rows: Sequence[Row], until: float) -> None:
        """Send `rows` in order, and delete them.

        :param until: the time from which on no further row is sent.
        :raises Unavailable: the broker is unavailable, or it is too late. What was sent is deleted.
        """
        batch: list[tuple[Row, NewEvent]] = []
        done: list[Row] = []
        try:
            for row in rows:
                if self._unfinished.get(int(row["id"])) == row["nonce"]:
                    done.append(row)
                    continue
                try:
                    request = parse_row(
                        row,
                        table_id=self._table_id,
                        max_age=self._settings.max_age,
                        max_size=self._settings.max_size,
                    )
                    if isinstance(request, PublishLine):
                        event = self._handler.to_new_event(request)
                        batch.append((row, msgspec.structs.replace(event, key_seconds=self._settings.key_seconds)))
                        continue
                except ClientError as error:
                    await self._reject(session, row, error)
                    continue
                # an operation comes after the events before it
                await self._publish(batch, done, until)
                self._check_time(until)
                response = await self._handler.execute(request)
                if not isinstance(response, ErrorResponse):
                    self._finish(row, done)
                elif response.code is ErrorCode.UNAVAILABLE:
                    raise Unavailable(response.message)
                else:
                    await self._reject(
                        session, row, ClientError(response.code or ErrorCode.UNAVAILABLE, response.message)
                    )
            await self._publish(batch, done, until)
        finally:
            if done:
                await self._delete(session, done)

    async def _publish(self, batch: list[tuple[Row, NewEvent]], done: list[Row], until: float) -> None:
        if batch:
            self._check_time(until)
            await self._target.publish([event for _, event in batch])
            for row, _ in batch:
                self._finish(row, done)
            batch.clear()

    def _finish(self, row: Row, done: list[Row]) -> None:
        while len(self._unfinished) >= MAX_UNFINISHED:
            del self._unfinished[next(iter(self._unfinished))]
        self._unfinished[int(row["id"])] = row["nonce"]
        self.stats.sent += 1
        done.append(row)

    def _check_time(self, until: float) -> None:
        if self._reactor.seconds() >= until:
            raise Unavailable("the rows were read too long ago, and are read again")

    async def _delete(self, session: DatabaseSession, rows: Sequence[Row]) -> None:
        sql = f"DELETE FROM {self._settings.prefix}chatws_outbox WHERE id = %(id)s"
        await self._within(session, session.run_batch(sql, [{"id": int(row["id"])} for row in rows]))
        for row in rows:
            self._unfinished.pop(int(row["id"]), None)

    async def _reject(self, session: DatabaseSession, row: Row, error: ClientError) -> None:
        text = f"{error.code.value}: {error.message}"[:_ERROR_LENGTH]
        self._throttled_log.warn(text, "row {row} of the outbox is not sent: {reason}", row=int(row["id"]), reason=text)
        sql = f"UPDATE {self._settings.prefix}chatws_outbox SET error = %(error)s WHERE id = %(id)s"
        await self._query(session, sql, {"error": text, "id": int(row["id"])})
        self.stats.rejected += 1

    async def _query(self, session: DatabaseSession, sql: str, values: Any = None) -> tuple[list[Row], int]:
        result: tuple[list[Row], int] = await self._within(session, session.run_query(sql, values))
        return result

    async def _within(self, session: DatabaseSession, work: Any) -> Any:
        """Run a statement. The session is closed if it takes longer than the lease."""
        timer = self._reactor.callLater(LEASE, session.close)
        try:
            return await work
        finally:
            if timer.active():
                timer.cancel()

    async def _sleep(self, seconds: float) -> None:
        if not self._is_running:
            return
        self._pause = deferLater(zope_clock(self._reactor), seconds)
        with suppress(CancelledError):
            await self._pause
        self._pause = None

    def _warn(self, text: str) -> None:
        self._throttled_log.warn(text, "{text}", text=text)
