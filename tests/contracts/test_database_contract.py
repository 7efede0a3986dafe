"""What every database engine does alike. PostgreSQL, MariaDB and SQLite are all real here."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.database.interface import Database, DatabaseEngine, QueryFailed, ValueRefused, check_sql
from chatws.errors import Unavailable
from tests.mysql import Mysql, mysql  # noqa: F401
from tests.postgres import Postgres, postgres  # noqa: F401
from tests.requirements import needs

SCHEMA = files("chatws.database").joinpath("schema.sql").read_text("utf-8")
ROWS = """
INSERT INTO users (id, name, status) VALUES (1, 'Ana', 'active'), (2, 'João', 'inactive'), (3, '100%', 'active');
INSERT INTO conversations (id, contact_name) VALUES (456, 'Bia');
"""


class Engine:
    """One engine under test, and a way round it to look at what it did."""

    def __init__(self, url: str, run: Any) -> None:
        self.url = url
        self.run = run
        self.database: Database = self.open()

    def open(self, timeout: float = 5.0) -> Database:
        return open_database(self.url, pool=3, timeout=timeout, reactor=reactor)


@pytest.fixture(
    params=[
        pytest.param("postgres", marks=needs("postgresql")),
        pytest.param("mysql", marks=needs("mariadb-server")),
        "sqlite",
    ]
)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        server.run(SCHEMA + ROWS)
        result = Engine(server.url, server.run)
    elif request.param == "mysql":
        maria: Mysql = request.getfixturevalue("mysql")
        maria.run(SCHEMA + ROWS)
        result = Engine(maria.url, maria.run)
    else:
        path = tmp_path / "shop %.db"
        with sqlite3.connect(path) as connection:
            connection.executescript(SCHEMA + ROWS)
        connection.close()

        def run(sql: str) -> list[tuple[Any, ...]]:
            with sqlite3.connect(path) as connection:
                rows = connection.execute(sql).fetchall()
            connection.close()
            return rows

        result = Engine(f"sqlite:///{str(path).replace('%', '%25')}", run)
    pytest_twisted.blockon(result.database.start())
    yield result
    pytest_twisted.blockon(result.database.stop())


def start(work: Any) -> Deferred[Any]:
    return Deferred.fromCoroutine(work)


@pytest_twisted.ensureDeferred
async def test_rows_are_dictionaries_by_column_name(engine: Engine) -> None:
    sql = "SELECT id, name AS who FROM users WHERE status = %(status)s ORDER BY id"
    rows = await engine.database.query(sql, {"status": "active"})
    assert rows == [{"id": 1, "who": "Ana"}, {"id": 3, "who": "100%"}]


@pytest_twisted.ensureDeferred
async def test_the_reference_schema_fits_the_default_queries(engine: Engine) -> None:
    config = Config()
    assert await engine.database.query(config.user_query, {"user_id": 1}) == [{"id": 1, "name": "Ana"}]
    assert await engine.database.query(config.user_query, {"user_id": 2}) == []
    assert await engine.database.query(config.user_query, {"user_id": 9}) == []
    values = {"user_id": 1, "conversation_id": 456}
    assert await engine.database.query(config.conversation_query, values) == [{"id": 456}]


@pytest_twisted.ensureDeferred
async def test_a_doubled_percent_sign_is_one(engine: Engine) -> None:
    for values in ({}, {"user_id": 3}):
        where = " AND id = %(user_id)s" if values else ""
        rows = await engine.database.query(f"SELECT id FROM users WHERE name LIKE '100%%'{where}", values)
        assert rows == [{"id": 3}]


#: Queries with the quotes and comments of each engine, which the check accepts.
QUOTED = {
    DatabaseEngine.POSTGRESQL: [
        r"SELECT E'it\'s 5%%' AS x, %(id)s AS id",
        "SELECT $a$ ' $$ 5%% $a$ AS x, %(id)s AS id",
        "SELECT 1 /* /* ' */ 5%% */ AS x, %(id)s AS id",
        'SELECT 1 AS "it\'s", %(id)s AS id',
        "SELECT 1 AS e, 'a\\' AS x, %(id)s AS id",
        "SELECT 5--1 don't\n AS x, %(id)s AS id",
    ],
    DatabaseEngine.MYSQL: [
        r"SELECT 'it\'s 5%%' AS x, %(id)s AS id",
        r'SELECT "say \"5%%\"" AS x, %(id)s AS id',
        "SELECT 1 AS `it's 5%%`, %(id)s AS id",
        "SELECT 1 # don't 5%%\n AS x, %(id)s AS id",
        "SELECT 1 -- don't\n AS x, %(id)s AS id",
        "SELECT 5--1 AS x, %(id)s AS id",
        r"SELECT '\\' AS x, %(id)s AS id",
    ],
    DatabaseEngine.SQLITE: [
        "SELECT 1 AS [it's 5%%], %(id)s AS id",
        "SELECT 1 AS `it's`, %(id)s AS id",
        "SELECT '\\' AS x, %(id)s AS id",
        "SELECT 5--1 don't\n AS x, %(id)s AS id",
    ],
}


@pytest_twisted.ensureDeferred
async def test_quotes_and_comments_of_the_engine_are_read_as_the_engine_does(engine: Engine) -> None:
    for sql in QUOTED[engine.database.engine]:
        assert check_sql("user_query", sql, ["id"], engine.database.engine) == {"id"}
        (row,) = await engine.database.query(sql, {"id": "'; x -- \\"})
        assert row["id"] == "'; x -- \\", sql


@pytest_twisted.ensureDeferred
async def test_a_value_is_never_sql(engine: Engine) -> None:
    for evil in ("' OR '1'='1", "1; DROP TABLE users; --", "\\'; DROP TABLE users; --", "%(name)s", ":name"):
        assert await engine.database.query("SELECT id FROM users WHERE name = %(name)s", {"name": evil}) == []
    assert engine.run("SELECT count(*) FROM users") == [(3,)]


@pytest_twisted.ensureDeferred
async def test_texts_numbers_and_null_are_stored_and_returned_unchanged(engine: Engine) -> None:
    sql = "UPDATE users SET name = %(name)s, last_activity = %(when)s WHERE id = %(user_id)s"
    for name, when in (("Zoë 🦊 'x' \"y\" \\ %", 1.5), ("line\nfeed", None), ("", 1764000000.25)):
        assert await engine.database.execute(sql, {"name": name, "when": when, "user_id": 1}) == 1
        rows = await engine.database.query("SELECT name, last_activity FROM users WHERE id = %(id)s", {"id": 1})
        assert rows == [{"name": name, "last_activity": when}]


@pytest_twisted.ensureDeferred
async def test_execute_tells_how_many_rows_it_changed(engine: Engine) -> None:
    sql = "UPDATE users SET status = 'inactive' WHERE status = %(status)s"
    assert await engine.database.execute(sql, {"status": "active"}) == 2
    assert await engine.database.execute(sql, {"status": "active"}) == 0


@pytest_twisted.ensureDeferred
async def test_execute_many_runs_each_in_order(engine: Engine) -> None:
    sql = "UPDATE users SET last_activity = %(when)s WHERE id = %(user_id)s; -- the operator's remark"
    batch = [{"when": float(n), "user_id": n % 3 + 1} for n in range(250)]
    assert await engine.database.execute_many(sql, batch) == 0
    assert engine.run("SELECT id, last_activity FROM users ORDER BY id") == [(1, 249.0), (2, 247.0), (3, 248.0)]
    assert await engine.database.execute_many(sql, []) == 0


@pytest_twisted.ensureDeferred
async def test_a_refused_value_in_a_batch_harms_none_of_the_others(engine: Engine) -> None:
    sql = "UPDATE users SET status = %(status)s WHERE id = %(user_id)s"
    batch = [
        {"status": "inactive", "user_id": 1},
        {"status": "no such status", "user_id": 2},
        {"status": "\ud800", "user_id": 2},
        {"status": "active", "user_id": 2},
    ]
    assert await engine.database.execute_many(sql, batch) == 2
    assert engine.run("SELECT status FROM users WHERE id < 3 ORDER BY id") == [("inactive",), ("active",)]


@pytest_twisted.ensureDeferred
async def test_wrong_sql_is_distinguished_from_an_absent_database(engine: Engine) -> None:
    for sql in ("SELEC 1", "SELECT * FROM no_such_table", "SELECT no_such_column FROM users"):
        with pytest.raises(QueryFailed) as caught:
            await engine.database.query(sql, {})
        assert not isinstance(caught.value, ValueRefused)
        with pytest.raises(QueryFailed):
            await engine.database.execute(sql, {})
        with pytest.raises(QueryFailed):
            await engine.database.execute_many(sql, [{}])
    assert engine.database.healthy
    with pytest.raises(QueryFailed):
        await engine.database.query("SELECT %(absent)s", {"user_id": 1})


@pytest_twisted.ensureDeferred
async def test_half_of_a_surrogate_pair_is_a_value_refused(engine: Engine) -> None:
    with pytest.raises(ValueRefused):
        await engine.database.query("SELECT id FROM users WHERE name = %(name)s", {"name": "\ud800"})
    assert await engine.database.query("SELECT 1 AS one", {}) == [{"one": 1}]


@pytest_twisted.ensureDeferred
async def test_more_queries_than_connections_take_turns(engine: Engine) -> None:
    asked = [
        start(engine.database.query("SELECT name FROM users WHERE id = %(id)s", {"id": n % 3 + 1})) for n in range(60)
    ]
    answers = await gatherResults(asked)
    assert [answer[0]["name"] for answer in answers] == ["Ana", "João", "100%"] * 20


@pytest_twisted.ensureDeferred
async def test_queries_before_start_and_after_stop_are_unavailable(engine: Engine) -> None:
    database = engine.open()
    with pytest.raises(Unavailable):
        await database.query("SELECT 1", {})
    assert not database.healthy
    await database.start()
    assert await database.query("SELECT 1 AS one", {}) == [{"one": 1}]
    assert database.healthy
    await database.stop()
    with pytest.raises(Unavailable):
        await database.query("SELECT 1", {})
    assert not database.healthy
    await database.stop()


@pytest_twisted.ensureDeferred
async def test_a_stop_answers_pending_queries(engine: Engine) -> None:
    asked = [start(engine.database.query("SELECT 1", {})) for _ in range(10)]
    await engine.database.stop()
    for item in asked:
        try:
            await item
        except Unavailable:
            continue


SLOW = {
    "postgresql": "SELECT pg_sleep(30)",
    "mysql": "SELECT SLEEP(30)",
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n",
}


@pytest_twisted.ensureDeferred
async def test_a_query_that_is_too_slow_is_unavailable_and_the_next_is_answered(engine: Engine) -> None:
    database: Any = engine.open(timeout=1.0)
    await database.start()
    try:
        slow = SLOW[engine.url.partition(":")[0]]
        asked = [start(database.query(slow, {})) for _ in range(3)]
        for item in asked:
            with pytest.raises(Unavailable):
                await item
        database.timeout = 15.0  # the one after them is not to be given up
        assert await database.query("SELECT 1 AS one", {}) == [{"one": 1}]
        assert database.healthy
    finally:
        await database.stop()
