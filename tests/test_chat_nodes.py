"""Several chat servers on one log, over fake connections: what one node does for the others' browsers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.contract import NODES, Audience, Bounds, Draft, Event
from chatws.chat import nodes
from chatws.chat.catching_up import PATIENCE
from chatws.chat.chat_server import ChatServer
from chatws.chat.steering import SPREAD
from chatws.errors import CloseCode, Unavailable
from chatws.ids import Id
from tests.fakes import FakeConnection, send_all
from tests.fakes_brokers import SharedBroker, SharedLog

LEASE, GRACE = 15.0, 3.0


class Node:
    """One chat server, with its way to the log."""

    def __init__(self, log: SharedLog, clock: Clock, name: str, bounds: Bounds | None = None) -> None:
        self.clock = clock
        self.broker = SharedBroker(log)
        self.chat = ChatServer(
            self.broker,
            node=name,
            reactor=clock,
            wall_clock=clock.seconds,
            send_all=send_all,
            presence_grace=GRACE,
            presence_lease=LEASE,
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
        return self.chat.publish([self.chat.audiences.draft("new_message", data, **options)])

    def end(self) -> None:
        for connection in tuple(self.chat._connections):
            self.chat.on_close(connection)
        Deferred.fromCoroutine(self.chat.stop())

    def die(self) -> None:
        """As by kill -9: no word to anybody."""
        self.broker.cut = True
        self.end()


def numbers(connection: FakeConnection) -> list[int]:
    return [one["data"]["n"] for one in connection.take() if one.get("event") == "new_message"]


def statuses(connection: FakeConnection) -> list[tuple[Id, str]]:
    events = [one for one in connection.take() if one.get("event") == "agent_status"]
    return sorted([(one["data"]["agent_id"], one["data"]["status"]) for one in events], key=str)


class NodesTestCase(SynchronousTestCase):
    bounds: Bounds | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.log = SharedLog(self.clock.seconds, self.bounds)
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
    def test_a_push_to_one_node_reaches_the_browsers_of_all_in_order(self) -> None:
        here, there = self.a.connect(1, 1), self.b.connect(2, 1)
        for number in range(4):
            self.successResultOf((self.a, self.b)[number % 2].push(number))
        self.assertEqual((numbers(here), numbers(there)), ([0, 1, 2, 3], [0, 1, 2, 3]))

    def test_a_key_counts_on_all_nodes(self) -> None:
        [first] = self.successResultOf(self.a.push(1, key="k"))
        [second] = self.successResultOf(self.b.push(1, key="k"))
        self.assertEqual((second.offset, second.duplicate), (first.offset, True))

    def test_typing_reaches_the_other_nodes_browsers(self) -> None:
        here, there = self.a.connect(1, 1), self.b.connect(2, 1)
        there.take()
        self.a.say(here, type="typing", conversation_id=1)
        self.assertEqual(
            [one["data"]["is_typing"] for one in there.take() if one.get("event") == "typing"],
            [True],
        )

    def test_who_comes_from_another_node_recovers_here(self) -> None:
        there = self.b.connect(2, 1)
        self.successResultOf(self.a.push(1))
        last = there.take()[-1]["id"]
        self.b.leave(there)
        self.successResultOf(self.b.push(2))
        back = self.a.connect(2, 1, last=last)
        replies = back.take()
        self.assertEqual([one["data"].get("recovered") for one in replies[:2]], [True, True])
        self.assertEqual([one["data"]["n"] for one in replies[2:]], [2])


class CatchingUpTests(NodesTestCase):
    def test_one_who_has_seen_more_than_this_node_waits_until_it_has_caught_up(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.successResultOf(self.a.push(2))
        last = f"{self.log.epoch}:1"
        back = self.b.connect(2, 1, last=last)
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        replies = back.take()
        self.assertEqual([one["event"] for one in replies], ["authenticated", "subscribed", "new_message"])
        self.assertEqual([one["data"]["recovered"] for one in replies[:2]], [True, True])
        self.assertEqual(replies[2]["data"]["n"], 2)

    def test_a_subscribe_waits_as_well_and_what_is_behind_it_keeps_its_place(self) -> None:
        back = self.b.connect(2)
        back.take()
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.b.say(back, type="subscribe", conversation_id=1, last_event_id=f"{self.log.epoch}:1")
        self.b.say(back, type="unsubscribe", conversation_id=1)
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        self.assertEqual([one["event"] for one in back.take()], ["subscribed", "unsubscribed"])

    def test_a_node_that_stays_behind_sends_them_away_to_try_elsewhere(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        back = self.b.connect(2, last=f"{self.log.epoch}:1")
        self.clock.advance(PATIENCE)
        self.assertEqual((back.closed or (0, ""))[0], 4503)
        self.b.broker.heal()
        self.assertEqual(back.payloads, [])

    def test_it_waits_until_the_node_has_read_as_far_as_they_have(self) -> None:
        self.b.broker.behind = True
        first, second = (self.successResultOf(self.a.push(number))[0] for number in (1, 2))
        back = self.b.connect(2, last=f"{self.log.epoch}:{second.offset}")
        self.b.broker._tell([first])
        self.assertEqual(back.payloads, [])
        self.b.broker.heal()
        self.assertEqual([one["event"] for one in back.take()], ["authenticated"])

    def test_one_who_is_sent_away_while_waiting_does_not_get_in(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        back = self.b.connect(2, last=f"{self.log.epoch}:1")
        self.b.chat.send_away(CloseCode.RESTARTING, "")
        self.b.broker.heal()
        self.assertEqual((back.payloads, self.b.chat.online()), ([], []))
        self.b.leave(back)

    def test_one_who_leaves_while_waiting_is_forgotten(self) -> None:
        self.b.broker.behind = True
        self.successResultOf(self.a.push(1))
        self.b.leave(self.b.connect(2, last=f"{self.log.epoch}:1"))
        self.b.broker.heal()
        self.assertEqual(self.b.chat.online(), [])

    def test_a_position_of_another_log_waits_for_nothing(self) -> None:
        back = self.b.connect(2, last="other:99")
        self.assertIs(back.take()[0]["data"]["recovered"], False)


class OrderTests(NodesTestCase):
    def test_disconnect_closes_the_users_connections_on_every_node(self) -> None:
        here, there, other = self.a.connect(5), self.b.connect(5), self.b.connect(6)
        self.assertEqual(self.successResultOf(self.a.chat.disconnect(5, "logged out", True)), 1)
        self.assertEqual((here.closed, there.closed), ((4903, "logged out"), (4903, "logged out")))
        self.assertIsNone(other.closed)

    def test_unsubscribe_takes_the_conversation_away_on_every_node(self) -> None:
        there = self.b.connect(5, 1)
        self.assertEqual(self.successResultOf(self.a.chat.unsubscribe(5, 1)), 0)
        self.assertEqual(there.take()[-1]["event"], "unsubscribed")
        self.successResultOf(self.a.push(1))
        self.assertEqual(numbers(there), [])

    def test_a_node_that_was_cut_off_carries_out_the_order_between_the_events_it_stood_between(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        self.b.broker.cut = True
        self.successResultOf(self.a.push(1))
        self.successResultOf(self.a.chat.unsubscribe(5, 1))
        self.successResultOf(self.a.push(2))
        self.b.broker.heal()
        self.assertEqual([one["event"] for one in there.take()], ["new_message", "unsubscribed"])

    def test_a_node_that_cannot_tell_the_others_says_so_and_has_done_its_part(self) -> None:
        here = self.a.connect(5)
        self.a.broker.cut = True
        self.failureResultOf(self.a.chat.disconnect(5, "x"), Unavailable)
        self.assertEqual(here.closed, (4000, "x"))

    def test_one_who_comes_back_at_once_is_not_hit_by_their_own_nodes_order(self) -> None:
        self.a.connect(5)
        self.successResultOf(self.a.chat.disconnect(5, "x"))
        again = self.a.connect(5)
        self.successResultOf(self.a.push(1))
        self.assertIsNone(again.closed)

    def test_nor_by_an_order_that_their_node_reads_late(self) -> None:
        self.a.connect(5)
        self.a.broker.lose_answers = True
        self.failureResultOf(self.a.chat.disconnect(5, "x"), Unavailable)
        again = self.a.connect(5)
        self.a.broker.heal()
        self.successResultOf(self.a.push(1))
        self.assertIsNone(again.closed)

    def test_orders_from_the_database_are_carried_out_by_all_and_reach_no_browser(self) -> None:
        here, there = self.a.connect(5, 1), self.b.connect(5, 1)
        here.take(), there.take()
        order = Draft("unsubscribe", Audience((NODES,)), b'{"user_id": 5, "conversation_id": 1}')
        self.successResultOf(self.a.broker.publish([order]))
        for one in (here, there):
            self.assertEqual([event["event"] for event in one.take()], ["unsubscribed"])

    def test_ids_in_an_order_mean_what_they_mean_on_the_wire(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        order = Draft("unsubscribe", Audience((NODES,)), b'{"user_id": "5", "conversation_id": "1"}')
        self.successResultOf(self.a.broker.publish([order]))
        self.assertEqual([event["data"]["conversation_id"] for event in there.take()], [1])
        order = Draft("disconnect", Audience((NODES,)), b'{"user_id": "5"}')
        self.successResultOf(self.a.broker.publish([order]))
        self.assertEqual(there.closed, (4000, "reconnect"))

    def test_an_order_that_is_not_understood_is_left_alone(self) -> None:
        there = self.b.connect(5, 1)
        there.take()
        for name, data in (("dance", b"{}"), ("disconnect", b"[1]"), ("unsubscribe", b'{"user_id": true}')):
            self.successResultOf(self.a.broker.publish([Draft(name, Audience((NODES,)), data)]))
        self.successResultOf(self.a.push(1))
        self.assertEqual(numbers(there), [1])
        self.assertIsNone(there.closed)


class StartingOverTests(NodesTestCase):
    bounds = Bounds(events=3)

    def test_a_log_that_started_anew_has_every_browser_start_over(self) -> None:
        pages = [self.a.connect(number, 1) for number in range(30)]
        self.successResultOf(self.a.push(1))
        last = pages[0].take()[-1]["id"]
        self.log.start_anew()
        self.successResultOf(self.b.push(2))
        open_ones = sum(page.closed is None for page in pages)
        self.assertGreater(open_ones, 20)  # not all at once
        self.assertEqual([numbers(page) for page in pages[1:]], [[1]] * 29)
        self.clock.pump([SPREAD / 50] * 60)
        self.assertEqual({page.closed for page in pages}, {(4000, "the event log started anew")})
        for page in pages:
            self.a.leave(page)
        replies = self.a.connect(0, 1, last=last).take()
        self.assertEqual([one["data"]["recovered"] for one in replies[:2]], [False, False])

    def test_one_that_waits_for_its_turn_gets_in_nowhere(self) -> None:
        pages = [self.a.connect(number) for number in range(200)]
        self.log.start_anew()
        page = next(one for one in pages if one.closed is None)
        page.take()
        self.a.say(page, type="subscribe", conversation_id=1)
        self.successResultOf(self.b.push(1))
        self.assertEqual(page.take(), [])
        self.clock.pump([SPREAD / 50] * 60)

    def test_a_node_that_was_cut_off_for_too_long_has_its_browsers_start_over(self) -> None:
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

    def test_an_order_among_what_is_left_does_not_let_events_out_before_they_start_over(self) -> None:
        there = self.b.connect(2, 1)
        self.b.broker.cut = True
        for number in range(1, 5):
            self.successResultOf(self.a.push(number))
        self.successResultOf(self.a.chat.unsubscribe(9, 1))
        there.take()
        self.b.broker.heal()
        self.assertEqual(there.take(), [])
        self.assertEqual(there.closed, (4000, "events are missing"))


class PacingTests(NodesTestCase):
    def test_announcing_takes_a_twentieth_of_every_nodes_time_whoever_announces(self) -> None:
        watcher = self.b.connect("watcher")
        self.a.connect("first")
        send_all = self.b.chat._outlet._send_all

        def slow(runs: Any) -> None:
            self.clock.rightNow += 0.1
            send_all(runs)

        self.b.chat._outlet._send_all = slow
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

    def test_every_node_knows_who_is_online(self) -> None:
        self.a.connect(1), self.b.connect(2)
        self.assertEqual((self.a.chat.online(), self.b.chat.online()), ([1, 2], [1, 2]))
        self.assertEqual(self.node("c").chat.online(), [1, 2])

    def test_a_node_that_dies_takes_its_agents_offline_once_after_lease_and_grace(self) -> None:
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

    def test_an_agent_who_moves_from_a_dead_node_is_no_news(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        statuses(watcher)
        self.b.die()
        self.a.connect(5)
        self.pass_time(60)
        self.assertEqual(statuses(watcher), [])

    def test_a_node_that_was_cut_off_finds_its_agents_offline_and_has_them_online_again(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        self.b.broker.cut = True
        self.assertEqual(statuses(watcher), [(5, "online")])
        self.pass_time(LEASE + GRACE + 10)
        self.assertEqual(statuses(watcher), [(5, "offline")])
        self.assertIn(5, self.b.chat.online(), "its own agents a node knows without the others")
        self.b.broker.heal()
        self.pass_time(LEASE)
        self.assertEqual(statuses(watcher), [(5, "online")])
        self.assertEqual(self.a.chat.online(), self.b.chat.online())

    def test_what_changes_while_a_node_is_cut_off_is_told_afterwards(self) -> None:
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

    def test_what_comes_while_a_lease_is_asked_for_is_told_as_soon_as_there_is_an_answer(self) -> None:
        watcher, asked = self.watch(), self.slow_leases(self.b)
        self.b.connect(5)
        self.b.connect(6)
        self.assertEqual((len(asked), statuses(watcher)), (1, []))
        asked.pop(0)()
        self.assertEqual(statuses(watcher), [(5, "online")])
        asked.pop(0)()
        self.assertEqual(statuses(watcher), [(6, "online")])

    def test_of_what_could_not_be_told_the_newest_counts(self) -> None:
        watcher, asked = self.watch(), self.slow_leases(self.b)
        page = self.b.connect(5)
        self.b.leave(page)
        self.pass_time(GRACE + 1)
        self.b.broker.cut = True
        asked.pop(0)()
        self.b.broker.heal()
        self.pass_time(LEASE)
        for answer in asked:
            answer()
        self.assertEqual((statuses(watcher), self.b.chat.online()), ([], ["watcher"]))

    def slow_leases(self, node: Node) -> list[Callable[[], None]]:
        """The node's leases, each granted when its entry is called."""
        asked: list[Callable[[], None]] = []
        lease = node.broker.lease

        def slow(*arguments: Any) -> Deferred[Any]:
            answer: Deferred[Any] = Deferred()
            asked.append(lambda: lease(*arguments).chainDeferred(answer))
            return answer

        self.patch(node.broker, "lease", slow)
        return asked

    def test_a_node_that_slept_says_everything_again(self) -> None:
        watcher = self.watch()
        self.b.connect(5)
        statuses(watcher)
        self.log.leases = type(self.log.leases)()  # as if all had run out meanwhile
        self.pass_time(LEASE)
        self.assertEqual(self.successResultOf(self.a.broker.online()), ["watcher", 5])
        self.assertEqual(self.a.chat.online(), [5, "watcher"])

    def test_news_that_did_not_arrive_is_asked_for(self) -> None:
        self.b.connect(5)
        self.a.chat.agents.heard((), [5])
        self.assertEqual(self.a.chat.online(), [])
        self.pass_time(LEASE)
        self.assertEqual(self.a.chat.online(), [5])

    def test_a_rolling_restart_is_no_news(self) -> None:
        watcher = self.watch()
        page = self.b.connect(5)
        statuses(watcher)
        self.b.chat.hold_presence(5.0)
        self.b.leave(page)
        self.b.end()
        self.pass_time(8)
        self.a.connect(5)
        self.pass_time(60)
        self.assertEqual(statuses(watcher), [])

    def test_a_restart_may_take_longer_than_a_lease_and_who_stays_away_goes_offline_after_it(self) -> None:
        watcher = self.watch()
        pages = [self.b.connect(user_id) for user_id in (5, 6)]
        statuses(watcher)
        self.b.chat.hold_presence(60.0)
        for page in pages:
            self.b.leave(page)
        self.b.end()
        self.pass_time(55)
        self.a.connect(5)
        self.assertEqual(statuses(watcher), [])
        self.pass_time(30)
        self.assertEqual(statuses(watcher), [(6, "offline")])

    def test_the_number_of_tabs_goes_into_the_lease(self) -> None:
        told: list[dict[Id, int | None]] = []
        lease = self.a.broker.lease
        self.patch(
            self.a.broker, "lease", lambda node, tabs, seconds: told.append(dict(tabs)) or lease(node, tabs, seconds)
        )
        first, _ = self.a.connect(5), self.a.connect(5)
        self.pass_time(LEASE)
        self.a.leave(first)
        self.pass_time(LEASE)
        self.assertEqual([one[5] for one in told if 5 in one], [1, 2, 1])


class OrderFormTests(SynchronousTestCase):
    def test_orders_survive_the_way_through_the_log(self) -> None:
        for order in (nodes.Disconnect(5, "x", True, "a"), nodes.Unsubscribe("y", 1), nodes.Status([1], ["ana"])):
            draft = nodes.to_draft(order)
            self.assertEqual(nodes.order_of(Event(1, draft.name, draft.audience, draft.data, 0.0)), order)
