"""Agents, contacts and groups: docs/protocol.md §6 as a table, live, in recovery, and over nodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.interfaces import Credentials, Identity
from chatws.chat.presence.service import PresenceSettings
from chatws.chat.server import ChatServer
from chatws.config.schema import Config
from chatws.errors import AuthenticationFailed, ClientError
from chatws.ids import Id
from chatws.push.handler import CommandHandler, PushStats
from chatws.push.protocol import PublishLine, parse_line
from chatws.push.responses import Response
from chatws.runtime.parts import make_contact_filter
from tests.fakes import FakeConnection, PendingChecks, send_all
from tests.fakes_brokers import SharedBroker, SharedHistory


class Accounts:
    """An authenticator whose tokens are identities as JSON, and an authorizer that denies what is in `denied`."""

    def __init__(self) -> None:
        self.denied: set[tuple[Id, Id]] = set()

    def authenticate(self, credentials: Credentials) -> Identity:
        fields = json.loads(credentials.token or "{}")
        if "id" not in fields:
            raise AuthenticationFailed("no token")
        conversations = fields.get("conversations")
        return Identity(
            fields["id"],
            "token",
            is_contact=fields.get("role") == "contact",
            groups=tuple(fields["groups"]) if "groups" in fields else None,
            conversations=None if conversations is None else frozenset(conversations),
        )

    def may_read(self, identity: Identity, conversation_id: Id) -> bool:
        return (identity.user_id, conversation_id) not in self.denied and identity.may_read(conversation_id)

    def forget(self, user_id: Id, conversation_id: Id | None = None, *, is_contact: bool = False) -> None:
        pass


class Node:
    """A chat server that admits contacts."""

    def __init__(
        self, log: SharedHistory, clock: Clock, name: str, accounts: Accounts, presence: PresenceSettings | None = None
    ) -> None:
        self.clock = clock
        self.chat = ChatServer(
            SharedBroker(log),
            node=name,
            authenticator=accounts,
            authorizer=accounts,
            audiences=AudienceTable({"shop_closed": Kind.EVERYONE}, contacts=True),
            contact_filter=make_contact_filter(Config()),
            max_connections_per_contact=3,
            presence=presence,
            reactor=clock,
            wall_clock=clock.seconds,
            send_all=send_all,
        )
        Deferred.fromCoroutine(self.chat.start())
        self.handler = CommandHandler(self.chat, PushStats())

    def open(self) -> FakeConnection:
        connection = FakeConnection()
        self.chat.on_open(connection)
        return connection

    def say(self, connection: FakeConnection, **message: Any) -> None:
        self.chat.on_message(connection, json.dumps(message))
        self.clock.advance(0)

    def agent(self, id: Id, *conversations: Id, last: str | None = None, **fields: Any) -> FakeConnection:
        return self._enter({"id": id, "role": "agent", **fields}, conversations, last)

    def contact(self, id: Id, *conversations: Id, last: str | None = None, **fields: Any) -> FakeConnection:
        identity = {"id": id, "role": "contact", "conversations": list(conversations), **fields}
        return self._enter(identity, conversations, last)

    def _enter(self, identity: dict[str, Any], conversations: tuple[Id, ...], last: str | None) -> FakeConnection:
        connection = self.open()
        position = {} if last is None else {"last_event_id": last}
        self.say(connection, type="auth", token=json.dumps(identity), **position)
        for conversation_id in conversations:
            self.say(connection, type="subscribe", conversation_id=conversation_id, **position)
        return connection

    def push(self, **line: Any) -> Response | None:
        """Process a line of a backend, and return the response to an `op`."""
        responses: list[Response] = []
        parsed = parse_line(json.dumps(line).encode())
        if isinstance(parsed, PublishLine):
            self.chat.publish([self.handler.to_new_event(parsed)])
        else:
            Deferred.fromCoroutine(self.handler.execute(parsed)).addCallback(responses.append)
        self.clock.advance(0)
        return responses[0] if responses else None

    @property
    def position(self) -> str:
        return f"{self.chat.broker.epoch}:{self.chat.history.last}"

    def end(self) -> None:
        for connection in tuple(self.chat.connections):
            self.chat.on_close(connection)
        Deferred.fromCoroutine(self.chat.stop())


@pytest.fixture
def accounts() -> Accounts:
    return Accounts()


@pytest.fixture
def nodes(accounts: Accounts) -> Iterator[list[Node]]:
    clock = Clock()
    clock.advance(1_700_000_000)
    log = SharedHistory(clock.seconds)
    made = [Node(log, clock, name, accounts) for name in ("n1", "n2")]
    yield made
    for node in made:
        node.end()


def names(connection: FakeConnection) -> list[str]:
    """Return the names of the events that a connection has received, without replies."""
    replies = {"authenticated", "subscribed", "unsubscribed", "error", "presence", "groups", None}
    return [event["event"] for event in connection.take() if event.get("event") not in replies]


def errors(connection: FakeConnection) -> list[str]:
    return [event["data"]["code"] for event in connection.take() if event.get("event") == "error"]


def message(conversation_id: Id = 456, **fields: Any) -> dict[str, Any]:
    return {"conversation_id": conversation_id, "message": {"id": 1, **fields}}


NOTE = {"conversation_id": 456, "role": "agent"}
#: A line of a backend; whether agent 5, subscribed to 456 and in group sales, gets it; whether contact 7 gets it, whose
#: conversation is 456; whether contact 5 gets it, whose conversation is 457.
TABLE: list[tuple[str, dict[str, Any], bool, bool, bool]] = [
    ("message", {"event": "new_message", "data": message()}, True, True, False),
    ("message of another conversation", {"event": "new_message", "data": message(457)}, False, False, True),
    ("read", {"event": "message_read", "data": {"conversation_id": 456, "message_id": 1}}, True, True, False),
    ("status", {"event": "message_status_updated", "data": {"conversation_id": 456}}, True, True, False),
    ("typing", {"event": "typing", "data": {"conversation_id": 456, "user_id": 9}}, True, True, False),
    ("private", {"event": "new_message", "data": message(private=True)}, True, False, False),
    ("private as PHP writes it", {"event": "new_message", "data": message(private="1")}, True, False, False),
    ("internal", {"event": "new_message", "data": message(internal=1)}, True, False, False),
    ("not private", {"event": "new_message", "data": message(private=False, internal="0")}, True, True, False),
    ("note", {"event": "new_message", "data": message(), "to": NOTE}, True, False, False),
    ("own event", {"event": "order_paid", "data": {}, "to": {"conversation_id": 456}}, True, False, False),
    ("for contacts", {"event": "order_paid", "data": {}, "to": NOTE | {"role": "contact"}}, False, True, False),
    ("hidden for contacts", {"event": "x", "data": message(private=True), "to": NOTE | {"role": "contact"}},
     False, False, False),
    ("list", {"event": "conversation_updated", "data": {"conversation_id": 456}}, True, False, False),
    ("new conversation", {"event": "new_conversation", "data": {"conversation": {"id": 456}}}, True, False, False),
    ("agent status", {"event": "agent_status", "data": {"agent_id": 9, "status": "away"}}, True, False, False),
    ("agents", {"event": "hint", "data": {}, "to": "agents"}, True, False, False),
    ("everyone", {"event": "hint", "data": {}, "to": "everyone"}, True, True, True),
    ("everyone by default", {"event": "shop_closed", "data": {}}, True, True, True),
    ("hidden for everyone", {"event": "x", "data": message(internal=True), "to": "everyone"}, True, False, False),
    ("agent 5", {"event": "hint", "data": {}, "to": {"user_id": 5}}, True, False, False),
    ("agent 7", {"event": "hint", "data": {}, "to": {"user_id": 7}}, False, False, False),
    ("contact 7", {"event": "hint", "data": {}, "to": {"contact_id": 7}}, False, True, False),
    ("contact 5", {"event": "hint", "data": {}, "to": {"contact_ids": [5]}}, False, False, True),
    ("both contacts", {"event": "hint", "data": {}, "to": {"contact_ids": [5, 7]}}, False, True, True),
    ("group", {"event": "hint", "data": {}, "to": {"group": "sales"}}, True, False, False),
    ("one of the groups", {"event": "hint", "data": {}, "to": {"groups": ["b2b", "sales"]}}, True, False, False),
    ("another group", {"event": "hint", "data": {}, "to": {"group": "b2b"}}, False, False, False),
    ("except agent 5", {"event": "new_message", "data": message(), "except_user_id": 5}, False, True, False),
    ("except agent 7", {"event": "new_message", "data": message(), "except_user_id": 7}, True, True, False),
    ("except contact 7", {"event": "new_message", "data": message(), "except_contact_id": 7}, True, False, False),
    ("except contact 5", {"event": "new_message", "data": message(), "except_contact_id": 5}, True, True, False),
    ("own typing", {"event": "typing", "data": {"conversation_id": 456, "contact_id": 7}}, True, False, False),
]  # fmt: skip


@pytest.mark.parametrize(("line", "agent", "contact", "other"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_event_reaches_whom_the_table_names_live_and_in_recovery_on_every_node(
    nodes: list[Node], line: dict[str, Any], agent: bool, contact: bool, other: bool
) -> None:
    def enter(node: Node, last: str | None = None) -> list[FakeConnection]:
        return [
            node.agent(5, 456, groups=["sales"], last=last),
            node.contact(7, 456, last=last),
            node.contact(5, 457, last=last),
        ]

    expected = [[line["event"]] * reached for reached in (agent, contact, other)]
    connections = [*enter(nodes[0]), *enter(nodes[1])]
    position = nodes[0].position
    for connection in connections:
        names(connection)
    nodes[0].push(**line)
    assert [names(connection) for connection in connections] == expected * 2
    if line["event"] not in ("typing", "agent_status"):
        for node in nodes:
            replayed = enter(node, position)
            assert [names(connection) for connection in replayed] == expected


def test_delivered_counts_agents_and_contacts(nodes: list[Node]) -> None:
    nodes[0].agent(5, 456)
    nodes[0].contact(7, 456)
    published = nodes[0].chat.publish(
        [nodes[0].chat.audiences.new_event("new_message", json.dumps(message()).encode())]
    )
    [event] = published.result  # type: ignore[attr-defined]
    assert event.delivered == 2


def test_contact_is_authenticated_under_its_own_id_and_role(nodes: list[Node]) -> None:
    [reply] = nodes[0].contact(7).take()
    assert (reply["data"]["contact_id"], reply["data"]["role"]) == (7, "contact")
    assert "user_id" not in reply["data"]
    [reply] = nodes[0].agent(7, groups=["sales"]).take()
    assert (reply["data"]["user_id"], reply["data"]["role"], reply["data"]["groups"]) == (7, "agent", ["sales"])


def test_contact_is_not_present_and_may_not_list_agents(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5, 456)
    agent.take()
    contact = nodes[0].contact(7, 456)
    assert names(agent) == ["contact_status"]
    assert nodes[0].chat.online() == [5]
    contact.take()
    nodes[0].say(contact, type="presence")
    nodes[0].say(contact, type="typing", conversation_id=456, role="agent")
    nodes[0].say(contact, type="typing", conversation_id=457)
    nodes[0].say(contact, type="subscribe", conversation_id=457)
    nodes[0].say(contact, type="status", status="away")
    assert errors(contact) == ["forbidden"] * 5


def test_contact_without_a_list_may_read_nothing_by_default() -> None:
    contact = Identity(7, "token", is_contact=True)
    assert not contact.may_read(456)
    assert Identity(7, "token", is_contact=True, conversations=frozenset([456])).may_read(456)
    assert Identity(7, "token").may_read(456)


def test_typing_goes_both_ways_but_not_to_its_sender(nodes: list[Node]) -> None:
    agent, contact, second_tab = nodes[0].agent(7, 456), nodes[1].contact(7, 456), nodes[0].contact(7, 456)
    for connection in (agent, contact, second_tab):
        connection.take()
    nodes[1].say(contact, type="typing", conversation_id=456)
    [event] = agent.take()
    assert event["data"] == {"conversation_id": 456, "contact_id": 7, "is_typing": True}
    assert contact.take() == second_tab.take() == []
    nodes[0].say(agent, type="typing", conversation_id=456)
    assert names(contact) == names(second_tab) == ["typing"]
    assert agent.take() == []


def test_typing_of_an_internal_note_reaches_agents_only_also_when_it_ends(nodes: list[Node]) -> None:
    agent, writer, contact = nodes[1].agent(5, 456), nodes[0].agent(6, 456), nodes[0].contact(7, 456)
    for connection in (agent, contact):
        connection.take()
    nodes[0].say(writer, type="typing", conversation_id=456, role="agent")
    nodes[0].chat.on_close(writer)
    nodes[0].clock.advance(0)
    assert names(agent)[:2] == ["typing", "typing"]
    assert names(contact) == []


def test_excluded_connection_on_another_node_gets_nothing_and_its_other_tab_does(nodes: list[Node]) -> None:
    sender, tab = nodes[1].agent(5, 456), nodes[1].agent(5, 456)
    connection_id = sender.take()[0]["data"]["connection_id"]
    tab.take()
    nodes[0].push(event="new_message", data=message(), except_connection_id=connection_id)
    nodes[0].push(event="conversation_updated", data={"conversation_id": 456}, except_connection_id=connection_id)
    assert names(sender) == []
    assert names(tab) == ["new_message", "conversation_updated"]


def test_disconnect_distinguishes_agent_7_from_contact_7_on_every_node(nodes: list[Node]) -> None:
    agent, contact = nodes[1].agent(7), nodes[1].contact(7)
    nodes[0].push(op="disconnect", contact_id=7)
    assert (agent.closed, (contact.closed or (0, ""))[0]) == (None, 4000)
    contact = nodes[1].contact(7)
    nodes[0].push(op="disconnect", user_id=7)
    assert ((agent.closed or (0, ""))[0], contact.closed) == (4000, None)


def test_unsubscribe_ends_the_contact_s_subscription_only(nodes: list[Node]) -> None:
    agent, contact = nodes[1].agent(7, 456), nodes[1].contact(7, 456)
    nodes[0].push(op="unsubscribe", contact_id=7, conversation_id=456)
    for connection in (agent, contact):
        connection.take()
    nodes[0].push(event="new_message", data=message())
    nodes[0].push(event="x", data={}, to={"conversation_id": 456, "role": "contact"})
    assert names(agent) == ["new_message"]
    assert names(contact) == []


def test_renewed_token_of_another_role_is_rejected(nodes: list[Node]) -> None:
    contact = nodes[0].contact(7, 456)
    contact.take()
    nodes[0].say(contact, type="auth", token=json.dumps({"id": 7, "role": "agent"}))
    assert errors(contact) == ["already_authenticated"]
    nodes[0].push(event="conversation_updated", data={"conversation_id": 456})
    assert names(contact) == []


def test_contacts_have_a_connection_limit_of_their_own(nodes: list[Node]) -> None:
    for _ in range(4):
        nodes[0].agent(7)
    connections = [nodes[0].contact(7) for _ in range(4)]
    assert [(connection.closed or (0, ""))[0] for connection in connections] == [0, 0, 0, 4909]


def test_limit_of_an_address_is_for_contacts_only_and_counts_open_connections(nodes: list[Node]) -> None:
    node = nodes[0]
    node.chat.subscriptions.max_contacts_per_ip = 2
    agents = [node.agent(number) for number in range(5)]
    contacts = [node.contact(number) for number in range(3)]
    assert [connection.closed for connection in (*agents, *contacts[:2])] == [None] * 7
    assert contacts[2].closed == (4909, "more than 2 connections of contacts from one address")
    for gone in (contacts[2], contacts[0]):
        node.chat.on_close(gone)
    assert [(node.contact(number).closed or (0, ""))[0] for number in (7, 8)] == [0, 4909]


def test_groups_op_changes_what_the_agent_gets_on_every_node(nodes: list[Node]) -> None:
    agent = nodes[1].agent(5, groups=["sales"])
    agent.take()
    nodes[0].push(op="groups", user_id=5, groups=["b2b"])
    [event] = agent.take()
    assert event == {"event": "groups", "data": {"groups": ["b2b"]}}
    nodes[0].push(event="lost", data={}, to={"group": "sales"})
    nodes[0].push(event="won", data={}, to={"group": "b2b"})
    assert names(agent) == ["won"]


def test_group_that_auth_does_not_name_is_not_replayed(nodes: list[Node]) -> None:
    position = nodes[0].position
    nodes[0].push(event="lost", data={}, to={"group": "sales"})
    nodes[0].push(event="won", data={}, to={"group": "b2b"})
    assert names(nodes[1].agent(5, groups=["b2b"], last=position)) == ["won"]
    assert names(nodes[1].agent(5, last=position)) == []


def test_renewed_token_replaces_the_groups(nodes: list[Node]) -> None:
    agent = nodes[0].agent(5, groups=["sales", "b2b"])
    nodes[0].say(agent, type="auth", token=json.dumps({"id": 5, "groups": ["b2b"]}))
    agent.take()
    nodes[0].push(event="lost", data={}, to={"group": "sales"})
    nodes[0].push(event="won", data={}, to={"groups": ["b2b", "sales"]})
    assert names(agent) == ["won"]


def test_groups_op_asks_the_authorizer_again_and_a_no_ends_the_subscription(
    nodes: list[Node], accounts: Accounts
) -> None:
    agent = nodes[1].agent(5, 456, 457)
    accounts.denied.add((5, 456))
    agent.take()
    nodes[0].push(op="groups", user_id=5, groups=[])
    assert [(event["event"], event["data"]["conversation_id"]) for event in agent.take()] == [("unsubscribed", 456)]


def test_groups_op_repeats_permission_checks_in_flight_whose_earlier_results_have_no_effect(
    nodes: list[Node], accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = nodes[1].agent(5)
    checks = PendingChecks()
    monkeypatch.setattr(accounts, "may_read", checks.may_read)
    for conversation_id in (456, 457):
        nodes[1].say(agent, type="subscribe", conversation_id=conversation_id)
    agent.take()
    nodes[0].push(op="groups", user_id=5, groups=[])
    assert [request for request, _ in checks.pending] == [(5, 456), (5, 457), (5, 456), (5, 457)]
    for (_, result), may_read in zip(checks.pending, (True, True, False, True), strict=True):
        result.callback(may_read)
    assert [(event["event"], event["data"].get("conversation_id")) for event in agent.take()] == [
        ("error", None),
        ("subscribed", 457),
    ]


def test_filter_hides_data_that_cannot_be_decoded() -> None:
    contact_filter = make_contact_filter(Config())
    assert contact_filter.is_hidden(b'{"message":')
    assert contact_filter.is_hidden(b'{"message":{"\\u0070rivate":true}}')
    assert not contact_filter.is_hidden(b'{"message":"private"}')
    assert not contact_filter.is_hidden(b"{}")


def test_everyone_is_all_agents_while_contacts_are_off() -> None:
    table = AudienceTable({"shop_closed": Kind.EVERYONE})
    assert table.new_event("shop_closed", b"{}").audience.channels == ("*",)
    assert table.new_event("hint", b"{}", to=("*", "#contacts")).audience.channels == ("*",)
    with pytest.raises(ClientError):
        table.new_event("hint", b"{}")
