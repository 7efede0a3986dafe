"""The table of nodes: announcements, differences, expiry, and the rebalance of one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Event
from chatws.chat.cluster_commands import NodeInfo, RebalanceCommand, decode_command
from chatws.chat.drain import TICK, disconnect_evenly
from chatws.chat.nodes import EXPIRY, GREETING, INTERVAL, ClusterNodes
from chatws.cli.nodes import table
from chatws.cli.rebalance import named, surplus
from chatws.clients.protocol import ClusterNode
from chatws.errors import ClientError, ConfigError
from tests.fakes_brokers import SharedBroker, SharedHistory
from tests.log_lines import logged_at


class Node:
    """A node of the cluster, and its event handler."""

    def __init__(self, log: SharedHistory, clock: Clock, id: str, **settings: str) -> None:
        self.info = NodeInfo(id, f"web-{id}", settings={"history_events": "100", **settings})
        self.rebalanced: list[RebalanceCommand] = []
        self.broker = SharedBroker(log)
        self.cluster = ClusterNodes(self.broker, lambda: self.info, self.rebalanced.append, clock)
        self.broker.start(self)

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            command = decode_command(event)
            assert isinstance(command, NodeInfo | RebalanceCommand)
            self.cluster.on_command(command)

    def reset(self, epoch: str) -> None:
        pass

    @property
    def known(self) -> list[str]:
        return [node.info.id for node in self.cluster.nodes()]


class ClusterNodesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.log = SharedHistory(self.clock.seconds)

    def node(self, id: str, **settings: str) -> Node:
        node = Node(self.log, self.clock, id, **settings)
        node.cluster.start()
        return node

    def rebalance(self, node: Node, command: RebalanceCommand) -> Deferred[None]:
        return Deferred.fromCoroutine(node.cluster.rebalance(command))

    def test_a_new_node_soon_knows_the_others(self) -> None:
        first = self.node("a")
        second = self.node("b")
        self.assertEqual(first.known, ["a", "b"])
        self.clock.advance(GREETING)
        self.assertEqual(second.known, ["b", "a"])

    def test_a_node_without_announcements_is_dropped_and_one_that_leaves_at_once(self) -> None:
        first, second, third = self.node("a"), self.node("b"), self.node("c")
        self.clock.pump([GREETING, INTERVAL])
        second.cluster.stop()
        self.assertEqual(first.known, ["a", "c"])
        third.broker.cut = True
        self.clock.pump([INTERVAL] * round(EXPIRY / INTERVAL))
        self.assertEqual(first.known, ["a"])
        third.broker.heal()
        self.clock.advance(INTERVAL)
        self.assertEqual(first.known, ["a", "c"])

    def test_a_different_setting_is_logged_once_until_it_is_equal(self) -> None:
        first = self.node("a")
        with logged_at() as lines:
            second = self.node("b", history_events="5")
            self.clock.pump([GREETING, INTERVAL, INTERVAL])
        self.assertEqual(len(lines), 2, "each node has a line about the other")
        self.assertIn("node web-b (b) differs from this node: history_events is 5, here 100", lines)
        self.assertEqual([node.differs for node in first.cluster.nodes()], [(), ("history_events",)])
        second.info = replace(second.info, settings=first.info.settings)
        self.clock.advance(INTERVAL)
        self.assertEqual([node.differs for node in first.cluster.nodes()], [(), ()])

    def test_a_setting_that_an_older_node_does_not_know_differs(self) -> None:
        first = self.node("a", contacts="true")
        with logged_at() as lines:
            self.node("b")
        self.assertIn("node web-b (b) differs from this node: contacts is unknown, here true", lines)
        self.assertEqual(first.cluster.nodes()[1].differs, ("contacts",))

    def test_a_rebalance_reaches_the_node_with_that_id_only(self) -> None:
        first, second, third = self.node("a"), self.node("b"), self.node("c")
        self.clock.advance(GREETING)
        for id in ("a", "b"):
            self.successResultOf(self.rebalance(first, RebalanceCommand(id, 10, 5.0)))
        self.assertEqual([len(node.rebalanced) for node in (first, second, third)], [1, 1, 0])
        self.failureResultOf(self.rebalance(first, RebalanceCommand("z")), ClientError)

    def test_a_node_with_a_broker_of_its_own_announces_nothing(self) -> None:
        self.patch(SharedBroker, "shared", False)
        node = self.node("a")
        self.assertEqual(node.known, ["a"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        node.cluster.stop()


class DrainTests(SynchronousTestCase):
    def drain(self, count: int, seconds: float, left: int) -> list[int]:
        clock, closed = Clock(), []

        def disconnect(due: int) -> int:
            nonlocal left
            closed.append(due)
            left -= due
            return left

        done = Deferred.fromCoroutine(disconnect_evenly(disconnect, count, seconds, clock))
        clock.pump([TICK] * 200)
        self.successResultOf(done)
        return closed

    def test_connections_are_closed_evenly_over_the_time(self) -> None:
        closed = self.drain(100, 1.0, 500)
        self.assertEqual((sum(closed), len(closed), max(closed)), (100, 20, 5))

    def test_fewer_connections_than_steps_are_closed_one_at_a_time(self) -> None:
        self.assertEqual([due for due in self.drain(3, 1.0, 9) if due], [1, 1, 1])

    def test_a_drain_ends_when_no_connection_is_left(self) -> None:
        self.assertEqual(self.drain(0, 1.0, 0), [0])
        self.assertEqual(sum(self.drain(10, 0.0, 10)), 10)


def cluster_node(id: str, connections: int, state: str = "serving", **more: Any) -> ClusterNode:
    values = {"address": "10.0.0.5:8080", "version": "1.0", "uptime": 61.0, "lag": 0.0012, "offset": 7}
    values |= {"differs": [], "responds": False, "name": f"web-{id}", **more}
    return ClusterNode(id=id, connections=connections, state=state, **values)  # type: ignore[arg-type]


class CommandTests(SynchronousTestCase):
    def test_only_the_surplus_of_serving_nodes_moves(self) -> None:
        nodes = [cluster_node("a", 100), cluster_node("b", 51), cluster_node("c", 0), cluster_node("d", 9, "draining")]
        self.assertEqual([(node.id, count) for node, count in surplus(nodes)], [("a", 49)])
        self.assertEqual(surplus([cluster_node("a", 5), cluster_node("b", 4)]), [])
        self.assertEqual(surplus([]), [])

    def test_a_node_is_found_by_its_name_and_its_id(self) -> None:
        nodes = [cluster_node("w0-a", 1, name="web1"), cluster_node("w1-b", 2, name="web1")]
        self.assertEqual(named(nodes, "web1"), nodes)
        self.assertEqual(named(nodes, "w1-b"), nodes[1:])
        self.assertRaises(ConfigError, named, nodes, "web2")

    def test_the_table_has_a_line_for_each_node_and_each_difference(self) -> None:
        page = table([cluster_node("b", 1, differs=["audience"]), cluster_node("a", 2, responds=True)])
        heading, first, second, difference, summary = page.splitlines()
        self.assertEqual(heading.split()[:4], ["node", "id", "address", "version"])
        self.assertEqual(
            first.split(), ["web-a", "a", "10.0.0.5:8080", "1.0", "2", "61", "s", "1.2", "ms", "7", "serving"]
        )
        self.assertEqual(second.split()[0], "web-b")
        self.assertEqual(difference, "web-b (b) differs: audience")
        self.assertEqual(summary, "2 nodes, 3 connections")
