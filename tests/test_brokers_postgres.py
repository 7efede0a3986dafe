"""The log in PostgreSQL: what transactions publish, in which order it comes out, and that nothing is skipped."""

from __future__ import annotations

import json
import random
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Audience, Retention
from chatws.brokers.postgres.schema import migrations
from chatws.chat.audience import DEFAULT_RULES, AudienceTable
from chatws.chat.cluster_commands import DisconnectCommand, GroupsCommand, UnsubscribeCommand, decode_command
from chatws.chat.messages import RESERVED_EVENTS
from chatws.database.migrations import apply, transaction
from chatws.errors import ClientError, ConfigError, Unavailable
from chatws.push.protocol import PublishLine, parse_line
from tests.postgres_nodes import Nodes, RecordingHandler, new_event, nodes, reactor, until
from tests.requirements import needs

__all__ = ["nodes"]

pytestmark = needs("postgresql")

DATA = '{"conversation_id":456,"user_id":7,"b":1.0,"a":2}'


def publish(cursor: Any, event: str, data: str = DATA, cast: str = "text", **more: object) -> None:
    given = "".join(f", {name} => %({name})s" for name in more)
    cursor.execute(f"SELECT chatws.publish(%(event)s, %(data)s::{cast}{given})", {"event": event, "data": data, **more})


# In the application's transactions


@pytest_twisted.ensureDeferred
async def test_an_event_goes_out_when_its_transaction_commits_and_not_before(nodes: Nodes) -> None:
    broker, told = await nodes.node()
    shop = nodes.shop()
    publish(shop.cursor(), "new_message")
    await broker.publish([new_event("meanwhile")])
    assert told.names == ["meanwhile"]
    shop.commit()
    events = await told.until("meanwhile", "new_message")
    assert events[1].offset == 2
    assert events[1].data == DATA.encode()
    assert events[1].audience == Audience(("conversation:456",))


@pytest_twisted.ensureDeferred
async def test_a_rolled_back_event_is_not_delivered(nodes: Nodes) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    cursor = shop.cursor()
    publish(cursor, "new_message")
    shop.rollback()
    cursor.execute("SAVEPOINT one")
    publish(cursor, "new_message")
    cursor.execute("ROLLBACK TO one")
    publish(cursor, "message_read")
    publish(cursor, "message_status_updated")
    shop.commit()
    events = await told.until("message_read", "message_status_updated")
    assert [event.offset for event in events] == [1, 2]


@pytest_twisted.ensureDeferred
async def test_a_long_transaction_delays_no_event_and_is_not_skipped(nodes: Nodes) -> None:
    """Its row is older than what comes out before it. A reader that continues after that number would miss it."""
    broker, told = await nodes.node()
    _, other = await nodes.node()
    long, short = nodes.shop(), nodes.shop()
    publish(long.cursor(), "long", audience='"everyone"')
    for number in range(5):
        publish(short.cursor(), f"short{number}", audience='"everyone"')
        short.commit()
        await broker.publish([new_event(f"line{number}")])
    expected = [f"{kind}{number}" for number in range(5) for kind in ("short", "line")]
    await told.until(*expected)
    long.commit()
    await told.until(*expected, "long")
    await other.until(*expected, "long")
    assert other.offsets == list(range(1, 12))


@pytest_twisted.ensureDeferred
async def test_events_committed_before_a_push_precede_it(nodes: Nodes) -> None:
    broker, told = await nodes.node()
    shop = nodes.shop()
    expected = []
    for number in range(10):
        publish(shop.cursor(), f"sql{number}", audience='"everyone"')
        shop.commit()
        await broker.publish([new_event(f"line{number}")])
        expected += [f"sql{number}", f"line{number}"]
    await told.until(*expected)


@pytest.mark.parametrize("seed", range(3))
@pytest_twisted.ensureDeferred
async def test_overlapping_transactions_are_delivered_once_by_every_node(nodes: Nodes, seed: int) -> None:
    choose = random.Random(seed)
    opened = [await nodes.node(), await nodes.node(poll=0.03)]
    shops = [nodes.shop() for _ in range(4)]
    shops[0].set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_SERIALIZABLE)
    written: dict[int, list[str]] = {number: [] for number in range(len(shops))}
    transactions: list[list[str]] = []
    pushing: list[Any] = []
    pushed: list[list[str]] = [[], []]
    for step in range(150):
        number = choose.randrange(len(shops) + 2)
        if number >= len(shops):
            name = f"push{step}"
            pushed[number - len(shops)].append(name)
            pushing.append(opened[number - len(shops)][0].publish([new_event(name, transient=choose.random() < 0.2)]))
        elif choose.random() < 0.6:
            name = f"sql{step}"
            publish(shops[number].cursor(), name, audience='"everyone"')
            written[number].append(name)
        elif choose.random() < 0.7:
            shops[number].commit()
            transactions.append(written[number])
            written[number] = []
        else:
            shops[number].rollback()
            written[number] = []
        if choose.random() < 0.5:
            await deferLater(reactor, 0.001)
    for number, shop in enumerate(shops):
        shop.commit()
        transactions.append(written[number])
    await gatherResults(pushing)
    expected = {name for names in [*transactions, *pushed] for name in names}
    for _, told in opened:
        await until(lambda told=told: len(told.events) >= len(expected), "all events")  # type: ignore[misc]
        assert len(told.names) == len(set(told.names))
        assert set(told.names) == expected
        assert told.offsets == list(range(1, len(told.offsets) + 1))
        for together in [*transactions, *pushed]:
            assert [name for name in told.names if name in set(together)] == together
    assert opened[0][1].names == opened[1][1].names


@pytest_twisted.ensureDeferred
async def test_offsets_have_no_gap_under_serializable_isolation(nodes: Nodes) -> None:
    nodes.run(f"ALTER DATABASE {nodes.name} SET default_transaction_isolation = 'serializable'")
    (node, told), (other, _) = await nodes.node(), await nodes.node()
    await gatherResults([broker.publish([new_event()]) for _ in range(30) for broker in (node, other)])
    await until(lambda: len(told.events) == 60, "all events")
    assert told.offsets == list(range(1, 61))
    leases = await gatherResults([broker.lease(name, {5: 1}, 60) for broker, name in ((node, "a"), (other, "b"))])
    assert sorted(len(leased.changed) for leased in leases) == [0, 1]
    await node.trim()


# chatws.publish


@pytest_twisted.ensureDeferred
async def test_default_audiences_are_those_of_the_lines(nodes: Nodes) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    for name in DEFAULT_RULES:
        publish(shop.cursor(), name)
    shop.commit()
    events = await told.until(*DEFAULT_RULES)
    table = AudienceTable()
    for event in events:
        expected = table.new_event(event.name, event.data)
        assert (event.audience, event.offset == 0) == (expected.audience, expected.transient), event.name


@pytest_twisted.ensureDeferred
async def test_data_goes_out_as_it_was_written_but_for_jsonb(nodes: Nodes) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    cursor = shop.cursor()
    written = '{"b": 1.00, "a":\n"\\u00e9 \\\\ é", "b":2}'
    for cast in ("text", "json", "jsonb"):
        publish(cursor, "note", written, cast, audience='"everyone"')
    cursor.execute("""SELECT chatws.publish('note', '{"as": "a literal"}', '"everyone"')""")
    shop.commit()
    events = await told.until("note", "note", "note", "note")
    assert [event.data.decode() for event in events[:2]] == [written] * 2
    assert json.loads(events[2].data) == json.loads(written)
    assert events[3].data == b'{"as": "a literal"}'


@pytest.mark.parametrize(
    ("more", "channels", "excepted"),
    [
        ({"audience": '"everyone"'}, ("*", "#contacts"), None),
        ({"audience": '"agents"'}, ("*",), None),
        ({"audience": '{"conversation_id": 456, "role": "agent"}'}, ("conversation:456", "!#contacts"), None),
        ({"audience": '{"conversation_id": 456, "role": "contact"}'}, ("conversation-contacts:456",), None),
        ({"audience": '{"contact_id": "7"}'}, ("contact:7",), None),
        ({"audience": '{"contact_ids": [7, 8]}'}, ("contact:7", "contact:8"), None),
        ({"audience": '{"group": "sales"}'}, ("group:sales",), None),
        ({"audience": '{"groups": ["sales", "b2b"]}'}, ("group:sales", "group:b2b"), None),
        ({"audience": '{"conversation_id": "456"}'}, ("conversation:456",), None),
        ({"audience": '{"conversation_id": "0456"}'}, ("conversation:0456",), None),
        ({"audience": '{"user_id": 5, "conversation_id": null}'}, ("user:5",), None),
        ({"audience": '{"user_ids": [9, "ana", "9"]}'}, ("user:9", "user:ana"), None),
        ({"audience": '"agents"', "except_user_id": "7"}, ("*",), 7),
        ({"audience": '"agents"', "except_user_id": 'a"b\\'}, ("*",), 'a"b\\'),
        ({"audience": '{"user_id": "9007199254740993"}'}, ("user:9007199254740993",), None),
        ({"audience": '{"user_id": 9007199254740991}'}, ("user:9007199254740991",), None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_audiences_are_those_of_the_lines(
    nodes: Nodes, more: dict[str, str], channels: tuple[str, ...], excepted: object
) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    publish(shop.cursor(), "note", **more)
    shop.commit()
    [event] = await told.until("note")
    assert set(event.audience.channels) == set(channels)
    assert event.audience.except_user_id == excepted


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("'no spaces', '{}'", "event must be 1 to 64"),
        (f"'{'x' * 65}', '{{}}'", "event must be 1 to 64"),
        ("NULL, '{}'", "event must be 1 to 64"),
        ("'note', '{}'", "note has no default audience"),
        ("'note', NULL::text", "data must be an object"),
        ("'note', '[]'", "data must be an object"),
        ("'note', '{'", "invalid input syntax for type json"),
        ("'new_message', '{}'", "data.conversation_id must be an integer or a string"),
        ("""'new_message', '{"conversation_id":1.5}'""", "data.conversation_id must be an integer from 0"),
        ("""'new_message', '{"conversation_id":""}'""", "data.conversation_id must have 1 to 128"),
        ("""'note', '{}', '"nobody"'""", 'audience must be "agents", "everyone"'),
        ("""'note', '{}', '{"user_id":1,"conversation_id":2}'""", "audience must name one"),
        ("""'note', '{}', '{"user_ids":[]}'""", "audience.user_ids must be"),
        ("""'note', '{}', '{"contact_ids":[]}'""", "audience.contact_ids must be"),
        ("""'note', '{}', '{"groups":[]}'""", "audience.groups must not be empty"),
        ("""'note', '{}', '{"group":"a b"}'""", "audience.group must have names"),
        ("""'note', '{}', '{"user_id":5,"role":"agent"}'""", "audience.role must be"),
        ("""'note', '{}', '{"conversation_id":5,"role":"admin"}'""", "audience.role must be"),
        ("""'note', '{}', '{"user_id":true}'""", "audience.user_id must be"),
        ("""'note', '{}', '"everyone"', except_user_id => ''""", "except_user_id must have"),
        ("""'note', '{}', '"everyone"', id => ''""", "id must have 1 to 128"),
        ("""'note', '{"a":"' || repeat('x', 1048576) || '"}', '"everyone"'""", "larger than 1 MiB"),
    ],
)
def test_an_invalid_event_is_rejected_in_the_transaction(nodes: Nodes, arguments: str, complaint: str) -> None:
    with pytest.raises(psycopg2.Error, match=complaint):
        nodes.run(f"SELECT chatws.publish({arguments})")
    assert nodes.run("SELECT count(*) FROM chatws.outbox") == [(0,)]


def in_push_api(data: str) -> tuple[str, ...] | None:
    """Return the channels of a `new_message`, or None if the push API rejects it."""
    try:
        line = parse_line(f'{{"event":"new_message","data":{data}}}'.encode())
        assert isinstance(line, PublishLine)
        return AudienceTable().new_event(line.event, line.data).audience.channels
    except ClientError:
        return None


def test_publish_accepts_and_rejects_the_data_that_the_push_api_does(nodes: Nodes) -> None:
    ids = ("456", "-0", "-1", "4.56e2", "456.0", "456E0", "1.5", "9007199254740991", "9007199254740992", '"456"')
    ids = (*ids, '"4.56e2"', '""', "true", "null", '"\\u0034"', '"\\ud83d\\ude00"', '"\\ude00\\ud83d"', '"\\\\ud83d"')
    data = [f'{{"conversation_id":{id}}}' for id in ids]
    texts = (
        "\\ud83d",
        "\\uD83Dx",
        "\\udE00",
        "\\\\ud83d",
        "\\\\\\ud83d",
        "\\ud83d\\ude00",
        "\\ud83d\\ud83d\\ude00\\ude00",
    )
    data += [f'{{"conversation_id":1,"a":"{text}"}}' for text in texts]
    # how deep the push API reads depends on Python: 1,000 levels in 3.11, 10,000 in 3.12
    deep = ["[" * levels + "]" * levels for levels in (890, 20_000, 50_000)]
    wide = f"[{','.join(['[]', '{}'] * 3000)}]"
    quoted = f'["{"[" * 3000}","\\"{"[" * 3000}","\\\\"{",[" * 800}{"]" * 801}'
    data += [
        f'{{"conversation_id":1,"a":{value}}}' for value in (*deep, '{"a":' * 20_000 + "1" + "}" * 20_000, wide, quoted)
    ]
    shop = nodes.shop()
    accepted = []
    for value in data:
        cursor = shop.cursor()
        try:
            publish(cursor, "new_message", value)
        except psycopg2.Error:
            result = None
        else:
            cursor.execute("SELECT channels FROM chatws.outbox")
            result = tuple(json.loads(cursor.fetchall()[0][0]))
        shop.rollback()
        expected = in_push_api(value)
        assert result == expected, value[:100]
        accepted.append(expected is not None)
    assert accepted.count(True) >= 10
    assert accepted.count(False) >= 10


def test_the_servers_own_events_are_refused(nodes: Nodes) -> None:
    for name in RESERVED_EVENTS:
        with pytest.raises(psycopg2.Error, match="reserved_event"):
            nodes.run(f"""SELECT chatws.publish('{name}', '{{}}', '"everyone"')""")


@pytest_twisted.ensureDeferred
async def test_a_key_is_shared_by_sql_and_push(nodes: Nodes) -> None:
    broker, told = await nodes.node()
    shop = nodes.shop()
    key = "order 77 \\ é"
    publish(shop.cursor(), "new_message", id=key)
    publish(shop.cursor(), "new_message", id=key)
    shop.commit()
    [receipt] = await broker.publish([new_event(key=key)])
    assert (receipt.offset, receipt.duplicate) == (1, True)
    await broker.publish([new_event("other", key="nul \0")])
    [receipt] = await broker.publish([new_event("other", key="nul \0")])
    assert receipt.duplicate
    await told.until("new_message", "other")


@pytest_twisted.ensureDeferred
async def test_transient_events_have_no_offset(nodes: Nodes) -> None:
    broker, told = await nodes.node()
    shop = nodes.shop()
    publish(shop.cursor(), "typing")
    publish(shop.cursor(), "new_message", transient=True)
    shop.commit()
    events = await told.until("typing", "new_message")
    assert [event.offset for event in events] == [0, 0]
    assert await broker.offset_range() == (1, 0)


@pytest_twisted.ensureDeferred
async def test_typing_of_a_contact_excludes_that_contact(nodes: Nodes) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    publish(shop.cursor(), "typing", '{"conversation_id":456,"contact_id":7}')
    shop.commit()
    [event] = await told.until("typing")
    assert event.audience == Audience(("conversation:456", "!contact:7"))


@pytest_twisted.ensureDeferred
async def test_set_groups_becomes_a_command_at_commit(nodes: Nodes) -> None:
    _, told = await nodes.node()
    shop = nodes.shop()
    shop.cursor().execute("SELECT chatws.set_groups(5, ARRAY['sales', 'b2b', 'sales'])")
    shop.cursor().execute("SELECT chatws.set_groups('ana', '{}')")
    shop.commit()
    commands = [decode_command(event) for event in await told.until("groups", "groups")]
    assert isinstance(commands[0], GroupsCommand)
    assert (commands[0].user_id, sorted(commands[0].groups)) == (5, ["b2b", "sales"])
    assert commands[1] == GroupsCommand("ana", ())
    for groups in ("NULL", "ARRAY['a b']", "ARRAY[NULL]::text[]"):
        with pytest.raises(psycopg2.Error, match="groups must"):
            nodes.run(f"SELECT chatws.set_groups(5, {groups})")


# Orders


@pytest_twisted.ensureDeferred
async def test_a_trigger_on_the_shops_own_table_revokes_at_commit(nodes: Nodes) -> None:
    nodes.run("""
        CREATE TABLE assignments (agent_id int, conversation_id bigint);
        INSERT INTO assignments VALUES (5, 456), (6, 456);
        CREATE FUNCTION unassigned() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM chatws.revoke(OLD.agent_id, OLD.conversation_id);
            RETURN OLD;
        END $$;
        CREATE TRIGGER unassigned AFTER DELETE ON assignments FOR EACH ROW EXECUTE FUNCTION unassigned();
    """)
    _, told = await nodes.node()
    shop = nodes.shop()
    shop.cursor().execute("DELETE FROM assignments WHERE agent_id = 6")
    shop.rollback()
    shop.cursor().execute("DELETE FROM assignments WHERE agent_id = 5")
    assert told.events == []
    shop.commit()
    [event] = await told.until("unsubscribe")
    assert decode_command(event) == UnsubscribeCommand(5, 456)


@pytest.mark.parametrize(
    ("call", "order"),
    [
        ("revoke(5, 456)", UnsubscribeCommand(5, 456)),
        ("revoke('5', '456')", UnsubscribeCommand(5, 456)),
        ("revoke('ana'::text, 456::bigint)", UnsubscribeCommand("ana", 456)),
        ("revoke(5::smallint, 'c\"1')", UnsubscribeCommand(5, 'c"1')),
        ("disconnect(5)", DisconnectCommand(5)),
        ("disconnect('ana', 'logged \"out\"')", DisconnectCommand("ana", 'logged "out"')),
        ("disconnect(5, 'fired', true)", DisconnectCommand(5, "fired", True)),
        ("disconnect(user_id => 5, ban => true)", DisconnectCommand(5, "", True)),
    ],
)
@pytest_twisted.ensureDeferred
async def test_sql_commands_decode_to_cluster_commands(nodes: Nodes, call: str, order: object) -> None:
    _, told = await nodes.node()
    nodes.run(f"SELECT chatws.{call}")
    await until(lambda: told.events, "the order")
    [event] = told.events
    assert decode_command(event) == order
    assert event.offset == 1
    assert event.audience == Audience(("#nodes",))


@pytest_twisted.ensureDeferred
async def test_the_shops_role_needs_nothing_but_execute(nodes: Nodes) -> None:
    nodes.run("""
        DO $$ BEGIN CREATE ROLE shop LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        CREATE FUNCTION public.to_json(text) RETURNS json LANGUAGE sql AS 'SELECT NULL::json';
    """)
    shop = nodes.shop("shop")
    shop.autocommit = True
    cursor = shop.cursor()
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        publish(cursor, "new_message")
    nodes.run("SELECT chatws.allow('shop')")
    _, told = await nodes.node()
    publish(cursor, "new_message", except_user_id="ana")
    publish(cursor, "new_message", cast="jsonb")
    cursor.execute("SELECT chatws.revoke(5, 456), chatws.disconnect('ana')")
    cursor.execute("SELECT * FROM chatws.online_agents")
    for forbidden in (
        "SELECT * FROM chatws.events",
        "INSERT INTO chatws.outbox (name) VALUES ('x')",
        "SELECT chatws.reset_history()",
        "SELECT chatws._put('unsubscribe', ARRAY['#nodes'], NULL, '{}', NULL, false)",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute(forbidden)
    await until(lambda: len(told.events) == 4, "four events")
    assert told.events[0].audience.except_user_id == "ana"


@pytest_twisted.ensureDeferred
async def test_the_nodes_role_need_not_be_a_superuser(nodes: Nodes) -> None:
    nodes.run(f"""
        DROP SCHEMA chatws CASCADE;
        DO $$ BEGIN CREATE ROLE node LOGIN; CREATE ROLE buyer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT CREATE ON DATABASE {nodes.name} TO node;
    """)
    url = nodes.url.replace("postgres:not-asked-for", "node")
    with transaction(url) as cursor:
        apply(cursor, "chatws", migrations())
        cursor.execute("SELECT chatws.allow('buyer')")
    broker, told = await nodes.node(url)
    shop = nodes.shop("buyer")
    publish(shop.cursor(), "new_message")
    shop.commit()
    await told.until("new_message")
    await broker.lease("a", {5: 1}, 60)
    await broker.trim()


# Waking


def test_a_commit_wakes_a_node_only_when_none_looks_anyway(nodes: Nodes) -> None:
    listener = nodes.shop()
    listener.autocommit = True
    listener.cursor().execute("LISTEN chatws")

    def heard(polled_until: str) -> list[str]:
        nodes.run(f"UPDATE chatws.poll_hint SET polled_until = {polled_until}")
        shop = nodes.shop()
        for _ in range(3):
            publish(shop.cursor(), "new_message")
        shop.commit()
        del listener.notifies[:]
        listener.cursor().execute("SELECT 1")  # what was notified before is sent along
        return [notify.payload for notify in listener.notifies]

    assert heard("now() + interval '1 hour'") == []
    assert heard("now() - interval '1 second'") == ["outbox"]


@pytest_twisted.ensureDeferred
async def test_a_node_that_finds_events_extends_the_poll_hint(nodes: Nodes) -> None:
    _, told = await nodes.node()
    awake = "SELECT polled_until > '-infinity' FROM chatws.poll_hint"
    assert nodes.run(awake) == [(False,)]
    nodes.run(f"SELECT chatws.publish('new_message', '{DATA}')")
    await told.until("new_message")
    assert nodes.run(awake) == [(True,)]


@pytest_twisted.ensureDeferred
async def test_polling_needs_no_listen_and_no_notify(nodes: Nodes) -> None:
    broker, first = await nodes.node(poll=0.02)
    _, second = await nodes.node(poll=0.02)
    await broker.publish([new_event("a")])
    nodes.run(f"SELECT chatws.publish('new_message', '{DATA}')")
    await first.until("a", "new_message")
    await second.until("a", "new_message")
    assert [query for _, query in nodes.backends() if "LISTEN" in query] == []
    awake = "SELECT polled_until > clock_timestamp() FROM chatws.poll_hint"
    await until(lambda: nodes.run(awake) == [(True,)], "the nodes to say that they go on looking")


# Trimming


@pytest_twisted.ensureDeferred
async def test_trimming_blocks_no_publisher_and_is_done_by_one(nodes: Nodes) -> None:
    broker, told = await nodes.node(retention=Retention(events=2))
    await broker.publish([new_event(f"e{number}") for number in range(10)])
    shop = nodes.shop()
    cursor = shop.cursor()
    cursor.execute("SELECT chatws.trim(2, 0, 0, 1000, NULL)")
    assert cursor.fetchone() == (8,)
    assert nodes.run("SELECT chatws.trim(2, 0, 0, 1000, NULL)") == [(0,)]
    await broker.publish([new_event("while it is not committed")])
    shop.commit()
    assert await broker.offset_range() == (9, 11)
    await broker.trim()
    assert await broker.offset_range() == (10, 11)
    assert len(told.events) == 11


@pytest_twisted.ensureDeferred
async def test_trimming_goes_in_steps_and_ends_when_all_is_done(nodes: Nodes) -> None:
    broker, _ = await nodes.node(retention=Retention(events=5))
    for _ in range(3):
        await broker.publish([new_event() for _ in range(900)])
    await broker.trim()
    assert await broker.offset_range() == (2696, 2700)


@pytest_twisted.ensureDeferred
async def test_transient_events_and_keys_go_when_they_are_old(nodes: Nodes) -> None:
    time = 1_800_000_000.0
    broker, _ = await nodes.node(now=lambda: time)
    await broker.publish([new_event(transient=True), new_event(key="k"), new_event(transient=True)])
    time += 601
    await broker.publish([new_event(key="young")])
    await broker.trim()
    assert nodes.run("SELECT seq FROM chatws.events ORDER BY seq") == [(2,), (4,)]
    assert nodes.run("SELECT key FROM chatws.keys") == [("young",)]


@pytest_twisted.ensureDeferred
async def test_offsets_continue_after_the_newest_event_was_trimmed(nodes: Nodes) -> None:
    broker, told = await nodes.node(retention=Retention(size=1))
    for name in ("a", "b"):
        await broker.publish([new_event(name)])
        await broker.trim()
        assert nodes.run("SELECT count(*) FROM chatws.events") == [(0,)]
    nodes.run(f"SELECT chatws.publish('new_message', '{DATA}')")
    await told.until("a", "b", "new_message")
    assert told.offsets == [1, 2, 3]
    assert told.epochs == []


# Presence


@pytest_twisted.ensureDeferred
async def test_sql_can_join_the_online_agents(nodes: Nodes) -> None:
    nodes.run("CREATE TABLE users (id int, name text); INSERT INTO users VALUES (5, 'Ana'), (6, 'Bia'), (7, 'Caio')")
    broker, _ = await nodes.node()
    other, _ = await nodes.node()
    await broker.lease("a", {5: 2, "x\\y": 1}, 60)
    await other.lease("b", {5: 1, 6: 0}, 60)
    await other.lease("dead", {7: 1}, -1)
    joined = "SELECT name, connection_count FROM users JOIN chatws.online_agents ON user_number = id ORDER BY id"
    assert nodes.run(joined) == [
        ("Ana", 3),
        ("Bia", 0),
    ]
    assert nodes.run("SELECT user_id FROM chatws.online_agents WHERE user_number IS NULL") == [("x\\y",)]


@pytest_twisted.ensureDeferred
async def test_an_id_with_a_nul_keeps_other_leases(nodes: Nodes) -> None:
    broker, _ = await nodes.node()
    assert len((await broker.lease("a", {"a\0b": 1, 5: 1}, 60)).changed) == 2
    assert set(await broker.online()) == {"a\0b", 5}
    assert len(nodes.run("SELECT * FROM chatws.online_agents")) == 2


# Beginning


@pytest_twisted.ensureDeferred
async def test_a_database_without_the_schema_names_the_command(nodes: Nodes) -> None:
    nodes.run("DROP SCHEMA chatws CASCADE")
    with pytest.raises(ConfigError, match="no schema chatws yet: run `chatws db upgrade"):
        await nodes.node()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("DELETE FROM chatws.migrations WHERE number = (SELECT max(number) FROM chatws.migrations)", "earlier version"),
        ("INSERT INTO chatws.migrations (number, name, needs) VALUES (9999, 'x', 9999)", "later version"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_schema_of_another_version_is_refused(nodes: Nodes, change: str, complaint: str) -> None:
    nodes.run(change)
    with pytest.raises(ConfigError, match=complaint):
        await nodes.node()


@pytest_twisted.ensureDeferred
async def test_a_later_schema_that_this_program_can_work_with_is_not_refused(nodes: Nodes) -> None:
    nodes.run("INSERT INTO chatws.migrations (number, name, needs) VALUES (9999, 'x', 1)")
    broker, _ = await nodes.node()
    assert await broker.offset_range() == (1, 0)


@pytest_twisted.ensureDeferred
async def test_an_unreachable_server_is_one_line_without_the_password(nodes: Nodes) -> None:
    broker = open_broker("postgresql://u:s3cret@127.0.0.1:1/x", Retention(), reactor=reactor, timeout=0.5)
    with pytest.raises(ConfigError, match=r"PostgreSQL cannot be asked: Connection refused$") as caught:
        await broker.start(RecordingHandler())
    assert "s3cret" not in str(caught.value)
    with pytest.raises(Unavailable):
        await broker.offset_range()
