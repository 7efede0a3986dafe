"""`--check` and `chatws check` with a real database: they find wrong queries and decide logins."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import groupby
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import twistd_command
from tests.e2e.process import clean_environment
from tests.e2e.test_command import chatws
from tests.e2e.test_entering import Application, application
from tests.mysql import Mysql, mysql
from tests.postgres import Postgres, postgres
from tests.requirements import needs
from tests.variants import others_long

__all__ = ["application", "mysql", "postgres"]

SECRET = "a-secret-that-is-long-enough-to-be-one"
SCHEMA = """
CREATE TABLE users (id integer PRIMARY KEY, name text, status text, seen double precision, code varchar(40));
CREATE TABLE conversations (id integer PRIMARY KEY, agent_id integer);
CREATE TABLE clicks (user_id integer, kind text);
INSERT INTO users VALUES (1, 'Test', 'active', 0, 'x'), (5, 'Ana', 'active', 0, 'a'), (6, 'Bruno', 'gone', 0, 'b');
INSERT INTO conversations VALUES (456, 5), (457, 6);
"""
QUERIES = {
    "CHATWS_CONVERSATION_QUERY": (
        "SELECT id FROM conversations WHERE id = %(conversation_id)s AND agent_id = %(user_id)s"
    ),
    "CHATWS_HEARTBEAT_QUERY": "UPDATE users SET seen = %(last_activity)s WHERE id = %(user_id)s",
    "CHATWS_ACTIVITY_QUERY": "INSERT INTO clicks (user_id, kind) VALUES (%(user_id)s, %(activity_type)s)",
}


class Shop:
    """The application's database.

    :ivar rows: runs a query and returns its rows.
    """

    def __init__(self, url: str, rows: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.url = url
        self.rows = rows

    def check(self, *words: str, **environment: str) -> CompletedProcess[str]:
        return chatws("check", *words, CHATWS_DATABASE=self.url, **{**QUERIES, **environment})

    def twistd_check(self, **environment: str) -> CompletedProcess[str]:
        variables = clean_environment(CHATWS_DATABASE=self.url, **{**QUERIES, **environment})
        return run(
            [*twistd_command(), "chatws", "--check"],
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def content(self) -> list[list[tuple[Any, ...]]]:
        return [self.rows(f"SELECT * FROM {table} ORDER BY 1") for table in ("users", "conversations", "clicks")]


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.long),
        pytest.param("mysql", marks=[pytest.mark.long, needs("mariadb-server")]),
    ]
)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    if request.param == "sqlite":
        path = tmp_path / "shop.db"

        def rows(sql: str) -> list[tuple[Any, ...]]:
            with closing(sqlite3.connect(path)) as connection, connection:
                return connection.execute(sql).fetchall()

        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(SCHEMA)
        return Shop(f"sqlite:///{path}", rows)
    if request.param == "mysql":
        maria: Mysql = request.getfixturevalue("mysql")
        maria.run(SCHEMA)
        return Shop(maria.url, maria.run)
    server: Postgres = request.getfixturevalue("postgres")
    server.clear()
    server.run(SCHEMA)
    return Shop(server.url, server.run)


def test_every_configured_query_is_tried_and_nothing_is_written(shop: Shop) -> None:
    before = shop.content()
    done = shop.twistd_check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "were not tried" not in done.stdout
    assert shop.content() == before


def test_check_prints_the_connection_and_each_query_with_its_time(shop: Shop) -> None:
    done = shop.check("--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["queries"]
    assert [(step["name"], step["result"]) for step in result] == [
        ("connection", "the database answers"),
        ("user_query", "a row"),
        ("conversation_query", "no row"),
        ("heartbeat_query", "planned, not run"),
        ("activity_query", "planned, not run"),
    ]
    assert all(step["ms"] > 0 for step in result)
    (line,) = (line for line in shop.check().stdout.splitlines() if line.startswith("  heartbeat_query  "))
    assert line.endswith(" ms")


def test_mysql_query_that_writes_is_not_run(mysql: Mysql) -> None:
    mysql.run(
        SCHEMA + "CREATE FUNCTION visit() RETURNS int MODIFIES SQL DATA BEGIN INSERT INTO clicks VALUES (1, 'v');"
        " RETURN 1; END;"
    )
    shop = Shop(mysql.url, mysql.run)
    before = shop.content()
    done = shop.twistd_check(CHATWS_USER_QUERY="SELECT visit(), id FROM users WHERE id = %(user_id)s")
    assert done.returncode == 0, done.stderr
    assert "user_query was not tried, because it writes: " in done.stdout
    assert shop.content() == before


def test_mysql_privilege_that_lacks_is_one_line(mysql: Mysql) -> None:
    mysql.run(SCHEMA)
    mysql.admin("CREATE OR REPLACE USER reader IDENTIFIED BY 'x'; GRANT SELECT ON shop.* TO reader")
    done = Shop(mysql.url_of("shop", user="reader", password="x"), mysql.run).twistd_check()
    assert done.returncode == 78
    assert done.stderr.startswith("twistd chatws: heartbeat_query: UPDATE command denied to user 'reader'")
    done = Shop(mysql.url_of("shop", user="reader", password="wrong"), mysql.run).twistd_check()
    assert done.returncode == 0
    assert "the database is unavailable: Access denied for user 'reader'" in done.stdout


@pytest.mark.parametrize(
    ("setting", "sql", "sentence"),
    others_long(
        [
            ("user_query", "SELECT id FROM userz WHERE id = %(user_id)s", "userz"),
            ("user_query", "SELECT id FROM users WHERE ident = %(user_id)s", "ident"),
            ("user_query", "SELEC id FROM users WHERE id = %(user_id)s", "SELEC"),
            ("conversation_query", "SELECT id FROM conversation WHERE id = %(conversation_id)s", "conversation"),
            ("heartbeat_query", "UPDATE users SET last_seen = %(last_activity)s WHERE id = %(user_id)s", "last_seen"),
            ("activity_query", "INSERT INTO click VALUES (%(user_id)s, %(activity_type)s)", "click"),
        ]
    ),
)
def test_a_wrong_query_is_one_line_with_its_setting_and_the_database_s_sentence(
    shop: Shop, setting: str, sql: str, sentence: str
) -> None:
    environment = {f"CHATWS_{setting.upper()}": sql}
    for done, prog, status in (
        (shop.twistd_check(**environment), "twistd chatws", 78),
        (shop.check(**environment), "chatws check", 1),
    ):
        assert done.returncode == status
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{prog}: {setting}: ")
        assert sentence in line
        assert "Traceback" not in done.stdout


def test_a_writing_user_query_is_planned_and_not_executed(postgres: Postgres) -> None:
    postgres.clear()
    postgres.run(SCHEMA + "CREATE SEQUENCE visits;")
    shop = Shop(postgres.url, postgres.run)
    before = shop.content()
    for query in (
        "UPDATE users SET seen = 1 WHERE id = %(user_id)s RETURNING id",
        "SELECT nextval('visits'), id FROM users WHERE id = %(user_id)s",
    ):
        done = shop.twistd_check(CHATWS_USER_QUERY=query)
        assert done.returncode == 0, done.stderr
        assert "user_query was not tried, because it writes: " in done.stdout
    # of several statements EXPLAIN takes the first alone
    done = shop.twistd_check(CHATWS_ACTIVITY_QUERY="DELETE FROM clicks; DELETE FROM users WHERE id > %(user_id)s")
    assert "activity_query was not tried, because it writes: " in done.stdout
    assert shop.content() == before
    assert postgres.run("SELECT last_value, is_called FROM visits") == [(1, False)]


def test_ids_that_are_texts_are_no_fault_of_the_query(postgres: Postgres) -> None:
    postgres.clear()
    postgres.run(SCHEMA + "CREATE TABLE people (id uuid PRIMARY KEY, login text);")
    shop = Shop(postgres.url, postgres.run)
    for column in ("id", "login"):
        done = shop.twistd_check(CHATWS_USER_QUERY=f"SELECT id FROM people WHERE {column} = %(user_id)s")
        assert done.returncode == 0, done.stderr
        assert "user_query fails for an id that is a number (operator does not exist: " in done.stdout


def test_a_privilege_that_is_missing_is_found(postgres: Postgres) -> None:
    postgres.clear()
    postgres.run(
        SCHEMA
        + "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN;"
        + "GRANT USAGE ON SCHEMA public TO reader; GRANT SELECT ON users, conversations TO reader;"
    )
    parts = urlsplit(postgres.url)
    shop = Shop(parts._replace(netloc=f"reader@{parts.hostname}:{parts.port}").geturl(), postgres.run)
    done = shop.twistd_check()
    assert done.returncode == 78
    assert done.stderr == "twistd chatws: heartbeat_query: permission denied for table users\n"


@pytest.mark.parametrize(
    "url", others_long(["postgresql://x@127.0.0.1:1/shop", "mysql://x@127.0.0.1:1/shop", "sqlite:////tmp/nowhere.db"])
)
def test_a_database_that_is_away_is_a_warning(url: str) -> None:
    done = Shop(url, lambda sql: []).twistd_check()
    assert done.returncode == 0, done.stderr
    assert "the queries were not tried, because the database is unavailable: " in done.stdout


def steps(done: CompletedProcess[str]) -> list[tuple[str, str]]:
    result = json.loads(done.stdout)
    assert all(step["ms"] is None or step["ms"] >= 0 for step in result["steps"])
    # MySQL is asked again, to compare the ids byte by byte
    return [step for step, _ in groupby((step["name"], step["result"]) for step in result["steps"])]


def test_a_login_by_the_database_is_decided_step_by_step(shop: Shop) -> None:
    connected = ("connection", "the database answers")
    done = shop.check("--user", "5", "--conversation", "456", "--json")
    assert done.returncode == 0, done.stderr
    assert steps(done) == [connected, ("user_query", "a row"), ("database", "user 5"), ("conversation_query", "a row")]
    done = shop.check("--user", "5")
    assert "user 5 is accepted, by database" in done.stdout
    assert " ms" in done.stdout
    done = shop.check("--user", "6", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"] == {
        "code": "auth_failed",
        "message": "the user is unknown or not active",
    }
    done = shop.check("--user", "5", "--conversation", "457")
    assert done.returncode == 1
    assert "refused: the user may not read conversation 457 (forbidden)" in done.stdout
    done = shop.check("--user", "5", CHATWS_USER_QUERY="SELECT id FROM userz WHERE id = %(user_id)s")
    assert done.returncode == 1
    assert "log: user_query fails; access is denied until it is fixed: " in done.stdout
    assert "not decided: " in done.stdout


def test_check_of_a_token_login_uses_the_given_token_or_signs_one(shop: Shop) -> None:
    done = shop.check("--user", "5", CHATWS_SECRET=SECRET)
    assert done.returncode == 0, done.stderr
    assert "signed for this check with the configured secret" in done.stdout
    assert "user 5 is accepted, by token" in done.stdout
    assert shop.check("--user", "6", CHATWS_SECRET=SECRET).returncode == 1
    token = chatws("token", "5", CHATWS_SECRET=SECRET).stdout.strip()
    done = shop.check("--token", token, CHATWS_SECRET=SECRET)
    assert "user 5 is accepted, by token" in done.stdout
    assert token not in done.stdout + done.stderr
    done = shop.check("--token", token, CHATWS_SECRET=SECRET[::-1])
    assert done.returncode == 1
    assert "refused: the token's signature is wrong (auth_failed)" in done.stdout
    done = shop.check("--user", "6", "--token", token, CHATWS_SECRET=SECRET)
    assert "refused: user_id is not the user of these credentials (auth_failed)" in done.stdout


def test_a_login_by_the_callback_sends_the_cookie(application: Application, shop: Shop) -> None:
    done = shop.check("--cookie", "PHPSESSID=logged-out", CHATWS_AUTH_URL=application.url)
    assert done.returncode == 1
    assert "refused: the application does not know this session (auth_failed)" in done.stdout
    done = shop.check("--user", "1", "--cookie", "PHPSESSID=ana", CHATWS_AUTH_URL=application.url)
    assert done.returncode == 0, done.stdout
    assert "user 1 is accepted, by callback" in done.stdout
    done = shop.check("--user", "1", CHATWS_AUTH_URL=application.url)
    assert done.returncode == 1
    assert "skipped: it needs a Cookie or Authorization header" in done.stdout


def test_the_configuration_file_is_named_in_either_way_but_once(tmp_path: Path) -> None:
    config = tmp_path / "chatws.toml"
    config.write_text('[auth]\nauth_methods = ["trust"]\n')
    for words in ((str(config),), ("--config", str(config))):
        done = chatws("check", *words, "--user", "5")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "user 5 is accepted, by trust" in done.stdout
    done = chatws("check", str(config), "--config", str(config))
    assert done.returncode == 1
    assert done.stderr == "chatws check: the configuration file is named twice: leave out --config\n"
    done = chatws("check", "--conversation", "456")
    assert done.returncode == 1
    assert "give --user, --token or --cookie" in done.stderr
