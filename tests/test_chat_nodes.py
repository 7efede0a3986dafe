"""Several chat servers on one broker, over fake connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import NODES, Audience, Event, NewEvent, Retention
from chatws.chat import cluster_commands
from chatws.chat.admin import RESYNC_SPREAD
from chatws.chat.event_handler import SEND_SECONDS
from chatws.chat.interfaces import Identity
from chatws.chat.presence.changes import PresenceChange
from chatws.chat.presence.service import PresenceSettings
from chatws.chat.resume_wait import RESUME_WAIT_TIMEOUT
from chatws.chat.server import ChatServer
from chatws.errors import CloseCode, Unavailable
from chatws.ids import Id
from tests.fakes import FakeConnection, PendingChecks, send_all
from tests.fakes_brokers import SharedBroker, SharedHistory

LEASE, GRACE = 15.0, 3.0


class Node:
    """A chat server and its connection to the broker."""

    def __init__(self, log: SharedHistory, clock: Clock, name: str, bounds: Retention | None = None) -> None:
        self.clock = clock
        self.send_all = send_all
        self.broker = SharedBroker(log)
        self.chat = ChatServer(
            self.broker,
            node=name,
            reactor=clock,
            wall_clock=clock.seconds,
            send_all=lambda runs: self.send_all(runs),
            presence=PresenceSettings(GRACE, LEASE),
        )
        self.started = Deferred.fromCoroutine(self.chat.start())

    def connect(self, user_id: Id, *conversations: Id, last: str | None = None) -> FakeConnection:
        connection = FakeConnection()
        self.chat.on_open(connection)
        seen = {} if last is None else {"last_event_id": last}
        self.say(connection, type="auth", user_id=user_id, **seen)
        for conversation_id in conversations:
            self.say(connection, type="subscribe", conversation_id=conversation_id, **seen)
        self.clock.advance(0)
        return connection

    def say(self, connection: FakeConnection, **message: Any) -> None:
        self.chat.on_message(connection, json.dumps(message))

    def leave(self, connection: FakeConnection) -> None:
        self.chat.on_close(connection)

    def push(self, number: int, conversation_id: Id = 1, **options: Any) -> Deferred[list[Event]]:
        data = json.dumps({"conversation_id": conversation_id, "n": number}).encode()
        return self.chat.publish([self.chat.audiences.new_event("new_message", data, **options)])

    def end(self) -> None:
        for connection in tuple(self.chat.connections):
            self.chat.on_close(connection)
        Deferred.fromCoroutine(self.chat.stop())

    def die(self) -> None:
        """Die as by kill -9: without a report to the broker."""
        self.broker.cut = True
        self.end()


def numbers(connection: FakeConnection) -> list[int]:
    return [event["data"]["n"] for event in connection.take() if event.get("event") == "new_message"]


def statuses(connection: FakeConnection) -> list[tuple[Id, str]]:
    events = [event for event in connection.take() if event.get("event") == "agent_status"]
    return sorted([(event["data"]["agent_id"], event["data"]["status"]) for event in events], key=str)


class NodesTestCase(SynchronousTestCase):
    bounds: Retention | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.log = SharedHistory(self.clock.seconds, self.bounds)
        self.nodes: list[Node] = []
        self.a, self.b = self.node("a"), self.node("b")

    def tearDown(self) -> None:
        for node in self.nodes:
            node.end()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def node(self, name: str) -> Node:
        node = Node(self.log, self.clock, name)
        self.successResultOf(node.started)
        self.nodes.append(node)
        return node


class EventTests(NodesTestCase):
    def test_event_published_on_one_node_reaches_the_clients_of_all_in_order(self) -> None:
        here, there = self.a.connect(1, 1), self.b.connect(2, 1)
        for number in range(4):
            self.successResultOf((self.a, self.b)[number % 2].push(number))
        self.assertEqual((numbers(here), numbers(there)), ([0, 1, 2, 3], [0, 1, 2, 3]))

    def test_idempotency_key_counts_on_all_nodes(self) -> None:
        [first] = self.successResultOf(self.a.push(1, key="k"))
        [second] = self.successResultOf(self.b.push(1, key="k"))
        self.assertEqual((second.offset, second.duplicate), (first.offset, True))

    def test_typing_reaches_the_other_nodes_clients(self) -> None:
        here, there = self.a.connect(1, 1), self.b.connect(2, 1)
        there.take()
        self.a.say(here, type="typing", conversation_id=1)
        self.assertEqual(
            [event["data"]["is_typing"] for event in there.take() if event.get("event") == "typing"],
            [True],
        )

    def test_client_from_another_node_recovers(self) -> None:
        there = self.b.connect(2, 1)
        self.successResultOf(self.a.push(1))
        last = there.take()[-1]["id"]
        self.b.leave(there)
        self.successResultOf(self.b.push(2))
        back = self.a.connect(2, 1, last=last)
        replies = back.take()
        self.assertEqual([reply["data"].get("recovered") for reply in replies[:2]], [True, True])
        self.assertEqual([reply["data"]["n"] for reply in replies[2:]], [2])


class ResumeWaitTests(NodesTestCase):
    def test_client_ahead_of_the_node_waits_until_the_node_has_caught_up(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.successResultOf(self.a.push(2))
        last = f"{self.log.epoch}:1"
        back = self.b.connect(2, 1, last=last)
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        replies = back.take()
        self.assertEqual([event["event"] for event in replies], ["authenticated", "subscribed", "new_message"])
        self.assertEqual([reply["data"]["recovered"] for reply in replies[:2]], [True, True])
        self.assertEqual(replies[2]["data"]["n"], 2)

    def test_subscribe_waits_and_later_messages_keep_their_order(self) -> None:
        back = self.b.connect(2)
        back.take()
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.b.say(back, type="subscribe", conversation_id=1, last_event_id=f"{self.log.epoch}:1")
        self.b.say(back, type="unsubscribe", conversation_id=1)
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        self.assertEqual([event["event"] for event in back.take()], ["subscribed", "unsubscribed"])

    def test_node_that_stays_behind_closes_with_4503(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        back = self.b.connect(2, last=f"{self.log.epoch}:1")
        self.clock.advance(RESUME_WAIT_TIMEOUT)
        self.assertEqual((back.closed or (0, ""))[0], 4503)
        self.b.broker.heal()
        self.assertEqual(back.payloads, [])

    def test_client_waits_until_its_own_position_is_reached(self) -> None:
        self.b.broker.behind = True
        first, second = (self.successResultOf(self.a.push(number))[0] for number in (1, 2))
        back = self.b.connect(2, last=f"{self.log.epoch}:{second.offset}")
        self.b.broker._deliver([first])
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        self.assertEqual([event["event"] for event in back.take()], ["authenticated"])

    def test_client_disconnected_while_waiting_is_not_admitted(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        back = self.b.connect(2, last=f"{self.log.epoch}:1")
        self.b.chat.disconnect_all(CloseCode.RESTARTING, "")
        self.b.broker.heal()
        self.assertEqual((back.payloads, self.b.chat.online()), ([], []))
        self.b.leave(back)

    def test_client_that_leaves_while_waiting_is_removed(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.b.leave(self.b.connect(2, last=f"{self.log.epoch}:1"))
        self.b.broker.heal()
        self.assertEqual(self.b.chat.online(), [])

    def test_auth_beyond_the_brokers_last_event_is_not_recovered(self) -> None:
        self.successResultOf(self.a.push(1))
        back = self.b.connect(2, last=f"{self.log.epoch}:2")
        [reply] = back.take()
        self.assertIs(reply["data"]["recovered"], False)
        self.assertIsNone(back.closed)

    def test_subscribe_beyond_the_brokers_last_event_is_not_recovered(self) -> None:
        back = self.b.connect(2)
        back.take()
        self.b.say(back, type="subscribe", conversation_id=1, last_event_id=f"{self.log.epoch}:99")
        self.assertEqual([reply["data"].get("recovered") for reply in back.take()], [False])

    def test_position_beyond_the_broker_stays_invalid_when_events_overtake_it_during_the_check(self) -> None:
        checks = PendingChecks()
        self.patch(self.b.chat._auth_flow, "_authenticator", checks)
        back = self.b.connect(2, last=f"{self.log.epoch}:2")
        for number in (1, 2, 3):
            self.successResultOf(self.a.push(number))
        checks.pending[0][1].callback(Identity(2, "token"))
        self.assertIs(back.take()[0]["data"]["recovered"], False)

    def test_client_ahead_of_the_node_waits_while_one_beyond_the_broker_does_not(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        ahead, beyond = (self.b.connect(2, last=f"{self.log.epoch}:{offset}") for offset in (1, 2))
        self.assertEqual((ahead.payloads, beyond.take()[0]["data"]["recovered"]), ([], False))

    def test_clients_that_arrive_during_a_query_share_the_next_one(self) -> None:
        queries: list[Deferred[tuple[int, int]]] = []

        def offset_range() -> Deferred[tuple[int, int]]:
            queries.append(Deferred())
            return queries[-1]

        self.patch(self.b.broker, "offset_range", offset_range)
        clients = [self.b.connect(user_id, last=f"{self.log.epoch}:9") for user_id in (2, 3, 4)]
        self.assertEqual(len(queries), 1)
        queries[0].callback((1, 0))
        self.assertEqual([len(client.payloads) for client in clients], [1, 0, 0])
        queries[1].callback((1, 0))
        self.assertEqual([len(client.payloads) for client in clients], [1, 1, 1])
        self.assertEqual(len(queries), 2)

    def test_position_of_another_epoch_does_not_wait(self) -> None:
        back = self.b.connect(2, last="other:99")
        self.assertIs(back.take()[0]["data"]["recovered"], False)


class CommandTests(NodesTestCase):
    def test_disconnect_closes_the_users_connections_on_every_node(self) -> None:
        here, there, other = self.a.connect(5), self.b.connect(5), self.b.connect(6)
        self.assertEqual(self.successResultOf(self.a.chat.disconnect(5, "logged out", True)), 1)
        self.assertEqual((here.closed, there.closed), ((4903, "logged out"), (4903, "logged out")))
        self.assertIsNone(other.closed)

    def test_unsubscribe_ends_the_subscription_on_every_node(self) -> None:
        there = self.b.connect(5, 1)
        self.assertEqual(self.successResultOf(self.a.chat.unsubscribe(5, 1)), 0)
        self.assertEqual(there.take()[-1]["event"], "unsubscribed")
        self.successResultOf(self.a.push(1))
        self.assertEqual(numbers(there), [])

    def test_node_that_was_cut_off_executes_the_command_in_order_with_the_events(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        self.b.broker.cut = True
        self.successResultOf(self.a.push(1))
        self.successResultOf(self.a.chat.unsubscribe(5, 1))
        self.successResultOf(self.a.push(2))
        self.b.broker.heal()
        self.assertEqual([event["event"] for event in there.take()], ["new_message", "unsubscribed"])

    def test_disconnect_with_an_unavailable_broker_fails_and_closes_local_connections(self) -> None:
        here = self.a.connect(5)
        self.a.broker.cut = True
        self.failureResultOf(self.a.chat.disconnect(5, "x"), Unavailable)
        self.assertEqual(here.closed, (4000, "x"))

    def test_client_that_reconnects_at_once_is_not_closed_by_its_own_nodes_command(self) -> None:
        self.a.connect(5)
        self.successResultOf(self.a.chat.disconnect(5, "x"))
        again = self.a.connect(5)
        self.successResultOf(self.a.push(1))
        self.assertIsNone(again.closed)

    def test_client_that_reconnects_is_not_closed_by_a_command_that_its_node_reads_late(self) -> None:
        self.a.connect(5)
        self.a.broker.lose_answers = True
        self.failureResultOf(self.a.chat.disconnect(5, "x"), Unavailable)
        again = self.a.connect(5)
        self.a.broker.heal()
        self.successResultOf(self.a.push(1))
        self.assertIsNone(again.closed)

    def test_command_from_the_database_is_executed_by_all_nodes_and_reaches_no_client(self) -> None:
        here, there = self.a.connect(5, 1), self.b.connect(5, 1)
        here.take(), there.take()
        command = NewEvent("unsubscribe", Audience((NODES,)), b'{"user_id": 5, "conversation_id": 1}')
        self.successResultOf(self.a.broker.publish([command]))
        for connection in (here, there):
            self.assertEqual([event["event"] for event in connection.take()], ["unsubscribed"])

    def test_ids_in_a_command_are_normalized(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        command = NewEvent("unsubscribe", Audience((NODES,)), b'{"user_id": "5", "conversation_id": "1"}')
        self.successResultOf(self.a.broker.publish([command]))
        self.assertEqual([event["data"]["conversation_id"] for event in there.take()], [1])
        command = NewEvent("disconnect", Audience((NODES,)), b'{"user_id": "5"}')
        self.successResultOf(self.a.broker.publish([command]))
        self.assertEqual(there.closed, (4000, "reconnect"))

    def test_unknown_or_invalid_command_is_ignored(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        for name, data in (("dance", b"{}"), ("disconnect", b"[1]"), ("unsubscribe", b'{"user_id": true}')):
            self.successResultOf(self.a.broker.publish([NewEvent(name, Audience((NODES,)), data)]))
        self.successResultOf(self.a.push(1))
        self.assertEqual(numbers(there), [1])
        self.assertIsNone(there.closed)


class ForcedResyncTests(NodesTestCase):
    bounds = Retention(events=3)

    def test_reset_history_forces_every_client_to_resync(self) -> None:
        pages = [self.a.connect(number, 1) for number in range(30)]
        self.successResultOf(self.a.push(1))
        last = pages[0].take()[-1]["id"]
        self.log.start_anew()
        self.successResultOf(self.b.push(2))
        open_ones = sum(page.closed is None for page in pages)
        self.assertGreater(open_ones, 20)  # not all at once
        self.assertEqual([numbers(page) for page in pages[1:]], [[1]] * 29)
        self.clock.pump([RESYNC_SPREAD / 50] * 60)
        self.assertEqual({page.closed for page in pages}, {(4000, "the event history was reset")})
        for page in pages:
            self.a.leave(page)
        replies = self.a.connect(0, 1, last=last).take()
        self.assertEqual([reply["data"]["recovered"] for reply in replies[:2]], [False, False])

    def test_client_pending_a_forced_resync_gets_no_subscription(self) -> None:
        pages = [self.a.connect(number) for number in range(200)]
        self.log.start_anew()
        page = next(page for page in pages if page.closed is None)
        page.take()
        self.a.say(page, type="subscribe", conversation_id=1)
        self.successResultOf(self.b.push(1))
        self.assertEqual(page.take(), [])
        self.clock.pump([RESYNC_SPREAD / 50] * 60)

    def test_node_that_was_cut_off_for_too_long_forces_its_clients_to_resync(self) -> None:
        there = self.b.connect(2, 1)
        self.successResultOf(self.a.push(0))
        self.assertEqual(numbers(there), [0])
        self.b.broker.cut = True
        for number in range(1, 6):
            self.successResultOf(self.a.push(number))
        self.b.broker.heal()
        self.assertEqual(numbers(there), [])
        self.assertEqual(there.closed, (4000, "events are missing"))
        new = self.b.connect(3, 1)
        self.assertIsNone(new.closed)
        self.successResultOf(self.a.push(6))
        self.assertEqual(numbers(new), [6])

    def test_command_after_missing_events_delivers_no_event_before_the_forced_resync(self) -> None:
        there = self.b.connect(2, 1)
        self.b.broker.cut = True
        for number in range(1, 5):
            self.successResultOf(self.a.push(number))
        self.successResultOf(self.a.chat.unsubscribe(9, 1))
        there.take()
        self.b.broker.heal()
        self.assertEqual(there.take(), [])
        self.assertEqual(there.closed, (4000, "events are missing"))


class PresenceThrottleTests(NodesTestCase):
    def test_announcements_of_any_node_take_a_twentieth_of_each_nodes_time(self) -> None:
        watcher = self.b.connect("watcher")
        self.a.connect("first")

        def slow(deliveries: Any) -> int:
            self.clock.rightNow += 0.06
            send_all(deliveries)
            return round(0.04 / SEND_SECONDS)  # connections that are sent to in steps, later

        self.b.send_all = slow
        self.a.connect(1)
        self.assertEqual(statuses(watcher), [("first", "online"), (1, "online")])
        self.b.connect(2)
        self.assertNotIn((2, "online"), statuses(watcher))
        self.clock.pump([0.1] * 18)
        self.assertEqual(statuses(watcher), [])
        self.clock.pump([0.1] * 2)
        self.assertEqual(statuses(watcher), [(2, "online")])


class PresenceTests(NodesTestCase):
    def watch(self) -> FakeConnection:
        watcher = self.a.connect("watcher")
        watcher.take()
        return watcher

    def pass_time(self, seconds: float) -> None:
        self.clock.pump([1.0] * round(seconds))

    def test_an_agent_on_two_nodes_is_one_agent(self) -> None:
        watcher = self.watch()
        here, there = self.a.connect(5), self.b.connect(5)
        self.assertEqual(statuses(watcher), [(5, "online")])
        self.a.leave(here)
        self.pass_time(GRACE + 1)
        self.assertEqual(statuses(watcher), [])
        self.b.leave(there)
        self.pass_time(GRACE + 1)
        self.assertEqual(statuses(watcher), [(5, "offline")])

    def test_listeners_get_each_change_once_over_all_nodes(self) -> None:
        changes: list[tuple[str, Id]] = []
        last_seen: list[int | None] = []

        def listen(batch: Sequence[PresenceChange]) -> None:
            changes.extend((change.kind.value, change.id) for change in batch)
            last_seen.extend(change.last_seen_ms for change in batch)

        for node in self.nodes:
            node.chat.presence_listeners.append(listen)
        here, there = self.a.connect(5), self.b.connect(5)
        self.assertEqual(changes, [("agent_online", 5)])
        self.a.leave(here)
        self.pass_time(GRACE + 1)
        self.b.leave(there)
        left = self.clock.seconds()
        self.pass_time(GRACE + 1)
        self.assertEqual(changes, [("agent_online", 5), ("agent_offline", 5)])
        self.assertEqual(last_seen, [None, round(left * 1000)])
        self.b.connect(6)
        self.b.die()
        self.pass_time(LEASE + GRACE + 8)
        self.assertEqual(changes[2:], [("agent_online", 6), ("agent_offline", 6)])

    def test_every_node_lists_all_agents_online(self) -> None:
        self.a.connect(1), self.b.connect(2)
        self.assertEqual((self.a.chat.online(), self.b.chat.online()), ([1, 2], [1, 2]))
        self.assertEqual(self.node("c").chat.online(), [1, 2])

    def test_agents_of_a_dead_node_go_offline_once_after_lease_and_grace(self) -> None:
        watcher = self.watch()
        other = self.b.connect("other")
        self.node("c")
        dying = self.nodes[2]
        dying.connect(5), dying.connect(6)
        self.assertEqual(statuses(watcher), [("other", "online"), (5, "online"), (6, "online")])
        dying.die()
        self.pass_time(LEASE + GRACE - 1)
        self.assertEqual(statuses(watcher), [])
        other.take()
        self.pass_time(8)
        self.assertEqual(statuses(watcher), [(5, "offline"), (6, "offline")])
        self.assertEqual(statuses(other), [(5, "offline"), (6, "offline")])
        self.pass_time(60)
        self.assertEqual((statuses(watcher), statuses(other)), ([], []))
        self.assertEqual(self.a.chat.online(), ["other", "watcher"])

    def test_agent_that_moves_from_a_dead_node_is_not_announced(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        statuses(watcher)
        self.b.die()
        self.a.connect(5)
        self.pass_time(60)
        self.assertEqual(statuses(watcher), [])

    def test_agents_of_a_partitioned_node_go_offline_and_online_again(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        self.b.broker.cut = True
        self.assertEqual(statuses(watcher), [(5, "online")])
        self.pass_time(LEASE + GRACE + 10)
        self.assertEqual(statuses(watcher), [(5, "offline")])
        self.assertIn(5, self.b.chat.online(), "a node knows its own agents without the broker")
        self.b.broker.heal()
        self.pass_time(LEASE)
        self.assertEqual(statuses(watcher), [(5, "online")])
        self.assertEqual(self.a.chat.online(), self.b.chat.online())

    def test_changes_during_an_outage_are_announced_afterwards(self) -> None:
        watcher = self.watch()
        leaving = self.b.connect(5)
        self.b.broker.cut = True
        self.b.leave(leaving)
        self.b.connect(6)
        self.pass_time(GRACE + 2)
        statuses(watcher)
        self.b.broker.heal()
        self.pass_time(LEASE)
        self.assertEqual(statuses(watcher), [(5, "offline"), (6, "online")])

    def test_change_during_a_report_is_reported_after_it(self) -> None:
        watcher, pending = self.watch(), self.slow_leases(self.b)
        self.b.connect(5)
        self.b.connect(6)
        self.assertEqual((len(pending), statuses(watcher)), (1, []))
        pending.pop(0)()
        self.assertEqual(statuses(watcher), [(5, "online")])
        pending.pop(0)()
        self.assertEqual(statuses(watcher), [(6, "online")])

    def test_latest_of_several_unreported_changes_counts(self) -> None:
        watcher, pending = self.watch(), self.slow_leases(self.b)
        page = self.b.connect(5)
        self.b.leave(page)
        self.pass_time(GRACE + 1)
        self.b.broker.cut = True
        pending.pop(0)()
        self.b.broker.heal()
        self.pass_time(LEASE)
        for complete in pending:
            complete()
        self.assertEqual((statuses(watcher), self.b.chat.online()), ([], ["watcher"]))

    def slow_leases(self, node: Node) -> list[Callable[[], None]]:
        """Return the node's pending lease reports. Calling one completes it."""
        pending: list[Callable[[], None]] = []
        lease = node.broker.lease

        def slow(*arguments: Any) -> Deferred[Any]:
            result: Deferred[Any] = Deferred()
            pending.append(lambda: lease(*arguments).chainDeferred(result))
            return result

        self.patch(node.broker, "lease", slow)
        return pending

    def test_node_whose_leases_expired_reports_all_agents_again(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        statuses(watcher)
        self.log.spaces = type(self.log.spaces)()  # as if all had run out meanwhile
        self.pass_time(LEASE)
        self.assertEqual(self.successResultOf(self.a.broker.online()), ["watcher", 5])
        self.assertEqual(self.a.chat.online(), [5, "watcher"])

    def test_missed_presence_update_is_read_again(self) -> None:
        self.b.connect(5)
        self.a.chat.presence.agents.apply_remote_status((), [5])
        self.assertEqual(self.a.chat.online(), [])
        self.pass_time(LEASE)
        self.assertEqual(self.a.chat.online(), [5])

    def test_rolling_restart_is_not_announced(self) -> None:
        watcher = self.watch()
        page = self.b.connect(5)
        statuses(watcher)
        self.b.chat.freeze_presence(5.0)
        self.b.leave(page)
        self.b.end()
        self.pass_time(8)
        self.a.connect(5)
        self.pass_time(60)
        self.assertEqual(statuses(watcher), [])

    def test_restart_longer_than_a_lease_takes_only_missing_agents_offline(self) -> None:
        watcher = self.watch()
        pages = [self.b.connect(user_id) for user_id in (5, 6)]
        statuses(watcher)
        self.b.chat.freeze_presence(60.0)
        for page in pages:
            self.b.leave(page)
        self.b.end()
        self.pass_time(55)
        self.a.connect(5)
        self.assertEqual(statuses(watcher), [])
        self.pass_time(30)
        self.assertEqual(statuses(watcher), [(6, "offline")])

    def test_connection_count_is_part_of_the_lease(self) -> None:
        reported: list[dict[Id, int | None]] = []
        lease = self.a.broker.lease
        self.patch(
            self.a.broker,
            "lease",
            lambda node, tabs, seconds, space: reported.append(dict(tabs)) or lease(node, tabs, seconds, space),
        )
        first, _ = self.a.connect(5), self.a.connect(5)
        self.pass_time(LEASE)
        self.a.leave(first)
        self.pass_time(LEASE)
        self.assertEqual([report[5] for report in reported if 5 in report], [1, 2, 1])


class CommandEncodingTests(SynchronousTestCase):
    def test_command_decodes_to_the_encoded_one(self) -> None:
        for command in (
            cluster_commands.DisconnectCommand(5, "x", True, "a"),
            cluster_commands.UnsubscribeCommand("y", 1),
            cluster_commands.PresenceUpdate([1], ["ana"]),
            cluster_commands.PresenceUpdate(online=["ana"], announce=True),
            cluster_commands.StatusUpdate("ana", "away", "n1-7"),
            cluster_commands.ContactUpdate(["[456,7]"], ['[456,"ana"]'], 1_700_000_000_000),
        ):
            new_event = cluster_commands.to_new_event(command)
            event = Event(1, new_event.name, new_event.audience, new_event.data, 0.0)
            self.assertEqual(cluster_commands.decode_command(event), command)
