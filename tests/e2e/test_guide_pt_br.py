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

from chatws.config.loader import load
from tests.e2e.browser import open_browser, open_page
from tests.e2e.conftest import Server, twistd_command
from tests.e2e.nginx import NginxWith
from tests.e2e.php import PHP_DIRECTORY, run_php
from tests.e2e.process import clean_environment, free_port
from tests.e2e.test_secret_recipe import recipe
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
    "sh": ["pip install", "new_conversation", "--check", "useradd", "presence", "/push"],
    "nginx": ["location /ws"],
    "json": ['"type":"auth"', '"event":"new_message"'],
    "html": ["wsClient.connect(123)"],
    "js": ["sendTyping", "token:"],
    "php": ["notifyNewConversation", "token_secret", "class Mensagens"],
    "toml": ["[server]"],
}


def block(language: str, mark: str) -> str:
    assert mark in MARKS[language]
    (result,) = [text for kind, text in BLOCKS if kind == language and mark in text]
    return result


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


@needs("curl")
def test_the_request_to_the_http_api_reaches_the_page(chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    server = chatws_server("--auth", "trust", "--api-port", str(port))
    with server.agent(1, 456) as ana:
        command = block("sh", "/push").replace("curl", "curl -sS --noproxy '*'").replace("8082", str(port))
        answer = json.loads(shell(command, tmp_path, server))
        assert (answer["ok"], answer["delivered"]) == (True, 1)
        assert ana.expect("new_message")["data"]["message"]["content"] == "oi"


def test_install_commands_are_known_to_their_programs(tmp_path: Path) -> None:
    venv, pip, twistd = block("sh", "pip install").splitlines()
    assert (venv, pip) == ("python3 -m venv /opt/chatws", "/opt/chatws/bin/pip install -c constraints.txt .")
    assert twistd == "/opt/chatws/bin/twistd -n chatws"
    checked = subprocess.run(
        [*twistd_command(), *twistd.split()[1:], "--check"], cwd=tmp_path, env=clean_environment(), timeout=60
    )
    assert checked.returncode == 0


def test_the_commands_that_create_the_secret_are_those_that_another_test_runs() -> None:
    assert block("sh", "useradd").splitlines() == recipe("docs/security.md")


@needs("netcat-openbsd")
def test_the_guide_s_first_line_gets_the_documented_answer(server: Server, tmp_path: Path) -> None:
    answer = json.loads(shell(block("sh", "new_conversation"), tmp_path, server))
    assert list(answer) == ["ok", "event_id", "delivered"]
    assert (answer["ok"], answer["delivered"]) == (True, 0)


@needs("netcat-openbsd")
def test_the_commands_of_the_last_section_ask_the_server(server: Server, tmp_path: Path) -> None:
    with server.agent(123):
        written = shell(block("sh", "presence"), tmp_path, server).splitlines()
    answers = [json.loads(line) for line in written if line.startswith("{")]
    assert [answer["ok"] for answer in answers if "online" not in answer][-1] is True
    assert answers[-1]["online"] == [123]


def adapted(directory: Path, text: str) -> str:
    """The configuration and the commands with this directory in the place of the system's."""
    return text.replace("/etc/chatws", str(directory)).replace("/var/lib/chatws", str(directory))


def test_the_configuration_is_accepted_and_runs(chatws_server: Start, tmp_path: Path) -> None:
    text = block("toml", "[server]")
    (tmp_path / "chatws.toml").write_text(adapted(tmp_path, text))
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    (tmp_path / "secret").chmod(0o400)
    config = load({}, {}, str(tmp_path / "chatws.toml")).config
    assert config.allowed_origins == ("https://loja.example",)
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


def test_each_browser_message_of_the_guide_gets_the_documented_reply(server: Server) -> None:
    with server.browser() as browser:
        for line in block("json", '"type":"auth"').splitlines():
            browser.send_text(line)
        replies = ["authenticated", "subscribed", "pong", "presence", "unsubscribed"]
        seen = [browser.receive() for _ in replies]
        assert [item.get("event") or item["type"] for item in seen] == replies
        browser.send({"type": "subscribe"})
        assert set(browser.expect("error")["data"]) >= {"code", "message"}


def test_each_backend_event_of_the_guide_reaches_the_documented_audience(server: Server) -> None:
    with server.agent(123, 456) as subscriber, server.agent(8) as other, server.backend() as backend:
        subscriber.expect("agent_status")
        lines = [json.loads(line) for line in block("json", '"event":"new_message"').splitlines()]
        for line in lines:
            assert backend.request(line)["ok"]
        seen = subscriber.settle()
        assert [(item["event"], item["data"]) for item in seen] == [(item["event"], item["data"]) for item in lines]
        everybody = ["conversation_updated", "new_conversation", "agent_status", "manutencao"]
        assert [item["event"] for item in other.settle()] == everybody
        assert backend.request({"event": "sem_destino", "data": {}})["code"] == "no_audience"


# --- front end


@needs("nginx")
@needs("chromium")
def test_the_guide_s_page_shows_events_and_sends_typing(chatws_server: Start, tmp_path: Path) -> None:
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


def run_snippet(mark: str, directory: Path, **environment: str) -> str:
    """Run a PHP snippet as a project's file: with the directories around it that the guide has one make."""
    (directory / "vendor/chatws").mkdir(parents=True)
    (directory / "vendor/chatws/php").symlink_to(PHP_DIRECTORY)
    (directory / "app/Helpers").mkdir(parents=True)
    (directory / "app/Helpers/WebSocket.php").symlink_to(PHP_DIRECTORY / "legacy/WebSocket.php")
    (directory / "snippet.php").write_text(adapted(directory, block("php", mark)))
    return run_php("-d", "display_errors=1", str(directory / "snippet.php"), environment=environment)


@needs("php-cli")
def test_the_helper_s_calls_send_the_events_of_the_list(server: Server, tmp_path: Path) -> None:
    with server.agent(123, 456) as agent:
        address = f"127.0.0.1:{server.push_port}"
        assert run_snippet("notifyNewConversation", tmp_path, CHATWS_PUSH_ADDRESS=address) == "123\n"
        seen = [(item["event"], item["data"]) for item in agent.settle()]
    lines = [json.loads(line) for line in block("json", '"event":"new_message"').splitlines()]
    typing_ended = ("typing", {"conversation_id": 456, "user_id": 7, "is_typing": False})
    assert seen == [*((item["event"], item["data"]) for item in lines), typing_ended]


@needs("php-cli")
def test_the_guide_s_php_without_a_server_logs_and_continues(tmp_path: Path) -> None:
    written = run_snippet("notifyNewConversation", tmp_path, CHATWS_PUSH_ADDRESS=f"127.0.0.1:{free_port()}")
    assert "não foi entregue; o motivo está no log do PHP\n" in written


@needs("php-cli")
@needs("nginx")
@needs("chromium")
def test_token_of_the_php_snippet_authenticates_the_page(chatws_server: Start, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("0123456789abcdef" * 4)
    (tmp_path / "secret").chmod(0o400)
    written = run_snippet("token_secret", tmp_path)
    claims: dict[str, Any] = jwt.decode(
        json.loads(written)["token"], (tmp_path / "secret").read_text(), algorithms=["HS256"]
    )
    assert claims["sub"] == "123"
    server = chatws_server("--secret-file", str(tmp_path / "secret"))
    # nginx gives out what PHP has written, as PHP-FPM would
    (tmp_path / "token.php").write_text(written)
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


@needs("php-cli")
@needs("php-sqlite3")
def test_the_guide_s_message_class_pushes_each_message_once(server: Server, tmp_path: Path) -> None:
    with server.agent(1, 456) as agent:
        address = f"127.0.0.1:{server.push_port}"
        assert run_snippet("class Mensagens", tmp_path, CHATWS_PUSH_ADDRESS=address) == ""
        run_php(str(tmp_path / "snippet.php"), environment={"CHATWS_PUSH_ADDRESS": address})
        seen = agent.settle()
    message = {"id": 1, "content": "Seu pedido saiu para entrega", "sender_type": "agent", "sender_id": 5}
    assert [item["data"]["message"] for item in seen] == [message]


def test_limits_in_the_troubleshooting_table_are_the_defaults() -> None:
    from chatws.config.schema import Config

    config = Config()
    assert f"em {config.auth_deadline:g} segundos" in TEXT
    assert f"mais de {config.max_connections_per_user} conexões" in TEXT
    assert config.ping_interval < 60
