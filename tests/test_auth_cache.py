"""The single-flight cache, and the row-exists query behind it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth import cache, fair_queue
from chatws.auth.cache import RepeatedErrorLog, SingleFlightCache
from chatws.auth.exists_query import ExistsQuery
from chatws.auth.fair_queue import FairQueue
from chatws.database.interface import QueryFailed, Row, ValueRefused
from chatws.errors import Unavailable
from tests.fakes_database import FakeDatabase
from tests.log_lines import logged_at


class Value:
    """A value that is true and can be weakly referenced."""


class SingleFlightCacheCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[Any, Deferred[Any]]] = []
        self.lookup = self.make(ttl=5.0)

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make(self, ttl: float, queue: FairQueue | None = None) -> SingleFlightCache[Any, Any]:
        async def ask(key: Any) -> Any:
            waiting: Deferred[Any] = Deferred()
            self.asked.append((key, waiting))
            return await waiting

        return SingleFlightCache(ask, ttl=ttl, timeout=3.0, clock=self.clock, queue=queue)

    def get(self, key: Any = 1) -> Deferred[Any]:
        result = self.lookup.get(key)
        assert isinstance(result, Deferred)
        return result

    def known(self, key: Any = 1) -> Any:
        result = self.lookup.get(key)
        self.assertNotIsInstance(result, Deferred)
        return result

    def answer(self, answer: Any) -> None:
        self.asked.pop(0)[1].callback(answer)

    def test_query_that_waits_behind_a_crowd_starts_with_the_turn_of_another_owner(self) -> None:
        queue = FairQueue(1, 3.0, self.clock)
        self.lookup = self.make(5.0, queue)
        crowd = [self.lookup.get(number, owner="crowd") for number in range(1, 101)]
        login = self.lookup.get(100, owner="ana")
        self.answer(True)
        self.assertEqual([key for key, _ in self.asked], [100])
        self.answer("once")
        self.assertEqual(self.successResultOf(login), "once")
        self.assertEqual(self.successResultOf(crowd[99]), "once")
        while self.asked:
            self.assertNotEqual(self.asked[0][0], 100, "there is one query per key")
            self.answer(True)
        self.assertEqual({self.successResultOf(waiting) for waiting in crowd[:99]}, {True})

    def test_owner_that_is_rejected_does_not_take_the_query_from_another(self) -> None:
        self.patch(fair_queue, "MAX_WAITING", 1)
        queue = FairQueue(1, 3.0, self.clock)
        self.lookup = self.make(0, queue)
        for number in (1, 2):
            self.lookup.get(number, owner="crowd")
        login = self.lookup.get(3, owner="ana")
        self.failureResultOf(self.lookup.get(3, owner="crowd"), Unavailable)
        self.answer(True)
        self.answer("ana's")
        self.assertEqual(self.successResultOf(login), "ana's")
        self.answer(True)

    def test_query_without_remaining_callers_is_not_started(self) -> None:
        queue = FairQueue(1, 3.0, self.clock)
        self.lookup = self.make(0, queue)
        self.get(1)
        gone = self.get(2)
        gone.addErrback(lambda failure: failure.trap(CancelledError))
        gone.cancel()
        self.answer(True)
        self.assertEqual(self.asked, [])

    def test_a_thousand_equal_requests_are_one_lookup(self) -> None:
        waiting = [self.get() for _ in range(1000)]
        self.assertEqual(len(self.asked), 1)
        self.answer(True)
        self.assertEqual([self.successResultOf(item) for item in waiting], [True] * 1000)

    def test_different_lookups_do_not_wait_for_each_other(self) -> None:
        first, second = self.get(1), self.get(2)
        self.asked.pop()[1].callback(True)
        self.assertTrue(self.successResultOf(second))
        self.assertNoResult(first)
        self.answer(False)
        self.assertFalse(self.successResultOf(first))

    def test_a_positive_result_is_cached_until_it_expires(self) -> None:
        self.get()
        self.answer(True)
        self.clock.advance(4.9)
        self.assertIs(self.known(), True)
        self.clock.advance(0.2)
        self.get()
        self.answer(True)

    def test_a_negative_result_is_not_cached(self) -> None:
        for _ in range(2):
            waiting = self.get()
            self.answer(False)
            self.assertIs(self.successResultOf(waiting), False)

    def test_zero_seconds_disable_the_cache(self) -> None:
        self.lookup = self.make(ttl=0)
        for _ in range(2):
            self.get()
            self.answer(True)

    def test_a_failure_reaches_all_waiters_and_is_not_cached(self) -> None:
        waiting = [self.get() for _ in range(3)]
        self.asked.pop()[1].errback(Unavailable("no database"))
        errors = [self.failureResultOf(item, Unavailable).value for item in waiting]
        self.assertEqual({error.message for error in errors}, {"no database"})
        self.assertEqual(len({id(error) for error in errors}), 3)
        self.get()
        self.answer(True)

    def test_unexpected_exception_is_not_a_positive_result(self) -> None:
        waiting = [self.get() for _ in range(2)]
        self.asked.pop()[1].errback(ZeroDivisionError())
        for item in waiting:
            self.failureResultOf(item, ZeroDivisionError)

    def test_a_lookup_past_its_timeout_fails_for_all_waiters_and_is_repeated(self) -> None:
        first = self.get()
        self.clock.advance(2.0)
        second = self.get()
        self.clock.advance(1.0)
        for item in (first, second):
            self.failureResultOf(item, Unavailable)
        self.assertTrue(self.asked.pop()[1].called, "nobody waits for it any more")
        third = self.get()
        self.answer(True)
        self.assertTrue(self.successResultOf(third))

    def test_a_cancelled_waiter_does_not_affect_the_others(self) -> None:
        first, second = self.get(), self.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.answer(True)
        self.assertTrue(self.successResultOf(second))

    def test_a_forgotten_entry_is_looked_up_again(self) -> None:
        self.get(1)
        self.answer(True)
        self.get(2)
        self.answer(True)
        self.lookup.forget(lambda key: key == 1)
        self.assertIs(self.known(2), True)
        self.get(1)
        self.answer(True)

    def test_result_of_a_query_invalidated_meanwhile_is_neither_cached_nor_shared(self) -> None:
        before = self.get()
        self.lookup.forget(lambda key: True)
        after = self.get()
        self.assertEqual(len(self.asked), 2)
        self.answer(True)
        self.assertTrue(self.successResultOf(before))
        self.assertNoResult(after)
        self.answer(False)
        self.assertFalse(self.successResultOf(after))
        self.get()
        self.answer(True)

    def test_the_cache_is_bounded_and_evicts_the_oldest(self) -> None:
        self.patch(cache, "MAX_ENTRIES", 3)
        for key in range(5):
            self.get(key)
            self.answer(True)
        self.assertEqual([self.known(key) for key in (2, 3, 4)], [True] * 3)
        for key in (0, 1):
            self.get(key)
            self.answer(False)

    def test_expired_values_are_dropped_when_another_is_stored(self) -> None:
        def collected() -> int:
            gc.collect()
            return sum(value() is None for value in values)

        values = []
        for key in range(100):
            self.get(key)
            value = Value()
            values.append(weakref.ref(value))
            self.answer(value)
        del value
        self.assertEqual(collected(), 0)
        self.clock.advance(6)
        self.get("last")
        self.answer(True)
        self.assertEqual(collected(), 100)

    def test_call_from_within_a_callback_succeeds(self) -> None:
        again: list[Any] = []
        self.get().addCallback(lambda _: again.append(self.lookup.get(1)))
        self.answer(True)
        self.assertEqual(again, [True])

    def test_immediate_result_needs_no_deferred(self) -> None:
        async def ask(key: int) -> bool:
            return True

        quick: SingleFlightCache[int, bool] = SingleFlightCache(ask, ttl=0, timeout=1.0, clock=self.clock)
        result = quick.get(1)
        assert isinstance(result, Deferred)
        self.assertTrue(self.successResultOf(result))


class ExistsQueryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database = FakeDatabase([])
        capture = logged_at(LogLevel.error)
        self.lines = capture.__enter__()
        self.addCleanup(capture.__exit__, None, None, None)
        self.query = ExistsQuery(self.database, "user_query", "SELECT 1", [], self.clock)

    def ask(self) -> Deferred[Row | None]:
        return Deferred.fromCoroutine(self.query.run({"user_id": 5}))

    def test_row_means_true_and_no_row_means_false(self) -> None:
        self.assertIsNone(self.successResultOf(self.ask()))
        self.database.rows = [{"id": None}]
        self.assertEqual(self.successResultOf(self.ask()), {"id": None})

    def test_a_value_of_another_column_type_is_forbidden_without_a_log_line(self) -> None:
        self.database.error = ValueRefused("invalid input")
        self.assertIsNone(self.successResultOf(self.ask()))
        self.assertEqual(self.lines, [])

    def test_a_failing_query_is_unavailable_and_logged_once_by_name(self) -> None:
        self.database.error = QueryFailed('column "nmae" does not exist \x1b[31m')
        for _ in range(50):
            self.failureResultOf(self.ask(), Unavailable)
        (line,) = self.lines
        self.assertTrue(line.startswith("user_query fails"))
        self.assertIn('column "nmae" does not exist', line)
        self.assertNotIn("\x1b", line)
        self.clock.advance(RepeatedErrorLog.INTERVAL + 1)
        self.failureResultOf(self.ask(), Unavailable)
        self.assertEqual(len(self.lines), 2)

    def test_distinct_errors_beyond_the_limit_are_not_logged(self) -> None:
        for number in range(100):
            self.database.error = QueryFailed(f"value {number}")
            self.failureResultOf(self.ask(), Unavailable)
        self.assertEqual(len(self.lines), RepeatedErrorLog.MAX)
