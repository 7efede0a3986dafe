"""The outbox on real databases: what is sent, when, in which order, by which of two nodes."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater
from twisted.logger import formatEvent, globalLogPublisher

from chatws.brokers.interface import KEY_SECONDS, Event, NewEvent
from chatws.chat.audience import AudienceTable
from chatws.errors import ConfigError, Unavailable
from chatws.outbox.dialects import dialect_of
from chatws.outbox.full_scan import FULL_SCAN_INTERVAL, FullScan
from chatws.outbox.migrations import upgrade_outbox
from chatws.outbox.online import OnlineTable
from chatws.outbox.reader import LEASE, OutboxReader, OutboxSettings
from chatws.outbox.session import OutboxDatabase
from chatws.outbox.watermark import MAX_GAPS, Watermark
from chatws.push.handler import CommandHandler, PushStats
from tests.mysql import Mysql, mysql  # noqa: F401
from tests.postgres import Postgres, postgres  # noqa: F401
from tests.requirements import needs

reactor: Any = _reactor


class Engine:
    """A database with the tables of the outbox.

    :ivar connect: opens a connection of the application, with transactions.
    """

    def __init__(self, url: str, connect: Callable[[], Any]) -> None:
        self.url = url
        self.connect = connect

    def run(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(self.connect()) as connection:
            rows = run(connection, sql, *values)
            connection.commit()
            return rows

    def insert(self, connection: Any, number: int) -> None:
        """Insert the event number `number`."""
        run(connection, insertion(), "new_message", json.dumps({"conversation_id": 1, "number": number}))


def run(connection: Any, sql: str, *values: object) -> list[tuple[Any, ...]]:
    cursor = connection.cursor()
    if isinstance(connection, sqlite3.Connection):
        sql = sql.replace("%s", "?")
    cursor.execute(sql, values)
    return list(cursor.fetchall()) if cursor.description else []


def insertion(columns: str = "event, data") -> str:
    return f"INSERT INTO chatws_outbox ({columns}) VALUES ({', '.join('%s' for _ in columns.split(','))})"


@pytest.fixture(
    params=[
        pytest.param("mysql", marks=needs("mariadb-server")),
        pytest.param("postgres", marks=needs("postgresql")),
        "sqlite",
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    if request.param == "mysql":
        maria: Mysql = request.getfixturevalue("mysql")

        def connect_mysql() -> Any:
            connection = maria.connect()
            connection.autocommit(False)
            return connection

        result = Engine(maria.url, connect_mysql)
    elif request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        result = Engine(server.url, lambda: psycopg2.connect(server.url))
    else:
        path = tmp_path / "shop.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        result = Engine(f"sqlite:///{path}", lambda: sqlite3.connect(path))
    assert upgrade_outbox(result.url, "")
    assert not upgrade_outbox(result.url, "")
    return result


class Target:
    """The chat server: records what it publishes, and refuses while `is_available` is false."""

    def __init__(self) -> None:
        self.audiences = AudienceTable({})
        self.events: list[NewEvent] = []
        self.disconnected: list[object] = []
        self.agents: list[Any] = []
        self.agent_statuses: dict[str, str] = {}
        self.is_available = True

    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        if not self.is_available:
            return fail(Unavailable("no broker"))
        self.events += new_events
        return succeed([Event(1, event.name, event.audience, event.data, 0.0) for event in new_events])

    def disconnect(self, user_id: Any, reason: str, ban: bool, *, is_contact: bool = False) -> int:
        self.disconnected.append((user_id, reason, ban))
        return 1

    def online(self) -> list[Any]:
        return self.agents

    def statuses(self) -> dict[str, str]:
        return self.agent_statuses

    @property
    def numbers(self) -> list[int]:
        return [json.loads(event.data)["number"] for event in self.events]


class Node:
    """A node with the outbox."""

    def __init__(self, url: str, max_age: float = 3600.0, prefix: str = "") -> None:
        self.target: Any = Target()
        dialect = dialect_of(url)
        self.reader = OutboxReader(
            OutboxDatabase(url, timeout=LEASE, reactor=reactor),
            dialect,
            OutboxSettings(prefix, max_age, 10_000),
            target=self.target,
            handler=CommandHandler(self.target, PushStats()),
            online=OnlineTable(dialect, prefix, self.target.online, self.target.statuses, lambda: 1_764_000_000.0),
            reactor=reactor,
        )
        self.reader.start()

    async def stop(self) -> None:
        await self.reader.stop()


@pytest.fixture
def nodes(engine: Engine) -> Iterator[Callable[..., Node]]:
    started: list[Node] = []

    def start(**options: Any) -> Node:
        started.append(Node(engine.url, **options))
        return started[-1]

    yield start
    for node in started:
        pytest_twisted.blockon(Deferred.fromCoroutine(node.stop()))


async def until(condition: Callable[[], object], seconds: float = 25.0) -> None:
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.01)


async def several_polls(node: Node) -> None:
    polls = node.reader.stats.polls
    await until(lambda: node.reader.stats.polls >= polls + 3)


def is_empty(engine: Engine) -> bool:
    return engine.run("SELECT count(*) FROM chatws_outbox WHERE error IS NULL") == [(0,)]


@pytest_twisted.ensureDeferred
async def test_commit_is_sent_once_in_order_and_deleted_and_rollback_is_not(
    engine: Engine, nodes: Callable[..., Node]
) -> None:
    node = nodes()
    await until(lambda: node.reader.stats.is_holder)
    with closing(engine.connect()) as connection:
        for number in range(3):
            engine.insert(connection, number)
        await several_polls(node)
        assert node.target.events == []
        connection.commit()
        await until(lambda: node.target.numbers == [0, 1, 2])
        engine.insert(connection, 3)
        connection.rollback()
        engine.insert(connection, 4)
        connection.commit()
    await until(lambda: node.target.numbers == [0, 1, 2, 4])
    await until(lambda: is_empty(engine))
    assert node.target.events[0].audience.channels == ("conversation:1",)
    assert (node.reader.stats.sent, node.reader.stats.rejected) == (4, 0)
    keys = [event.key for event in node.target.events]
    assert len({*keys}) == 4
    assert all(key.startswith("outbox:") for key in keys)
    # a row that is still sent must still be known
    assert {event.key_seconds for event in node.target.events} == {3600.0}
    assert OutboxSettings("", 60.0, 1).key_seconds == KEY_SECONDS


@pytest_twisted.ensureDeferred
async def test_row_with_a_smaller_id_that_is_committed_later_is_sent(
    request: pytest.FixtureRequest, engine: Engine, nodes: Callable[..., Node]
) -> None:
    if engine.url.startswith("sqlite"):
        return  # one writer at a time
    node = nodes()
    await until(lambda: node.reader.stats.is_holder)
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":0}')
    await until(lambda: node.target.numbers == [0])
    with closing(engine.connect()) as slow, closing(engine.connect()) as quick:
        engine.insert(slow, 1)
        engine.insert(quick, 2)
        engine.insert(slow, 3)
        quick.commit()
        await until(lambda: node.target.numbers == [0, 2])
        engine.insert(quick, 4)
        quick.commit()
        await until(lambda: node.target.numbers == [0, 2, 4])
        slow.commit()
        await until(lambda: node.target.numbers == [0, 2, 4, 1, 3])
    await until(lambda: is_empty(engine))


@pytest_twisted.ensureDeferred
async def test_transaction_that_is_older_than_the_node_is_sent_at_its_commit(
    engine: Engine, nodes: Callable[..., Node]
) -> None:
    if engine.url.startswith("sqlite"):
        return  # one writer at a time
    with closing(engine.connect()) as slow:
        engine.insert(slow, 1)
        node = nodes()
        await until(lambda: node.reader.stats.is_holder)
        await several_polls(node)
        engine.run(insertion(), "new_message", '{"conversation_id":1,"number":2}')
        await until(lambda: node.target.numbers == [2])
        slow.commit()
        await until(lambda: node.target.numbers == [2, 1])


def test_watermark_reads_what_is_above_and_what_is_missing() -> None:
    watermark = Watermark(60.0)
    assert watermark.where(0.0) == "id > 0"
    watermark.note([5, 7], 0.0)
    assert watermark.where(1.0) == "id > 7 OR id IN (1, 2, 3, 4, 6)"
    watermark.note([3, 6, 8], 1.0)
    assert watermark.where(2.0) == "id > 8 OR id IN (1, 2, 4)"
    watermark.note([10], 30.0)
    assert watermark.where(65.0) == "id > 10 OR id IN (9)"
    assert watermark.where(100.0) == "id > 10"
    watermark.lower(4)
    assert watermark.where(101.0) == "id > 3"
    watermark.note([4], 101.0)
    assert watermark.where(102.0) == "id > 4"
    watermark.lower(9)
    assert watermark.where(103.0) == "id > 4"
    watermark.note([100_000], 200.0)
    assert watermark.where(201.0).count(",") == MAX_GAPS - 1


class ScanSession:
    """A session whose statements the test answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Deferred[Any]]] = []
        self.is_closed = False

    async def run_query(self, sql: str, values: Any = None) -> Any:
        answer: Deferred[Any] = Deferred()
        self.asked.append((sql, answer))
        return await answer

    async def run_batch(self, sql: str, batch: Any) -> int:
        raise NotImplementedError

    def close(self) -> None:
        self.is_closed = True


def test_full_scan_uses_a_small_part_of_the_time_and_a_session_of_its_own() -> None:
    clock, own, lines = Clock(), ScanSession(), []

    async def open_session() -> Any:
        return own

    scan = FullScan(open_session, ScanSession(), lambda highest: f"up to {highest}", clock, lines.append)
    assert not scan.is_due
    clock.advance(FULL_SCAN_INTERVAL)
    assert scan.is_due
    scan.start(7)
    clock.advance(2.0)
    assert not scan.is_due
    ((sql, answer),) = own.asked
    assert sql == "up to 7"
    answer.callback(([{"id": 3}], 1))
    assert (scan.take(), scan.take()) == (3, None)
    clock.advance(99.0)
    assert not scan.is_due, "a scan of 2 s may use 2 % of the time"
    clock.advance(1.0)
    assert scan.is_due
    scan.start(8)
    own.asked[1][1].errback(Unavailable("gone"))
    assert own.is_closed
    assert lines == ["the full scan of the outbox failed: unavailable: gone"]
    scan.close()


@pytest.fixture
def frequent_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatws.outbox.full_scan.FULL_SCAN_INTERVAL", 0.2)


@pytest.mark.usefixtures("frequent_scans")
@pytest_twisted.ensureDeferred
async def test_full_scan_finds_a_row_in_a_forgotten_gap(engine: Engine, nodes: Callable[..., Node]) -> None:
    columns = "id, event, data"
    node = nodes()
    engine.run(insertion(columns), 100_000, "new_message", '{"conversation_id":1,"number":1}')
    await until(lambda: node.target.numbers == [1])
    await until(lambda: is_empty(engine))
    # far below the remembered gaps
    engine.run(insertion(columns), 5, "new_message", '{"conversation_id":1,"number":2}')
    await until(lambda: node.target.numbers == [1, 2])


@pytest_twisted.ensureDeferred
async def test_columns_become_the_options_of_the_event(engine: Engine, nodes: Callable[..., Node]) -> None:
    node = nodes()
    data = '{ "b": 1,  "a": "é 🦊 \\u00e9" }'
    columns = "event, data, audience, except_user_id, idempotency_key, transient"
    engine.run(insertion(columns), "note", data, '{"user_ids":[5,6]}', "7", "order-77", True)
    engine.run(insertion("event, data, audience"), "note", "{}", "everyone")
    engine.run(insertion("op, data"), "disconnect", '{"user_id":5,"reason":"gone","ban":true}')
    await until(lambda: len(node.target.events) == 2 and node.target.disconnected)
    first, second = node.target.events
    assert first.data == data.encode()
    assert first.audience.channels == ("user:5", "user:6")
    assert (first.audience.except_user_id, first.key, first.transient) == (7, "order-77", True)
    assert second.audience.channels == ("*",)
    assert node.target.disconnected == [(5, "gone", True)]
    await until(lambda: is_empty(engine))


@pytest_twisted.ensureDeferred
async def test_bad_rows_get_an_error_and_block_no_other(engine: Engine, nodes: Callable[..., Node]) -> None:
    columns = "event, data, audience, op"
    bad: list[tuple[object, ...]] = [
        ("new_message", "{", None, None),
        ("new_message", '{"a":"cut', None, None),
        ("new_message", '{},"to":"everyone"', None, None),
        ("note", "{}", None, None),
        ("note", "{}", '{"user_id":1},"transient":true', None),
        ("pong", "{}", "everyone", None),
        ("note", "[]", "everyone", None),
        (None, "{}", None, "auth"),
        (None, "[]", None, "disconnect"),
        (None, '{"user_id":1.5}', None, "disconnect"),
        (None, "{}", None, None),
        ("note", "{}", "everyone", "disconnect"),
        ("note", json.dumps({"x": "x" * 20_000}), "everyone", None),
    ]
    for values in bad:
        engine.run(insertion(columns), *values)
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":1}')
    node = nodes()
    await until(lambda: node.target.numbers == [1])
    rows = engine.run("SELECT error FROM chatws_outbox WHERE error IS NOT NULL ORDER BY id")
    assert len(rows) == len(bad)
    codes = [str(error).partition(":")[0] for (error,) in rows]
    assert codes == [
        *("bad_json", "bad_json", "bad_json", "no_audience", "bad_json", "reserved_event", "bad_message"),
        *("unknown_type", "bad_message", "bad_message", "bad_message", "bad_message", "line_too_long"),
    ]
    await several_polls(node)
    assert node.reader.stats.rejected == len(bad)


@pytest_twisted.ensureDeferred
async def test_old_rows_are_not_sent(engine: Engine, nodes: Callable[..., Node]) -> None:
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":1}')
    await deferLater(reactor, 0.2)
    node = nodes(max_age=0.1)
    await until(lambda: node.reader.stats.rejected == 1)
    assert node.target.events == []
    ((error,),) = engine.run("SELECT error FROM chatws_outbox")
    assert "outbox_max_age" in error


@pytest_twisted.ensureDeferred
async def test_tables_with_a_prefix_are_an_outbox_of_their_own(engine: Engine, nodes: Callable[..., Node]) -> None:
    assert upgrade_outbox(engine.url, "shop_")
    if engine.url.startswith("sqlite"):
        node = nodes(prefix="shop_")
    else:
        other, node = nodes(), nodes(prefix="shop_")
        await until(lambda: other.reader.stats.is_holder)
    node.target.agents = [5]
    engine.run(insertion().replace("chatws_", "shop_chatws_"), "new_message", '{"conversation_id":1,"number":1}')
    await until(lambda: node.target.numbers == [1])
    await until(lambda: engine.run("SELECT user_number FROM shop_chatws_online") == [(5,)])
    with pytest.raises(ConfigError, match="--table-prefix"):
        upgrade_outbox(engine.url, "x; DROP TABLE users; --")


@pytest_twisted.ensureDeferred
async def test_unavailable_broker_delays_the_rows(engine: Engine, nodes: Callable[..., Node]) -> None:
    node = nodes()
    node.target.is_available = False
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":1}')
    await until(lambda: node.reader.stats.polls >= 2)
    node.target.is_available = True
    await until(lambda: node.target.numbers == [1])
    await until(lambda: is_empty(engine))


@pytest_twisted.ensureDeferred
async def test_second_node_takes_over_when_the_holder_stops(engine: Engine, nodes: Callable[..., Node]) -> None:
    first = nodes()
    await until(lambda: first.reader.stats.is_holder)
    second = nodes()
    for number in range(20):
        engine.run(insertion(), "new_message", json.dumps({"conversation_id": 1, "number": number}))
    await until(lambda: len(first.target.events) == 20)
    assert not second.reader.stats.is_holder
    await first.stop()
    await until(lambda: second.reader.stats.is_holder)
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":20}')
    await until(lambda: second.target.numbers == [20])
    assert first.target.numbers == [*range(20)]


@pytest.mark.usefixtures("frequent_scans")
@pytest_twisted.ensureDeferred
async def test_ids_that_begin_again_are_new_rows(engine: Engine, nodes: Callable[..., Node]) -> None:
    node = nodes()
    for number in range(3):
        engine.run(insertion(), "new_message", json.dumps({"conversation_id": 1, "number": number}))
    await until(lambda: node.target.numbers == [0, 1, 2])
    await until(lambda: is_empty(engine))
    engine.run(
        {
            "mysql": "TRUNCATE chatws_outbox",
            "postgresql": "TRUNCATE chatws_outbox RESTART IDENTITY",
            "sqlite": "DELETE FROM sqlite_sequence",
        }[engine.url.partition(":")[0]]
    )
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":3}')
    await until(lambda: node.target.numbers == [0, 1, 2, 3])
    assert len({event.key for event in node.target.events}) == 4


@pytest_twisted.ensureDeferred
async def test_missing_tables_are_named_and_found_later(engine: Engine, nodes: Callable[..., Node]) -> None:
    lines: list[str] = []

    def observe(event: Any) -> None:
        lines.append(formatEvent(event))

    engine.run("DROP TABLE chatws_outbox")
    globalLogPublisher.addObserver(observe)
    try:
        node = nodes()
        await until(lambda: any("run chatws db upgrade --database" in line for line in lines))
    finally:
        globalLogPublisher.removeObserver(observe)
    assert upgrade_outbox(engine.url, "")
    engine.run(insertion(), "new_message", '{"conversation_id":1,"number":1}')
    await until(lambda: node.target.numbers == [1])


@pytest_twisted.ensureDeferred
async def test_view_has_the_agents_online_and_expires(engine: Engine, nodes: Callable[..., Node]) -> None:
    def online() -> list[tuple[Any, ...]]:
        return engine.run("SELECT user_id, user_number, status FROM chatws_online ORDER BY user_id")

    node = nodes()
    node.target.agents = [5, "ana", 2**53]
    expected = [("5", 5, "online"), (str(2**53), 2**53, "online"), ("ana", None, "online")]
    await until(lambda: online() == expected)
    node.target.agent_statuses["5"] = "away"
    await until(lambda: online() == [("5", 5, "away"), *expected[1:]])
    node.target.agents = ["ana"]
    await until(lambda: online() == [("ana", None, "online")])
    await node.stop()
    # a node that was killed leaves the rows, and no longer renews
    past = {
        "mysql": "UTC_TIMESTAMP(3) - INTERVAL 1 SECOND",
        "postgresql": "now() - interval '1 second'",
        "sqlite": "(julianday('now') - 2440587.5) * 86400 - 1",
    }[engine.url.partition(":")[0]]
    engine.run(f"UPDATE chatws_schema SET online_until = {past}")
    assert online() == []
    # its rows are replaced by the next holder
    other = nodes()
    other.target.agents = [6]
    await until(lambda: online() == [("6", 6, "online")])
