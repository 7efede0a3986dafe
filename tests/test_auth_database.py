"""Entering and reading with a real PostgreSQL behind it, which goes away and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from chatws.auth.factory import build_activity, build_authenticator, build_authorizer
from chatws.chat.interfaces import Credentials, Identity
from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.errors import AuthenticationFailed, Unavailable
from chatws.ids import Id
from chatws.server.component import HttpRequest
from tests.postgres import Postgres, postgres  # noqa: F401
from tests.standstill import Standstill

reactor: Any = _reactor
SCHEMA = files("chatws.database").joinpath("schema.sql").read_text("utf-8")
ROWS = """
INSERT INTO users (id, name, status) VALUES (1, 'Ana', 'active'), (2, 'Rui', 'inactive');
INSERT INTO conversations (id, contact_name) VALUES (456, 'Bia'), (457, 'Leo');
INSERT INTO conversation_agents (conversation_id, user_id) VALUES (456, 1);
"""
ASSIGNED = "SELECT 1 FROM conversation_agents WHERE conversation_id = %(conversation_id)s AND user_id = %(user_id)s"


class Shop:
    def __init__(self, server: Postgres, **settings: Any) -> None:
        settings = {"auth_timeout": 15.0, "conversation_query": ASSIGNED, **settings}
        self.config = Config(database=server.url, **settings)
        self.database = open_database(self.config.database, pool=3, timeout=self.config.auth_timeout, reactor=reactor)
        self.database.start()
        self.authenticator = build_authenticator(self.config, self.database, reactor)
        self.authorizer = build_authorizer(self.config, self.database, reactor)
        self.activity = build_activity(self.config, self.database, reactor)

    def enter(self, user_id: Id) -> Deferred[Identity]:
        given = Credentials(user_id, None, HttpRequest("GET", "/ws"), "192.0.2.1")
        return maybeDeferred(self.authenticator.authenticate, given)

    def may_read(self, user_id: Id, conversation_id: Id) -> Deferred[bool]:
        return maybeDeferred(self.authorizer.may_read, Identity(user_id, "database"), conversation_id)

    def stop(self) -> Deferred[Any]:
        return self.activity.stop().addCallback(lambda _: self.database.stop())


@pytest.fixture
def server(postgres: Postgres) -> Postgres:  # noqa: F811
    postgres.run(SCHEMA + ROWS)
    return postgres


@pytest.fixture
def opened(server: Postgres) -> Iterator[Any]:
    shops: list[Shop] = []

    def build(**settings: Any) -> Shop:
        shops.append(Shop(server, **settings))
        return shops[-1]

    yield build
    for shop in shops:
        pytest_twisted.blockon(shop.stop())


@pytest_twisted.ensureDeferred
async def test_active_users_authenticate_and_read_assigned_conversations(opened: Any) -> None:
    shop = opened()
    assert await shop.enter(1) == Identity(1, "database")
    for stranger in (2, 3, 0, 2**53 - 1, "abc", "a\0b", "1 OR 1=1", "9" * 100, "é" * 128):
        with pytest.raises(AuthenticationFailed):
            await shop.enter(stranger)
    assert await shop.may_read(1, 456) is True
    for user_id, conversation_id in ((1, 457), (2, 456), (1, 999), (1, "abc"), ("abc", 456), (1, "a\0b")):
        assert await shop.may_read(user_id, conversation_id) is False


@pytest_twisted.ensureDeferred
async def test_simultaneous_equal_lookups_are_one_query(opened: Any, server: Postgres) -> None:
    server.run(
        "CREATE TABLE asked (at timestamptz);"
        "CREATE FUNCTION note(i bigint) RETURNS bigint LANGUAGE sql AS "
        "$$ INSERT INTO asked SELECT now() FROM pg_sleep(0.1); SELECT i $$"
    )
    shop = opened(user_query="SELECT note(id) FROM users WHERE id = %(user_id)s")
    identities = await gatherResults([shop.enter(1) for _ in range(500)])
    assert len(identities) == 500
    assert server.run("SELECT count(*) FROM asked") == [(1,)]
    await shop.enter(1)
    assert server.run("SELECT count(*) FROM asked") == [(1,)], "kept for --auth-cache"


@pytest.mark.parametrize("fault", ["stop", "kill", "silence"])
@pytest_twisted.ensureDeferred
async def test_logins_are_unavailable_only_while_the_database_is_away(
    opened: Any, server: Postgres, fault: str
) -> None:
    shop = opened(auth_cache=0.0)
    await shop.enter(1)
    patience, shop.database.timeout = shop.database.timeout, 1.0
    getattr(server, fault)()
    with Standstill() as standstill:
        began = reactor.seconds()
        for waiting in [*(shop.enter(1) for _ in range(100)), shop.enter(2), shop.may_read(1, 456)]:
            with pytest.raises(Unavailable):
                await waiting
        assert 0.9 < reactor.seconds() - began < 3.0 + standstill.seconds
    shop.database.timeout = patience  # what follows is not waited for in vain
    if fault == "silence":
        server.resume()
    else:
        server.start()
    assert (await shop.enter(1)).user_id == 1
    assert await shop.may_read(1, 456) is True


@pytest_twisted.ensureDeferred
async def test_terminated_database_connections_fail_no_request(opened: Any, server: Postgres) -> None:
    shop = opened(auth_cache=0.0)
    for _ in range(5):
        await shop.enter(1)
        server.terminate_backends()
    assert await shop.may_read(1, 456) is True


@pytest_twisted.ensureDeferred
async def test_a_failing_query_is_unavailable(opened: Any) -> None:
    shop = opened(user_query="SELECT no_such_column FROM users WHERE id = %(user_id)s", conversation_query="SELEC 1")
    with pytest.raises(Unavailable):
        await shop.enter(1)
    with pytest.raises(Unavailable):
        await shop.may_read(1, 456)


@pytest_twisted.ensureDeferred
async def test_heartbeats_and_activities_reach_the_table(opened: Any, server: Postgres) -> None:
    shop = opened(
        heartbeat_query="UPDATE users SET last_activity = %(last_activity)s WHERE id = %(user_id)s",
        activity_query="UPDATE users SET last_activity_type = %(activity_type)s WHERE id = %(user_id)s",
    )
    await shop.enter(1)
    for user_id in (1, 2, 77, "abc"):
        shop.activity.heartbeat(user_id, 1_764_000_000.5)
        shop.activity.activity(user_id, "click" if user_id == 1 else "x" * 1000 + "\0")
    await shop.activity.stop()
    assert server.run("SELECT last_activity, last_activity_type FROM users ORDER BY id") == [
        (1_764_000_000.5, "click"),
        (1_764_000_000.5, None),
    ]
