"""The outbox where MySQL differs: server-wide locks, dead holders, triggers, storage engines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.logger import formatEvent, globalLogPublisher

from chatws.database.blocking import blocking_connection
from chatws.errors import ConfigError
from chatws.outbox.check import check_outbox
from chatws.outbox.dialects import DIALECTS
from chatws.outbox.migrations import upgrade_outbox
from tests.e2e.process import free_port
from tests.mysql import Mysql, mysql  # noqa: F401
from tests.postgres import ForgetfulFirewall
from tests.requirements import find_library, needs
from tests.test_outbox import Engine, Node, is_empty, nodes, several_polls, until  # noqa: F401

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def engine(mysql: Mysql) -> Engine:  # noqa: F811
    upgrade_outbox(mysql.url, "")
    return Engine(mysql.url, mysql.connect)


@pytest.fixture
def lines() -> Iterator[list[str]]:
    result: list[str] = []

    def observe(event: Any) -> None:
        result.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield result
    globalLogPublisher.removeObserver(observe)


def insert(engine: Engine, number: int) -> None:
    engine.run(f"""INSERT INTO chatws_outbox (event, data) VALUES
        ('new_message', '{{"conversation_id":1,"number":{number}}}')""")


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_silent_holder_loses_the_outbox_and_sends_nothing_more(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
) -> None:
    firewall = ForgetfulFirewall(reactor, mysql.port)  # type: ignore[arg-type]
    first = Node(mysql.url_of("shop", port=firewall.port))
    second = None
    try:
        await until(lambda: first.reader.stats.is_holder)
        insert(engine, 0)
        await until(lambda: first.target.numbers == [0] and is_empty(engine))
        await several_polls(first)
        second = Node(mysql.url)
        firewall.forget()
        firewall.closed = True
        insert(engine, 1)
        await until(lambda: second is not None and second.target.numbers == [1], 40.0)
        await until(lambda: not first.reader.stats.is_holder)
        firewall.closed = False
        insert(engine, 2)
        await until(lambda: second is not None and second.target.numbers == [1, 2])
        assert first.target.numbers == [0]
    finally:
        await first.stop()
        if second is not None:
            await second.stop()
        await firewall.stop()


@pytest_twisted.ensureDeferred
async def test_killed_session_is_replaced_without_a_second_event(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
) -> None:
    node = nodes()
    for number in range(10):
        insert(engine, number)
        if number % 3 == 0:
            mysql.kill_connections()
    await until(lambda: node.target.numbers == [*range(10)])


@pytest_twisted.ensureDeferred
async def test_two_shops_on_one_server_have_outboxes_of_their_own(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
) -> None:
    mysql.admin("DROP DATABASE IF EXISTS other; CREATE DATABASE other")
    # a clone: the same table id in another database
    mysql.run(
        "CREATE TABLE other.chatws_schema AS SELECT * FROM chatws_schema;"
        "CREATE TABLE other.chatws_outbox LIKE chatws_outbox;"
        "CREATE TABLE other.chatws_online_agents LIKE chatws_online_agents"
    )
    first, clone = nodes(), Node(mysql.url_of("other"))
    try:
        await until(lambda: first.reader.stats.is_holder and clone.reader.stats.is_holder)
        insert(engine, 1)
        mysql.run("""INSERT INTO other.chatws_outbox (event, data) VALUES
            ('new_message', '{"conversation_id":1,"number":2}')""")
        await until(lambda: first.target.numbers == [1] and clone.target.numbers == [2])
        assert first.target.events[0].key != clone.target.events[0].key
    finally:
        await clone.stop()


@pytest_twisted.ensureDeferred
async def test_lock_that_another_connection_gets_too_is_refused(
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
    lines: list[str],
) -> None:
    node = nodes()
    # as ProxySQL, whose connections share one session
    node.reader._dialect = node.reader._dialect._replace(lock="SELECT 1 AS held, %(name)s AS name")
    await until(lambda: any("single writer" in line for line in lines))
    insert(engine, 1)
    assert not node.reader.stats.is_holder
    assert node.target.events == []


@pytest_twisted.ensureDeferred
async def test_table_without_transactions_is_refused(
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
    lines: list[str],
) -> None:
    engine.run("ALTER TABLE chatws_outbox ENGINE=MyISAM")
    node = nodes()
    await until(lambda: any("ENGINE=InnoDB" in line for line in lines))
    engine.run("ALTER TABLE chatws_outbox ENGINE=InnoDB")
    insert(engine, 1)
    await until(lambda: node.target.numbers == [1])


@pytest_twisted.ensureDeferred
async def test_open_transaction_of_a_report_delays_nothing(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
) -> None:
    node = nodes()
    with closing(mysql.connect()) as report:
        report.query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        for number in range(50):
            insert(engine, number)
        await until(lambda: node.target.numbers == [*range(50)])
        await several_polls(node)
        assert engine.run("SELECT count(*) FROM chatws_outbox") == [(0,)]
        report.rollback()


@pytest_twisted.ensureDeferred
async def test_locked_table_of_the_agents_online_does_not_delay_events(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
    lines: list[str],
) -> None:
    node = nodes()
    node.target.agents = [5]
    await until(lambda: engine.run("SELECT user_id FROM chatws_online") == [("5",)])
    with closing(mysql.connect()) as other:
        other.begin()
        other.query("UPDATE chatws_online_agents SET status = 'x'")
        node.target.agents = []
        await until(lambda: any("chatws_online is not up to date" in line for line in lines))
        insert(engine, 1)
        await until(lambda: node.target.numbers == [1])
        other.rollback()
    await until(lambda: engine.run("SELECT user_id FROM chatws_online") == [])


@pytest_twisted.ensureDeferred
async def test_deleting_does_not_lock_the_table_against_inserts(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
) -> None:
    node = nodes()
    with closing(mysql.connect()) as php:
        php.begin()
        php.query("""INSERT INTO chatws_outbox (event, data) VALUES
            ('new_message', '{"conversation_id":1,"number":99}')""")
        # the open insert is neither read nor waited for
        for number in range(20):
            insert(engine, number)
        await until(lambda: node.target.numbers == [*range(20)])
        await until(lambda: engine.run("SELECT count(*) FROM chatws_outbox") == [(0,)])
        php.commit()
    await until(lambda: node.target.numbers == [*range(20), 99])


def test_check_accepts_the_outbox_and_names_what_is_wrong(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_outbox(mysql.url, "", 5.0)
    with pytest.raises(ConfigError, match="chatws db upgrade"):
        check_outbox(mysql.url, "other_", 5.0)
    mysql.run("ALTER TABLE chatws_outbox ENGINE=MyISAM")
    with pytest.raises(ConfigError, match="ENGINE=InnoDB"):
        check_outbox(mysql.url, "", 5.0)
    mysql.run("ALTER TABLE chatws_outbox ENGINE=InnoDB")
    dialect = DIALECTS["mysql"]
    # as ProxySQL, whose connections share one session
    monkeypatch.setitem(DIALECTS, "mysql", dialect._replace(lock="SELECT 1 AS held, %(name)s AS name"))
    with pytest.raises(ConfigError, match="single writer"):
        check_outbox(mysql.url, "", 5.0)
    # as Galera
    monkeypatch.setitem(
        DIALECTS, "mysql", dialect._replace(clusters=("SELECT @@no_such AS value", "SELECT 1 AS value"))
    )
    with pytest.raises(ConfigError, match="single_writer=true"):
        check_outbox(mysql.url, "", 5.0)
    check_outbox(f"{mysql.url}?single_writer=true", "", 5.0)


@pytest_twisted.ensureDeferred
async def test_cluster_with_several_writers_is_refused(
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
    lines: list[str],
) -> None:
    node = nodes()
    node.reader._dialect = node.reader._dialect._replace(clusters=("SELECT 1 AS value",))
    await until(lambda: any("several servers of this cluster may write" in line for line in lines))
    assert not node.reader.stats.is_holder


@pytest.mark.long
@needs("mariadb-server")
@needs("galera-4")
@pytest_twisted.ensureDeferred
async def test_node_of_a_real_galera_cluster_is_refused_unless_it_is_the_only_writer(lines: list[str]) -> None:
    ports = [free_port() for _ in range(2)]
    library = find_library("galera-4")
    galera = Mysql(
        *("--wsrep-on=ON", f"--wsrep-provider={library}", "--wsrep-cluster-address=gcomm://", "--wsrep-new-cluster"),
        *("--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-node-address=127.0.0.1"),
        f"--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:{ports[0]};ist.recv_addr=127.0.0.1:{ports[1]}",
    )
    started: list[Node] = []
    try:
        galera.clear()
        upgrade_outbox(galera.url, "")
        with pytest.raises(ConfigError, match="single_writer=true"):
            check_outbox(galera.url, "", 20.0)
        started.append(Node(galera.url))
        await until(lambda: any("several servers of this cluster may write" in line for line in lines))
        insert(Engine(galera.url, galera.connect), 1)
        refused = started.pop()
        await refused.stop()
        assert refused.target.events == []
        only_writer = f"{galera.url}?single_writer=true"
        check_outbox(only_writer, "", 20.0)
        started.append(Node(only_writer))
        await until(lambda: started[0].target.numbers == [1])
    finally:
        for node in started:
            await node.stop()
        galera.close()


@pytest_twisted.ensureDeferred
async def test_rows_that_were_read_too_long_ago_are_not_sent_but_read_again(
    engine: Engine,
    nodes: Callable[..., Node],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("chatws.outbox.reader.FRESH", -1.0)
    insert(engine, 1)
    node = nodes()
    await until(lambda: node.reader.stats.polls >= 3)
    assert node.target.events == []
    monkeypatch.setattr("chatws.outbox.reader.FRESH", 6.0)
    await until(lambda: node.target.numbers == [1])


@pytest_twisted.ensureDeferred
async def test_now_in_the_zone_of_the_session_is_no_old_row(
    mysql: Mysql,  # noqa: F811
    engine: Engine,
) -> None:
    node = Node(f"{mysql.url}?time_zone=%2B05:30", max_age=1800.0)
    try:
        for number, zone in enumerate(("-11:00", "+13:00")):
            with closing(mysql.connect()) as php:
                php.query(f"SET time_zone = '{zone}'")
                php.query(f"""INSERT INTO chatws_outbox (event, data, created_at) VALUES
                    ('new_message', '{{"conversation_id":1,"number":{number}}}', NOW())""")
        await until(lambda: node.target.numbers == [0, 1])
    finally:
        await node.stop()


@pytest_twisted.ensureDeferred
async def test_deleted_definer_breaks_a_trigger_with_1449_and_not_the_view(
    mysql: Mysql,  # noqa: F811
    nodes: Callable[..., Node],  # noqa: F811
) -> None:
    mysql.run("DROP VIEW chatws_online; DROP TABLE chatws_schema, chatws_outbox, chatws_online_agents")
    mysql.admin("CREATE OR REPLACE USER installer IDENTIFIED BY 'x'; GRANT ALL ON shop.* TO installer")
    url = mysql.url_of("shop", user="installer", password="x")
    upgrade_outbox(url, "")
    trigger = """CREATE OR REPLACE TRIGGER user_deleted AFTER DELETE ON users FOR EACH ROW
        INSERT INTO chatws_outbox (op, data) VALUES ('disconnect', JSON_OBJECT('user_id', OLD.id))"""
    mysql.run("CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (5), (6)")
    with blocking_connection(url, 20.0) as run:
        run(trigger)
    mysql.admin("DROP USER installer")
    node = nodes()
    node.target.agents = [7]
    await until(lambda: mysql.run("SELECT user_number FROM chatws_online") == [(7,)])
    with pytest.raises(pymysql.OperationalError, match="1449"):
        mysql.run("DELETE FROM users WHERE id = 5")
    assert mysql.run("SELECT count(*) FROM users") == [(2,)]
    mysql.run(f"{trigger}; DELETE FROM users WHERE id = 5")
    await until(lambda: node.target.disconnected == [(5, "", False)])


def test_query_of_the_guide_names_the_transaction_that_stays_open(mysql: Mysql, engine: Engine) -> None:  # noqa: F811
    guides = [DOCS / "outbox.md", DOCS / "pt-BR" / "MYSQL.md"]
    queries = [re.findall(r"`(SELECT [^`]*innodb_trx[^`]*)`", guide.read_text("utf-8")) for guide in guides]
    assert [len(item) for item in queries] == [1, 1]
    with closing(mysql.connect()) as worker:
        worker.begin()
        worker.query("""INSERT INTO chatws_outbox (event, data) VALUES ('new_message', '{"conversation_id":1}')""")
        for (query,) in queries:
            assert worker.thread_id() in [row[0] for row in mysql.run(query)]
        worker.rollback()
