"""The commands of docs/runbook.md, most of them against the fault that the section is for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import until
from tests.redis import RedisServer
from tests.requirements import needs
from tests.webhook_receiver import webhook_receiver

pytestmark = [pytest.mark.long, needs("curl")]

Start = Callable[..., Server]

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/runbook.md").read_text()
#: Heading → the commands of the section, and the lines that their output has.
SECTIONS = {
    heading: (commands, expected.splitlines())
    for heading, commands, expected in re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?^```sh\n(.*?)^```\n\n^```text\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL
    )
}


class Node:
    """A server whose runbook is executed."""

    def __init__(self, start: Start, directory: Path, *arguments: str) -> None:
        self.metrics = free_port()
        self.directory = directory
        self.server = start("--metrics-port", str(self.metrics), *arguments)
        (directory / "chatws.toml").write_text(f"port = {self.server.port}\nmetrics_port = {self.metrics}\n")
        programs = directory / "bin"
        programs.mkdir()
        for name, line in {
            "chatws": f'exec {sys.executable} -m chatws.cli "$@"',
            "journalctl": f"cat {self.server.log_path}",
        }.items():
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        self.environment = clean_environment(PATH=f"{programs}:{os.environ['PATH']}", PYTHONPATH=str(ROOT))

    def run(self, heading: str) -> str:
        """Run the commands of a section. Returns their output."""
        commands = SECTIONS[heading][0].replace("127.0.0.1:9180", f"127.0.0.1:{self.metrics}")
        commands = commands.replace("/etc/chatws", str(self.directory)).replace("/var/log", str(self.directory))
        done = subprocess.run(
            ["sh", "-c", commands], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.stdout + done.stderr

    def expect(self, heading: str) -> None:
        """Run the commands of a section until their output is that of the document."""

        def is_as_documented() -> bool:
            output = self.run(heading)
            patterns = [".*".join(map(re.escape, line.split("…"))) for line in SECTIONS[heading][1]]
            missing[:] = [pattern for pattern in patterns if not re.search(pattern, output)]
            missing.append(output)
            return len(missing) == 1

        missing: list[str] = []
        try:
            until(is_as_documented, f"the output of {heading!r}", 60)
        except AssertionError as error:
            error.add_note(str(missing))
            raise


@needs("redis-server")
def test_sections_about_the_broker_and_the_database(chatws_server: Start, tmp_path: Path) -> None:
    redis = RedisServer().start()
    try:
        node = Node(
            chatws_server, tmp_path, "--broker", redis.url, "--broker-timeout", "1",
            "--database", f"sqlite:///{tmp_path}/absent.db", "--auth", "trust",
        )  # fmt: skip
        node.expect("Node not ready")
        node.expect("Database errors")
        redis.stop()
        node.expect("Broker unavailable")
    finally:
        redis.close()


def test_sections_about_one_server(chatws_server: Start, tmp_path: Path) -> None:
    node = Node(chatws_server, tmp_path)
    with node.server.browser() as browser:
        browser.auth(5, last_event_id="ANOTHER:7")
        node.expect("Failed recoveries")
        node.expect("Unverified users")
        node.expect("Open files")
    # for these there is no fault here: the commands and the names of the series are right
    for heading in ("Event loop lag", "Nodes differ", "Dropped log lines", "Internal errors"):
        node.expect(heading)


def test_section_about_workers(chatws_server: Start, tmp_path: Path) -> None:
    node = Node(chatws_server, tmp_path, "--workers", "2")
    node.server.expect_log("listen for browsers", 60)
    (pid,) = re.findall(r"worker 0 serves, as process (\d+)", node.server.log)
    os.kill(int(pid), signal.SIGKILL)
    node.expect("Workers")


def test_section_about_webhooks(chatws_server: Start, tmp_path: Path) -> None:
    secret = tmp_path / "webhook_secret"
    secret.write_text("a webhook secret\n")
    secret.chmod(0o600)
    with webhook_receiver("a webhook secret") as receiver:
        receiver.answer = lambda request: (500, {}, b"")
        options = ("--webhook-url", receiver.url, "--webhook-secret-file", str(secret), "--webhook-start-delay", "0")
        node = Node(chatws_server, tmp_path, *options)
        with node.server.browser() as browser:
            browser.auth(5)
            node.expect("Webhooks")
