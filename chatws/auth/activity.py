"""Heartbeats and activities, written to the database in batches instead of one query per ping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.auth.cache import RepeatedErrorLog
from chatws.database.interface import Database, DatabaseEngine, QueryFailed, check_sql
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle

__all__ = ["FLUSH_DELAY", "MAX_USERS", "BatchedActivity"]

#: Seconds from the first change to the write: the delay that `last_activity` may have in the database.
FLUSH_DELAY = 5.0
#: Users kept while the database is unavailable: bounds memory. Further users are not recorded.
MAX_USERS = 10_000
#: Rows per transaction: short enough that it does not hold row locks for long.
BATCH_SIZE = 1_000


class _Pending:
    """The unwritten rows of one query: the newest value by user.

    :param value: the placeholder of the value.
    """

    def __init__(self, name: str, sql: str, value: str, engine: DatabaseEngine) -> None:
        check_sql(name, sql, ["user_id", value], engine)
        self.name = name
        self.sql = sql
        self.value = value
        self.newest: dict[Id, Any] = {}

    def put(self, user_id: Id, value: Any) -> None:
        if user_id in self.newest or len(self.newest) < MAX_USERS:
            self.newest[user_id] = value

    def take(self) -> list[tuple[Id, Any]]:
        users = list(self.newest)[:BATCH_SIZE]
        return [(user_id, self.newest.pop(user_id)) for user_id in users]

    def put_back(self, batch: list[tuple[Id, Any]]) -> None:
        for user_id, value in batch:
            if user_id not in self.newest:
                self.put(user_id, value)


class BatchedActivity:
    """See `chatws.chat.interfaces.ActivitySink`. Without a database or a query, nothing is recorded.

    `heartbeat_query` gets `last_activity` in seconds since 1970: the latest that any of the user's pages sent, never
    in the future. It is the time of the ping if the page sent none. `activity_query` gets the last `activity_type`.

    :param wall_clock: returns seconds since 1970.
    :raises ConfigError: a query has an unknown placeholder.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database | None,
        *,
        heartbeat_query: str,
        activity_query: str,
        clock: Clock,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._clock = clock
        self._wall_clock = wall_clock
        self._heartbeats = self._activities = None
        if database is not None and heartbeat_query:
            self._heartbeats = _Pending("heartbeat_query", heartbeat_query, "last_activity", database.engine)
        if database is not None and activity_query:
            self._activities = _Pending("activity_query", activity_query, "activity_type", database.engine)
        self._timer: TimerHandle | None = None
        self._flushing: Deferred[None] | None = None
        self._stopped = False
        self._error_log = RepeatedErrorLog(self._log, clock)

    def connected(self, user_id: Id) -> None:
        """See `ActivitySink.connected`. Nothing is written."""

    def disconnected(self, user_id: Id) -> None:
        """See `ActivitySink.disconnected`. Nothing is written."""

    def heartbeat(self, user_id: Id, last_activity: float | None) -> None:
        """See `ActivitySink.heartbeat`."""
        if self._heartbeats is not None:
            now = self._wall_clock()
            reported = now if last_activity is None or not 0 < last_activity <= now else last_activity
            self._heartbeats.put(user_id, max(reported, self._heartbeats.newest.get(user_id, 0.0)))
            self._schedule()

    def activity(self, user_id: Id, activity_type: str) -> None:
        """See `ActivitySink.activity`."""
        if self._activities is not None:
            self._activities.put(user_id, activity_type)
            self._schedule()

    def stop(self) -> Deferred[None]:
        """Write the remaining rows if the database is available. Call this before stopping the database."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        running = self._flushing or succeed(None)
        return running.addCallback(lambda _: Deferred.fromCoroutine(self._flush()))

    def _schedule(self) -> None:
        if self._timer is None and self._flushing is None and not self._stopped:
            self._timer = self._clock.callLater(FLUSH_DELAY, self._start_flush)

    def _start_flush(self) -> None:
        self._timer = None
        self._flushing = Deferred()
        Deferred.fromCoroutine(self._flush()).addErrback(
            lambda failure: self._log.failure("cannot write activities", failure)
        ).addBoth(self._on_flushed)

    def _on_flushed(self, _: object) -> None:
        flushing, self._flushing = self._flushing, None
        if any(pending is not None and pending.newest for pending in (self._heartbeats, self._activities)):
            self._schedule()
        if flushing is not None:
            flushing.callback(None)

    async def _flush(self) -> None:
        for pending in (self._heartbeats, self._activities):
            if pending is not None:
                await self._write(pending)

    async def _write(self, pending: _Pending) -> None:
        assert self._database is not None
        for _ in range(MAX_USERS // BATCH_SIZE):
            batch = pending.take()
            if not batch:
                return
            rows = [{"user_id": user_id, pending.value: value} for user_id, value in batch]
            try:
                await self._database.execute_many(pending.sql, rows)
            except Unavailable:
                # some rows may have been written; writing them again changes nothing
                pending.put_back(batch)
                return
            except QueryFailed as error:
                self._error_log.make(f"{pending.name} fails; its rows are dropped: {error}")
