"""Presence against a model: agents and contacts come, go and set statuses on nodes that are killed or cut off.

An agent who watches a conversation must always have a history of changes that alternates, and in the end the state of
the model: each contact online once while it has a connection, and each agent with the status that was set last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from chatws.chat.presence.service import PresenceSettings
from tests.fakes import FakeConnection
from tests.fakes_brokers import SharedBroker, SharedHistory
from tests.test_contacts import Accounts, Node

CONVERSATION = 456
AGENTS, CONTACTS, STATUSES = (1, 2, 3), (1, 2, 3), ("online", "away", "busy")
GRACE, TTL, CONTACT_GRACE = 3.0, 15.0, 30.0
#: Seconds after which every lease of a dead node has expired, and every missed update was read again.
SETTLED = TTL + CONTACT_GRACE + 2 * TTL + 70


@dataclass
class ConversationWatcher:
    """An agent's connection that watches the conversation.

    :ivar contacts: the contacts online, according to what it has received.
    :ivar statuses: the statuses of agents, according to what it has received.
    """

    node: Node
    connection: FakeConnection
    contacts: set[int] = field(default_factory=set)
    statuses: dict[int, str] = field(default_factory=dict)

    def read(self) -> None:
        for event in self.connection.take():
            data = event.get("data", {})
            match event.get("event"):
                case "subscribed":
                    self.contacts = set(data.get("contacts_online", ()))
                case "contact_status":
                    is_online = data["status"] == "online"
                    assert is_online is (data["contact_id"] not in self.contacts), "a change is told once"
                    (self.contacts.add if is_online else self.contacts.discard)(data["contact_id"])
                case "agent_status":
                    self.statuses[data["agent_id"]] = data["status"]


class World:
    """A cluster, its clients, and the state that the model expects."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        self.history = SharedHistory(self.clock.seconds)
        self.count = 0
        self.nodes: list[Node] = []
        self.statuses: dict[int, str] = {}
        self.clients: list[tuple[Node, FakeConnection, str, int]] = []
        for _ in range(2):
            self.start()
        self.watchers = [ConversationWatcher(self.nodes[0], self.nodes[0].agent("watcher", CONVERSATION))]

    def start(self) -> None:
        self.count += 1
        presence = PresenceSettings(GRACE, TTL, CONTACT_GRACE)
        self.nodes.append(Node(self.history, self.clock, f"n{self.count}", Accounts(), presence))

    def node(self, number: int) -> Node:
        return self.nodes[number % len(self.nodes)]

    def come(self, kind: str, id: int, number: int) -> None:
        node = self.node(number)
        enter = node.agent if kind == "agent" else node.contact
        self.clients.append((node, enter(id, CONVERSATION), kind, id))

    def go(self, number: int) -> None:
        if self.clients:
            node, connection, _, _ = self.clients.pop(number % len(self.clients))
            node.chat.on_close(connection)

    def status(self, number: int, status: str) -> None:
        agents = [client for client in self.clients if client[2] == "agent"]
        if agents:
            node, connection, _, id = agents[number % len(agents)]
            node.say(connection, type="status", status=status)
            self.statuses[id] = status

    def watch(self, number: int) -> None:
        node = self.node(number)
        self.watchers.append(ConversationWatcher(node, node.agent("watcher", CONVERSATION)))

    def kill(self, number: int) -> None:
        """Kill a node other than the first, and start another one."""
        if len(self.nodes) < 2:
            return
        node = self.nodes.pop(1 + number % (len(self.nodes) - 1))
        broker = node.chat.broker
        assert isinstance(broker, SharedBroker)
        broker.cut = True
        node.end()
        self.clients = [client for client in self.clients if client[0] is not node]
        self.watchers = [watcher for watcher in self.watchers if watcher.node is not node]
        self.start()

    def wait(self, seconds: int) -> None:
        self.clock.pump([1.0] * seconds)
        for watcher in self.watchers:
            watcher.read()

    def check(self) -> None:
        self.wait(round(SETTLED))
        present = {id for _, _, kind, id in self.clients if kind == "contact"}
        online = {id for _, _, kind, id in self.clients if kind == "agent"}
        expected = {str(id): self.statuses[id] for id in online if self.statuses.get(id, "online") != "online"}
        for watcher in self.watchers:
            assert watcher.contacts == present
            told = {id: status for id, status in watcher.statuses.items() if id in AGENTS}
            for id in told:
                assert told[id] == (self.statuses.get(id, "online") if id in online else "offline")
        for node in self.nodes:
            assert set(node.chat.presence.contacts.contacts_of(CONVERSATION)) == present
            assert set(node.chat.online()) - {"watcher"} == online
            assert node.chat.statuses() == expected

    def end(self) -> None:
        for node in self.nodes:
            node.end()
        assert self.clock.getDelayedCalls() == []


NUMBER = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.just("agent"), st.sampled_from(AGENTS), NUMBER),
        st.tuples(st.just("come"), st.just("contact"), st.sampled_from(CONTACTS), NUMBER),
        st.tuples(st.just("go"), NUMBER),
        st.tuples(st.just("status"), NUMBER, st.sampled_from(STATUSES)),
        st.tuples(st.just("watch"), NUMBER),
        st.tuples(st.just("kill"), NUMBER),
        st.tuples(st.just("wait"), st.sampled_from((1, 4, 20, 35))),
    ),
    max_size=25,
)


def run(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    try:
        for name, *arguments in steps:
            getattr(world, name)(*arguments)
        world.check()
    finally:
        world.end()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(STEPS)
def test_every_node_and_agent_ends_with_the_state_of_the_model(steps: list[tuple[Any, ...]]) -> None:
    run(steps)


@pytest.mark.long
@settings(max_examples=300, deadline=None, derandomize=True)
@given(STEPS)
def test_every_node_and_agent_ends_with_the_state_of_the_model_in_many_runs(steps: list[tuple[Any, ...]]) -> None:
    run(steps)
