"""docs/outbox.md with a real server, a page, and PHP with PDO: the example, the privileges and the triggers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.php import run_php
from tests.e2e.test_command import chatws
from tests.e2e.wire import until
from tests.mysql import Mysql, mysql
from tests.requirements import needs

__all__ = ["mysql"]

Start = Callable[..., Server]

DOCS = Path(__file__).parent.parent.parent / "docs"
SCHEMA = """
CREATE TABLE users (id int PRIMARY KEY, name varchar(50), status varchar(20));
CREATE TABLE conversations (id int PRIMARY KEY);
CREATE TABLE messages (id int AUTO_INCREMENT PRIMARY KEY, conversation_id int, content text);
CREATE TABLE conversation_agents (conversation_id int, user_id int, PRIMARY KEY (conversation_id, user_id),
    FOREIGN KEY (conversation_id) REFERENCES conversations (id) ON DELETE CASCADE);
INSERT INTO users VALUES (5, 'Ana', 'active'), (6, 'Bruno', 'active');
INSERT INTO conversations VALUES (456), (457);
INSERT INTO conversation_agents VALUES (456, 5), (457, 5), (456, 6), (457, 6);
"""
#: The accounts of the guide, without those of docs/mysql.md.
ACCOUNTS = """
DROP USER IF EXISTS 'php'@'localhost', 'chatws'@'localhost';
CREATE USER 'php'@'localhost' IDENTIFIED BY 'p'; CREATE USER 'chatws'@'localhost' IDENTIFIED BY 'c';
GRANT SELECT, INSERT ON shop.messages TO 'php'@'localhost';
GRANT SELECT ON shop.users TO 'php'@'localhost', 'chatws'@'localhost';
GRANT SELECT ON shop.conversations TO 'chatws'@'localhost';
GRANT SELECT ON shop.conversation_agents TO 'chatws'@'localhost';
"""


def snippet(guide: str, language: str, word: str) -> str:
    text = (DOCS / guide).read_text("utf-8")
    (result,) = (item for item in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if word in item)
    return str(result)


@pytest.fixture
def shop(mysql: Mysql) -> Mysql:
    """The shop's tables, those of the outbox, and the guide's accounts."""
    mysql.run(SCHEMA)
    done = chatws("db", "upgrade", CHATWS_DATABASE=mysql.url, CHATWS_OUTBOX="true")
    assert done.returncode == 0, done.stderr
    assert "created the tables" in done.stdout
    assert "nothing to do" in chatws("db", "upgrade", "--database", mysql.url).stdout
    mysql.admin(ACCOUNTS + snippet("outbox.md", "sql", "GRANT INSERT"))
    return mysql


def url(shop: Mysql) -> str:
    return f"mysql://chatws:c@/shop?unix_socket={shop.socket}"


def start(chatws_server: Start, shop: Mysql, *more: str) -> Server:
    return chatws_server(
        *("--database", url(shop), "--outbox", "--drain-timeout", "0"),
        *("--user-query", "SELECT id AS user_id FROM users WHERE id = %(user_id)s AND status = 'active'"),
        *more,
    )


def run_pdo(shop: Mysql, code: str, tmp_path: Path) -> str:
    script = tmp_path / "script.php"
    dsn = f"mysql:unix_socket={shop.socket};dbname=shop;charset=utf8mb4"
    script.write_text(f"<?php $dsn = '{dsn}'; $user = 'php'; $password = 'p';\n{code}")
    return run_php(str(script))


@needs("php-cli")
@needs("php-mysql")
@pytest.mark.parametrize("guide", ["outbox.md", "pt-BR/MYSQL.md"])
def test_commit_from_php_is_shown_and_rollback_is_not(
    guide: str, chatws_server: Start, shop: Mysql, tmp_path: Path
) -> None:
    server = start(chatws_server, shop)
    code = snippet(guide, "php", "beginTransaction")
    with server.agent(5, 456) as ana:
        run_pdo(shop, code.replace("$pdo->commit()", "$pdo->rollBack()"), tmp_path)
        run_pdo(shop, code, tmp_path)
        event = ana.receive()
        assert event["event"] == "new_message"
        ((number, content),) = shop.run("SELECT id, content FROM messages")
        assert event["data"] == {"conversation_id": 456, "message": {"id": number, "content": content}}
        until(lambda: shop.run("SELECT count(*) FROM chatws_outbox") == [(0,)], "the row to be deleted")


@needs("php-cli")
@needs("php-mysql")
def test_emoji_over_a_utf8_connection_survive_as_escapes(chatws_server: Start, shop: Mysql, tmp_path: Path) -> None:
    server = start(chatws_server, shop)
    code = """
    $options = [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION];
    $pdo = new PDO(str_replace('utf8mb4', 'utf8', $dsn), $user, $password, $options);
    $pdo->exec("SET sql_mode = ''");
    foreach ([JSON_UNESCAPED_UNICODE, 0] as $flags) {
        $pdo->prepare('INSERT INTO chatws_outbox (event, data) VALUES (?, ?)')
            ->execute(['new_message', json_encode(['conversation_id' => 456, 'text' => 'Oi 🦊!'], $flags)]);
    }"""
    with server.agent(5, 456) as ana:
        run_pdo(shop, code, tmp_path)
        assert "?" in ana.receive()["data"]["text"]
        assert ana.receive()["data"]["text"] == "Oi 🦊!"


def test_triggers_of_the_guide_revoke_access_at_commit(chatws_server: Start, shop: Mysql) -> None:
    for trigger in re.split(r"(?<=;)\n(?=CREATE)", snippet("outbox.md", "sql", "CREATE TRIGGER")):
        shop.run(trigger)
    server = start(chatws_server, shop)
    with server.agent(5, 456) as ana, server.agent(6, 456) as bruno, closing(shop.connect()) as connection:
        ana.subscribe(457)
        connection.begin()
        connection.query("DELETE FROM conversation_agents WHERE conversation_id = 456 AND user_id = 5")
        connection.rollback()
        connection.begin()
        connection.query("DELETE FROM conversation_agents WHERE conversation_id = 457 AND user_id = 5")
        connection.commit()
        ana.expect("unsubscribed", conversation_id=457)
        # a cascade fires no trigger of the child
        shop.run("DELETE FROM conversations WHERE id = 456")
        ana.expect("unsubscribed", conversation_id=456)
        bruno.expect("unsubscribed", conversation_id=456)
        shop.run("UPDATE users SET status = 'inactive' WHERE id = 5")
        assert ana.expect_close()[0] == 4903
        shop.run("DELETE FROM users WHERE id = 6")
        assert bruno.expect_close()[0] == 4903


def test_view_of_the_agents_online_is_right_after_a_kill(chatws_server: Start, shop: Mysql) -> None:
    query = snippet("outbox.md", "sql", "chatws_online.user_number").strip()

    def names() -> list[str]:
        return [name for (name,) in shop.run(query)]

    server = start(chatws_server, shop)
    with server.agent(5, 456):
        until(lambda: names() == ["Ana"], "the agent to be online")
        os.kill(server.pid, signal.SIGKILL)
    until(lambda: names() == [], "the lease to expire", 60)


@pytest.mark.long
def test_another_node_sends_within_seconds_of_a_kill(chatws_server: Start, shop: Mysql) -> None:
    first = start(chatws_server, shop)
    until(lambda: "this node holds the outbox" in first.log, "the first node to hold the outbox")
    second = start(chatws_server, shop)
    with second.agent(5, 456) as ana, closing(shop.connect()) as connection:
        os.kill(first.pid, signal.SIGKILL)
        connection.query("""INSERT INTO chatws_outbox (event, data) VALUES
            ('new_message', '{"conversation_id":456,"number":1}')""")
        connection.commit()
        ana.expect("new_message", 30, number=1)
    assert "this node holds the outbox" in second.log


def test_tables_of_a_later_version_are_reported_and_left_alone(shop: Mysql) -> None:
    shop.run("UPDATE chatws_schema SET version = 99")
    later = "of a later version: install that version of chatws"
    done = chatws("db", "status", "--database", shop.url)
    assert (done.returncode, done.stdout) == (1, f"the tables of the outbox are {later}\n")
    for words in (("db", "upgrade", "--database", shop.url), ("check",)):
        done = chatws(*words, CHATWS_DATABASE=url(shop), CHATWS_OUTBOX="true", CHATWS_USER_QUERY="SELECT 5 AS user_id")
        assert done.returncode == 1
        assert done.stderr.endswith(f"{later}\n")


def test_check_reports_the_outbox_with_the_privileges_of_the_guide(shop: Mysql) -> None:
    query = "SELECT id AS user_id FROM users WHERE id = %(user_id)s"
    done = chatws("check", CHATWS_DATABASE=url(shop), CHATWS_OUTBOX="true", CHATWS_USER_QUERY=query)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  outbox +its tables and lock are right +[0-9.]+ ms$", done.stdout, re.MULTILINE)
    shop.run("DROP TABLE chatws_outbox")
    done = chatws("check", CHATWS_DATABASE=url(shop), CHATWS_OUTBOX="true", CHATWS_USER_QUERY=query)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "chatws db upgrade" in done.stderr


def test_server_without_the_tables_starts_and_says_what_to_do(chatws_server: Start, mysql: Mysql) -> None:
    mysql.run(SCHEMA)
    server = chatws_server("--database", mysql.url, "--outbox", "--drain-timeout", "0")
    until(lambda: "run chatws db upgrade --database" in server.log, "the log line")
    done = chatws("db", "status", "--database", mysql.url, "--json")
    assert (done.returncode, json.loads(done.stdout)["outbox"]) == (1, 0)
