"""Notifications for systemd, at a socket such as systemd's."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from chatws.runtime.systemd import SystemdNotifier
from tests.e2e.conftest import Server, chatws_server
from tests.e2e.wire import DEADLINE, until

__all__ = ["Manager", "chatws_server"]


class Manager:
    """systemd's end of the socket.

    :ivar states: the notifications so far, in order.
    """

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.settimeout(DEADLINE)
        self._states: list[str] = []

    @property
    def states(self) -> list[str]:
        self._socket.setblocking(False)
        try:
            while True:
                self._states.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self._states

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    one = Manager(str(tmp_path / "notify"))
    yield one
    one.close()


def notifier(tmp_path: Path, clock: Clock, **variables: str) -> SystemdNotifier:
    return SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), **variables}, clock)


def test_ready_server_reports_three_times_in_each_watchdog_interval(manager: Manager, tmp_path: Path) -> None:
    clock = Clock()
    systemd = notifier(tmp_path, clock, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    clock.advance(60)
    assert manager.states == [], "systemd waits until the server serves"
    systemd.ready()
    clock.pump([10.0, 10.0])
    assert manager.states == ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1"]
    systemd.stopping()
    clock.advance(10)
    assert manager.states[4:] == ["STOPPING=1", "WATCHDOG=1"]


@pytest.mark.parametrize("variables", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}])
def test_server_without_a_watchdog_reports_only_its_state(
    variables: dict[str, str], manager: Manager, tmp_path: Path
) -> None:
    clock = Clock()
    notifier(tmp_path, clock, **variables).ready()
    assert clock.getDelayedCalls() == []
    assert manager.states == ["READY=1"]


def test_environment_after_the_start_has_nothing_for_child_processes(tmp_path: Path) -> None:
    variables = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    SystemdNotifier(variables, Clock())
    assert variables == {"PATH": "/bin"}


def test_absent_systemd_does_not_end_the_reports(tmp_path: Path) -> None:
    clock = Clock()
    notifier(tmp_path, clock, WATCHDOG_USEC="3000000").ready()
    clock.advance(1)
    assert len(clock.getDelayedCalls()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")
def test_abstract_socket_is_found() -> None:
    manager = Manager(f"\0chatws-test-{os.getpid()}")
    SystemdNotifier({"NOTIFY_SOCKET": f"@chatws-test-{os.getpid()}"}, Clock()).ready()
    assert manager.states == ["READY=1"]
    manager.close()


@pytest.mark.long
@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_that_hangs_reports_again_when_it_continues(
    workers: str, chatws_server: Callable[..., Server], manager: Manager, tmp_path: Path
) -> None:
    server = chatws_server(
        "--workers", workers, "--drain-timeout", "0", NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="300000"
    )
    until(lambda: manager.states.count("WATCHDOG=1") >= 3, "reports")
    assert manager.states[0] == "READY=1"
    assert manager.states.count("READY=1") == 1, "workers do not report"
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T", "it to hang")
    count = len(manager.states)
    server.process.send_signal(signal.SIGCONT)
    until(lambda: len(manager.states) > count + 1, "more reports")
    assert server.stop() == 0
    assert "STOPPING=1" in manager.states
