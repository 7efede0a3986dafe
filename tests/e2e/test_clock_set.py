"""A server whose machine's clock is set: by libfaketime, which leaves the monotonic clock alone, as the kernel does."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatws.cli.token import make_token
from tests.e2e.conftest import Server
from tests.e2e.raw import Raw
from tests.requirements import needs

HOUR = 3600
SECRET = "0123456789abcdef0123456789abcdef"

pytestmark = needs("faketime")


class Machine:
    """Servers with a clock of their own."""

    def __init__(self, directory: Path, start: Callable[..., Server]) -> None:
        self._file = directory / "clock"
        self._start = start
        self.set_clock(0)

    def set_clock(self, seconds: int) -> None:
        """Set it to so many seconds after the true time. All at once: libfaketime must not read half a line."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n")
        written.rename(self._file)

    def server(self, *arguments: str, **environment: str) -> Server:
        library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        return self._start(
            *arguments,
            LD_PRELOAD=str(library),
            FAKETIME_TIMESTAMP_FILE=str(self._file),
            FAKETIME_NO_CACHE="1",
            DONT_FAKE_MONOTONIC="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            **environment,
        )


@pytest.fixture
def machine(tmp_path: Path, chatws_server: Callable[..., Server]) -> Machine:
    return Machine(tmp_path, chatws_server)


def test_clock_set_back_stops_no_deadline_ping_lease_or_token(machine: Machine) -> None:
    server = machine.server(
        *("--auth", "token", "--auth", "trust", "--auth-deadline", "2", "--ping-interval", "1", "--ping-timeout", "1"),
        *("--presence-grace", "1", "--drain-timeout", "0"),
        CHATWS_SECRET=SECRET,
    )
    watcher = server.agent(1)
    silent, mute, leaver, expiring = server.browser(), Raw(server.port), server.agent(3), server.browser()
    mute.upgrade()
    mute.enter(2)
    expiring.auth(4, token=make_token(4, SECRET.encode(), int(time.time()) + 1))
    watcher.expect("agent_status", agent_id=4, status="online")
    machine.set_clock(-HOUR)
    leaver.drop()
    assert silent.expect_close()[0] == 4408
    watcher.expect("agent_status", agent_id=3, status="offline")
    assert expiring.expect_close()[0] == 4000
    with mute:
        mute.read_to_end()  # it never answered a ping
    watcher.expect("agent_status", agent_id=2, status="offline")
    server.expect_log("the system clock was set back by 3600 s")


def test_clock_set_forward_keeps_connections_and_history(machine: Machine) -> None:
    server = machine.server(
        *("--history-seconds", "600", "--ping-interval", "2", "--ping-timeout", "15", "--presence-ttl", "30"),
        *("--broker", "sqlite:///log.db", "--drain-timeout", "0"),
    )
    browser = server.agent(1, 456)
    with server.backend() as backend:
        seen = backend.push("new_message", {"conversation_id": 456, "n": 1})["event_id"]
        backend.push("new_message", {"conversation_id": 456, "n": 2})
        machine.set_clock(HOUR)
        backend.push("new_message", {"conversation_id": 456, "n": 3})
        server.expect_log("the system clock was set forward by 3600 s")
        backend.push("new_message", {"conversation_id": 456, "n": 4})
        assert backend.request({"op": "presence"})["online"] == [1]
    for n in (1, 2, 3, 4):
        browser.expect("new_message", n=n)
    with server.browser() as other:
        other.auth(2)
        answer = other.subscribe(456, last_event_id=seen)
        assert (answer["recovered"], answer["replayed"]) == (True, 3)
    assert {item["data"]["agent_id"] for item in browser.settle()} == {2}, "nobody else was thought to have left"
    server.restart(signal.SIGTERM)
    with server.backend() as backend:
        backend.push("new_message", {"conversation_id": 456, "n": 5})
    server.expect_log("log.db were older than --history-seconds at the start and have been dropped")
