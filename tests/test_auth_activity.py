"""Heartbeats and activities are written in batches, also after the database was unavailable."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth import activity
from chatws.auth.activity import FLUSH_DELAY, BatchedActivity
from chatws.auth.factory import build_activity
from chatws.config.schema import Config
from chatws.database.interface import QueryFailed
from chatws.errors import Unavailable
from tests.fakes_database import FakeDatabase
from tests.log_lines import logged_at

HEARTBEAT = "UPDATE users SET last_activity = %(last_activity)s WHERE id = %(user_id)s"
ACTIVITY = "UPDATE users SET last_activity_type = %(activity_type)s WHERE id = %(user_id)s"
NOW = 1_800_000_000.0


class ActivityCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.database = FakeDatabase([])
        self.sink = self.build()

    def tearDown(self) -> None:
        self.successResultOf(self.sink.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def build(self, heartbeat: str = HEARTBEAT, activity: str = ACTIVITY) -> BatchedActivity:
        config = Config(heartbeat_query=heartbeat, activity_query=activity)
        return build_activity(config, self.database, self.clock, self.clock.seconds)

    def heartbeats(self) -> list[tuple[object, object]]:
        return [
            (row["user_id"], row["last_activity"])
            for sql, rows in self.database.written
            if sql == HEARTBEAT
            for row in rows
        ]

    def test_pings_are_written_together_one_row_a_user(self) -> None:
        for second in range(5):
            for user_id in (5, 6, "x"):
                self.sink.heartbeat(user_id, NOW - 100 + second)
        self.assertEqual(self.database.count, 0)
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(self.database.count, 1)
        self.assertEqual(self.heartbeats(), [(5, NOW - 96), (6, NOW - 96), ("x", NOW - 96)])

    def test_without_activity_no_timer_and_no_query_run(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.sink.heartbeat(5, None)
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(self.database.count, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_latest_of_a_users_pages_counts(self) -> None:
        for last_activity in (NOW - 50, NOW - 10, NOW - 90):
            self.sink.heartbeat(5, last_activity)
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(self.heartbeats(), [(5, NOW - 10)])

    def test_a_time_that_is_none_or_cannot_be_is_that_of_the_ping(self) -> None:
        for user_id, odd in enumerate((None, NOW + 1e9, -1.0, 0.0, float("nan"), float("inf"), 1e308)):
            self.sink.heartbeat(user_id, odd)
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(self.heartbeats(), [(user_id, NOW) for user_id in range(7)])

    def test_the_last_activity_counts(self) -> None:
        for kind in ("visibility_change", "click"):
            self.sink.activity(5, kind)
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(self.database.written, [(ACTIVITY, [{"user_id": 5, "activity_type": "click"}])])

    def test_without_a_query_or_a_database_nothing_is_kept(self) -> None:
        config = Config(heartbeat_query=HEARTBEAT)
        for sink in (self.build("", ""), build_activity(config, None, self.clock)):
            sink.heartbeat(5, None)
            sink.activity(5, "click")
            self.successResultOf(sink.stop())
        self.assertEqual((self.database.count, self.clock.getDelayedCalls()), (0, []))

    def test_failed_writes_are_repeated_with_newer_values(self) -> None:
        self.database.error = Unavailable("gone")
        self.sink.heartbeat(5, NOW - 50)
        self.sink.heartbeat(6, NOW - 50)
        self.clock.advance(FLUSH_DELAY)
        self.sink.heartbeat(5, NOW - 20)
        self.clock.pump([FLUSH_DELAY] * 3)
        self.assertEqual(self.database.count, 4, "one attempt every five seconds")
        self.database.error = None
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(sorted(self.heartbeats()), [(5, NOW - 20), (6, NOW - 50)])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_pending_writes_are_bounded(self) -> None:
        self.patch(activity, "MAX_USERS", 2_000)
        self.database.error = Unavailable("gone")
        for user_id in range(5_000):
            self.sink.heartbeat(user_id, None)
        self.clock.advance(FLUSH_DELAY)
        self.sink.heartbeat(0, None)
        self.database.error = None
        self.clock.advance(FLUSH_DELAY)
        self.assertEqual(len(self.heartbeats()), 2_000)

    def test_a_failing_query_is_logged_by_name_and_the_other_one_runs(self) -> None:
        class HalfWrong(FakeDatabase):
            async def execute_many(self, sql: str, batch: object) -> int:
                if sql == HEARTBEAT:
                    raise QueryFailed("no such column")
                return await super().execute_many(sql, batch)  # type: ignore[arg-type]

        self.database = HalfWrong()
        self.sink = self.build()
        self.sink.heartbeat(5, None)
        self.sink.activity(5, "click")
        with logged_at(LogLevel.error) as lines:
            self.clock.advance(FLUSH_DELAY)
        self.assertEqual(lines, ["heartbeat_query fails; its rows are dropped: no such column"])
        self.assertEqual(len(self.database.written), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_writes_pending_values(self) -> None:
        self.sink.heartbeat(5, None)
        self.successResultOf(self.sink.stop())
        self.assertEqual(self.heartbeats(), [(5, NOW)])
        self.sink.heartbeat(6, None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_waits_for_the_write_under_way(self) -> None:
        writing: Deferred[int] = Deferred()
        batches: list[int] = []

        class Slow(FakeDatabase):
            async def execute_many(self, sql: str, batch: object) -> int:
                batches.append(len(batch))  # type: ignore[arg-type]
                return await writing

        self.database = Slow()
        self.sink = self.build()
        self.sink.heartbeat(5, None)
        self.clock.advance(FLUSH_DELAY)
        self.sink.heartbeat(6, None)
        self.assertEqual(self.clock.getDelayedCalls(), [], "one at a time")
        stopped = self.sink.stop()
        self.assertNoResult(stopped)
        writing.callback(0)
        self.successResultOf(stopped)
        self.assertEqual(batches, [1, 1])

    def test_a_stop_without_a_database_is_not_held_up(self) -> None:
        self.database.error = Unavailable("gone")
        self.sink.heartbeat(5, None)
        self.successResultOf(self.sink.stop())
