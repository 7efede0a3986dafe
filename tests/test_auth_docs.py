"""What docs/security.md shows works as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from twisted.internet.task import Clock

from chatws.auth.callback import parse_response
from chatws.auth.token import TokenMethod
from chatws.chat.interfaces import Credentials
from chatws.database.placeholders import DatabaseEngine, check_sql
from chatws.server.component import HttpRequest
from tests.requirements import find_program, needs

TEXT = Path(__file__).parent.parent.joinpath("docs", "security.md").read_text("utf-8")


def snippet(language: str, words: str) -> str:
    (result,) = [text for text in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if words in text]
    return result


def run_php(code: str, tmp_path: Path, session: object) -> str:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef\n")
    before = f"<?php $_SESSION = json_decode('{json.dumps(session)}', true); ?>"
    script = tmp_path / "script.php"
    script.write_text(before + code.replace("session_start(['read_and_close' => true]);", ""))
    php = find_program("php-cli")
    assert php is not None
    environment = {"CHATWS_SECRET_FILES": str(secret), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([php, script], env=environment, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


@needs("php-cli")
def test_a_token_made_by_the_php_snippet_authenticates(tmp_path: Path) -> None:
    token = run_php(snippet("php", "function chatws_ticket"), tmp_path, {"user_id": 123})
    clock = Clock()
    method = TokenMethod([b"0123456789abcdef0123456789abcdef"], clock=clock)
    clock.advance(Path(tmp_path / "script.php").stat().st_mtime)
    result = method.authenticate(Credentials(123, token, HttpRequest("GET", "/ws"), ""))
    assert result.user_id == 123
    assert result.expires_at is not None
    assert 290 < result.expires_at - clock.seconds() < 340


@needs("php-cli")
def test_the_php_callback_accepts_a_session(tmp_path: Path) -> None:
    code = snippet("php", "http_response_code(401)")
    assert parse_response(run_php(code, tmp_path, {"user_id": 123}).encode()).user_id == 123
    assert run_php(code, tmp_path, {}) == ""


def test_the_conversation_agents_query_uses_its_parameters() -> None:
    result = check_sql(
        "conversation_query",
        snippet("sql", "conversation_agents"),
        ["user_id", "conversation_id"],
        DatabaseEngine.POSTGRESQL,
    )
    assert result == {"user_id", "conversation_id"}
