"""The sender of webhooks (chatws.webhooks.sender), with brokers in memory and a receiver that is a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Broker
from chatws.brokers.memory import MemoryBroker
from chatws.brokers.webhook_queue import WebhookQueueSettings, WebhookReply, WebhookRequest
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.webhooks.client import Answer
from chatws.webhooks.sender import WebhookSender, WebhookSettings
from tests.contracts.test_broker_contract import Recorder

EVENTS = frozenset({"agent_online", "agent_offline", "presence_reset"})
OK, DOWN, REFUSED = Answer(200), Answer(500), Answer(problem="refused", is_refused=True)


class DeliveryState:
    """What a server knows."""

    def __init__(self) -> None:
        self.active: dict[Id, int] = {}

    def status(self, user_id: Id) -> str:
        return "online"

    def statuses(self) -> Mapping[str, str]:
        return {}

    async def contacts(self) -> Sequence[tuple[Id, Id]]:
        return [(7, 456)]

    def last_active(self, user_id: Id) -> int | None:
        return self.active.get(user_id)

    def last_seen(self, user_id: Id) -> int | None:
        return None

    def forget(self, online: Set[Id]) -> None:
        self.active = {user_id: at for user_id, at in self.active.items() if user_id in online}


class FakeReceiver:
    """Answers requests.

    :ivar answer: what is answered to a request.
    :ivar held: if it is a list, requests wait there for an answer.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answer: Callable[[Any], Answer] = lambda request: OK
        self.requests: list[Any] = []
        self.times: list[float] = []
        self.held: list[Deferred[Answer]] | None = None

    async def post(self, body: bytes) -> Answer:
        request = json.loads(body)
        self.requests.append(request["events"])
        self.times.append(self.clock.seconds())
        if self.held is not None:
            waiting: Deferred[Answer] = Deferred()
            self.held.append(waiting)
            try:
                return await waiting
            except CancelledError:
                return Answer(problem="cancelled")
        return self.answer(request["events"])

    def take(self) -> list[tuple[str, Any]]:
        """The events of all requests since the last call: each name with its agent, or with the agents online."""
        events = [event for request in self.requests for event in request]
        self.requests.clear()
        return [(event["event"], event.get("user_id", event.get("online"))) for event in events]


class SenderTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.receiver = FakeReceiver(self.clock)
        self.state = DeliveryState()
        self.broker: Any = MemoryBroker(None, self.clock.seconds, webhook_queue=WebhookQueueSettings(50))
        self.broker.start(Recorder())
        self.senders: list[WebhookSender] = []

    def tearDown(self) -> None:
        self.receiver.held = None
        for sender in self.senders:
            self.successResultOf(Deferred.fromCoroutine(sender.stop()))
        self.assertEqual([call for call in self.clock.getDelayedCalls() if call.active()], [])

    def start(
        self, node: str = "a", events: frozenset[str] = EVENTS, broker: Broker | None = None, **more: Any
    ) -> WebhookSender:
        sender = WebhookSender(
            broker or self.broker,
            self.receiver,
            self.state,
            WebhookSettings(events, **{"start_delay": 0.0, **more}),
            node=node,
            reactor=self.clock,  # type: ignore[arg-type]
            wall_clock=self.clock.seconds,
            jitter=lambda: 1.0,
        )
        self.senders.append(sender)
        sender.start()
        return sender

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([0.25] * round(seconds * 4))

    def lease(self, **changes: int | None) -> None:
        """Change agents: a5=1 is online, a5=None is offline."""
        self.broker.lease("node", {int(name[1:]): count for name, count in changes.items()}, 10_000)

    def settle(self) -> None:
        """Pass the reset after the start."""
        self.pass_time(2)
        self.assertEqual(self.receiver.take(), [("presence_reset", [])])

    def test_change_is_reported_at_once_after_a_wake(self) -> None:
        sender = self.start()
        self.settle()
        self.lease(a5=1)
        sender.wake()
        self.clock.advance(0)
        self.assertEqual(self.receiver.take(), [("agent_online", 5)])
        self.pass_time(30)
        self.assertEqual(self.receiver.take(), [])

    def test_change_without_a_wake_is_reported_within_a_second(self) -> None:
        self.start()
        self.settle()
        self.lease(a5=1)
        self.pass_time(1)
        self.assertEqual(self.receiver.take(), [("agent_online", 5)])

    def test_nothing_is_sent_before_the_start_delay_and_then_the_whole_state(self) -> None:
        self.start(start_delay=40.0)
        self.pass_time(20)
        self.lease(a5=1, a6=1)
        self.pass_time(19)
        self.assertEqual(self.receiver.take(), [])
        self.pass_time(2)
        self.assertEqual(self.receiver.take(), [("presence_reset", [5, 6]), ("agent_online", 5), ("agent_online", 6)])

    def test_retries_double_up_to_a_minute_with_the_same_ids(self) -> None:
        self.start()
        self.settle()
        self.receiver.answer = lambda events: REFUSED
        self.receiver.times.clear()
        self.lease(a5=1)
        self.pass_time(300)
        pauses = [round(b - a) for a, b in zip(self.receiver.times, self.receiver.times[1:], strict=False)]
        self.assertEqual(pauses[:7], [1, 2, 4, 8, 16, 32, 60])
        self.assertEqual(len({json.dumps(request) for request in self.receiver.requests}), 1)
        self.receiver.answer = lambda events: OK
        self.pass_time(61)
        self.assertEqual(self.receiver.take()[-1], ("agent_online", 5))

    def test_retry_after_is_respected_up_to_five_minutes(self) -> None:
        self.start()
        self.settle()
        self.receiver.answer = lambda events: Answer(503, retry_after=100_000.0)
        self.receiver.times.clear()
        self.lease(a5=1)
        self.pass_time(310)
        self.assertEqual(
            [round(b - a) for a, b in zip(self.receiver.times, self.receiver.times[1:], strict=False)], [300]
        )

    def test_poison_event_is_dropped_and_the_queue_moves_on(self) -> None:
        sender = self.start()
        self.settle()
        self.receiver.answer = lambda events: DOWN if any(event.get("user_id") == 6 for event in events) else OK
        self.lease(a5=1)
        self.lease(a6=1)
        self.lease(a7=1)
        self.pass_time(400)
        self.assertEqual(sender.batches.rejected, {"agent_online": 1})
        self.assertEqual(sender.batches.sent, {"presence_reset": 2, "agent_online": 2})
        self.assertEqual(self.receiver.take()[-2:], [("presence_reset", [5, 6, 7]), ("agent_online", 7)])
        self.flushLoggedErrors()

    def test_event_is_kept_while_the_receiver_acknowledges_nothing(self) -> None:
        sender = self.start()
        self.settle()
        self.receiver.answer = lambda events: DOWN
        self.lease(a5=1)
        self.pass_time(3600)
        self.assertEqual(sender.batches.rejected, {})
        self.receiver.requests.clear()
        self.receiver.answer = lambda events: OK
        self.pass_time(61)
        self.assertEqual(self.receiver.take()[0], ("agent_online", 5))

    def test_full_queue_ends_with_the_whole_state_in_the_next_request(self) -> None:
        sender = self.start()
        self.settle()
        self.receiver.answer = lambda events: DOWN
        for n in range(100):
            self.lease(**{f"a{n}": 1})
        for n in range(90):
            self.lease(**{f"a{n}": None})
        self.pass_time(600)
        self.receiver.requests.clear()
        self.receiver.answer = lambda events: OK
        self.pass_time(61)
        self.assertEqual(self.receiver.take()[0], ("presence_reset", list(range(90, 100))))
        self.assertEqual(sender.stats.dropped, (0, 0, 140))

    def test_activities_do_not_displace_changes_of_agents(self) -> None:
        self.start(events=EVENTS | {"activity"})
        self.settle()
        self.receiver.answer = lambda events: REFUSED
        self.lease(a5=1)
        self.lease(a5=None)
        for n in range(100):
            self.broker.add_webhooks([("activity", b'{"user_id":6,"activity_type":"%d"}' % n)])
        self.pass_time(60)
        self.receiver.requests.clear()
        self.receiver.answer = lambda events: OK
        self.pass_time(61)
        events = self.receiver.take()
        self.assertEqual(events[0], ("presence_reset", []))
        self.assertEqual(events[1], ("agent_offline", 5))
        self.assertEqual([name for name, _ in events].count("activity"), 48)

    def test_another_node_sends_what_a_dead_one_has_not_with_the_same_ids(self) -> None:
        self.start("a")
        self.settle()
        self.start("b")
        self.receiver.held = []
        self.lease(a5=1)
        self.pass_time(1)
        (first,) = self.receiver.requests
        self.lease(a5=None)
        self.receiver.held = None  # node a never gets its answer, as if it were paused
        self.pass_time(30)
        second = self.receiver.requests[1]
        self.assertEqual([event["id"] for event in second][:1], [event["id"] for event in first])
        self.assertGreater(second[0]["seq"], first[0]["seq"])
        self.assertEqual(self.receiver.take()[1:], [("agent_online", 5), ("agent_offline", 5)])

    def test_stopped_node_lets_another_one_send_at_once(self) -> None:
        first = self.start("a")
        self.settle()
        self.start("b")
        self.successResultOf(Deferred.fromCoroutine(first.stop()))
        self.lease(a5=1)
        self.pass_time(3)
        self.assertEqual(self.receiver.take(), [("agent_online", 5)])

    def test_heartbeat_of_each_agent_online_once_in_each_interval(self) -> None:
        self.start(events=EVENTS | {"heartbeat"}, heartbeat=30.0)
        self.settle()
        self.state.active = {5: 50, 6: 60}
        self.lease(a5=1)
        self.pass_time(90)
        self.assertEqual(self.receiver.take(), [("agent_online", 5), *[("heartbeat", 5)] * 3])
        self.assertEqual(self.state.active, {5: 50})

    def test_heartbeats_of_a_dead_receiver_do_not_pile_up(self) -> None:
        self.start(events=EVENTS | {"heartbeat"}, heartbeat=30.0)
        self.settle()
        self.state.active = {5: 50}
        self.lease(a5=1)
        self.receiver.answer = lambda events: REFUSED
        self.pass_time(600)
        self.receiver.requests.clear()
        self.receiver.answer = lambda events: OK
        self.pass_time(62)
        self.assertLessEqual(self.receiver.take().count(("heartbeat", 5)), 3)

    def test_broker_that_is_unavailable_is_asked_again(self) -> None:
        class Flaky(MemoryBroker):
            fails = True

            def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
                if self.fails:
                    raise Unavailable("away")
                return super().exchange_webhooks(request)

        broker = Flaky(None, self.clock.seconds, webhook_queue=WebhookQueueSettings(50))
        broker.start(Recorder())
        self.start(broker=broker)
        self.pass_time(10)
        self.assertEqual(self.receiver.take(), [])
        broker.fails = False
        self.pass_time(5)
        self.assertEqual(self.receiver.take(), [("presence_reset", [])])

    def test_contacts_are_part_of_the_state_if_they_are_selected(self) -> None:
        self.start(events=EVENTS | {"contact_online"})
        self.pass_time(2)
        self.assertEqual(self.receiver.requests[0][0]["contacts"], [{"contact_id": 7, "conversation_id": 456}])
