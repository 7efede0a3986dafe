"""docs/migrating-from-ratchet.md: its Python runs, its PHP parses and shows what is said of it, its names exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import chatws
from chatws.server import MessageComponent
from tests.e2e.conftest import Server
from tests.e2e.php import run_php
from tests.e2e.process import Command, clean_environment, free_port, listens
from tests.e2e.wire import DEADLINE, Browser
from tests.requirements import needs

TEXT = (Path(__file__).resolve().parents[2] / "docs/migrating-from-ratchet.md").read_text(encoding="utf-8")


def block(language: str, mark: str) -> str:
    (result,) = [text for text in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if mark in text]
    assert isinstance(result, str)
    return result


@contextmanager
def script(text: str, directory: Path) -> Iterator[Callable[..., Browser]]:
    """Runs one of the scripts; gives a function that opens a WebSocket to it."""
    port = free_port()
    assert text.count("8080") == 1
    (directory / "script.py").write_text(text.replace("8080", str(port)))
    with Command([sys.executable, "script.py"], directory, ready=lambda: listens(port)) as running:
        yield lambda path="/", **options: Browser(f"ws://127.0.0.1:{port}{path}", **options)
    assert "Traceback" not in running.log


def test_the_port_serves_all_tabs_and_keeps_the_others_when_one_closes(tmp_path: Path) -> None:
    output = {"type": "message", "conversation_id": 1, "text": "hi"}
    with script(block("python", "class Chat"), tmp_path) as opened:
        tabs = first, second, other = opened(), opened(), opened()
        for number, (tab, user) in enumerate(zip(tabs, (5, 5, 6), strict=True)):
            tab.send({"type": "auth", "user_id": user})
            tab.send({"type": "subscribe", "conversation_id": 1})
            # subscribing is not answered: what comes back from here shows that it is done
            alone = f"only tab {number}"
            tab.send({"type": "subscribe", "conversation_id": alone})
            tab.send({"type": "message", "conversation_id": alone})
            assert tab.receive() == {"type": "message", "conversation_id": alone}
        other.send(output)
        assert first.receive() == output
        assert second.receive() == output
        second.close()
        other.send({**output, "text": "still there?"})
        assert first.receive() == {**output, "text": "still there?"}
        first.send_text("no JSON")
        assert first.expect_close() == (4500, "internal error")
        other.close()
    assert "error: " in (tmp_path / "log").read_text()


def test_the_app_opens_its_components_on_their_paths(tmp_path: Path) -> None:
    with script(block("python", "SessionProvider"), tmp_path) as opened:
        with opened("/greeter", headers={"Cookie": "PHPSESSID=abc"}) as greeter:
            assert greeter.socket.recv(timeout=DEADLINE) == "your session is abc"
        with opened("/echo") as echo:
            echo.send_text("hello")
            assert echo.socket.recv(timeout=DEADLINE) == "hello"
        with opened("/echo", headers={"X-Forwarded-For": "203.0.113.9"}) as blocked:  # type: ignore[arg-type]
            assert blocked.expect_close()[0] == 4903
        with opened("/admin", origin="https://admin.shop.example") as admin:
            admin.send_text("hello")
            assert admin.socket.recv(timeout=DEADLINE) == "hello"
        with opened("/greeter", origin="https://admin.shop.example") as elsewhere:
            elsewhere.socket.recv(timeout=DEADLINE)


@needs("php-cli")
def test_the_old_server_is_php(tmp_path: Path) -> None:
    (tmp_path / "old.php").write_text(block("php", "MessageComponentInterface"))
    run_php("-l", str(tmp_path / "old.php"))


@needs("php-cli")
def test_php_appends_to_an_overloaded_property_are_lost(tmp_path: Path) -> None:
    (tmp_path / "lost.php").write_text(block("php", "__get"))
    written = run_php("-d", "display_errors=1", str(tmp_path / "lost.php"))
    assert "Indirect modification of overloaded property" in written
    output = re.findall(r"echo count.*// (\d)", block("php", "__get"))
    assert [line for line in written.splitlines() if line.isdigit()] == output == ["0", "1"]


@pytest.mark.long
def test_both_servers_can_be_compared_with_the_command(chatws_server: Callable[..., Server], tmp_path: Path) -> None:
    old, new = chatws_server(), chatws_server()
    line = block("sh", "chatws compare").replace("old:8080", f"127.0.0.1:{old.port}")
    words = line.replace("new:8080", f"127.0.0.1:{new.port}").replace("--seconds 600", "--seconds 1").split()
    done = subprocess.run(
        [sys.executable, "-m", "chatws.cli", *words[1:]],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_name_of_the_table_exists() -> None:
    rows = re.findall(r"^\| `?Ratchet\\.*?\| `(\w+)", TEXT, re.MULTILINE)
    assert {"IoServer", "OriginCheck", "IpBlackList", "SessionProvider", "Router", "App"} <= set(rows)
    for name in rows:
        assert hasattr(chatws, name), name
    for method in ("on_open", "on_message", "on_close", "on_error"):
        assert hasattr(MessageComponent, method)
        assert f"`{method}(" in TEXT


def test_limits_in_the_migration_guide_are_the_defaults() -> None:
    from chatws.config.schema import Config

    config = Config()
    assert f"offline after {config.ping_interval + config.ping_timeout:g} seconds" in TEXT
