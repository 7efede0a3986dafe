"""Presence of contacts, agents' statuses and availability, over nodes (docs/protocol.md §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock

from chatws.brokers.interface import AGENT_SPACE, NewEvent
from chatws.chat.presence.changes import PresenceChange
from chatws.chat.presence.service import STATUS_REFRESH, PresenceSettings
from chatws.ids import Id
from tests.fakes import FakeConnection
from tests.fakes_brokers import SharedBroker, SharedHistory
from tests.test_contacts import Accounts, Node, errors

GRACE, TTL, CONTACT_GRACE, KEEP = 3.0, 15.0, 90.0, 8 * 3600.0
SETTINGS = PresenceSettings(GRACE, TTL, CONTACT_GRACE, KEEP, availability=True)

#: Starts a node of the cluster.
Start = Callable[[str], Node]


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_700_000_000)
    return clock


@pytest.fixture
def log(clock: Clock) -> SharedHistory:
    return SharedHistory(clock.seconds)


@pytest.fixture
def start(log: SharedHistory, clock: Clock) -> Iterator[Start]:
    started: list[Node] = []

    def start(name: str) -> Node:
        started.append(Node(log, clock, name, Accounts(), SETTINGS))
        return started[-1]

    yield start
    for node in started:
        node.end()
    assert clock.getDelayedCalls() == []


@pytest.fixture
def nodes(start: Start) -> list[Node]:
    return [start("n1"), start("n2")]


def pass_time(node: Node, seconds: float) -> None:
    node.clock.pump([1.0] * round(seconds))


def die(node: Node) -> None:
    """End a node as kill -9 does: without a report to the broker."""
    broker = node.chat.broker
    assert isinstance(broker, SharedBroker)
    broker.cut = True
    node.end()


def data_of(connection: FakeConnection, name: str) -> list[dict[str, Any]]:
    return [event["data"] for event in connection.take() if event.get("event") == name]


def contact_statuses(connection: FakeConnection) -> list[tuple[Id, Id, str]]:
    return [
        (data["conversation_id"], data["contact_id"], data["status"]) for data in data_of(connection, "contact_status")
    ]


def agent_statuses(connection: FakeConnection) -> list[tuple[Id, str]]:
    return [(data["agent_id"], data["status"]) for data in data_of(connection, "agent_status")]


def listed(node: Node, connection: FakeConnection) -> dict[str, Any]:
    """Return the reply to `presence`."""
    connection.take()
    node.say(connection, type="presence")
    [data] = data_of(connection, "presence")
    return data


def listen(nodes: Sequence[Node]) -> list[tuple[str, Id, Id | str | None]]:
    """Return a list to which the changes of all nodes are added: kind, id, and conversation or status."""
    changes: list[tuple[str, Id, Id | str | None]] = []

    def add(batch: Sequence[PresenceChange]) -> None:
        for change in batch:
            more = change.status if change.kind == "agent_status" else change.conversation_id
            changes.append((change.kind.value, change.id, more))

    for node in nodes:
        node.chat.presence_listeners.append(add)
    return changes


# Contacts


def test_agents_of_a_conversation_learn_once_that_its_contact_comes_and_goes(nodes: list[Node]) -> None:
    here, there, elsewhere = nodes[0].agent(5, 456), nodes[1].agent(6, 456), nodes[1].agent(8, 457)
    changes = listen(nodes)
    for agent in (here, there, elsewhere):
        agent.take()
    first, second = nodes[0].contact(7, 456), nodes[1].contact(7, 456)
    [data] = data_of(here, "contact_status")
    now_ms = round(nodes[0].clock.seconds() * 1000)
    assert data == {"conversation_id": 456, "contact_id": 7, "status": "online", "since_ms": now_ms}
    assert contact_statuses(there) == [(456, 7, "online")]
    nodes[0].chat.on_close(first)
    pass_time(nodes[0], CONTACT_GRACE + 10)
    assert contact_statuses(here) == []
    nodes[1].say(second, type="unsubscribe", conversation_id=456)
    pass_time(nodes[1], CONTACT_GRACE - 1)
    assert contact_statuses(here) == [], "a phone that switches apps is not gone"
    pass_time(nodes[1], 2)
    assert contact_statuses(here) == contact_statuses(there) == [(456, 7, "offline")]
    assert elsewhere.take() == []
    assert changes == [("contact_online", 7, 456), ("contact_offline", 7, 456)]


def test_contact_who_moves_to_another_node_is_not_announced(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5, 456)
    connection = nodes[0].contact(7, 456)
    agent.take()
    nodes[0].chat.on_close(connection)
    pass_time(nodes[0], 60)
    nodes[1].contact(7, 456)
    pass_time(nodes[0], 2 * CONTACT_GRACE)
    assert contact_statuses(agent) == []


def test_contacts_of_a_dead_node_go_offline_once(nodes: list[Node]) -> None:
    here, there = nodes[0].agent(5, 456), nodes[1].agent(6, 456)
    nodes[1].contact(7, 456)
    third = nodes[1]
    here.take(), there.take()
    die(third)
    pass_time(nodes[0], TTL + CONTACT_GRACE - 1)
    assert contact_statuses(here) == []
    pass_time(nodes[0], 10)
    assert contact_statuses(here) == [(456, 7, "offline")]


def test_subscribed_lists_the_contacts_online_for_agents_only(nodes: list[Node], start: Start) -> None:
    nodes[0].contact(7, 456), nodes[1].contact("ana", 456, 457)
    for node in (*nodes, start("n3")):
        subscribed = data_of(node.agent(5, 456, 457, 458), "subscribed")
        assert [data.get("contacts_online") for data in subscribed] == [[7, "ana"], ["ana"], None]
    assert all("contacts_online" not in data for data in data_of(nodes[0].contact(7, 456), "subscribed"))


def test_a_revoked_subscription_is_no_presence(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5, 456)
    nodes[0].contact(7, 456)
    agent.take()
    nodes[1].push(op="unsubscribe", contact_id=7, conversation_id=456)
    pass_time(nodes[0], CONTACT_GRACE + 1)
    assert contact_statuses(agent) == [(456, 7, "offline")]


def test_a_repeated_subscribe_counts_once(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5, 456)
    connection = nodes[0].contact(7, 456)
    nodes[0].say(connection, type="subscribe", conversation_id=456)
    nodes[0].chat.on_close(connection)
    agent.take()
    pass_time(nodes[0], CONTACT_GRACE + 1)
    assert contact_statuses(agent) == [(456, 7, "offline")]


def test_contacts_who_come_and_go_cost_other_agents_nothing(nodes: list[Node], log: SharedHistory) -> None:
    agents = [node.agent(id, 456) for id, node in enumerate(nodes)]
    for agent in agents:
        agent.take()
    writes = [agent.writes for agent in agents]
    for id in range(1000, 1300):
        nodes[id % 2].contact(id, id)
    pass_time(nodes[0], 2)
    for node in nodes:
        for connection in tuple(node.chat.connections):
            if connection not in agents:
                node.chat.on_close(connection)
    pass_time(nodes[0], CONTACT_GRACE + 5)
    assert [agent.writes for agent in agents] == writes
    assert log.window.last == 0, "the history has no event of it"
    assert nodes[0].chat.presence.contacts.contacts_of(1000) == []


def test_a_missed_update_of_contacts_is_read_again(nodes: list[Node]) -> None:
    nodes[0].contact(7, 456)
    contacts = nodes[1].chat.presence.contacts
    contacts.apply_remote_status((), ["[456,7]"])  # as if the update had been lost
    assert contacts.contacts_of(456) == []
    pass_time(nodes[0], 2 * TTL)
    assert contacts.contacts_of(456) == [7]


# Statuses of agents


def test_a_status_is_announced_once_and_part_of_every_presence_reply(nodes: list[Node], log: SharedHistory) -> None:
    agent, tab, other = nodes[0].agent(5), nodes[0].agent(5), nodes[1].agent(6)
    changes = listen(nodes)
    for connection in (agent, tab, other):
        connection.take()
    nodes[0].say(agent, type="status", status="away")
    assert agent.take() == [{"event": "status_set", "data": {"status": "away"}}]
    assert agent_statuses(tab) == agent_statuses(other) == [(5, "away")]
    nodes[0].say(agent, type="status", status="away")
    assert (agent_statuses(tab), agent_statuses(other)) == ([], [])
    assert [listed(node, each) for node, each in zip(nodes, (agent, other), strict=True)] == [
        {"online": [5, 6], "status": {"5": "away"}}
    ] * 2
    nodes[0].say(tab, type="status", status="online")
    assert agent_statuses(other) == [(5, "online")]
    assert listed(nodes[1], other) == {"online": [5, 6]}
    assert changes == [("agent_status", 5, "away"), ("agent_status", 5, "online")]
    assert log.window.last == 0, "the history has no event of it"


@pytest.mark.parametrize("status", ["offline", "", "Away", "a" * 33, "a b", 5, None])
def test_an_invalid_status_is_rejected(nodes: list[Node], status: object) -> None:
    agent = nodes[0].agent(5)
    agent.take()
    nodes[0].say(agent, type="status", status=status)
    assert errors(agent) == ["bad_message"]


def test_a_status_outlives_a_reload_and_is_announced_instead_of_online(nodes: list[Node]) -> None:
    other = nodes[1].agent(6)
    agent = nodes[0].agent(5)
    nodes[0].say(agent, type="status", status="busy")
    nodes[0].chat.on_close(agent)
    pass_time(nodes[0], 60)
    other.take()
    agent = nodes[1].agent(5)
    [reply] = data_of(agent, "authenticated")
    assert reply["status"] == "busy"
    assert agent_statuses(other) == [(5, "busy")]
    assert listed(nodes[1], other)["status"] == {"5": "busy"}
    nodes[1].chat.on_close(agent)
    nodes[0].clock.advance(GRACE + 1)
    nodes[0].clock.advance(KEEP + 1)
    [reply] = data_of(nodes[0].agent(5), "authenticated")
    assert "status" not in reply


def test_a_status_survives_the_restart_of_every_node(nodes: list[Node], start: Start) -> None:
    agent = nodes[0].agent(5)
    nodes[0].say(agent, type="status", status="away")
    gone = nodes[1].agent(6)
    nodes[1].say(gone, type="status", status="busy")
    nodes[1].chat.on_close(gone)
    pass_time(nodes[1], GRACE + 1)
    for node in nodes:
        node.end()
    later = start("n3")
    assert data_of(later.agent(5), "authenticated")[0]["status"] == "away"
    assert data_of(later.agent(6), "authenticated")[0]["status"] == "busy"


def test_the_status_of_an_agent_whose_node_died_is_kept_from_then_on(nodes: list[Node]) -> None:
    agent = nodes[1].agent(5)
    nodes[1].say(agent, type="status", status="away")
    die(nodes[1])
    pass_time(nodes[0], TTL + GRACE + 10)
    stored = nodes[0].chat.broker.data(AGENT_SPACE).result  # type: ignore[attr-defined]
    assert round(stored[5].expires_at - nodes[0].clock.seconds()) in range(round(KEEP) - 30, round(KEEP) + 1)


def test_a_backend_sets_a_status(nodes: list[Node]) -> None:
    agent, other = nodes[0].agent(5), nodes[1].agent(6)
    agent.take(), other.take()
    response = nodes[1].push(op="status", user_id="5", status="away")
    assert response is not None
    assert response.ok
    assert agent_statuses(agent) == agent_statuses(other) == [(5, "away")]
    response = nodes[0].push(op="presence")
    assert (response.online, response.status) == ([5, 6], {"5": "away"})  # type: ignore[union-attr]
    nodes[0].push(op="status", user_id=9, status="busy")
    assert agent_statuses(other) == [], "an agent offline is not announced"
    [reply] = data_of(nodes[1].agent(9), "authenticated")
    assert reply["status"] == "busy"


def test_a_pushed_agent_status_of_an_agent_online_is_kept_and_passed_through(nodes: list[Node]) -> None:
    agent, other = nodes[0].agent(5), nodes[1].agent(6)
    changes = listen(nodes)
    agent.take(), other.take()
    for id, status in ((5, "away"), (5, "Lunch!"), (5, "offline"), (9, "busy")):
        nodes[1].push(event="agent_status", data={"agent_id": id, "status": status})
    assert agent_statuses(agent) == agent_statuses(other)
    nodes[1].push(event="agent_status", data={"anything": True})
    assert listed(nodes[1], other) == {"online": [5, 6], "status": {"5": "away"}}
    assert changes == [("agent_status", 5, "away")]
    nodes[0].chat.on_close(agent)
    pass_time(nodes[0], GRACE + 1)
    assert data_of(nodes[1].agent(5), "authenticated")[0]["status"] == "away"


def test_a_status_that_a_node_has_missed_is_announced_there_later(nodes: list[Node]) -> None:
    agent, other = nodes[0].agent(5), nodes[1].agent(6)
    broker = nodes[1].chat.broker
    assert isinstance(broker, SharedBroker)
    broker.cut = True
    nodes[0].say(agent, type="status", status="away")
    other.take()
    broker.heal()
    pass_time(nodes[1], STATUS_REFRESH + 1)
    assert agent_statuses(other) == [(5, "away")]


def test_a_status_is_unavailable_while_the_broker_is(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5)
    broker = nodes[0].chat.broker
    assert isinstance(broker, SharedBroker)
    broker.cut = True
    agent.take()
    nodes[0].say(agent, type="status", status="away")
    assert errors(agent) == ["unavailable"]
    broker.heal()


def test_agents_who_come_together_are_one_command(nodes: list[Node]) -> None:
    watcher = nodes[1].agent("watcher")
    watcher.take()
    published: list[NewEvent] = []
    publish = nodes[0].chat.broker.publish

    def record(new_events: Sequence[NewEvent]) -> Any:
        published.extend(new_events)
        return publish(new_events)

    nodes[0].chat.broker.publish = record  # type: ignore[method-assign]
    for id in range(100):
        connection = nodes[0].open()
        nodes[0].chat.on_message(connection, f'{{"type":"auth","token":"{{\\"id\\":{id}}}"}}')
    nodes[0].clock.advance(0)
    assert agent_statuses(watcher) == [(id, "online") for id in range(100)]
    assert [event.name for event in published] == ["presence"]


# Availability


def test_contacts_learn_whether_an_agent_is_available(nodes: list[Node]) -> None:
    contact = nodes[1].contact(7, 456)
    [reply] = data_of(contact, "authenticated")
    assert reply["available"] is False
    agent = nodes[0].agent(5)
    assert data_of(contact, "available") == [{"available": True}]
    assert data_of(nodes[0].contact(8), "authenticated")[0]["available"] is True
    pass_time(nodes[0], 10)
    nodes[0].say(agent, type="status", status="away")
    assert data_of(contact, "available") == [{"available": False}]
    assert data_of(agent, "available") == []
    pass_time(nodes[0], 10)
    other = nodes[1].agent(6)
    assert data_of(contact, "available") == [{"available": True}]
    nodes[1].chat.on_close(other)
    pass_time(nodes[1], GRACE + 10)
    assert data_of(contact, "available") == [{"available": False}]


def test_availability_changes_every_five_seconds_at_most(nodes: list[Node]) -> None:
    contact, agent = nodes[1].contact(7, 456), nodes[0].agent(5)
    contact.take()
    for _ in range(10):
        for status in ("away", "online", "busy"):
            nodes[0].say(agent, type="status", status=status)
            pass_time(nodes[0], 1)
    told = data_of(contact, "available")
    assert 1 <= len(told) <= 7
    pass_time(nodes[0], 6)
    assert [*told, *data_of(contact, "available")][-1] == {"available": False}


# Nodes of an earlier version


class EarlierNode:
    """The lease of a node that does not know contacts."""

    def __init__(self, log: SharedHistory) -> None:
        self.broker = SharedBroker(log)
        self.names: list[str] = []
        self.broker.start(self)

    def deliver(self, events: Sequence[Any]) -> None:
        self.names += [event.name for event in events]

    def reset(self, epoch: str) -> None: ...

    def renew(self) -> None:
        self.broker.lease("earlier", {}, TTL)


def test_contacts_are_admitted_only_when_every_node_knows_them(nodes: list[Node], log: SharedHistory) -> None:
    before = nodes[0].contact(8, 456)
    before.take()
    EarlierNode(log).renew()
    pass_time(nodes[0], TTL - 1)
    refused = nodes[0].contact(7, 456)
    assert errors(refused) == ["unavailable"]
    assert refused.closed is not None
    assert refused.closed[0] == 4503
    assert nodes[0].agent(7, 456).closed is None
    assert before.closed is None, "a contact that is there stays"
    nodes[0].say(before, type="auth", token='{"id":8,"role":"contact","conversations":[456]}')
    assert before.closed is None
    assert errors(before) == []
    pass_time(nodes[0], TTL)
    admitted = nodes[0].contact(7, 456)
    assert admitted.closed is None
    assert errors(admitted) == []


def test_a_node_that_starts_beside_an_earlier_one_admits_no_contact(log: SharedHistory, start: Start) -> None:
    EarlierNode(log).renew()
    refused = start("n1").contact(7, 456)
    assert refused.closed is not None
    assert refused.closed[0] == 4503


def test_statuses_are_events_while_an_earlier_node_is_running(nodes: list[Node], log: SharedHistory) -> None:
    earlier = EarlierNode(log)
    watcher = nodes[1].agent("watcher")
    for _ in range(2):
        earlier.renew()
        pass_time(nodes[0], TTL - 2)
    watcher.take()
    earlier.names.clear()
    nodes[0].agent(5)
    assert earlier.names == ["presence", "agent_status"]
    assert agent_statuses(watcher) == [(5, "online")]
