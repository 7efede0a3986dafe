"""The PHP receiver of docs/webhooks.md, with PHP's web server and MySQL."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.php import PHP_DIRECTORY, PhpWebServer
from tests.e2e.test_webhooks import eventually, options
from tests.mysql import Mysql, mysql
from tests.requirements import needs
from tests.webhook_receiver import Receiver

__all__ = ["mysql"]

pytestmark = [pytest.mark.long, needs("php-cli"), needs("php-mysql")]

DOCUMENT = Path(__file__).parents[2] / "docs" / "webhooks.md"


def example(shop: Mysql, secret: Path) -> str:
    """The example, with the paths and the database of the test."""
    text = DOCUMENT.read_text("utf-8")
    (code,) = (one for one in re.findall(r"```php\n(.*?)```", text, re.DOTALL) if "php://input" in one)
    dsn = f"mysql:unix_socket={shop.socket};dbname=shop;charset=utf8mb4"
    code = code.replace("/path/to/chatws/php", str(PHP_DIRECTORY)).replace("/etc/chatws/webhook-secret", str(secret))
    return code.replace("$pdo = new", f"[$dsn, $user, $password] = ['{dsn}', 'web', 'w'];\n$pdo = new", 1)


def tables() -> list[str]:
    """The statements of the document, and the first row."""
    text = DOCUMENT.read_text("utf-8").replace("\n", " ")
    agents = re.search(r"CREATE TABLE chatws_agents \([^`]*", text)
    assert agents is not None
    assert "`chatws_seq (id INT PRIMARY KEY, seq BIGINT NOT NULL)`" in text
    return [agents[0], "CREATE TABLE chatws_seq (id INT PRIMARY KEY, seq BIGINT NOT NULL)"]


def test_example_keeps_the_table_of_agents(chatws_server: Callable[..., Server], mysql: Mysql, tmp_path: Path) -> None:
    mysql.run("; ".join([*tables(), "INSERT INTO chatws_seq VALUES (1, 0)"]) + ";")
    mysql.admin(
        "DROP USER IF EXISTS 'web'@'localhost'; CREATE USER 'web'@'localhost' IDENTIFIED BY 'w';"
        "GRANT ALL ON shop.* TO 'web'@'localhost';"
    )
    receiver = Receiver()
    arguments = options(receiver, tmp_path, "--broker", "sqlite:///log.db")
    script = tmp_path / "receiver.php"
    script.write_text(example(mysql, tmp_path / "webhook-secret"))
    with PhpWebServer(str(script), tmp_path) as web:
        server = chatws_server(*("--webhook-url", f"{web.url}/hook"), *arguments[2:])

        def online() -> list[str]:
            return sorted(row[0] for row in mysql.run("SELECT user_id FROM chatws_agents WHERE online = 1"))

        def last_activity(user_id: str) -> int:
            rows = mysql.run(f"SELECT last_activity_ms FROM chatws_agents WHERE user_id = '{user_id}'")
            return int(rows[0][0]) if rows else 0

        agent, other = server.agent(5), server.agent("ana")
        eventually(lambda: online() == ["5", "ana"], "both agents in the table")
        agent.send({"type": "ping", "last_activity": 1_700_000_000_123})
        eventually(lambda: last_activity("5") == 1_700_000_000_123, "the ping in the table")
        other.close()
        eventually(lambda: online() == ["5"], "one agent in the table")
        mysql.run("UPDATE chatws_agents SET online = 0; UPDATE chatws_agents SET user_id = '99', online = 1 LIMIT 1;")
        with server.backend() as backend:
            assert backend.request({"op": "webhook_sync"})["ok"]
        eventually(lambda: online() == ["5"], "the whole state in the table")
