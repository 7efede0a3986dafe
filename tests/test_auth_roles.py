"""Who is an agent and who a contact: roles from tokens, callback responses and the database (docs/protocol.md §6)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from chatws.auth.callback import parse_response
from chatws.auth.chain import AuthenticatorChain
from chatws.auth.factory import build_authenticator, build_authorizer
from chatws.auth.roles import Roles
from chatws.auth.token import TokenMethod
from chatws.chat.interfaces import Credentials, Identity
from chatws.cli.push import audience
from chatws.cli.token import group_names, make_token
from chatws.config.schema import Config
from chatws.config.validate import check
from chatws.errors import AuthenticationFailed, ConfigError
from chatws.server.component import HttpRequest
from tests.fakes_database import FakeDatabase
from tests.test_auth_token import NOW, SECRET, claims, forge

SECRETS = {"secret": (SECRET.decode(),)}


def authenticate(
    rows: list[dict[str, Any]] | None = None, *, user_id: Any = None, settings: Any = None, **token: Any
) -> Identity:
    """Authenticate with a token, or with a bare user_id, and return the identity.

    :param rows: the rows of each query; None for no database.
    """
    clock = Clock()
    clock.advance(NOW)
    database = None if rows is None else FakeDatabase(rows)
    chain = build_authenticator(Config(**SECRETS, **(settings or {})), database, clock, clock)
    credentials = Credentials(
        user_id, forge(claims(**token)) if token else None, HttpRequest("GET", "/ws"), "192.0.2.1"
    )
    try:
        result = chain.authenticate(credentials)
        if not isinstance(result, Identity):
            results: list[Any] = []
            result.addBoth(results.append)
            [result] = results
            if not isinstance(result, Identity):
                result.raiseException()  # type: ignore[attr-defined]
        assert isinstance(result, Identity)
        return result
    finally:
        chain.stop()
        for call in clock.getDelayedCalls():
            call.cancel()


CONTACTS = {"contacts": True}


def test_token_without_a_role_is_an_agent_while_contacts_are_off() -> None:
    assert not authenticate(sub="7").is_contact


def test_role_contact_makes_a_contact_if_contacts_are_on() -> None:
    identity = authenticate(sub="7", role="contact", conversations=[456], settings=CONTACTS)
    assert (identity.user_id, identity.is_contact, identity.conversations) == (7, True, frozenset({456}))
    with pytest.raises(AuthenticationFailed, match="switched off"):
        authenticate(sub="7", role="contact")


@pytest.mark.parametrize("role", ["", "admin", "Agent", "contact ", None, 5, ["agent"]])
@pytest.mark.parametrize("settings", [{}, CONTACTS])
def test_role_that_is_not_configured_is_rejected(role: Any, settings: Any) -> None:
    with pytest.raises(AuthenticationFailed, match="role"):
        authenticate(sub="7", role=role, settings=settings)


def test_roles_of_the_application_are_configured() -> None:
    settings = {**CONTACTS, "agent_roles": ("agent", "supervisor"), "contact_roles": ("customer",)}
    assert not authenticate(sub="7", role="supervisor", settings=settings).is_contact
    assert authenticate(sub="7", role="customer", settings=settings).is_contact
    with pytest.raises(AuthenticationFailed):
        authenticate(sub="7", role="contact", settings=settings)


def test_identity_without_a_role_needs_default_role_once_contacts_are_on() -> None:
    with pytest.raises(AuthenticationFailed, match="default_role"):
        authenticate(sub="7", settings=CONTACTS)
    assert not authenticate(sub="7", settings={**CONTACTS, "default_role": "agent"}).is_contact
    assert authenticate(sub="7", settings={**CONTACTS, "default_role": "contact"}).is_contact


def test_groups_come_from_the_token_and_each_counts_once() -> None:
    assert authenticate(sub="7", groups=["sales", "b2b", "sales"]).groups == ("sales", "b2b")
    for groups in (None, "sales", ["a b"], [""], ["x" * 65], [5], ["a"] * 101):
        with pytest.raises(AuthenticationFailed):
            authenticate(sub="7", groups=groups)


def test_row_of_user_query_adds_role_groups_and_conversations() -> None:
    rows = [{"id": 7, "role": "agent", "groups": '["sales"]', "conversations": "[456]"}]
    identity = authenticate(rows, sub="7", settings=CONTACTS)
    assert (identity.role, identity.groups, identity.conversations) == ("agent", ("sales",), frozenset({456}))
    identity = authenticate(rows, sub="7", groups=[], conversations=[1], settings=CONTACTS)
    assert (identity.groups, identity.conversations) == ((), frozenset({1}))


def test_row_that_names_another_role_than_the_token_is_rejected() -> None:
    settings = {"agent_roles": ("agent", "admin")}
    with pytest.raises(AuthenticationFailed, match="another role"):
        authenticate([{"id": 7, "role": "admin"}], sub="7", role="agent", settings=settings)
    assert authenticate([{"id": 7, "role": None}], sub="7", role="agent").role == "agent"


@pytest.mark.parametrize("row", [{"groups": "sales"}, {"groups": "{}x"}, {"conversations": "[1.5]"}, {"role": "boss"}])
def test_row_with_an_invalid_value_is_rejected(row: dict[str, Any]) -> None:
    with pytest.raises(AuthenticationFailed):
        authenticate([{"id": 7, **row}], sub="7")


def test_row_of_user_query_never_makes_a_contact() -> None:
    with pytest.raises(AuthenticationFailed):
        authenticate([{"id": 7, "role": "contact"}], sub="7", settings=CONTACTS)


def test_contact_is_looked_up_by_contact_query_only() -> None:
    def look_up(rows: list[dict[str, Any]], **settings: Any) -> FakeDatabase:
        clock = Clock()
        clock.advance(NOW)
        database = FakeDatabase(rows)
        chain = build_authenticator(Config(**SECRETS, **CONTACTS, **settings), database, clock, clock)
        token = forge(claims(sub="7", role="contact"))
        chain.authenticate(Credentials(None, token, HttpRequest("GET", "/ws"), "192.0.2.1"))
        chain.stop()
        for call in clock.getDelayedCalls():
            call.cancel()
        return database

    assert look_up([]).count == 0
    queried = look_up([{"id": 7}], contact_query="SELECT 1 FROM contacts WHERE id = %(contact_id)s")
    assert [values for _, values in queried.queries] == [{"contact_id": 7}]


def test_unknown_contact_is_rejected() -> None:
    settings = {**CONTACTS, "contact_query": "SELECT 1 FROM contacts WHERE id = %(contact_id)s"}
    with pytest.raises(AuthenticationFailed, match="the contact is unknown"):
        authenticate([], sub="7", role="contact", settings=settings)


def test_user_id_without_a_token_is_never_an_agent_unless_database_is_configured() -> None:
    with pytest.raises(AuthenticationFailed):
        authenticate(user_id=5, settings=CONTACTS)
    settings = {**CONTACTS, "auth_methods": ("database",)}
    with pytest.raises(AuthenticationFailed, match="default_role"):
        authenticate([{"id": 5}], user_id=5, settings=settings)
    with pytest.raises(AuthenticationFailed, match="needs a token or a session"):
        authenticate([{"id": 5}], user_id=5, settings={**settings, "default_role": "contact"})
    with pytest.raises(AuthenticationFailed, match="needs a token or a session"):
        authenticate([{"id": 5, "role": "contact"}], user_id=5, settings=settings)


def test_callback_names_a_contact_by_contact_id() -> None:
    roles = Roles(contacts=True)

    def identity(body: bytes) -> Identity:
        result = parse_response(body)
        assert result is not None
        return roles.finish(roles.assign(result))

    contact = identity(b'{"contact_id":7,"role":"contact","conversations":[456]}')
    assert (contact.user_id, contact.is_contact, contact.conversations) == (7, True, frozenset({456}))
    assert identity(b'{"user_id":null,"contact_id":7}').is_contact
    assert not identity(b'{"user_id":7,"role":"agent","groups":["sales"]}').is_contact
    for body in (b'{"user_id":7}', b'{"user_id":7,"role":"contact"}', b'{"contact_id":7,"role":"agent"}'):
        with pytest.raises(AuthenticationFailed):
            identity(body)
    assert parse_response(b'{"contact_id":null}') is None
    assert parse_response(b'{"user_id":false,"contact_id":""}') is None
    with pytest.raises(Exception, match="both"):
        parse_response(b'{"user_id":7,"contact_id":7}')


def test_authorizer_runs_each_query_with_the_ids_of_its_own_kind() -> None:
    clock, database = Clock(), FakeDatabase([{"id": 1}])
    config = Config(
        contacts=True,
        conversation_query="SELECT %(user_id)s, %(conversation_id)s",
        contact_conversation_query="SELECT %(contact_id)s, %(conversation_id)s",
        auth_cache=60,
    )
    authorizer = build_authorizer(config, database, clock)
    authorizer.may_read(Identity(7, "token"), 456)
    authorizer.may_read(Identity(7, "token", is_contact=True), 456)
    assert [values for _, values in database.queries] == [
        {"user_id": 7, "conversation_id": 456},
        {"contact_id": 7, "conversation_id": 456},
    ]
    authorizer.forget(7, 456, is_contact=True)
    authorizer.may_read(Identity(7, "token"), 456)
    authorizer.may_read(Identity(7, "token", is_contact=True), 456)
    assert [set(values) & {"user_id", "contact_id"} for _, values in database.queries][2:] == [{"contact_id"}]
    without = build_authorizer(Config(contacts=True), database, clock)
    assert without.may_read(Identity(7, "token", is_contact=True), 456) is False
    covered = Identity(7, "token", is_contact=True, conversations=frozenset([456]))
    assert without.may_read(covered, 456) is True
    for call in clock.getDelayedCalls():
        call.cancel()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"auth_methods": ("trust",), **CONTACTS}, "--contacts excludes --auth trust"),
        (CONTACTS, "--contacts excludes --auth trust"),
        ({"agent_roles": ("a", "b"), "contact_roles": ("b",)}, "a role is either"),
        ({"default_role": "boss"}, '"boss" is not one of'),
    ],
)
def test_start_is_refused_with_settings_that_contradict_contacts(settings: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        check(Config(**settings), Clock())


def test_start_warns_of_events_for_everyone_and_of_unverified_users() -> None:
    config = Config(**SECRETS, **CONTACTS, auth_methods=("token",), audience=("x=everyone", "y=agents"))
    warnings = check(config, Clock())
    assert [text for text in warnings if "reaches contacts" in text] == [
        "[audience] x = everyone reaches contacts: agents leaves them out"
    ]


def test_chain_forgets_agents_and_contacts_separately() -> None:
    chain = AuthenticatorChain([], None, Clock())
    chain.forget(7)
    chain.forget(7, is_contact=True)
    chain.stop()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agents", "agents"),
        ("everyone", "everyone"),
        ("agents-of:5", {"conversation_id": 5, "role": "agent"}),
        ("contacts-of:5", {"conversation_id": 5, "role": "contact"}),
        ("contact:7", {"contact_id": 7}),
        ("group:sales", {"group": "sales"}),
    ],
)
def test_command_push_names_each_audience(text: str, expected: object) -> None:
    assert audience(text) == expected


def test_command_token_signs_role_and_groups() -> None:
    token = make_token(7, SECRET, NOW + 60, role="agent", groups=group_names("sales, b2b"))
    clock = Clock()
    clock.advance(NOW)
    identity = TokenMethod([SECRET], clock=clock).authenticate(
        Credentials(None, token, HttpRequest("GET", "/ws"), "192.0.2.1")
    )
    assert (identity.user_id, identity.role, identity.groups) == (7, "agent", ("sales", "b2b"))
