"""SQLite files on a volume that is full: a tmpfs of a few MiB in a mount namespace."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mounts import MountedServer
from tests.e2e.process import clean_environment
from tests.e2e.test_operations import fetch
from tests.e2e.wire import until
from tests.requirements import MOUNT_NAMESPACES, needs

pytestmark = needs(MOUNT_NAMESPACES)

BROKER = ("--broker", "sqlite:///volume/log.db", "--drain-timeout", "0")
#: Bytes of an event's text. Some hundred of them fill the volume.
TEXT = 10_000

Start = Callable[..., MountedServer]


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Start]:
    """A factory of servers with a volume of 3 MiB at `volume`."""
    servers: list[MountedServer] = []

    def prepare(*arguments: str) -> MountedServer:
        (tmp_path / "volume").mkdir()
        mounts = f"mount -t tmpfs -o size=3m none {tmp_path}/volume"
        server = MountedServer(tmp_path, arguments, clean_environment(), mounts)
        servers.append(server)
        return server

    yield prepare
    for server in servers:
        server.close()


def fill(server: MountedServer) -> None:
    """Leave no byte of the volume free."""
    server.run_inside("cat /dev/zero > volume/filler 2>/dev/null || true")


def push(server: MountedServer, count: int, first: int = 0) -> list[dict[str, Any]]:
    """What pushes of `TEXT` bytes each are answered with."""
    with server.backend() as backend:
        return [
            backend.request(
                {"event": "new_message", "data": {"conversation_id": 456, "n": n, "text": "x" * TEXT}, "ack": True}
            )
            for n in range(first, first + count)
        ]


def recover(server: MountedServer, event_id: str) -> dict[str, Any]:
    with server.browser() as browser:
        browser.auth(1)
        return browser.subscribe(456, last_event_id=event_id)


@pytest.mark.parametrize(
    "safety",
    [
        pytest.param((), id="usual"),
        pytest.param(("--sqlite-synchronous", "full"), id="durable", marks=pytest.mark.long),
    ],
)
def test_history_on_a_full_volume_is_trimmed_and_accepts_events(safety: tuple[str, ...], small_volume: Start) -> None:
    server = small_volume(*BROKER, *safety, "--history-seconds", "5")
    server.start()
    answers = push(server, 1000)  # three times what the volume holds
    assert [item for item in answers if not item["ok"]] == []
    assert "the disk of" in server.log
    assert "is full: the oldest events make room for new ones" in server.log
    for number in (signal.SIGKILL, signal.SIGTERM):
        server.restart(number)
        answers = push(server, 3)
        assert [item for item in answers if not item["ok"]] == [], server.log
        answer = recover(server, answers[0]["event_id"])
        assert (answer["recovered"], answer["replayed"]) == (True, 2)


@pytest.mark.long
def test_history_on_a_volume_filled_before_the_start_recovers(small_volume: Start) -> None:
    server = small_volume(*BROKER)
    server.start()
    seen = push(server, 5)[0]["event_id"]
    server.stop()
    fill(server)
    server.start()
    server.expect_log("is full: the history can be read, and published to once there is space")
    answer = recover(server, seen)
    assert (answer["recovered"], answer["replayed"]) == (True, 4)
    assert [item["code"] for item in push(server, 3)] == ["unavailable"] * 3
    assert fetch(server.port, "/readyz") == (503, "broker: the event history cannot be written now\n")
    assert fetch(server.port, "/healthz")[0] == 200
    server.run_inside("rm volume/filler")
    until(lambda: fetch(server.port, "/readyz")[0] == 200, "the server to be ready without a push")
    assert all(item["ok"] for item in push(server, 3))
    assert "the event history in" in server.log
    assert "can be written again" in server.log
    server.restart(signal.SIGKILL)
    assert recover(server, seen)["replayed"] == 7


@pytest.mark.long
def test_history_on_a_volume_filled_during_the_run_accepts_events(small_volume: Start) -> None:
    server = small_volume(*BROKER, "--history-events", "20")
    server.start()
    seen = push(server, 30)[-10]["event_id"]
    fill(server)
    answers = push(server, 300)
    assert [answer for answer in answers if not answer["ok"]] == [], server.log
    server.restart(signal.SIGKILL)
    assert recover(server, seen)["recovered"] is False
    assert recover(server, answers[-10]["event_id"])["recovered"] is True
    assert all(item["ok"] for item in push(server, 30))


def test_new_history_on_a_full_volume_is_one_line_and_status_1(small_volume: Start) -> None:
    server = small_volume(*BROKER)
    fill(server)
    with pytest.raises(AssertionError, match="ended at once with status 1"):
        server.start()
    assert "twistd chatws: broker: cannot open" in server.log
    assert "the disk is full" in server.log


@pytest.mark.long
def test_heartbeats_to_a_shop_s_full_database_are_written_once_there_is_space(small_volume: Start) -> None:
    server = small_volume(
        *("--database", "sqlite:///volume/shop.db", "--auth", "database", "--drain-timeout", "0"),
        *("--user-query", "SELECT id FROM users WHERE id = %(user_id)s"),
        *("--heartbeat-query", "INSERT INTO seen VALUES (%(user_id)s, zeroblob(100000))"),
    )
    server.run_inside(
        "python3 -c \"import sqlite3; db = sqlite3.connect('volume/shop.db'); "
        "db.executescript('CREATE TABLE users (id INTEGER); INSERT INTO users VALUES (1), (2);"
        "CREATE TABLE seen (id INTEGER, room BLOB)')\""
    )
    fill(server)
    server.start()
    with server.browser() as browser:
        browser.auth(1)
        browser.send({"type": "ping"})
        browser.expect("pong")
        server.expect_log("database or disk is full")
        with server.browser() as other:
            other.auth(2)  # who reads needs no space
        server.run_inside("rm volume/filler")
        count = "python3 -c \"import sqlite3; print(*sqlite3.connect('volume/shop.db').execute("
        count += "'SELECT count(*) FROM seen').fetchone())\""
        until(lambda: server.run_inside(count).strip() != "0", "the heartbeat to be written")


def test_spool_on_a_volume_without_room_for_a_lock_is_sent(small_volume: Start) -> None:
    server = small_volume("--drain-timeout", "0")
    server.start()
    lines = [{"event": "without.audience", "data": {}, "id": "a", "ack": True}]
    lines += [
        {"event": "new_message", "data": {"conversation_id": 456}, "id": name, "ack": True} for name in ("b", "c")
    ]
    # one file more than these and the directory cannot be made
    server.run_inside("mkdir volume/spool && mount -t tmpfs -o nr_inodes=4 none volume/spool")
    for line in lines:
        server.run_inside(f"echo '{json.dumps(line)}' > volume/spool/{line['id']}.json")
    command = (
        f"{sys.executable} -m chatws.cli push --push 127.0.0.1:{server.push_port} --spool volume/spool 2>&1 || true"
    )
    output = server.run_inside(command)
    assert "cannot be moved" in output, output
    assert "is in volume" not in output, output
    assert server.run_inside("ls volume/spool").split() == ["a.json"], output
