"""Two real servers on one log in PostgreSQL, browsers on both, and an application that only knows SQL."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from chatws.brokers.postgres.schema import migrations
from tests.e2e.conftest import Server
from tests.e2e.test_command import chatws
from tests.e2e.test_readme import block
from tests.e2e.wire import until
from tests.postgres import PostgresHistories, postgres_logs
from tests.variants import others_long

__all__ = ["postgres_logs"]

Start = Callable[..., Server]


@pytest.fixture
def url(postgres_logs: PostgresHistories, tmp_path: Any) -> Iterator[str]:
    yield postgres_logs.url(tmp_path)
    postgres_logs.server.resume()
    postgres_logs.server.start()


def start(chatws_server: Start, url: str, *more: str, **options: Any) -> Server:
    arguments = ("--presence-grace", "0.1", "--presence-ttl", "2", "--broker-timeout", "10", "--drain-timeout", "0")
    return chatws_server(*arguments, *more, CHATWS_BROKER=url, **options)


def in_transaction(url: str, *statements: str, commit: bool = True) -> None:
    with closing(psycopg2.connect(url)) as connection:
        for statement in statements:
            connection.cursor().execute(statement)
        if commit:
            connection.commit()


def test_an_application_publishes_and_revokes_within_its_transactions(chatws_server: Start, url: str) -> None:
    node, other = start(chatws_server, url), start(chatws_server, url, "--broker-poll", "0.05")
    in_transaction(
        url,
        "CREATE TABLE assignments (agent_id int, conversation_id int)",
        "INSERT INTO assignments VALUES (5, 456)",
        "CREATE FUNCTION unassigned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM chatws.revoke(OLD.agent_id, OLD.conversation_id); RETURN OLD; END $$",
        "CREATE TRIGGER unassigned AFTER DELETE ON assignments FOR EACH ROW EXECUTE FUNCTION unassigned()",
    )
    publish = 'SELECT chatws.publish(\'new_message\', \'{{"conversation_id":456,"message":{{"id":{}}}}}\')'
    with node.agent(5, 456) as ana, other.agent(6, 456) as bia:
        in_transaction(url, publish.format(1), commit=False)
        in_transaction(url, publish.format(2), publish.format(3))
        for page in (ana, bia):
            assert page.expect("new_message")["data"] == {"conversation_id": 456, "message": {"id": 2}}
            last = page.expect("new_message")
            assert last["data"]["message"] == {"id": 3}
        in_transaction(url, "DELETE FROM assignments WHERE agent_id = 5", publish.format(4))
        assert ana.expect("unsubscribed")["data"] == {"conversation_id": 456}
        assert bia.expect("new_message")["data"]["message"] == {"id": 4}
        assert [message for message in ana.settle() if message.get("event") == "new_message"] == []
        in_transaction(url, "CREATE TABLE messages (id int, conversation_id int, content text)")
        with closing(psycopg2.connect(url)) as connection:
            connection.autocommit = True  # what the README says begins and commits by itself
            connection.cursor().execute(block("sql", "chatws.publish"))
        assert bia.expect("new_message")["data"]["message"] == {"id": 9, "content": "Your parcel is on its way"}
        with other.agent(7) as caio:
            reply = caio.subscribe(456, last_event_id=last["id"])
            assert reply["recovered"] is True
            assert [caio.expect("new_message")["data"]["message"]["id"] for _ in range(2)] == [4, 9]
        in_transaction(url, "SELECT chatws.disconnect(6, 'logged out', true)")
        assert bia.expect_close()[0] == 4903
    with closing(psycopg2.connect(url)) as connection:
        cursor = connection.cursor()

        def online() -> bool:
            cursor.execute("SELECT user_id FROM chatws.online_agents")
            result = cursor.fetchall()
            connection.commit()
            return not result

        until(online, "everybody to be gone in SQL too")


@pytest.mark.long
def test_a_killed_node_takes_its_agents_offline_and_its_browsers_recover_elsewhere(
    chatws_server: Start, url: str, postgres_logs: PostgresHistories
) -> None:
    node, other = start(chatws_server, url), start(chatws_server, url)
    with other.agent(6, 1) as bia, node.backend() as backend:
        ana = node.agent(5, 1)
        bia.expect("agent_status", agent_id=5, status="online")
        backend.push("new_message", {"conversation_id": 1, "n": 1})
        last = ana.expect("new_message")
        node.stop(signal.SIGKILL)
        with other.backend() as elsewhere:
            elsewhere.push("new_message", {"conversation_id": 1, "n": 2})
            bia.expect("agent_status", agent_id=5, status="offline")
            with other.browser() as again:
                again.auth(5)
                assert again.subscribe(1, last_event_id=last["id"])["recovered"] is True
                again.expect("new_message", n=2)
            # and PostgreSQL too
            postgres_logs.server.kill()
            answer = elsewhere.request({"event": "new_message", "data": {"conversation_id": 1, "n": 3}, "id": "n3"})
            assert (answer["ok"], answer["code"]) == (False, "unavailable")
            postgres_logs.server.start()
            line = {"event": "new_message", "data": {"conversation_id": 1, "n": 3}, "id": "n3"}
            until(lambda: elsewhere.request(line)["ok"], "the log to be there again")
            bia.expect("new_message", n=3)
            assert [message for message in bia.settle() if message.get("event") == "new_message"] == []
    assert "not-asked-for" not in other.log, "the password"


def test_a_missing_schema_is_one_line_and_the_upgraded_one_starts(
    chatws_server: Start, postgres_logs: PostgresHistories
) -> None:
    postgres_logs.server.run("DROP DATABASE IF EXISTS unprepared")
    postgres_logs.server.run("CREATE DATABASE unprepared")
    url = postgres_logs.server.url_of("unprepared")
    server = start(chatws_server, url, start=False)
    done = subprocess.run(
        server.command(), cwd=server.directory, env=server.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert "run `chatws db upgrade --broker URL`" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    def db(*words: str) -> tuple[int, str]:
        done = chatws("db", *words, CHATWS_BROKER=url)
        return done.returncode, done.stdout

    assert db("status")[0] == 1
    latest = migrations()[-1].number
    status, output = db("upgrade", "--json")
    assert status == 0
    assert json.loads(output) == {
        "applied": [f"{migration.number:04} {migration.name}" for migration in migrations()],
        "version": latest,
    }
    assert db("upgrade") == (0, f"nothing to do: the schema is at {latest:04}\n")
    assert db("status")[0] == 0
    config = server.directory / "chatws.toml"
    config.write_text('[audience]\nnew_message = "everyone"\n"order.paid" = "user"\n')
    assert db("upgrade", "--config", str(config))[0] == 0
    assert postgres_logs.server.run(
        "SELECT event, kind FROM chatws.audiences WHERE event IN ('new_message', 'order.paid', 'typing') ORDER BY 1",
        url,
    ) == [("new_message", "everyone"), ("order.paid", "user"), ("typing", "conversation")]
    server.start()
    with server.agent(5) as ana:
        in_transaction(url, """SELECT chatws.publish('order.paid', '{"user_id":5}')""")
        ana.expect("order.paid")


@pytest.mark.long
def test_status_reports_a_later_schema_that_the_node_refuses(
    chatws_server: Start, postgres_logs: PostgresHistories
) -> None:
    url = postgres_logs.server.new_history()

    def status() -> tuple[int, str]:
        done = chatws("db", "status", CHATWS_BROKER=url)
        return done.returncode, done.stdout.splitlines()[-1]

    assert status() == (0, "up to date")
    later = "INSERT INTO chatws.migrations (number, name, needs) VALUES ({0}, 'later', {1})"
    postgres_logs.server.run(later.format(98, 1), url)
    assert status() == (0, "up to date"), "this version can use it"
    postgres_logs.server.run(later.format(99, 99), url)
    problem = "the schema chatws is of a later version: install that version of chatws"
    assert status() == (1, f"this version of chatws cannot use it: {problem}")
    server = start(chatws_server, url, start=False)
    done = subprocess.run(
        server.command(), cwd=server.directory, env=server.environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 78
    assert done.stderr == f"twistd chatws: broker: {problem}\n"


@pytest.mark.parametrize("encoding", others_long(["LATIN1", "SQL_ASCII", "WIN1252"]))
def test_a_database_that_is_not_in_utf8_is_refused_before_anything_is_created(
    chatws_server: Start, postgres_logs: PostgresHistories, encoding: str
) -> None:
    name = f"in_{encoding.lower()}"
    postgres_logs.server.run(f"DROP DATABASE IF EXISTS {name}")
    postgres_logs.server.run(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
    url = postgres_logs.server.url_of(name)
    sentence = (
        f'the database "{name}" has the encoding {encoding}, and events need UTF8: '
        "create another with `createdb -E UTF8 -T template0 NAME`, and name it in --broker\n"
    )
    for action in ("upgrade", "status"):
        done = chatws("db", action, CHATWS_BROKER=url)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"chatws db: {sentence}")
    assert postgres_logs.server.run("SELECT 1 FROM pg_namespace WHERE nspname = 'chatws'", url) == []
    server = start(chatws_server, url, start=False)
    ended = subprocess.run(
        server.command(), cwd=server.directory, env=server.environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 78
    assert f"twistd chatws: {sentence}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
