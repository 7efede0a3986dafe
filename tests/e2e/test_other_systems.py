"""chatws where developers sit: without what only Linux or only Unix has (tests/e2e/other_system.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.python import filepath

from tests.e2e.browser import open_browser, open_page
from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment
from tests.requirements import needs

SCRIPT = str(Path(__file__).with_name("other_system.py"))
#: Twisted 26.10 fails on Windows with Python 3.12: its `filepath` uses PureWindowsPath there without importing it.
twisted_starts_on_windows = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12) and not hasattr(filepath, "PureWindowsPath"),
    reason="this Twisted does not start on Windows with Python 3.12",
)
KINDS = ("macos", pytest.param("windows", marks=twisted_starts_on_windows))
MARINA = 1

#: The README's line.
LINE = {"event": "new_message", "data": {"conversation_id": MARINA, "message": {"id": 9, "content": "hi"}}}


def command(kind: str, program: str, *words: str) -> list[str]:
    return [sys.executable, SCRIPT, kind, program, *words]


def run(kind: str, program: str, *words: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(kind, program, *words),
        cwd=directory,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


class OtherServer(Server):
    """A server on another system.

    :ivar kind: which.
    """

    kind = ""

    def command(self) -> list[str]:
        return command(self.kind, "twistd", *super().command()[len(twistd_command()) :])


@pytest.fixture(autouse=True, scope="module")
def _plugins_are_known() -> None:
    # Twisted rewrites an outdated list of plugins, which must contain all of them
    subprocess.run([*twistd_command(), "chatws", "--version"], check=True, capture_output=True, timeout=60)


@pytest.fixture(params=KINDS)
def demo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OtherServer]:
    arguments = ("--demo", "--presence-grace", "0.3", "--drain-timeout", "0")
    with _server(request.param, tmp_path, *arguments) as server:
        yield server
    server.finish()


def _server(kind: str, directory: Path, *arguments: str) -> OtherServer:
    server = OtherServer(directory, arguments, clean_environment())
    server.kind = kind
    return server


def test_the_demo_serves_its_page_browsers_pushes_and_replies(demo: OtherServer) -> None:
    for path, text in (("/", b"<!doctype html>"), ("/assets/js/websocket-client.js", b"wsClient")):
        with urllib.request.urlopen(demo.url + path, timeout=20) as response:
            assert text in response.read()
    with demo.agent(1, MARINA) as ana, demo.agent(2, MARINA) as bruno, demo.backend() as backend:
        ana.send({"type": "typing", "conversation_id": MARINA})
        bruno.expect("typing", user_id=1)
        answer = backend.request(LINE)
        assert (answer["ok"], answer["delivered"]) == (True, 2)
        for agent in (ana, bruno):
            assert agent.expect("new_message")["data"]["message"] == {"id": 9, "content": "hi"}
        reply(demo, "olá")
        for agent in (ana, bruno):
            assert agent.expect("new_message")["data"]["message"]["content"] == "olá"
    assert "SelectReactor" in demo.log
    assert demo.stop() == 0


def reply(server: Server, content: str) -> None:
    """What the demo's page sends when the agent presses Enter."""
    request = urllib.request.Request(
        f"{server.url}/api/conversations/{MARINA}/messages",
        json.dumps({"agent_id": 1, "content": content, "client_id": "c1"}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as response:
        assert response.status == 201


@needs("chromium")
def test_the_demo_s_page_works_in_a_browser(demo: OtherServer) -> None:
    with open_browser() as browser, open_page(browser, f"{demo.url}/?agent=1") as page, demo.agent(2, MARINA) as bruno:
        page.wait_for_selector('[data-testid="connection"][data-state="live"]')
        draft = page.get_by_test_id("draft")
        draft.press_sequentially("Oi")
        bruno.expect("typing", user_id=1, is_typing=True)
        draft.press("Enter")
        assert bruno.expect("new_message")["data"]["message"]["content"] == "Oi"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_server_with_files_starts_and_logs_to_a_file(kind: str, log_format: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s" * 40)
    secret.chmod(0o600 if kind == "macos" else 0o666)  # Windows reports this mode for every file
    settings = tmp_path / "chatws.toml"
    settings.write_text(f'secret_files = "{secret}"\nbroker = "sqlite:///{tmp_path}/log.db"\nmetrics_port = 0\n')
    server = _server(kind, tmp_path, "--config", str(settings), "--log-format", log_format)
    words = server.command()
    at = words.index("chatws")
    words[at:at] = ["--logfile", str(tmp_path / "log file")]
    server.command = lambda: words  # type: ignore[method-assign]
    with server:
        assert server.stop() == 0
    assert "listening for browsers" in (tmp_path / "log file").read_text()
    assert server.log == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_explains_itself_and_pushes(kind: str, tmp_path: Path, server: Server) -> None:
    helped = run(kind, "chatws", "--help", directory=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    address = f"127.0.0.1:{server.push_port}"
    pushed = run(kind, "chatws", "push", "new_message", json.dumps(LINE["data"]), "--push", address, directory=tmp_path)
    assert (pushed.returncode, pushed.stderr) == (0, "")


@twisted_starts_on_windows
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--workers", "2"), "--workers needs Unix sockets, which this system lacks"),
        (("--push-listen", "unix:push.sock"), "this system has no Unix sockets: listen on tcp:"),
    ],
)
def test_settings_that_windows_lacks_are_rejected_in_one_line(
    words: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    done = run("windows", "twistd", "chatws", *words, directory=tmp_path)
    assert done.returncode == 78, done.stdout
    (output,) = done.stderr.splitlines()
    assert line in output


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("push", "--spool", "."), "--spool needs flock(2), which this system lacks"),
        (("agents", "--push", "unix:/run/push.sock"), "this system has no Unix sockets"),
    ],
)
def test_options_of_the_command_that_windows_lacks_are_rejected_in_one_line(
    words: tuple[str, ...], line: str, tmp_path: Path
) -> None:
    (tmp_path / "1.json").write_text('{"event":"e","id":"1","ack":true}')
    done = run("windows", "chatws", *words, directory=tmp_path)
    assert done.returncode == 1, done.stdout
    (output,) = done.stderr.splitlines()
    assert line in output


#: Says what is missing.
PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
import other_system
other_system.become("windows")
import os, select, signal, socket
for module in ("resource", "fcntl", "pwd", "grp", "syslog"):
    try:
        __import__(module, {"__name__": "chatws"})
    except ImportError:
        print(module)
for module, name in (
    (select, "epoll"), (select, "poll"), (signal, "SIGHUP"), (signal, "SIGUSR1"), (signal, "SIGCHLD"),
    (socket, "AF_UNIX"), (os, "fork"), (os, "geteuid"), (os, "sched_getaffinity"),
):
    if not hasattr(module, name):
        print(name)
try:
    open("/proc/self/stat")
except FileNotFoundError:
    print("/proc")
"""


def test_modules_that_the_other_system_lacks_are_hidden() -> None:
    words = [sys.executable, "-c", PROBE, str(Path(SCRIPT).parent)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    hidden = (
        "resource fcntl pwd grp syslog epoll poll SIGHUP SIGUSR1 SIGCHLD AF_UNIX fork geteuid sched_getaffinity /proc"
    )
    assert done.stdout.split() == hidden.split(), done.stderr
