"""`chatws db upgrade` of a database that an earlier version of chatws has filled."""

from __future__ import annotations

import json

import psycopg2
import pytest
import pytest_twisted

from chatws.brokers.interface import CONTACT_SPACE
from chatws.brokers.postgres.schema import migrations
from chatws.database.migrations import apply, transaction
from tests.postgres_nodes import Nodes, new_event, nodes, until
from tests.requirements import needs

__all__ = ["nodes"]

pytestmark = needs("postgresql")

#: The calls of nodes that know migrations 1 to 3 only.
EARLIER_APPEND = """
    SELECT chatws.append('[{"e":"earlier","c":"[\\"*\\"]","d":"{}","k":"key-1"},
        {"e":"typing","c":"[\\"*\\"]","d":"{}","t":true}]', '', 0, 0, 0, true, false, 0, NULL)
"""
EARLIER_CALLS = [
    EARLIER_APPEND,
    "SELECT first, last FROM chatws.bounds()",
    "SELECT epoch, place, log_offset, stamp FROM chatws.head()",
    "SELECT chatws.lease('earlier', '[]', 60, NULL)",
    "SELECT chatws.stay_awake(1)",
    "SELECT chatws.start_over()",
]


@pytest.fixture
def earlier(nodes: Nodes) -> Nodes:
    """A database with migrations 1 to 3: events of both kinds, a key, an outbox, a lease, and the grants of a shop."""
    nodes.run("DROP SCHEMA chatws CASCADE")
    with transaction(nodes.url) as cursor:
        apply(cursor, "chatws", [migration for migration in migrations() if migration.number <= 3])
        cursor.execute("DO $$ BEGIN CREATE ROLE shop LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        cursor.execute("SELECT chatws.allow('shop')")
        cursor.execute(EARLIER_APPEND)
        cursor.execute("""SELECT chatws.lease('earlier', '[["5", 5, 2]]', 3600, NULL)""")
        cursor.execute("CREATE VIEW public.agents AS SELECT user_id, tabs FROM chatws.online_agents")
    nodes.run("""SELECT chatws.publish('waiting', '{}', '"everyone"')""")
    return nodes


def upgrade(nodes: Nodes) -> list[int]:
    with transaction(nodes.url) as cursor:
        return [migration.number for migration in apply(cursor, "chatws", migrations())]


@pytest_twisted.ensureDeferred
async def test_upgrade_keeps_events_keys_outbox_and_leases(earlier: Nodes) -> None:
    [(epoch,)] = earlier.run("SELECT epoch FROM chatws.log")
    assert upgrade(earlier) == [migration.number for migration in migrations()[3:]]
    broker, told = await earlier.node()
    assert broker.epoch == epoch
    [event] = await broker.read(0, 1)
    assert (event.offset, event.name, event.data) == (1, "earlier", b"{}")
    await until(lambda: "waiting" in told.names, "the event that the outbox held")
    assert [receipt.offset for receipt in await broker.publish([new_event(key="key-1"), new_event()])] == [1, 3]
    assert await broker.online() == [5]
    assert earlier.run("SELECT user_id, tabs FROM public.agents") == [("5", 2)]
    result = await broker.lease("earlier", {5: None}, 60)
    assert result.changed == [(5, False)]
    assert upgrade(earlier) == []


@pytest_twisted.ensureDeferred
async def test_upgrade_keeps_the_grants_of_an_application(earlier: Nodes) -> None:
    upgrade(earlier)
    _, told = await earlier.node()
    shop = earlier.shop("shop")
    shop.autocommit = True
    cursor = shop.cursor()
    cursor.execute("""SELECT chatws.publish('paid', '{"order": 7}', '"everyone"')""")
    cursor.execute("SELECT chatws.revoke(5, 456), chatws.disconnect('ana')")
    cursor.execute("SELECT user_id, connection_count FROM chatws.online_agents")
    assert cursor.fetchall() == [("5", 2)]
    await until(lambda: told.names[-3:] == ["paid", "unsubscribe", "disconnect"], "what the shop has published")
    for forbidden in ("SELECT chatws.reset_history()", "SELECT chatws.offset_range()", "SELECT * FROM chatws.history"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(forbidden)


@pytest.mark.parametrize("call", EARLIER_CALLS)
def test_call_of_an_earlier_node_after_upgrade_fails(earlier: Nodes, call: str) -> None:
    upgrade(earlier)
    with pytest.raises((psycopg2.errors.UndefinedFunction, psycopg2.errors.UndefinedColumn)):
        earlier.shop().cursor().execute(call)
    assert earlier.run("SELECT count(*) FROM chatws.events") == [(2,)]


@pytest_twisted.ensureDeferred
async def test_node_of_an_earlier_version_sees_agents_only_and_is_known_as_one(earlier: Nodes) -> None:
    upgrade(earlier)
    broker, _ = await earlier.node()
    await broker.lease("new", {"[456,7]": 1}, 60, CONTACT_SPACE)
    await broker.lease("new", {6: 1}, 60)
    [(reply,)] = earlier.run("""SELECT chatws.renew_leases('before', '[["7", 7, 1]]', 60, NULL)""")
    assert json.loads(reply) == {"joined": ["7"], "left": [], "held": 1, "online": 3}  # with 5, of the fixture
    [(reply,)] = earlier.run("SELECT chatws.online(NULL)")
    assert sorted(json.loads(reply)) == ["5", "6", "7"]
    assert await broker.nodes_without(CONTACT_SPACE) == ["before", "earlier"]
    assert await broker.online(CONTACT_SPACE) == ["[456,7]"]


def test_upgrade_leaves_no_function_twice_and_none_to_public(earlier: Nodes) -> None:
    upgrade(earlier)
    overloads = earlier.run(
        "SELECT proname, count(*) FROM pg_proc WHERE pronamespace = 'chatws'::regnamespace "
        "GROUP BY 1 HAVING count(*) > 1"
    )
    assert dict(overloads) == {
        "publish": 3,
        "revoke": 4,
        "disconnect": 2,
        "set_groups": 2,
        "renew_leases": 2,
        "online": 2,
    }
    assert not earlier.run(
        "SELECT p.oid::regprocedure FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a "
        "WHERE p.pronamespace = 'chatws'::regnamespace AND a.grantee = 0"
    )
