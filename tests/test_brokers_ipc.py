"""One log for several workers: order, receipts, who does not read, and who is gone. The wire is pumped by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import AGENT_SPACE, Audience, Event, NewEvent, Retention
from chatws.brokers.memory import MemoryBroker
from chatws.errors import ConfigError, Unavailable
from chatws.workers import ipc_broker as relay_module
from chatws.workers.broker_server import HIGH, STUCK, BrokerServer
from chatws.workers.ipc import IpcConnection
from chatws.workers.ipc_broker import IpcBroker
from tests.fakes_channel import FakePipe


def new_event(name: str, size: int = 2, **options: Any) -> NewEvent:
    return NewEvent(name, Audience(("conversation:1",)), b"x" * size, **options)


class RecordingHandler:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.epochs: list[str] = []

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            event.delivered = 3
        self.events += events

    def reset(self, epoch: str) -> None:
        self.epochs.append(epoch)

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


class WorkerEnd:
    """One worker's broker, and the two transports between it and the exchange.

    :ivar reads: whether it reads what the exchange sends; otherwise the exchange's transport is full.
    """

    def __init__(self, exchange: BrokerServer, name: str) -> None:
        self.listener = RecordingHandler()
        self.reads = True
        self.theirs = exchange.channel(name)
        self.to_exchange, self.to_worker = FakePipe(), FakePipe()
        self.broker = IpcBroker(self._connect)
        self.started = self.broker.start(self.listener)

    def _connect(self, channel: IpcConnection) -> None:
        self.ours = channel
        channel.makeConnection(self.to_exchange)
        self.theirs.makeConnection(self.to_worker)

    def stop_reading(self) -> None:
        self.reads = False
        self.to_worker.room = 0

    def read_on(self) -> None:
        self.reads = True
        self.to_worker.drain()

    @property
    def held_back(self) -> bool:
        """Whether the exchange takes nothing from it."""
        return self.to_worker.producerState == "paused"

    def pump(self) -> bool:
        """Move what is on its way, one direction after the other; whether there was anything."""
        up = b"" if self.held_back else self.to_exchange.value()
        if up:
            self.to_exchange.clear()
            self.theirs.dataReceived(up)
        down = self.to_worker.value() if self.reads else b""
        if down:
            self.to_worker.clear()
            self.ours.dataReceived(down)
        return bool(up or down)

    def die(self) -> None:
        self.ours.connectionLost()
        self.theirs.connectionLost()


class RelayTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.given_up: list[str] = []
        self.log = MemoryBroker(Retention(), self.clock.seconds)
        self.exchange = BrokerServer(self.log, self.given_up.append, self.clock)
        self.successResultOf(self.exchange.start())
        self.workers: list[WorkerEnd] = []
        self.a, self.b = self.worker("a"), self.worker("b")

    def tearDown(self) -> None:
        self.exchange.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def worker(self, name: str) -> WorkerEnd:
        worker = WorkerEnd(self.exchange, name)
        self.workers.append(worker)
        self.settle()
        self.successResultOf(worker.started)
        return worker

    def settle(self) -> None:
        while [worker for worker in self.workers if worker.ours.connected and worker.pump()]:
            pass


class EventTests(RelayTestCase):
    def test_all_workers_receive_events_in_one_order(self) -> None:
        publishing = [
            (self.a, self.b)[n % 2].broker.publish([new_event(f"{n}.1"), new_event(f"{n}.2")]) for n in range(6)
        ]
        self.settle()
        receipts = [self.successResultOf(publish_) for publish_ in publishing]
        self.assertEqual(self.a.listener.events, self.b.listener.events)
        self.assertEqual([event.offset for event in self.a.listener.events], list(range(1, 13)))
        for number, events in enumerate(receipts):
            self.assertEqual([event.name for event in events], [f"{number}.1", f"{number}.2"])
            self.assertEqual([event.delivered for event in events], [3, 3])

    def test_a_publish_is_acknowledged_after_its_worker_s_listener(self) -> None:
        order: list[str] = []
        self.a.listener.deliver = lambda events: order.append("told")  # type: ignore[method-assign]
        self.a.broker.publish([new_event("x")]).addCallback(lambda events: order.append("published"))
        self.settle()
        self.assertEqual(order, ["told", "published"])

    def test_events_sent_before_a_response_are_delivered_before_it(self) -> None:
        order: list[str] = []
        self.a.listener.deliver = lambda events: order.append("told")  # type: ignore[method-assign]
        self.b.broker.publish([new_event("x")])
        self.b.pump()
        self.a.broker.offset_range().addCallback(lambda offsets: order.append(f"up to {offsets[1]}"))
        self.a.pump()
        self.assertEqual(order, ["told", "up to 1"])

    def test_a_worker_that_has_not_started_receives_nothing(self) -> None:
        pipe = FakePipe()
        self.exchange.channel("early").makeConnection(pipe)
        self.a.broker.publish([new_event("x")])
        self.settle()
        self.assertEqual((self.a.listener.names, pipe.value()), (["x"], b""))

    def test_events_of_one_read_are_one_batch_with_separate_responses(self) -> None:
        batches: list[list[str]] = []
        self.b.listener.deliver = lambda events: batches.append([event.name for event in events])  # type: ignore[method-assign]
        publishing = [self.a.broker.publish([new_event(name)]) for name in ("1", "2", "3")]
        self.settle()
        self.assertEqual(batches, [["1", "2", "3"]])
        receipts = [self.successResultOf(publish_) for publish_ in publishing]
        self.assertEqual([[event.offset for event in receipt] for receipt in receipts], [[1], [2], [3]])

    def test_key_counts_for_all_workers_and_receipts_keep_the_order(self) -> None:
        self.a.broker.publish([new_event("first", key="k")])
        self.settle()
        again = self.b.broker.publish([new_event("second", key="k"), new_event("new"), new_event("third", key="k")])
        self.settle()
        self.assertEqual(
            [(event.name, event.offset, event.duplicate) for event in self.successResultOf(again)],
            [("second", 1, True), ("new", 2, False), ("third", 1, True)],
        )
        self.assertEqual(self.a.listener.names, ["first", "new"])

    def test_a_worker_that_starts_late_receives_later_events(self) -> None:
        self.a.broker.publish([new_event("before")])
        self.settle()
        late = self.worker("late")
        self.b.broker.publish([new_event("after")])
        self.settle()
        self.assertEqual(late.listener.names, ["after"])
        self.assertEqual(late.broker.epoch, self.a.broker.epoch)
        result = late.broker.read(0, 10)
        self.settle()
        self.assertEqual([event.name for event in self.successResultOf(result)], ["before", "after"])

    def test_a_new_epoch_reaches_all_workers(self) -> None:
        self.exchange.reset("other")
        self.settle()
        self.assertEqual((self.a.listener.epochs, self.b.listener.epochs), (["other"], ["other"]))
        self.assertEqual(self.a.broker.epoch, "other")


class ForbiddingLog(MemoryBroker):
    """A log that cannot be written."""

    problem: Exception = Unavailable("the disk is full")

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        return fail(self.problem)

    def lease(
        self, node: str, connection_counts: Mapping[Any, Any], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[Any]:
        return fail(self.problem)


class TroubleTests(RelayTestCase):
    def test_an_error_reaches_the_requesting_worker_with_its_reason(self) -> None:
        self.exchange.broker = ForbiddingLog()
        asked = [self.a.broker.publish([new_event("x")]), self.a.broker.lease("a", {}, 1)]
        self.settle()
        for item in asked:
            self.assertEqual(self.failureResultOf(item, Unavailable).value.message, "the disk is full")

    def test_an_unexpected_error_is_logged_by_the_supervisor_without_details_for_workers(self) -> None:
        self.exchange.broker = ForbiddingLog()
        self.exchange.broker.problem = KeyError("secret")
        asked = self.a.broker.publish([new_event("x")])
        self.settle()
        self.assertEqual(self.failureResultOf(asked, Unavailable).value.message, "internal error")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_requests_fail_when_the_supervisor_is_gone(self) -> None:
        pending = [
            self.a.broker.publish([new_event("x")]),
            self.a.broker.read(0, 1),
            self.a.broker.lease("a", {1: 1}, 1),
        ]
        self.a.die()
        pending += [self.a.broker.publish([new_event("x")]), self.a.broker.offset_range(), self.a.broker.online()]
        for item in pending:
            self.failureResultOf(item, Unavailable)
        self.successResultOf(self.a.broker.stop())

    def test_start_without_a_server_is_a_config_error(self) -> None:
        broker = IpcBroker(lambda channel: None)
        self.failureResultOf(broker.start(RecordingHandler()), ConfigError)

    def test_a_worker_that_dies_within_a_line_does_not_affect_others(self) -> None:
        torn = self.a.broker.publish([new_event("torn")])
        self.a.theirs.dataReceived(self.a.to_exchange.value()[:-1])
        self.a.die()
        self.failureResultOf(torn, Unavailable)
        self.b.broker.publish([new_event("whole")])
        self.settle()
        self.assertEqual(self.b.listener.names, ["whole"])

    def test_stop_waits_for_replies(self) -> None:
        publishing = self.a.broker.publish([new_event("x")])
        stopping = self.a.broker.stop()
        self.assertNoResult(stopping)
        self.settle()
        self.assertEqual([event.offset for event in self.successResultOf(publishing)], [1])
        self.successResultOf(stopping)
        self.assertTrue(self.a.to_exchange.disconnecting)


class HoldingBackTests(RelayTestCase):
    def publish_until_held_back(self) -> int:
        """With `b` not reading. How many were taken."""
        self.b.stop_reading()
        for number in range(100):
            self.a.broker.publish([new_event(f"{number}", size=HIGH // 10)])
            self.settle()
            if self.a.held_back:
                return number + 1
        raise AssertionError("never held back")

    def test_requests_are_not_read_while_a_worker_does_not_read(self) -> None:
        taken = self.publish_until_held_back()
        self.assertLess(self.b.theirs.unsent, HIGH + HIGH // 5)
        waiting = self.a.broker.publish([new_event("waits")])
        self.settle()
        self.assertNoResult(waiting)
        self.b.read_on()
        self.settle()
        self.assertFalse(self.a.held_back)
        self.assertEqual(self.successResultOf(waiting)[0].offset, taken + 1)
        self.assertEqual(self.b.listener.names, self.a.listener.names)
        self.assertEqual(self.given_up, [])

    def test_a_worker_that_stops_reading_is_dropped_and_others_continue(self) -> None:
        self.publish_until_held_back()
        waiting = self.a.broker.publish([new_event("waits")])
        self.clock.advance(STUCK)
        self.assertEqual(self.given_up, ["b"])
        self.assertTrue(self.b.to_worker.disconnecting)
        self.b.die()
        self.settle()
        self.successResultOf(waiting)

    def test_a_slowly_reading_worker_is_not_dropped(self) -> None:
        self.publish_until_held_back()
        for _ in range(5):
            self.clock.advance(STUCK - 1)
            self.b.to_worker.drain(100_000)
            self.clock.advance(1)
        self.assertEqual(self.given_up, [])
        self.assertTrue(self.a.held_back)
        self.b.read_on()
        self.settle()
        self.assertFalse(self.a.held_back)

    def test_a_worker_that_starts_during_a_hold_is_held_too(self) -> None:
        self.publish_until_held_back()
        late = self.worker("c")
        unsent = self.b.theirs.unsent
        late.broker.publish([new_event("late", size=HIGH)])
        self.settle()
        self.assertEqual(self.b.theirs.unsent, unsent)
        self.b.read_on()
        self.settle()
        self.assertFalse(late.held_back)
        self.assertEqual(self.a.listener.names[-1], "late")

    def test_the_death_of_a_slow_worker_ends_the_hold(self) -> None:
        self.publish_until_held_back()
        self.b.die()
        self.assertFalse(self.a.held_back)

    def test_unsent_requests_of_a_worker_are_bounded(self) -> None:
        self.patch(relay_module, "MOST_UNSENT", 1000)
        self.a.to_exchange.room = 0
        first = self.a.broker.publish([new_event("x", size=100_000)])
        self.failureResultOf(self.a.broker.publish([new_event("y")]), Unavailable)
        self.a.to_exchange.drain()
        self.settle()
        self.successResultOf(first)
