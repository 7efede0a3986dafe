"""A history in SQLite survives `kill -9`, also where the machine's boot id is hidden; what is discarded is logged."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.mounts import MountedServer
from tests.e2e.process import clean_environment, listens
from tests.e2e.wire import until
from tests.requirements import MOUNT_NAMESPACES, needs

Start = Callable[..., Server]
SQLITE = ("--broker", "sqlite:///log.db", "--drain-timeout", "0")
#: What ProcSubset=pid of systemd leaves of /proc/sys: nothing.
HIDDEN_PROC_SYS = "mount -t tmpfs -o ro none /proc/sys"


@pytest.fixture
def without_boot_id(tmp_path: Path) -> Iterator[Callable[..., MountedServer]]:
    """A factory of servers for which /proc/sys is empty."""
    servers: list[MountedServer] = []

    def start(*arguments: str) -> MountedServer:
        server = MountedServer(tmp_path, arguments, clean_environment(), HIDDEN_PROC_SYS)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


def miss_an_event_across_a_kill(server: Server) -> dict[str, object]:
    """Push an event that a browser misses, kill the server, start it again; what the browser's `subscribe` says."""
    with server.backend() as backend, server.agent(1, 456) as browser:
        seen = backend.push("new_message", {"conversation_id": 456, "n": 1})["event_id"]
        browser.expect("new_message", n=1)
        browser.drop()
        backend.push("new_message", {"conversation_id": 456, "n": 2})
    server.stop(signal.SIGKILL)
    # workers notice that their supervisor is gone, and end by themselves
    until(lambda: not listens(server.port) and not listens(server.push_port), "the ports to be free")
    server.start()
    with server.browser() as back:
        back.auth(1)
        return back.subscribe(456, last_event_id=seen)


@needs(MOUNT_NAMESPACES)
def test_history_with_unreadable_boot_id_survives_kills(without_boot_id: Callable[..., MountedServer]) -> None:
    server = without_boot_id(*SQLITE)
    for _ in range(2):
        answer = miss_an_event_across_a_kill(server)
        assert (answer["recovered"], answer["replayed"]) == (True, 1)
    until(
        lambda: server.log.count("the boot id cannot be read from /proc/sys/kernel/random/boot_id") == 3, "the warnings"
    )
    assert "as with --sqlite-synchronous full" in server.log
    assert "discarded" not in server.log


@needs(MOUNT_NAMESPACES)
@pytest.mark.long
def test_history_of_workers_with_unreadable_boot_id_survives_a_kill(
    without_boot_id: Callable[..., MountedServer],
) -> None:
    server = without_boot_id(*SQLITE, "--workers", "2", "--auth", "trust")
    answer = miss_an_event_across_a_kill(server)
    assert (answer["recovered"], answer["replayed"]) == (True, 1)


def test_history_after_a_restart_of_the_machine_is_discarded_and_logged(chatws_server: Start) -> None:
    server = chatws_server(*SQLITE)
    with server.backend() as backend:
        seen = backend.push("new_message", {"conversation_id": 456, "n": 1})["event_id"]
    server.stop(signal.SIGKILL)
    with sqlite3.connect(server.directory / "log.db") as db:
        assert db.execute("UPDATE history SET unsynced_boot = 'an earlier boot'").rowcount == 1
    db.close()
    server.start()
    with server.browser() as back:
        assert back.auth(1, last_event_id=seen)["recovered"] is False
    assert "log.db is discarded and a new epoch begins, pages reload: the machine restarted before" in server.log


def test_an_empty_history_in_memory_is_logged_at_start(chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "0")
    server.expect_log("the history is in memory and starts empty")  # a thread writes it
    server.restart(signal.SIGKILL)
    server.expect_log_count("the history is in memory and starts empty", 2)
