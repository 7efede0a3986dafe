"""Questions shared while they are under way, and a yes that is remembered for a while."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth import lookup
from chatws.auth.lookup import Complaints, Lookup, Question
from chatws.database.contract import QueryFailed, ValueRefused
from chatws.errors import Unavailable
from tests.fakes_database import FakeDatabase


class LookupCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.asked: list[tuple[Any, Deferred[Any]]] = []
        self.lookup = self.make(keep=5.0)

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def make(self, keep: float) -> Lookup[Any, Any]:
        async def ask(key: Any) -> Any:
            waiting: Deferred[Any] = Deferred()
            self.asked.append((key, waiting))
            return await waiting

        return Lookup(ask, keep=keep, timeout=3.0, clock=self.clock)

    def get(self, key: Any = 1) -> Deferred[Any]:
        found = self.lookup.get(key)
        assert isinstance(found, Deferred)
        return found

    def known(self, key: Any = 1) -> Any:
        found = self.lookup.get(key)
        self.assertNotIsInstance(found, Deferred)
        return found

    def answer(self, answer: Any) -> None:
        self.asked.pop(0)[1].callback(answer)

    def test_a_thousand_who_ask_the_same_are_one_question(self) -> None:
        waiting = [self.get() for _ in range(1000)]
        self.assertEqual(len(self.asked), 1)
        self.answer(True)
        self.assertEqual([self.successResultOf(one) for one in waiting], [True] * 1000)

    def test_different_questions_do_not_wait_for_each_other(self) -> None:
        first, second = self.get(1), self.get(2)
        self.asked.pop()[1].callback(True)
        self.assertTrue(self.successResultOf(second))
        self.assertNoResult(first)
        self.answer(False)
        self.assertFalse(self.successResultOf(first))

    def test_a_yes_is_known_at_once_until_its_time_is_over(self) -> None:
        self.get()
        self.answer(True)
        self.clock.advance(4.9)
        self.assertIs(self.known(), True)
        self.clock.advance(0.2)
        self.get()
        self.answer(True)

    def test_a_no_is_asked_again(self) -> None:
        for _ in range(2):
            waiting = self.get()
            self.answer(False)
            self.assertIs(self.successResultOf(waiting), False)

    def test_nothing_is_kept_for_zero_seconds(self) -> None:
        self.lookup = self.make(keep=0)
        for _ in range(2):
            self.get()
            self.answer(True)

    def test_a_failure_reaches_everybody_who_waits_and_is_not_kept(self) -> None:
        waiting = [self.get() for _ in range(3)]
        self.asked.pop()[1].errback(Unavailable("no database"))
        errors = [self.failureResultOf(one, Unavailable).value for one in waiting]
        self.assertEqual({error.message for error in errors}, {"no database"})
        self.assertEqual(len({id(error) for error in errors}), 3)
        self.get()
        self.answer(True)

    def test_a_fault_of_ours_is_no_yes_either(self) -> None:
        waiting = [self.get() for _ in range(2)]
        self.asked.pop()[1].errback(ZeroDivisionError())
        for one in waiting:
            self.failureResultOf(one, ZeroDivisionError)

    def test_an_answer_that_does_not_come_is_given_up_for_everybody_and_asked_anew(self) -> None:
        first = self.get()
        self.clock.advance(2.0)
        second = self.get()
        self.clock.advance(1.0)
        for one in (first, second):
            self.failureResultOf(one, Unavailable)
        self.assertTrue(self.asked.pop()[1].called, "nobody waits for it any more")
        third = self.get()
        self.answer(True)
        self.assertTrue(self.successResultOf(third))

    def test_one_who_stops_waiting_takes_nothing_from_the_others(self) -> None:
        first, second = self.get(), self.get()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.answer(True)
        self.assertTrue(self.successResultOf(second))

    def test_what_is_forgotten_is_asked_anew(self) -> None:
        self.get(1)
        self.answer(True)
        self.get(2)
        self.answer(True)
        self.lookup.forget(lambda key: key == 1)
        self.assertIs(self.known(2), True)
        self.get(1)
        self.answer(True)

    def test_an_answer_under_way_when_it_is_forgotten_is_not_kept_nor_joined(self) -> None:
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

    def test_what_is_kept_is_bounded_and_the_oldest_goes_first(self) -> None:
        self.patch(lookup, "MAX_KEPT", 3)
        for key in range(5):
            self.get(key)
            self.answer(True)
        self.assertEqual([self.known(key) for key in (2, 3, 4)], [True] * 3)
        for key in (0, 1):
            self.get(key)
            self.answer(False)

    def test_what_is_over_makes_room(self) -> None:
        for key in range(100):
            self.get(key)
            self.answer(True)
        self.clock.advance(6)
        self.get("last")
        self.answer(True)
        self.assertEqual(list(self.lookup._kept), ["last"])

    def test_asking_again_from_within_an_answer_is_in_order(self) -> None:
        again: list[Any] = []
        self.get().addCallback(lambda _: again.append(self.lookup.get(1)))
        self.answer(True)
        self.assertEqual(again, [True])

    def test_an_answer_that_is_there_at_once_needs_no_waiting(self) -> None:
        async def ask(key: int) -> bool:
            return True

        quick: Lookup[int, bool] = Lookup(ask, keep=0, timeout=1.0, clock=self.clock)
        found = quick.get(1)
        assert isinstance(found, Deferred)
        self.assertTrue(self.successResultOf(found))


class QuestionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database = FakeDatabase([])
        self.lines: list[str] = []

        class Log:
            @staticmethod
            def error(text: str, **fields: str) -> None:
                self.lines.append(text.format(**fields))

        self.question = Question(self.database, "user_query", "SELECT 1", [], self.clock)
        self.question._complaints = Complaints(Log(), self.clock)  # type: ignore[arg-type]

    def ask(self) -> Deferred[bool]:
        return Deferred.fromCoroutine(self.question.ask({"user_id": 5}))

    def test_a_row_is_a_yes_and_none_a_no(self) -> None:
        self.assertIs(self.successResultOf(self.ask()), False)
        self.database.rows = [{"id": None}]
        self.assertIs(self.successResultOf(self.ask()), True)

    def test_a_value_that_cannot_be_in_that_column_is_a_no_that_nobody_hears_of(self) -> None:
        self.database.error = ValueRefused("invalid input")
        self.assertIs(self.successResultOf(self.ask()), False)
        self.assertEqual(self.lines, [])

    def test_a_wrong_query_is_unavailable_and_said_once_by_its_name(self) -> None:
        self.database.error = QueryFailed('column "nmae" does not exist \x1b[31m')
        for _ in range(50):
            self.failureResultOf(self.ask(), Unavailable)
        (line,) = self.lines
        self.assertTrue(line.startswith("user_query fails"))
        self.assertIn('column "nmae" does not exist', line)
        self.assertNotIn("\x1b", line)
        self.clock.advance(Complaints.INTERVAL + 1)
        self.failureResultOf(self.ask(), Unavailable)
        self.assertEqual(len(self.lines), 2)

    def test_many_different_complaints_are_not_all_made(self) -> None:
        for number in range(100):
            self.database.error = QueryFailed(f"value {number}")
            self.failureResultOf(self.ask(), Unavailable)
        self.assertEqual(len(self.lines), Complaints.MAX)
