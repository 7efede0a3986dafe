"""Heartbeats and activities, written to the database together: never one query per ping."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.auth.lookup import Complaints
from chatws.database.contract import Database, QueryFailed, check_sql
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["FLUSH_SECONDS", "MAX_USERS", "BatchedActivity"]

#: Seconds from the first thing worth writing to the writing.
FLUSH_SECONDS = 5.0
#: Users remembered while the database is away. More are not recorded.
MAX_USERS = 10_000
#: Rows written in one go.
BATCH = 1_000


class _Pending:
    """What one query is to be told: the newest values by user."""

    def __init__(self, name: str, sql: str, value: str) -> None:
        check_sql(name, sql, ["user_id", value])
        self.name = name
        self.sql = sql
        self.value = value
        self.newest: dict[Id, Any] = {}

    def put(self, user_id: Id, value: Any) -> None:
        if user_id in self.newest or len(self.newest) < MAX_USERS:
            self.newest[user_id] = value

    def take(self) -> list[tuple[Id, Any]]:
        users = list(self.newest)[:BATCH]
        return [(user_id, self.newest.pop(user_id)) for user_id in users]

    def put_back(self, batch: list[tuple[Id, Any]]) -> None:
        for user_id, value in batch:
            if user_id not in self.newest:
                self.put(user_id, value)


class BatchedActivity:
    """See chatws.chat.contracts.ActivitySink. A query that is empty, or no database, records nothing.

    `heartbeat_query` gets `last_activity` in seconds since 1970: the latest that any of the user's pages named, never
    in the future; the time of the ping where a page names none. `activity_query` gets the last `activity_type`.

    :raises OperatorError: a query has a placeholder that is not known.
    """

    _log = Logger()

    def __init__(self, database: Database | None, *, heartbeat_query: str, activity_query: str, clock: Any) -> None:
        self._database = database
        self._clock = clock
        self._heartbeats = self._activities = None
        if database is not None and heartbeat_query:
            self._heartbeats = _Pending("heartbeat_query", heartbeat_query, "last_activity")
        if database is not None and activity_query:
            self._activities = _Pending("activity_query", activity_query, "activity_type")
        self._timer: Any = None
        self._flushing: Deferred[None] | None = None
        self._stopped = False
        self._complaints = Complaints(self._log, clock)

    def heartbeat(self, user_id: Id, last_activity: float | None) -> None:
        if self._heartbeats is not None:
            now = self._clock.seconds()
            named = now if last_activity is None or not 0 < last_activity <= now else last_activity
            self._heartbeats.put(user_id, max(named, self._heartbeats.newest.get(user_id, 0.0)))
            self._schedule()

    def activity(self, user_id: Id, activity_type: str) -> None:
        if self._activities is not None:
            self._activities.put(user_id, activity_type)
            self._schedule()

    def stop(self) -> Deferred[None]:
        """Write what is left, if the database can be asked. To be stopped before the database is."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        under_way = self._flushing or succeed(None)
        return under_way.addCallback(lambda _: Deferred.fromCoroutine(self._flush()))

    def _schedule(self) -> None:
        if self._timer is None and self._flushing is None and not self._stopped:
            self._timer = self._clock.callLater(FLUSH_SECONDS, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._flushing = Deferred()
        Deferred.fromCoroutine(self._flush()).addErrback(
            lambda failure: self._log.failure("activities could not be written", failure)
        ).addBoth(self._ended)

    def _ended(self, _: object) -> None:
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
        for _ in range(MAX_USERS // BATCH):
            batch = pending.take()
            if not batch:
                return
            rows = [{"user_id": user_id, pending.value: value} for user_id, value in batch]
            try:
                await self._database.execute_many(pending.sql, rows)
            except Unavailable:
                # some may have been written: writing them again changes nothing
                pending.put_back(batch)
                return
            except QueryFailed as error:
                self._complaints.make(f"{pending.name} fails, nothing is recorded: {error}")
