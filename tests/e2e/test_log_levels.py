"""The node in each line, and levels that a reload changes, of a server and of its workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Server
from tests.e2e.wire import until

Start = Callable[..., Server]

#: Lines of level debug of the chat, of the push API and of the broker.
STEPS = (
    ", user 5, from 127.0.0.1: authenticated",
    "a backend connected from",
    "the broker answered publish",
)


def lines(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log.splitlines()]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_reload_changes_the_level_of_a_module(workers: tuple[str, ...], chatws_server: Start, tmp_path: Path) -> None:
    settings = tmp_path / "chatws.toml"
    settings.write_text('log_level = "info"\n')
    server = chatws_server("--config", str(settings), "--log-format", "json", "--node-name", "web1", *workers)
    with server.agent(5):
        pass
    settings.write_text('log_level = "info,chatws=debug"\n')
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("log_level: info → info,chatws=debug")

    def log_in() -> bool:
        with server.agent(5), server.backend() as backend:
            backend.push("new_message", {"conversation_id": 456, "message": {}})
        return all(step in server.log for step in STEPS)

    until(log_in, "lines of level debug")  # the workers get the new level a little later
    written = lines(server)
    assert {line["node"] for line in written} == {"web1"}
    debug = [line for line in written if line["level"] == "debug"]
    assert {line["logger"] for line in debug} >= {"chatws.chat.connection_log", "chatws.brokers.calls"}
    connection = next(line for line in debug if line["logger"] == "chatws.chat.connection_log")
    assert connection["user"] == "5"
    assert connection["connection_id"]

    settings.write_text('log_level = "chatws.chat=loud"\n')
    os.kill(server.pid, signal.SIGHUP)
    server.expect_log("--log-level:")
    assert '\\"chatws.chat=loud\\" must be debug, info, warn, error or critical' in server.log


def test_lines_of_text_begin_with_the_node_and_can_be_warnings_only(chatws_server: Start) -> None:
    server = chatws_server("--node-name", "web1", "--log-level", "warn")
    server.expect_log("the history is in memory")
    assert all(" [web1 " in line for line in server.log.splitlines())
    assert "#info]" not in server.log
