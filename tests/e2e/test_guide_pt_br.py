"""docs/pt-BR/WEBSOCKET.md: every snippet in it is run, and does what the text around it says.

Two words of it are not: `python3 -m venv` and `pip install`, which another test does with a wheel.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from chatws.configure import load
from tests.e2e.browser import open_browser, open_page
from tests.e2e.conftest import Server, twistd_command
from tests.e2e.nginx import NginxWith
from tests.e2e.php import PHP_DIRECTORY, run_php
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import until
from tests.requirements import needs

GUIDE = Path(__file__).resolve().parents[2] / "docs/pt-BR/WEBSOCKET.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)

Start = Callable[..., Server]
#: The shop's name is this machine. (On localhost the library would go to port 8080, past nginx.)
AT_THE_SHOP = ["--host-resolver-rules=MAP loja.example 127.0.0.1"]
#: Which of them a test here has run: a block that none asks for is an untested one.
MARKS = {
    "sh": ["pip install", "new_conversation", "--check", "presence"],
    "nginx": ["location /ws"],
    "json": ['"type":"auth"', '"event":"new_message"'],
    "html": ["wsClient.connect(123)"],
    "js": ["sendTyping", "token:"],
    "php": ["notifyNewConversation", "ticket_secret", "class Mensagens"],
    "toml": ["[listen]"],
}


def block(language: str, mark: str) -> str:
    assert mark in MARKS[language]
    (found,) = [text for kind, text in BLOCKS if kind == language and mark in text]
    return found


def test_each_block_is_one_that_a_test_here_runs() -> None:
    for language, text in BLOCKS:
        assert sum(mark in text for mark in MARKS[language]) == 1, text
    assert sum(map(len, MARKS.values())) == len(BLOCKS)


def shell(text: str, directory: Path, server: Server | None = None) -> str:
    for old, new in (("8080", "port"), ("8081", "push_port")):
        text = text.replace(f":{old}", f":{getattr(server, new)}").replace(f" {old}", f" {getattr(server, new)}")
    # -q1 gives up a second after the line, however busy the machine is; -N waits for the end of the answer
    text = text.replace("nc -q1 ", "nc -N ")
    done = subprocess.run(
        ["sh", "-e", "-c", text], cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- instalação, configuração, solução de problemas


def test_the_commands_to_install_are_words_that_their_programs_know(tmp_path: Path) -> None:
    venv, pip, twistd = block("sh", "pip install").splitlines()
    assert (venv, pip) == ("python3 -m venv /opt/chatws", "/opt/chatws/bin/pip install .")
    assert twistd == "/opt/chatws/bin/twistd -n chatws"
    checked = subprocess.run(
        [*twistd_command(), *twistd.split()[1:], "--check"], cwd=tmp_path, env=clean_environment(), timeout=60
    )
    assert checked.returncode == 0


@needs("netcat-openbsd")
def test_the_first_line_is_answered_as_said(server: Server, tmp_path: Path) -> None:
    answer = json.loads(shell(block("sh", "new_conversation"), tmp_path, server))
    assert list(answer) == ["ok", "event_id", "delivered"]
    assert (answer["ok"], answer["delivered"]) == (True, 0)


@needs("netcat-openbsd")
def test_the_commands_of_the_last_section_ask_the_server(server: Server, tmp_path: Path) -> None:
    with server.agent(123):
        written = shell(block("sh", "presence"), tmp_path, server).splitlines()
    answers = [json.loads(line) for line in written if line.startswith("{")]
    assert [one["ok"] for one in answers if "online" not in one][-1] is True
    assert answers[-1]["online"] == [123]


def adapted(directory: Path, text: str) -> str:
    """The configuration and the commands with this directory in the place of the system's."""
    return text.replace("/etc/chatws", str(directory)).replace("/var/lib/chatws", str(directory))


def test_the_configuration_is_accepted_and_runs(chatws_server: Start, tmp_path: Path) -> None:
    text = block("toml", "[listen]")
    (tmp_path / "chatws.toml").write_text(adapted(tmp_path, text))
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    (tmp_path / "secret").chmod(0o400)
    config = load({}, {}, str(tmp_path / "chatws.toml")).config
    assert config.allowed_origin == ("https://loja.example",)
    check, run = adapted(tmp_path, block("sh", "--check")).splitlines()
    done = subprocess.run(
        [*twistd_command(), *check.split()[1:]], cwd=tmp_path, env=clean_environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert run.split()[:3] == ["twistd", "-n", "chatws"]
    server = chatws_server(*run.split()[3:])
    with server.browser() as browser:
        browser.send({"type": "auth", "user_id": 1})
        browser.expect("error", code="auth_failed")


# --- nginx


def nginx_before(server: Server, directory: Path) -> NginxWith:
    """nginx with the guide's locations."""
    return NginxWith(directory, block("nginx", "location /ws").replace("8080", str(server.port)))


# --- eventos


def test_each_message_of_the_browser_is_answered_as_said(server: Server) -> None:
    with server.browser() as browser:
        for line in block("json", '"type":"auth"').splitlines():
            browser.send_text(line)
        replies = ["authenticated", "subscribed", "pong", "presence", "unsubscribed"]
        seen = [browser.receive() for _ in replies]
        assert [one.get("event") or one["type"] for one in seen] == replies
        browser.send({"type": "subscribe"})
        assert set(browser.expect("error")["data"]) >= {"code", "message"}


def test_each_event_of_the_backend_reaches_who_is_said_to_get_it(server: Server) -> None:
    with server.agent(123, 456) as subscriber, server.agent(8) as other, server.backend() as backend:
        subscriber.expect("agent_status")
        lines = [json.loads(line) for line in block("json", '"event":"new_message"').splitlines()]
        for line in lines:
            assert backend.request(line)["ok"]
        seen = subscriber.settle()
        assert [(one["event"], one["data"]) for one in seen] == [(one["event"], one["data"]) for one in lines]
        everybody = ["conversation_updated", "new_conversation", "agent_status", "manutencao"]
        assert [one["event"] for one in other.settle()] == everybody
        assert backend.request({"event": "sem_destino", "data": {}})["code"] == "no_audience"


# --- front end


@needs("nginx")
@needs("chromium")
def test_the_page_shows_what_comes_and_tells_of_typing(chatws_server: Start, tmp_path: Path) -> None:
    server = chatws_server("--presence-grace", "0")
    head = '<!DOCTYPE html><html lang="pt-BR"><meta charset="utf-8">\n'
    (tmp_path / "index.html").write_text(head + block("html", "wsClient.connect(123)"))
    with (
        nginx_before(server, tmp_path) as nginx,
        open_browser(*AT_THE_SHOP) as chromium,
        open_page(chromium, forgive="favicon|404") as page,
        server.agent(7, 456, 457) as contact,
        server.backend() as backend,
    ):
        page.goto(f"http://loja.example:{nginx.port}/")
        contact.expect("agent_status", agent_id=123, status="online")
        message = {"conversation_id": 456, "message": {"id": 9, "content": "Olá <b>João</b>"}}
        until(lambda: backend.push("new_message", message)["delivered"] == 2, "the page to subscribe")
        page.wait_for_function("document.querySelector('#mensagens li')?.textContent === 'Olá <b>João</b>'")
        contact.send({"type": "typing", "conversation_id": 456})
        page.wait_for_function("document.getElementById('digitando').textContent === '7 está digitando…'")
        page.evaluate("() => {" + block("js", "sendTyping") + "}")
        contact.expect("typing", conversation_id=456, user_id=123, is_typing=True)
        contact.expect("typing", conversation_id=456, user_id=123, is_typing=False)
        moved = {**message, "conversation_id": 457}
        until(lambda: backend.push("new_message", moved)["delivered"] == 2, "the page to go to the other conversation")
        assert backend.push("new_message", message)["delivered"] == 1


# --- back end


def run_snippet(mark: str, directory: Path, *, before: str = "", **environment: str) -> str:
    """Run a PHP snippet as a project's file: with the directories around it that the guide has one make."""
    (directory / "vendor/chatws").mkdir(parents=True)
    (directory / "vendor/chatws/php").symlink_to(PHP_DIRECTORY)
    (directory / "app/Helpers").mkdir(parents=True)
    (directory / "app/Helpers/WebSocket.php").symlink_to(PHP_DIRECTORY / "legacy/WebSocket.php")
    text = adapted(directory, block("php", mark))
    (directory / "snippet.php").write_text(text.replace("<?php\n", f"<?php\n{before}\n", 1))
    return run_php("-d", "display_errors=1", str(directory / "snippet.php"), environment=environment)


@needs("php-cli")
def test_the_helper_s_calls_send_the_events_of_the_list(server: Server, tmp_path: Path) -> None:
    with server.agent(123, 456) as agent:
        address = f"127.0.0.1:{server.push_port}"
        assert run_snippet("notifyNewConversation", tmp_path, CHATWS_PUSH_ADDRESS=address) == "123\n"
        seen = [(one["event"], one["data"]) for one in agent.settle()]
    lines = [json.loads(line) for line in block("json", '"event":"new_message"').splitlines()]
    typing_ended = ("typing", {"conversation_id": 456, "user_id": 7, "is_typing": False})
    assert seen == [*((one["event"], one["data"]) for one in lines), typing_ended]


@needs("php-cli")
def test_without_a_server_it_says_so_and_goes_on(tmp_path: Path) -> None:
    written = run_snippet("notifyNewConversation", tmp_path, CHATWS_PUSH_ADDRESS=f"127.0.0.1:{free_port()}")
    assert "não foi entregue; o motivo está no log do PHP\n" in written


@needs("php-cli")
@needs("nginx")
@needs("chromium")
def test_the_ticket_lets_the_page_in(chatws_server: Start, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    (tmp_path / "secret").chmod(0o400)
    written = run_snippet("ticket_secret", tmp_path)
    claims: dict[str, Any] = jwt.decode(
        json.loads(written)["token"], (tmp_path / "secret").read_text(), algorithms=["HS256"]
    )
    assert claims["sub"] == "123"
    server = chatws_server("--secret-file", str(tmp_path / "secret"))
    # nginx gives out what PHP has written, as PHP-FPM would
    (tmp_path / "ticket.php").write_text(written)
    script = '<script src="/assets/js/websocket-client.js"></script><script>'
    (tmp_path / "index.html").write_text(
        f"<!DOCTYPE html>{script}wsClient.on('connected', (data) => document.title = data.user_id);"
        f"{block('js', 'token:')}</script>"
    )
    with (
        nginx_before(server, tmp_path) as nginx,
        open_browser(*AT_THE_SHOP) as chromium,
        open_page(chromium, forgive="favicon|404") as page,
    ):
        page.goto(f"http://loja.example:{nginx.port}/")
        page.wait_for_function("document.title === '123'")


#: For a PHP without SQLite: what the snippet asks of it.
FAKE_PDO = """
class FakePDO extends PDO {
    public array $asked = [];
    public function __construct() {}
    public function exec(string $statement): int|false { return 0; }
    public function beginTransaction(): bool { return true; }
    public function commit(): bool { return true; }
    public function lastInsertId(?string $name = null): string|false { return '1'; }
    public function prepare(string $query, array $options = []): PDOStatement|false {
        return new class extends PDOStatement {
            public function execute(?array $params = null): bool { return count($params) === 4; }
        };
    }
}
"""


@needs("php-cli")
def test_who_saves_a_message_tells_of_it_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ""
    if run_php("-r", "echo in_array('sqlite', PDO::getAvailableDrivers()) ? 'yes' : 'no';") == "no":
        before = FAKE_PDO
        original = block("php", "class Mensagens")
        assert original.count("new PDO('sqlite::memory:')") == 1
        changed = original.replace("new PDO('sqlite::memory:')", "new FakePDO()")
        monkeypatch.setattr(
            "tests.e2e.test_guide_pt_br.BLOCKS",
            [(kind, changed if text == original else text) for kind, text in BLOCKS],
        )
    with server.agent(1, 456) as agent:
        address = f"127.0.0.1:{server.push_port}"
        assert run_snippet("class Mensagens", tmp_path, before=before, CHATWS_PUSH_ADDRESS=address) == ""
        run_php(str(tmp_path / "snippet.php"), environment={"CHATWS_PUSH_ADDRESS": address})
        seen = agent.settle()
    message = {"id": 1, "content": "Seu pedido saiu para entrega", "sender_type": "agent", "sender_id": 5}
    assert [one["data"]["message"] for one in seen] == [message]


def test_what_the_table_of_troubles_says_of_limits_is_so() -> None:
    from chatws.config import Config

    config = Config()
    assert f"em {config.auth_deadline:g} segundos" in TEXT
    assert f"mais de {config.max_connections_per_user} conexões" in TEXT
    assert config.ping_interval < 60
