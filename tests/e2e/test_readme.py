"""Every block of the README does what the README says, and every link of the documents leads somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest

from chatws.config.loader import load
from tests.e2e.browser import open_browser, open_page
from tests.e2e.conftest import Server
from tests.e2e.nginx import NginxWith
from tests.e2e.process import Command, clean_environment, free_port, listens
from tests.e2e.wire import Browser, until
from tests.requirements import needs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

MESSAGE = {"conversation_id": 456, "message": {"id": 9, "content": "hi"}}

Start = Callable[..., Server]


def block(language: str, mark: str) -> str:
    """The README's block in this language that has `mark` in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (result,) = [item for item in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if mark in item]
    assert isinstance(result, str)
    return result


def run(words: list[str], directory: Path) -> str:
    done = subprocess.run(words, cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs("netcat-openbsd")
def test_the_line_from_a_shell_reaches_the_page_and_is_answered(server: Server, tmp_path: Path) -> None:
    # -q1 gives up a second after the line, however busy the machine is; -N waits for the end of the answer
    command = block("sh", "nc -q1").replace("8081", str(server.push_port)).replace("-q1", "-N")
    with server.agent(1, 1) as ana:
        answer = json.loads(run(["sh", "-c", command], tmp_path))
        assert (answer["ok"], answer["delivered"]) == (True, 1)
        assert ana.expect("new_message")["data"]["message"] == {"id": 9, "content": "hi"}


@needs("curl")
def test_the_request_to_the_http_api_reaches_the_page(chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    server = chatws_server("--auth", "trust", "--api-port", str(port))
    command = block("sh", "/push").replace("8082", str(port)).replace("curl", "curl -sS --noproxy '*'")
    with server.agent(1, 456) as ana:
        answer = json.loads(run(["sh", "-c", command], tmp_path))
        assert (answer["ok"], answer["delivered"]) == (True, 1)
        assert ana.expect("new_message")["data"] == MESSAGE


@needs("php-cli")
def test_the_lines_in_php_push_a_message(server: Server, tmp_path: Path) -> None:
    (tmp_path / "push.php").write_text("<?php\n" + block("php", "fwrite").replace("8081", str(server.push_port)))
    with server.agent(1, 456) as ana:
        assert json.loads(run(["php", "push.php"], tmp_path))["delivered"] == 1
        assert ana.expect("new_message")["data"]["message"]["content"] == "Your parcel is on its way"


def test_the_python_client_pushes_a_message(server: Server, tmp_path: Path) -> None:
    (tmp_path / "push.py").write_text(
        block("python", "BlockingPushClient")
        .replace("8081", str(server.push_port))
        # sent a second time it would be a duplicate, delivered to nobody
        .replace('")\ntry', '", timeout=20, deadline=20)\ntry')
        + "import sys\nassert not [name for name in sys.modules if name.startswith(('twisted', 'zope', 'autobahn'))]\n"
    )
    with server.agent(1, 456) as ana:
        event_id, delivered = run([sys.executable, "push.py"], tmp_path).split()
        assert delivered == "1"
        assert ana.expect("new_message")["id"] == event_id


def test_the_readme_s_python_client_reports_an_undelivered_event(tmp_path: Path) -> None:
    (tmp_path / "push.py").write_text(
        block("python", "BlockingPushClient")
        .replace("8081", str(free_port()))
        .replace('")\ntry', '", deadline=0.3)\ntry')
    )
    assert run([sys.executable, "push.py"], tmp_path).startswith("not delivered: ")


def test_the_component_runs_as_a_script(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "room.py").write_text(block("python", "IoServer.factory").replace("8080", str(port)))
    script = Command([sys.executable, "room.py"], tmp_path, ready=lambda: listens(port))
    with script, Browser(f"ws://127.0.0.1:{port}/") as first, Browser(f"ws://127.0.0.1:{port}/") as second:
        second.send_text("hello")
        assert first.socket.recv(timeout=20) == "2: hello"
    assert "Traceback" not in script.log


def test_the_configuration_file_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "chatws.toml"
    path.write_text(block("toml", "chatws.toml"))
    config = load({}, {}, str(path)).config
    assert config.secret_files == ("/etc/chatws/secret",)
    assert config.allowed_origins == ("https://shop.example",)


def test_the_commands_to_run_the_server_are_the_command_line_s(tmp_path: Path) -> None:
    from tests.e2e.conftest import twistd_command

    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "chatws.toml").write_text("port = 1\n")
    lines = [line.partition(" #")[0].split() for line in block("sh", "--help").splitlines()]
    commands = [words[1:] for words in lines if words[0] == "twistd" and words[1] != "-n"]
    assert ["chatws", "--help"] in commands
    for words in commands:
        assert run([*twistd_command(), *words], tmp_path)


@needs("nginx")
def test_through_nginx_as_described_a_page_gets_its_events(server: Server, tmp_path: Path) -> None:
    with (
        NginxWith(tmp_path, block("nginx", "location /ws").replace("8080", str(server.port))) as nginx,
        Browser(nginx.ws_url, origin=nginx.url) as ana,
        server.backend() as backend,
    ):
        ana.auth(1)
        backend.push("order_paid", {}, to={"user_id": 1})
        ana.expect("order_paid")
        with urllib.request.urlopen(f"{nginx.url}/assets/js/websocket-client.js", timeout=20) as script:
            assert b"wsClient" in script.read()


@needs("chromium")
def test_the_readme_s_page_receives_pushed_events(server: Server, tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "index.html").write_text(block("html", "wsClient").replace("8080", str(server.port)))
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    output: list[str] = []
    with (
        Command(command, tmp_path, ready=lambda: listens(port)),
        open_browser() as browser,
        open_page(browser, forgive="favicon|404") as tab,
        server.agent(2, 456) as bruno,
        server.backend() as backend,
    ):
        tab.on("console", lambda message: output.append(message.text))
        tab.goto(f"http://localhost:{port}/")
        bruno.expect("agent_status", agent_id=123, status="online")
        until(lambda: backend.push("new_message", MESSAGE)["delivered"] == 2, "the page to subscribe")
        bruno.send({"type": "typing", "conversation_id": 456})
        until(lambda: tab.wait_for_timeout(10) or "2 is typing" in output, "the page to hear of the typing")
        assert "456 hi" in output


@needs("chromium")
def test_the_readme_s_token_function_runs_for_each_connection(chatws_server: Start, tmp_path: Path) -> None:
    port = free_port()
    secret = "the-secret-of-the-README-s-token-test"
    server = chatws_server("--auth", "token", CHATWS_SECRET=secret)

    def issue(seconds: float) -> None:
        token = jwt.encode({"sub": "123", "exp": time.time() + seconds}, secret, algorithm="HS256")
        path = tmp_path / "token.php"
        path.write_text(json.dumps({"token": token}))
        # http.server compares whole seconds and would answer 304 for a second token within the first one's second
        os.utime(path, (time.time(), time.time() + seconds))

    script = f'<!doctype html><script src="{server.url}/assets/js/websocket-client.js"></script><script>'
    counted = "window.count = 0; wsClient.on('connected', () => { window.count += 1; });"
    (tmp_path / "index.html").write_text(f"{script}{counted}{block('js', 'token: async')}</script>")
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with (
        Command(command, tmp_path, ready=lambda: listens(port)),
        open_browser() as browser,
        open_page(browser, forgive="favicon|404") as tab,
    ):
        issue(3)  # with the tolerance for clocks the first connection ends after eight seconds
        tab.goto(f"http://127.0.0.1:{port}/")
        tab.wait_for_function("window.count === 1")
        issue(60)
        tab.wait_for_function("window.count === 2")


# --- links ----------------------------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """A Markdown file's headings as fragments, and the ids written out in it."""
    text = document.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: os.path.relpath(path, ROOT))
def test_every_link_leads_somewhere(document: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} of {document.name}"
        if fragment:
            assert fragment in anchors(target), f"{link} of {document.name}"
