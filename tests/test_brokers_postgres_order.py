"""What a node makes of answers, without a PostgreSQL: the order of telling, and the time publishers wait."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Retention
from chatws.brokers.postgres import messages
from chatws.brokers.postgres.broker import PostgresBroker
from chatws.brokers.postgres.messages import Appended, Row
from chatws.brokers.postgres.schema import migrations
from chatws.brokers.postgres.sequencer import Sequencer
from chatws.errors import Unavailable
from tests.postgres_nodes import RecordingHandler, new_event


def row(seq: int, offset: int | None = None, name: str = "") -> Row:
    offset = seq if offset is None else offset
    return Row(seq, offset, 0.0, 77, name or f"e{seq}", '["*"]', None, "{}")


class InOrderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.order = Sequencer()
        self.told = RecordingHandler()
        self.order.start(self.told, "epoch", 10, 10, 1)

    def appended(self, names: str, own_seq: int, missed: list[Row] | None = None, **more: Any) -> list[int]:
        """Return the sequence numbers that `call_when_delivered` has called for after an append of new events."""
        answer = Appended(epoch="epoch", own_seq=own_seq, own_offset=own_seq, append_id=5, missed=missed, **more)
        self.receipts, seq = self.order.appended([new_event(name) for name in names], answer)
        called: list[int] = []
        self.order.call_when_delivered(seq, lambda: called.append(seq))
        return called

    def test_an_adjacent_append_is_delivered_at_once(self) -> None:
        self.order.append_started()
        self.assertEqual(self.appended("ab", 10), [12])
        self.assertEqual(self.told.names, ["a", "b"])
        self.assertEqual((self.order.seq, self.order.offset, self.order.append_id), (12, 12, 5))

    def test_earlier_appends_of_other_nodes_are_delivered_first(self) -> None:
        self.order.append_started()
        self.assertEqual(self.appended("a", 12, [row(11), row(12)]), [13])
        self.assertEqual(self.told.names, ["e11", "e12", "a"])

    def test_an_append_after_a_gap_waits_until_the_gap_was_read(self) -> None:
        self.order.append_started()
        called = self.appended("a", 12)
        self.assertEqual((called, self.told.names), ([], []))
        self.order.read([row(11)], 11)
        self.assertEqual((called, self.told.names), ([], ["e11"]))
        self.order.read([row(12), row(13, name="a")], 13)
        self.assertEqual((called, self.told.names), ([13], ["e11", "e12", "a"]))
        self.assertIs(self.told.events[-1], self.receipts[0], "the receipt knows how often it was delivered")

    def test_an_event_read_before_its_append_response_is_delivered_once(self) -> None:
        self.order.append_started()
        self.order.read([row(11, name="a")], 11)
        self.assertEqual(self.appended("ab", 10), [12])
        self.assertEqual(self.told.names, ["a", "b"])
        self.assertIs(self.told.events[0], self.receipts[0])

    def test_a_read_begun_before_an_append_delivers_only_new_events(self) -> None:
        self.order.append_started()
        self.appended("ab", 10)
        self.order.read([row(11, name="a"), row(12, name="b"), row(13)], 13)
        self.assertEqual(self.told.names, ["a", "b", "e13"])

    def test_trimmed_events_are_not_awaited(self) -> None:
        self.order.append_started()
        called = self.appended("a", 500)
        self.order.read([row(600)], 600)
        self.assertEqual((called, self.told.names), ([501], ["e600"]))

    def test_duplicates_wait_for_earlier_events_and_are_not_delivered(self) -> None:
        self.order.append_started()
        called = self.appended("a", 12, duplicates=[(0, 12, 3.0)])
        self.assertEqual(called, [])
        self.assertEqual(
            [(receipt.offset, receipt.time, receipt.duplicate) for receipt in self.receipts], [(12, 3.0, True)]
        )
        self.order.read([row(11), row(12)], 12)
        self.assertEqual((called, self.told.names), ([12], ["e11", "e12"]))


class PendingDatabase:
    """Answers when the test says so.

    :ivar asked: the appends' new events, their deadlines, and the Deferreds of their answers.
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
        if sql == messages.HEAD:
            return [{"epoch": "e", "seq": 0, "event_offset": 0, "append_id": 0}]
        if sql == messages.POLL:
            self.polls.append(Deferred())
            return await self.polls[-1]
        return [{"there": True, "encoding": "UTF8", "name": "shop"}]

    async def execute_returning(self, sql: str, values: Any, until: float = 0.0) -> Any:
        assert sql == messages.APPEND
        self.asked.append((json.loads(values["new_events"]), until, Deferred()))
        return await self.asked[-1][2]


class WritingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.database: Any = PendingDatabase()
        self.broker = PostgresBroker(
            self.database,
            self.database,
            Retention(),
            reactor=self.clock,
            now=self.clock.seconds,
            timeout=1.0,
            poll=60.0,
        )
        self.told = RecordingHandler()
        self.successResultOf(self.broker.start(self.told))

    def answer(self, number: int, own_seq: int) -> None:
        answer = {"epoch": "e", "own_seq": own_seq, "own_offset": own_seq, "append_id": 1, "time": 0.0}
        self.database.asked[number][2].callback([{"reply": json.dumps(answer)}])

    def test_publishes_during_an_append_share_the_next_one(self) -> None:
        first = self.broker.publish([new_event("a")])
        later = [self.broker.publish([new_event(name)]) for name in "bc"]
        self.assertEqual([[item["e"] for item in new_events] for new_events, _, _ in self.database.asked], [["a"]])
        self.answer(0, 0)
        self.assertEqual([event.offset for event in self.successResultOf(first)], [1])
        self.assertEqual(
            [[item["e"] for item in new_events] for new_events, _, _ in self.database.asked], [["a"], ["b", "c"]]
        )
        self.answer(1, 1)
        self.assertEqual([event.offset for item in later for event in self.successResultOf(item)], [2, 3])
        self.assertEqual(self.told.names, ["a", "b", "c"])

    def test_a_publish_behind_another_append_waits_at_most_the_timeout(self) -> None:
        first = self.broker.publish([new_event("a")])
        self.clock.advance(0.5)
        second = self.broker.publish([new_event("b")])
        self.clock.advance(0.4)
        third = self.broker.publish([new_event("c")])
        self.clock.advance(0.1)
        self.database.asked[0][2].errback(Unavailable("no answer"))
        self.failureResultOf(first, Unavailable)
        self.assertEqual([deadline for _, deadline, _ in self.database.asked], [1.0, 1.5])
        self.database.asked[1][2].errback(Unavailable("no answer"))
        self.failureResultOf(second, Unavailable)
        self.failureResultOf(third, Unavailable)

    def test_a_stored_event_not_read_in_time_is_acknowledged_later(self) -> None:
        publishing = self.broker.publish([new_event("a")])
        self.answer(0, 300)
        self.assertNoResult(publishing)
        self.clock.advance(1.0)
        self.failureResultOf(publishing, Unavailable)
        self.assertEqual(self.told.names, [])

    def test_large_publishes_go_one_by_one(self) -> None:
        large = b'"' + b"x" * (3 * 1024 * 1024) + b'"'
        for _ in range(3):
            self.broker.publish([new_event("large", large)]).addErrback(lambda failure: failure.trap(Unavailable))
        for number in range(3):
            self.assertEqual(len(self.database.asked[number][0]), 1)
            self.answer(number, number)
        self.assertEqual(len(self.told.events), 3)
