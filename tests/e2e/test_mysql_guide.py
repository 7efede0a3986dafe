"""docs/mysql.md and its Portuguese version work as they are written: the account, the queries, the heartbeats."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.e2e.conftest import Server
from tests.e2e.test_command import chatws
from tests.e2e.wire import until
from tests.mysql import Mysql, mysql

__all__ = ["mysql"]

DOCS = Path(__file__).parent.parent.parent / "docs"
GUIDES = [("mysql.md", "a long password"), ("pt-BR/MYSQL.md", "uma senha longa")]
SCHEMA = """
CREATE TABLE users (id int unsigned PRIMARY KEY, status varchar(20), secret text, last_seen_at datetime);
CREATE TABLE conversations (id bigint PRIMARY KEY, agent_id int unsigned);
INSERT INTO users VALUES (5, 'active', 'x', NULL), (6, 'gone', 'x', NULL);
INSERT INTO conversations VALUES (456, 5), (457, 6);
"""


def snippet(guide: str, language: str) -> str:
    text = (DOCS / guide).read_text("utf-8")
    result = re.search(rf"^   ```{language}\n(.*?)^   ```", text, re.DOTALL | re.MULTILINE)
    assert result is not None
    return "\n".join(line.removeprefix("   ") for line in result[1].splitlines())


def prepare(mysql: Mysql, guide: str, password: str, directory: Path, options: str = "") -> Path:
    """Create the shop's tables and the guide's account, and return the configuration file."""
    mysql.run(SCHEMA)
    mysql.admin(f"DROP USER IF EXISTS 'chatws'@'localhost';{snippet(guide, 'sql')}")
    secret = directory / "database-url"
    secret.write_text(f"mysql://chatws:{quote(password)}@/shop?unix_socket={mysql.socket}{options}\n")
    secret.chmod(0o600)
    config = directory / "chatws.toml"
    config.write_text(snippet(guide, "toml").replace("/etc/chatws/database-url", str(secret)))
    return config


@pytest.mark.parametrize(("guide", "password"), GUIDES)
def test_account_and_queries_of_the_guide_pass_the_check(
    guide: str, password: str, mysql: Mysql, tmp_path: Path
) -> None:
    config = prepare(mysql, guide, password, tmp_path)
    done = chatws("check", str(config))
    assert done.returncode == 0, done.stderr
    assert "not tried" not in done.stdout
    assert len(re.findall(r"_query +(?:a row|no row|planned, not run) +[0-9.]+ ms", done.stdout)) == 3
    for user, conversation, status in ((5, 456, 0), (5, 457, 1), (6, 457, 1), ("5abc", 456, 1)):
        done = chatws("check", str(config), "--user", str(user), "--conversation", str(conversation))
        assert done.returncode == status, done.stdout


def test_heartbeat_is_stored_in_utc_with_the_time_zone_of_the_url(
    mysql: Mysql, tmp_path: Path, chatws_server: Callable[..., Server]
) -> None:
    config = prepare(mysql, *GUIDES[0], tmp_path, "&time_zone=%2B00:00")
    server = chatws_server("--config", str(config))
    with server.browser() as page:
        page.send({"type": "auth", "user_id": 5})
        page.expect("authenticated")
        page.send({"type": "ping", "last_activity": 1_764_000_000_000})
        page.expect("pong")

        def stored() -> object:
            return mysql.run("SELECT DATE_FORMAT(last_seen_at, '%Y-%m-%d %H:%i:%s') FROM users WHERE id = 5")[0][0]

        until(stored, "the heartbeat to be written")
        assert stored() == "2025-11-24 16:00:00"
