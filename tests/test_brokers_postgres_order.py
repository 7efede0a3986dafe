"""What a node makes of answers, without a PostgreSQL: the order of telling, and the time publishers wait."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.contract import Bounds
from chatws.brokers.postgres import wire
from chatws.brokers.postgres.broker import PostgresBroker
from chatws.brokers.postgres.order import InOrder
from chatws.brokers.postgres.schema import migrations
from chatws.brokers.postgres.wire import Appended, Row
from chatws.errors import Unavailable
from tests.postgres_nodes import Told, draft


def row(place: int, offset: int | None = None, name: str = "") -> Row:
    offset = place if offset is None else offset
    return Row(place, offset, 0.0, 77, name or f"e{place}", '["*"]', None, "{}")


class InOrderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.order = InOrder()
        self.told = Told()
        self.order.start(self.told, "epoch", 10, 10, 1)

    def appended(self, names: str, own_place: int, missed: list[Row] | None = None, **more: Any) -> list[int]:
        """What an append of drafts answers; returns the places of those that `when_told` has called for."""
        answer = Appended(epoch="epoch", own_place=own_place, own_offset=own_place, stamp=5, missed=missed, **more)
        self.receipts, place = self.order.appended([draft(name) for name in names], answer)
        called: list[int] = []
        self.order.when_told(place, lambda: called.append(place))
        return called

    def test_an_append_that_joins_on_is_told_at_once(self) -> None:
        self.order.expect()
        self.assertEqual(self.appended("ab", 10), [12])
        self.assertEqual(self.told.names, ["a", "b"])
        self.assertEqual((self.order.place, self.order.offset, self.order.stamp), (12, 12, 5))

    def test_what_others_appended_before_comes_first(self) -> None:
        self.order.expect()
        self.assertEqual(self.appended("a", 12, [row(11), row(12)]), [13])
        self.assertEqual(self.told.names, ["e11", "e12", "a"])

    def test_an_append_after_a_gap_waits_until_the_gap_was_read(self) -> None:
        self.order.expect()
        called = self.appended("a", 12)
        self.assertEqual((called, self.told.names), ([], []))
        self.order.read([row(11)], 11)
        self.assertEqual((called, self.told.names), ([], ["e11"]))
        self.order.read([row(12), row(13, name="a")], 13)
        self.assertEqual((called, self.told.names), ([13], ["e11", "e12", "a"]))
        self.assertIs(self.told.events[-1], self.receipts[0], "the receipt knows how often it was delivered")

    def test_what_was_read_before_its_appends_answer_came_is_not_told_again(self) -> None:
        self.order.expect()
        self.order.read([row(11, name="a")], 11)
        self.assertEqual(self.appended("ab", 10), [12])
        self.assertEqual(self.told.names, ["a", "b"])
        self.assertIs(self.told.events[0], self.receipts[0])

    def test_a_read_that_began_before_an_append_tells_only_what_is_new(self) -> None:
        self.order.expect()
        self.appended("ab", 10)
        self.order.read([row(11, name="a"), row(12, name="b"), row(13)], 13)
        self.assertEqual(self.told.names, ["a", "b", "e13"])

    def test_what_was_trimmed_before_it_could_be_read_is_not_waited_for(self) -> None:
        self.order.expect()
        called = self.appended("a", 500)
        self.order.read([row(600)], 600)
        self.assertEqual((called, self.told.names), ([501], ["e600"]))

    def test_duplicates_wait_for_what_came_before_and_are_not_told(self) -> None:
        self.order.expect()
        called = self.appended("a", 12, duplicates=[(0, 12, 3.0)])
        self.assertEqual(called, [])
        self.assertEqual([(one.offset, one.time, one.duplicate) for one in self.receipts], [(12, 3.0, True)])
        self.order.read([row(11), row(12)], 12)
        self.assertEqual((called, self.told.names), ([12], ["e11", "e12"]))


class Database:
    """Answers when the test says so.

    :ivar asked: the appends' drafts, their deadlines, and the Deferreds of their answers.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[list[dict[str, Any]], float, Deferred[Any]]] = []
        self.polls: list[Deferred[Any]] = []

    def start(self) -> Deferred[None]:
        return succeed(None)

    stop = start

    async def connect(self, on_lost: object) -> Any:
        raise OSError("not here")

    async def query(self, sql: str, values: Any) -> Any:
        if "migrations" in sql and "number" in sql:
            return [{"number": migrations()[-1].number, "needs": 1}]
        if sql == wire.HEAD:
            return [{"epoch": "e", "place": 0, "log_offset": 0, "stamp": 0}]
        if sql == wire.POLL:
            self.polls.append(Deferred())
            return await self.polls[-1]
        return [{"there": True, "encoding": "UTF8"}]

    async def once(self, sql: str, values: Any, until: float = 0.0) -> Any:
        assert sql == wire.APPEND
        self.asked.append((json.loads(values["drafts"]), until, Deferred()))
        return await self.asked[-1][2]


class WritingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database: Any = Database()
        self.broker = PostgresBroker(
            self.database, self.database, Bounds(), reactor=self.clock, now=self.clock.seconds, timeout=1.0, poll=60.0
        )
        self.told = Told()
        self.successResultOf(self.broker.start(self.told))

    def answer(self, number: int, own_place: int) -> None:
        answer = {"epoch": "e", "own_place": own_place, "own_offset": own_place, "stamp": 1, "time": 0.0}
        self.database.asked[number][2].callback([{"answer": json.dumps(answer)}])

    def test_what_comes_while_an_append_is_under_way_goes_with_the_next(self) -> None:
        first = self.broker.publish([draft("a")])
        later = [self.broker.publish([draft(name)]) for name in "bc"]
        self.assertEqual([[one["e"] for one in drafts] for drafts, _, _ in self.database.asked], [["a"]])
        self.answer(0, 0)
        self.assertEqual([event.offset for event in self.successResultOf(first)], [1])
        self.assertEqual([[one["e"] for one in drafts] for drafts, _, _ in self.database.asked], [["a"], ["b", "c"]])
        self.answer(1, 1)
        self.assertEqual([event.offset for one in later for event in self.successResultOf(one)], [2, 3])
        self.assertEqual(self.told.names, ["a", "b", "c"])

    def test_who_has_waited_for_another_append_waits_no_longer_than_the_time_out(self) -> None:
        first = self.broker.publish([draft("a")])
        self.clock.advance(0.5)
        second = self.broker.publish([draft("b")])
        self.clock.advance(0.4)
        third = self.broker.publish([draft("c")])
        self.clock.advance(0.1)
        self.database.asked[0][2].errback(Unavailable("no answer"))
        self.failureResultOf(first, Unavailable)
        self.assertEqual([deadline for _, deadline, _ in self.database.asked], [1.0, 1.5])
        self.database.asked[1][2].errback(Unavailable("no answer"))
        self.failureResultOf(second, Unavailable)
        self.failureResultOf(third, Unavailable)

    def test_who_was_stored_and_not_told_in_time_is_answered_all_the_same(self) -> None:
        publishing = self.broker.publish([draft("a")])
        self.answer(0, 300)
        self.assertNoResult(publishing)
        self.clock.advance(1.0)
        self.failureResultOf(publishing, Unavailable)
        self.assertEqual(self.told.names, [])

    def test_large_publishes_go_one_by_one(self) -> None:
        large = b'"' + b"x" * (3 * 1024 * 1024) + b'"'
        for _ in range(3):
            self.broker.publish([draft("large", large)]).addErrback(lambda failure: failure.trap(Unavailable))
        for number in range(3):
            self.assertEqual(len(self.database.asked[number][0]), 1)
            self.answer(number, number)
        self.assertEqual(len(self.told.events), 3)
