"""Events held while the log cannot be reached: nothing acknowledged too early, nothing twice, nothing out of order."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.contract import Audience, Draft, Event
from chatws.chat.audience import AudienceTable
from chatws.errors import ClientError, ErrorCode, Unavailable
from chatws.push import queue
from chatws.push.queue import FIRST_PAUSE, LONGEST_PAUSE, PushQueue
from tests.fakes_brokers import SharedBroker, SharedLog


class Recorder:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def deliver(self, events: list[Event]) -> None:
        for event in events:
            event.delivered = 3
        self.events += events

    def reset(self, epoch: str) -> None:
        pass


class Target:
    """A chat server that publishes into a log which can be cut off."""

    def __init__(self, clock: Clock) -> None:
        self.audiences = AudienceTable()
        self.broker = SharedBroker(SharedLog(clock.seconds))
        self.recorder = Recorder()
        self.broker.start(self.recorder)
        self.publish = self.broker.publish
        self.disconnect = self.unsubscribe = self.online = self.connections_of = self.event_id = None


class PushQueueTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.target = Target(self.clock)
        self.queue = PushQueue(self.target, 5, self.clock)  # type: ignore[arg-type]

    def tearDown(self) -> None:
        self.assertEqual(self.queue.held, 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def push(self, *names: str, key: str | None = None) -> Deferred[list[Event]]:
        return self.queue.publish([Draft(name, Audience(("user:1",)), b"{}", key) for name in names])

    @property
    def told(self) -> list[str]:
        return [event.name for event in self.target.recorder.events]

    def wait(self) -> None:
        self.clock.pump([LONGEST_PAUSE] * 3)

    def test_while_the_log_can_be_reached_nothing_is_held(self) -> None:
        [event] = self.successResultOf(self.push("a"))
        self.assertEqual((event.offset, event.delivered, event.duplicate), (1, 3, False))
        self.assertEqual(self.queue.held, 0)

    def test_what_is_held_is_published_in_order_and_only_then_acknowledged(self) -> None:
        self.target.broker.cut = True
        first, second = self.push("a", "b"), self.push("c")
        self.wait()
        self.assertNoResult(first)
        self.assertEqual(self.queue.held, 3)
        self.target.broker.heal()
        behind = self.push("d")
        self.assertNoResult(behind)
        self.wait()
        self.assertEqual(self.told, ["a", "b", "c", "d"])
        self.assertEqual([event.offset for event in self.successResultOf(first)], [1, 2])
        self.assertEqual([event.offset for event in self.successResultOf(second)], [3])
        self.assertEqual([event.offset for event in self.successResultOf(behind)], [4])

    def test_what_does_not_fit_is_refused_and_what_is_held_stays(self) -> None:
        self.target.broker.cut = True
        held = self.push("a", "b", "c", "d")
        self.failureResultOf(self.push("e", "f"), Unavailable)
        fits = self.push("g")
        self.target.broker.heal()
        self.wait()
        self.assertEqual(self.told, ["a", "b", "c", "d", "g"])
        self.successResultOf(held), self.successResultOf(fits)

    def test_an_event_whose_answer_was_lost_is_not_published_twice_and_is_no_duplicate(self) -> None:
        self.target.broker.lose_answers = True
        pushed = self.push("a")
        self.assertNoResult(pushed)
        self.target.broker.heal()
        self.wait()
        [event] = self.successResultOf(pushed)
        self.assertEqual((event.offset, event.duplicate, self.told), (1, False, ["a"]))

    def test_a_backends_own_key_tells_it_of_a_duplicate(self) -> None:
        self.successResultOf(self.push("a", key="k"))
        self.target.broker.cut = True
        again = self.push("a", key="k")
        self.target.broker.heal()
        self.wait()
        [event] = self.successResultOf(again)
        self.assertEqual((event.offset, event.duplicate, self.told), (1, True, ["a"]))

    def test_another_failure_is_no_reason_to_hold(self) -> None:
        def publish(drafts: object) -> Deferred[list[Event]]:
            failed: Deferred[list[Event]] = Deferred()
            failed.errback(ClientError(ErrorCode.BAD_MESSAGE, "no"))
            return failed

        self.target.publish = publish
        self.failureResultOf(self.push("a"), ClientError)

    def test_what_a_fault_befalls_is_told_of_it_and_what_is_behind_goes_on(self) -> None:
        self.patch(queue, "BATCH", 2)
        self.target.broker.cut = True
        first, second, behind = self.push("a"), self.push("b"), self.push("c")
        publish = self.target.publish

        def broken(drafts: list[Draft]) -> Deferred[list[Event]]:
            self.target.publish = publish
            return fail(ZeroDivisionError())

        self.target.publish = broken
        self.target.broker.heal()
        self.wait()
        self.failureResultOf(first, ZeroDivisionError)
        self.failureResultOf(second, ZeroDivisionError)
        self.assertEqual((len(self.successResultOf(behind)), self.told), (1, ["c"]))

    def test_it_is_tried_in_batches_with_pauses_that_grow_until_it_succeeds(self) -> None:
        self.patch(queue, "BATCH", 2)
        self.patch(queue.random, "uniform", lambda low, high: high)
        tries: list[tuple[float, int]] = []
        publish = self.target.publish

        def counted(drafts: list[Draft]) -> Deferred[list[Event]]:
            tries.append((round(self.clock.seconds(), 3), len(drafts)))
            return publish(drafts)

        self.target.publish = counted
        for _ in range(2):
            tries.clear()
            began = self.clock.seconds()
            self.target.broker.cut = True
            pushed = [self.push(name) for name in "abc"]
            for _ in range(3):
                [call] = self.clock.getDelayedCalls()
                self.clock.advance(call.getTime() - self.clock.seconds())
            self.target.broker.heal()
            self.wait()
            for one in pushed:
                self.successResultOf(one)
            self.assertEqual(tries[0], (round(began, 3), 1), "at once")
            waits = [round(at - began, 3) for at, _ in tries[1:]]
            self.assertEqual(waits[:3], [round(FIRST_PAUSE * times, 3) for times in (1, 3, 7)])
            self.assertEqual([count for _, count in tries[-2:]], [2, 1])

    def test_what_is_held_at_the_end_is_refused(self) -> None:
        self.target.broker.cut = True
        held = self.push("a")
        self.queue.stop()
        self.failureResultOf(held, Unavailable)
        self.failureResultOf(self.push("b"), Unavailable)
