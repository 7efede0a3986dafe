"""Whether the broker stores events: the measured broker, its probes and its log lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import AGENT_SPACE, CONTACT_SPACE, Audience, Event, NewEvent
from chatws.errors import Unavailable
from chatws.runtime.measured_broker import KINDS, PROBE_INTERVAL, MeasuredBroker, make_probe
from tests.fakes_brokers import SharedBroker, SharedHistory

EVENT = NewEvent("new_message", Audience(("conversation:456",)), b"{}")


class FullBroker(SharedBroker):
    """A broker whose engine can be full: it is read and not written.

    :ivar full: whether it is.
    :ivar published: the names of the events of each publish.
    """

    full = False

    def __init__(self, log: SharedHistory) -> None:
        super().__init__(log)
        self.published: list[list[str]] = []

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        self.published.append([event.name for event in new_events])
        return fail(Unavailable("the disk is full")) if self.full else super().publish(new_events)


class FakeEventHandler:
    def deliver(self, events: Sequence[Event]) -> None:
        pass

    def reset(self, epoch: str) -> None:
        pass


class MeasuredBrokerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.inner = FullBroker(SharedHistory(self.clock.seconds))
        self.broker = MeasuredBroker(self.inner, self.clock)
        self.events: list[Any] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.successResultOf(self.broker.start(FakeEventHandler()))

    def lines(self) -> list[str]:
        return [line for line in map(formatEvent, self.events) if "the broker" in line]

    def check(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.broker.check())

    def test_calls_are_passed_on_and_measured_by_kind(self) -> None:
        [event] = self.successResultOf(self.broker.publish([EVENT]))
        self.assertEqual(event.offset, 1)
        self.assertEqual(self.successResultOf(self.broker.offset_range()), (1, 1))
        self.assertEqual(self.successResultOf(self.broker.online()), [])
        self.assertEqual([item.name for item in self.successResultOf(self.broker.read(0, 9))], ["new_message"])
        self.successResultOf(self.broker.lease("a", {5: 1}, 10.0))
        self.assertEqual(self.successResultOf(self.broker.nodes_without(CONTACT_SPACE)), ["a"])
        self.assertTrue(self.successResultOf(self.broker.set_data(AGENT_SPACE, 5, "away", 10.0)))
        self.assertEqual(self.successResultOf(self.broker.data(AGENT_SPACE))[5].data, "away")
        counts = {kind: histogram.buckets()[-1][1] for kind, histogram in self.broker.histograms.items()}
        measured = {kind for kind, count in counts.items() if count == 1}
        self.assertEqual(measured, set(KINDS) - {"add_webhooks", "exchange_webhooks"})
        self.assertEqual(set(self.broker.errors.values()), {0})
        self.assertEqual(self.lines(), [])

    def test_the_time_of_an_engine_that_responds_at_once_is_measured(self) -> None:
        publish = self.inner.publish

        def slow(new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
            self.clock.advance(0.3)
            return publish(new_events)

        self.patch(self.inner, "publish", slow)
        self.successResultOf(self.broker.publish([EVENT]))
        self.assertAlmostEqual(self.broker.histograms["publish"].total, 0.3)

    def test_a_full_engine_fails_the_check_although_it_answers_queries(self) -> None:
        self.inner.full = True
        self.failureResultOf(self.broker.publish([EVENT]), Unavailable)
        self.successResultOf(self.broker.offset_range())
        self.assertIn("the disk is full", str(self.failureResultOf(self.check(), Unavailable).value))
        self.assertEqual(self.broker.errors["publish"], 1)

    def test_the_end_of_a_failure_is_noticed_without_traffic_and_logged_once(self) -> None:
        self.inner.full = True
        for _ in range(3):
            self.failureResultOf(self.broker.publish([EVENT]), Unavailable)
        self.clock.advance(PROBE_INTERVAL)
        self.assertEqual(self.inner.published[3:], [["probe"]])
        self.assertEqual(len(self.lines()), 1)
        self.assertIn("the broker does not store events, publishes fail: the disk is full", self.lines()[0])
        self.inner.full = False
        self.clock.advance(PROBE_INTERVAL)
        self.successResultOf(self.check())
        self.assertEqual(len(self.lines()), 2)
        self.assertIn("the broker stores events again, after 4.0 s and 4 failed calls", self.lines()[1])
        self.clock.advance(10 * PROBE_INTERVAL)
        self.assertEqual(len(self.inner.published), 5, "no probe while the broker works")

    def test_a_failed_lease_of_an_idle_node_causes_a_probe(self) -> None:
        self.inner.cut = True
        self.failureResultOf(self.broker.lease("a", {}, 10.0), Unavailable)
        self.clock.advance(0)
        self.failureResultOf(self.check(), Unavailable)
        self.inner.heal()
        self.clock.advance(PROBE_INTERVAL)
        self.successResultOf(self.check())

    def test_a_probe_without_a_response_is_not_repeated(self) -> None:
        self.inner.full = True
        self.failureResultOf(self.broker.publish([EVENT]), Unavailable)
        silent: Deferred[list[Event]] = Deferred()
        self.patch(self.inner, "publish", lambda new_events: silent)
        self.clock.pump([PROBE_INTERVAL] * 5)
        self.failureResultOf(self.check(), Unavailable)
        silent.callback([])
        self.successResultOf(self.check())

    def test_a_closed_broker_is_no_failure(self) -> None:
        self.successResultOf(self.broker.stop())
        self.failureResultOf(self.broker.publish([make_probe()]), Unavailable)
        self.assertEqual(self.broker.problem, "")
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_stop_ends_the_probes(self) -> None:
        self.inner.full = True
        self.failureResultOf(self.broker.publish([EVENT]), Unavailable)
        self.successResultOf(self.broker.stop())
        self.assertEqual(self.clock.getDelayedCalls(), [])
