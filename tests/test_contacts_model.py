"""Agents, contacts and groups against a model that says who may see what (docs/protocol.md §6).

Clients connect on two nodes, subscribe, reconnect with old event ids, and lose conversations and groups, while a
backend publishes. Each connection must get exactly the events that the model allows, each once, live or in recovery.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from tests.fakes import FakeConnection
from tests.fakes_brokers import SharedHistory
from tests.test_contacts import Accounts, Node

IDS, CONVERSATIONS, GROUPS = (5, 7), (456, 457), ("sales", "b2b")
#: What each kind of line is for: the `to` of a target, and the data.
LINES = ("message", "hidden", "note", "for_contacts", "list", "own", "agent", "contact", "group", "everyone", "agents")


@dataclass
class ModelClient:
    """A client of the model.

    :ivar expected: the numbers of the events that it must have got since the last check.
    :ivar missed: those that it must get when it connects again.
    """

    is_contact: bool
    id: int
    node: int
    conversations: set[int]
    groups: set[str]
    connection: FakeConnection | None = None
    last: str | None = None
    expected: list[int] = field(default_factory=list)


@dataclass
class Published:
    """An event, and where it went."""

    number: int
    offset: int
    kind: str
    target: Any


def may_see(client: ModelClient, event: Published) -> bool:
    in_conversation = event.target in client.conversations
    if client.is_contact:
        allowed = {
            "message": in_conversation,
            "for_contacts": in_conversation,
            "contact": event.target == client.id,
            "everyone": True,
        }
    else:
        allowed = {
            "message": in_conversation,
            "hidden": in_conversation,
            "note": in_conversation,
            "own": in_conversation,
            "agent": event.target == client.id,
            "group": event.target in client.groups,
            "list": True,
            "everyone": True,
            "agents": True,
        }
    return allowed.get(event.kind, False)


def line(kind: str, target: Any, number: int) -> dict[str, Any]:
    """The line of an event, with its number in the data."""
    data: dict[str, Any] = {"conversation_id": target, "n": number}
    match kind:
        case "message":
            return {"event": "new_message", "data": data | {"message": {"private": False}}}
        case "hidden":
            return {"event": "new_message", "data": data | {"message": {"internal": True}}}
        case "note" | "for_contacts":
            role = "agent" if kind == "note" else "contact"
            return {"event": "new_message", "data": data, "to": {"conversation_id": target, "role": role}}
        case "list":
            return {"event": "conversation_updated", "data": data}
        case "own":
            return {"event": "order_paid", "data": data, "to": {"conversation_id": target}}
        case "agent":
            return {"event": "hint", "data": data, "to": {"user_id": target}}
        case "contact":
            return {"event": "hint", "data": data, "to": {"contact_id": target}}
        case "group":
            return {"event": "hint", "data": data, "to": {"group": target}}
    return {"event": "hint", "data": data, "to": kind}


def targets(kind: str) -> tuple[Any, ...]:
    if kind in ("agent", "contact"):
        return IDS
    return GROUPS if kind == "group" else CONVERSATIONS


class World:
    """Two nodes, and the clients on them."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_700_000_000)
        log = SharedHistory(self.clock.seconds)
        self.nodes = [Node(log, self.clock, name, Accounts()) for name in ("n1", "n2")]
        self.events: list[Published] = []
        self.clients = [
            ModelClient(is_contact, id, node, set(CONVERSATIONS[: 1 + node]), set() if is_contact else {GROUPS[node]})
            for is_contact in (False, True)
            for id in IDS
            for node in (0, 1)
        ]

    def publish(self, kind: str, target: Any, node: int) -> None:
        event = Published(len(self.events), self.nodes[0].chat.history.last + 1, kind, target)
        self.events.append(event)
        self.nodes[node].push(**line(kind, target, event.number))
        for client in self.clients:
            if client.connection is not None and may_see(client, event):
                client.expected.append(event.number)

    def connect(self, client: ModelClient, node: int) -> None:
        if client.connection is not None:
            return
        client.node = node
        rights = {"conversations": sorted(client.conversations)}
        enter = self.nodes[node].contact if client.is_contact else self.nodes[node].agent
        fields = {} if client.is_contact else {**rights, "groups": sorted(client.groups)}
        client.connection = enter(client.id, *sorted(client.conversations), last=client.last, **fields)
        if client.last is not None:
            offset = int(client.last.rpartition(":")[2])
            client.expected += [e.number for e in self.events if e.offset > offset and may_see(client, e)]

    def leave(self, client: ModelClient) -> None:
        if client.connection is None:
            return
        self.check(client)
        client.last = self.nodes[client.node].position
        self.nodes[client.node].chat.on_close(client.connection)
        client.connection = None

    def set_groups(self, client: ModelClient, groups: set[str], node: int) -> None:
        if client.is_contact:
            return
        for other in self.clients:
            if not other.is_contact and other.id == client.id and (other.connection is not None or other is client):
                other.groups = groups
        self.nodes[node].push(op="groups", user_id=client.id, groups=sorted(groups))

    def revoke(self, client: ModelClient, conversation_id: int, node: int) -> None:
        for other in self.clients:
            if (other.id, other.is_contact) == (client.id, client.is_contact):
                other.conversations.discard(conversation_id)
        user = {"contact_id" if client.is_contact else "user_id": client.id}
        self.nodes[node].push(op="unsubscribe", conversation_id=conversation_id, **user)

    def check(self, client: ModelClient) -> None:
        assert client.connection is not None
        received = [event["data"]["n"] for event in client.connection.take() if "n" in (event.get("data") or {})]
        assert sorted(received) == sorted(client.expected), (client, self.events)
        client.expected.clear()

    def end(self) -> None:
        for client in self.clients:
            if client.connection is not None:
                self.check(client)
        for node in self.nodes:
            node.end()


@st.composite
def publishes(draw: st.DrawFn) -> tuple[Any, ...]:
    kind = draw(st.sampled_from(LINES))
    return ("publish", kind, draw(st.sampled_from(targets(kind))), draw(st.integers(0, 1)))


CLIENT, NODE = st.integers(0, 7), st.integers(0, 1)
STEPS = st.lists(
    publishes()
    | st.tuples(st.just("connect"), CLIENT, NODE)
    | st.tuples(st.just("leave"), CLIENT)
    | st.tuples(st.just("set_groups"), CLIENT, st.sets(st.sampled_from(GROUPS)), NODE)
    | st.tuples(st.just("revoke"), CLIENT, st.sampled_from(CONVERSATIONS), NODE),
    max_size=40,
)


def run(steps: list[tuple[Any, ...]]) -> None:
    world = World()
    for name, *arguments in steps:
        if name != "publish":
            arguments[0] = world.clients[arguments[0]]
        getattr(world, name)(*arguments)
    world.end()


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_each_connection_gets_exactly_the_events_that_the_model_allows(steps: list[tuple[Any, ...]]) -> None:
    run(steps)


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(STEPS)
def test_each_connection_gets_exactly_the_events_that_the_model_allows_in_many_runs(
    steps: list[tuple[Any, ...]],
) -> None:
    run(steps)
