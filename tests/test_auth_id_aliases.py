"""An id that is a text is nobody else's, whatever the engine makes of it: asked of real engines."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor

from chatws.auth.exists_query import ExistsQuery
from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.database.id_aliases import equivalent_id
from chatws.errors import Unavailable
from chatws.ids import Id, parse_id
from tests.contracts.test_database_contract import Engine, engine  # noqa: F401
from tests.mysql import mysql  # noqa: F401
from tests.postgres import Postgres, postgres, server_of  # noqa: F401
from tests.requirements import needs

UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
#: What one engine or the other takes for the integer 1.
ONE = ("01", "001", " 1", "1 ", "1\n", "\t1", "+1", "+01", "1.0", "1e0", "0x1", "0b1", "0o1", "00_1")


def asks(engine: Engine, query: str, **values: Any) -> Any:  # noqa: F811
    return ExistsQuery(engine.database, "query", query, ["user_id", "conversation_id"], reactor).run(values)


@pytest_twisted.ensureDeferred
async def test_another_spelling_of_a_number_is_not_that_user(engine: Engine) -> None:  # noqa: F811
    query = Config().user_query
    assert await asks(engine, query, user_id=1)
    for spelling in ONE:
        assert not await asks(engine, query, user_id=spelling), spelling


@pytest_twisted.ensureDeferred
async def test_an_alias_of_a_conversation_or_user_id_grants_no_access(engine: Engine) -> None:  # noqa: F811
    engine.run("INSERT INTO conversation_agents (conversation_id, user_id) VALUES (456, 1)")
    query = "SELECT 1 FROM conversation_agents WHERE conversation_id = %(conversation_id)s AND user_id = %(user_id)s"
    assert await asks(engine, query, conversation_id=456, user_id=1)
    assert not await asks(engine, query, conversation_id="0456", user_id=1)
    assert not await asks(engine, query, conversation_id=456, user_id="01")
    # who is asked for what the query does not look at
    assert await asks(engine, Config().conversation_query, conversation_id=456, user_id="01")


@pytest_twisted.ensureDeferred
async def test_digits_with_leading_zeros_are_ids_in_a_text_column(engine: Engine) -> None:  # noqa: F811
    engine.run("CREATE TABLE rooms (id VARCHAR(20) PRIMARY KEY)")
    texts = (
        *(item for item in ONE if "\n" not in item and "\t" not in item),
        "nan",
        "Infinity",
        "a0eebc999c0b4ef8bb6d",
    )
    for text in texts:
        engine.run(f"INSERT INTO rooms VALUES ('{text}')")
    kind = "CHAR" if engine.url.startswith("mysql") else "TEXT"
    query = f"SELECT id FROM rooms WHERE id = CAST(%(conversation_id)s AS {kind})"
    for text in texts:
        assert await asks(engine, query, conversation_id=text), text
    assert not await asks(engine, query, conversation_id="0001")


@pytest_twisted.ensureDeferred
async def test_integers_beyond_javascript_s_range_are_ids(engine: Engine) -> None:  # noqa: F811
    engine.run("CREATE TABLE people (id BIGINT PRIMARY KEY)")
    for number in (str(2**53 + 1), "-5"):
        engine.run(f"INSERT INTO people VALUES ({number})")
        query = "SELECT 1 FROM people WHERE id = %(user_id)s"
        assert await asks(engine, query, user_id=number)
        assert not await asks(engine, query, user_id=f" {number}")


@pytest_twisted.ensureDeferred
async def test_a_uuid_is_the_id_that_the_engine_writes(postgres: Postgres) -> None:  # noqa: F811
    postgres.run(f"CREATE TABLE people (id uuid PRIMARY KEY); INSERT INTO people VALUES ('{UUID}')")
    opened = Engine(postgres.url, postgres.run)
    await opened.database.start()
    try:
        query = "SELECT 1 FROM people WHERE id = %(user_id)s"
        assert await asks(opened, query, user_id=UUID)
        plain = UUID.replace("-", "")
        for spelling in (UUID.upper(), plain, f"{{{UUID}}}", f"{{{plain}}}", UUID.replace("9c0b-", "9c0b")):
            assert not await asks(opened, query, user_id=spelling), spelling
    finally:
        await opened.database.stop()


#: Types of columns that take some texts for equal, and what they need. PostgreSQL can be without the last two.
COLUMNS = {
    "varchar(20)": "",
    "char(8)": "",
    "text COLLATE loose": "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
    "citext": "CREATE EXTENSION citext",
}


@needs("postgresql")
@pytest.mark.parametrize("column", COLUMNS)
@pytest_twisted.ensureDeferred
async def test_ids_that_a_column_takes_for_equal_are_other_ids_on_postgresql(
    request: pytest.FixtureRequest, column: str
) -> None:
    server = server_of(request.config, oldest=True)  # Debian's has all of them
    server.clear()
    try:
        server.run(COLUMNS[column] or "SELECT 1")
    except psycopg2.errors.FeatureNotSupported as error:
        pytest.skip(str(error))
    server.run(f"CREATE TABLE people (name {column}); INSERT INTO people VALUES ('Ana'), ('7')")
    opened = Engine(server.url, server.run)
    await opened.database.start()
    try:
        for condition in (
            "name = %(user_id)s",
            "%(user_id)s = name",
            "name IN (%(user_id)s) AND %(conversation_id)s > 0",
        ):
            sql = f"SELECT 1 FROM people WHERE {condition}"
            query = ExistsQuery(opened.database, "query", sql, ["user_id", "conversation_id"], reactor)
            for user_id in ("Ana", 7, "Ana"):
                assert await query.run({"user_id": user_id, "conversation_id": 456}), (sql, user_id)
            for user_id in ("ANA", "ana", "Ana ", "\u00c1na", " Ana", 8):
                assert not await query.run({"user_id": user_id, "conversation_id": 456}), (sql, user_id)
    finally:
        await opened.database.stop()


@pytest_twisted.ensureDeferred
async def test_an_integer_for_a_uuid_column_is_no_error(postgres: Postgres) -> None:  # noqa: F811
    postgres.run(f"CREATE TABLE people (id uuid PRIMARY KEY); INSERT INTO people VALUES ('{UUID}')")
    opened = Engine(postgres.url, postgres.run)
    await opened.database.start()
    try:
        for sql in ("SELECT 1 FROM people WHERE id = %(user_id)s", "SELECT 1 FROM people WHERE %(user_id)s = id"):
            ask = ExistsQuery(opened.database, "query", sql, ["user_id"], reactor)
            for _ in range(2):
                assert await ask.run({"user_id": 5}) is None
                assert await ask.run({"user_id": UUID})
        wrong = ExistsQuery(
            opened.database, "query", "SELECT 1 FROM nowhere WHERE id = %(user_id)s", ["user_id"], reactor
        )
        with pytest.raises(Unavailable):
            await wrong.run({"user_id": 5})
    finally:
        await opened.database.stop()


@pytest_twisted.ensureDeferred
async def test_ids_that_a_column_takes_for_equal_are_other_ids_on_sqlite(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript("""
            CREATE TABLE people (folded TEXT COLLATE NOCASE, fixed TEXT COLLATE RTRIM, plain VARCHAR(20));
            INSERT INTO people VALUES ('Ana', 'Ana', 'Ana'), ('7', '7', '7');
        """)
    database = open_database(f"sqlite:///{tmp_path}/shop.db", pool=1, timeout=20.0, reactor=reactor)
    await database.start()
    try:
        for column in ("folded", "fixed", "plain"):
            ask = ExistsQuery(
                database, "query", f"SELECT 1 FROM people WHERE {column} = %(user_id)s", ["user_id"], reactor
            )
            for user_id in ("Ana", 7):
                assert await ask.run({"user_id": user_id}), (column, user_id)
            for user_id in ("ANA", "ana", "Ana ", "\u00c1na", 8):
                assert not await ask.run({"user_id": user_id}), (column, user_id)
    finally:
        await database.stop()


@pytest.mark.parametrize("value", [1, "0", "5", "-5", str(2**60), "ana", "", UUID, "x-01", "1,0", "a0eebc99"])
def test_most_ids_leave_no_doubt(value: Id) -> None:
    assert equivalent_id(value) is None


@given(st.from_regex(r"[+-]?[0-9_]{1,20}(\.[0-9]*)?(e[+-]?[0-9])?|[ \t\n]*[0-9]{1,9}[ \t\n]*", fullmatch=True))
def test_a_numeric_text_has_an_alias_unless_it_is_canonical(text: str) -> None:
    other = equivalent_id(text)
    try:
        number = float(text)
    except ValueError:
        assert other is None
        return
    if other is None:
        assert str(int(text)) == text
    else:
        assert float(other) == number
        assert parse_id(text, "id") == text != other
