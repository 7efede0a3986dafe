"""Signals to `twistd chatws` in the first moments of its life, as process 1, and whatever it logs to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import Command, free_port, listens
from tests.e2e.test_workers import process_of, start_workers
from tests.e2e.wire import until
from tests.variants import others_long

Start = Callable[..., Server]

#: As docs/operations.md has it: no signal is acted upon before the handlers are in place.
BLOCKED = ["env", "--block-signal=HUP,INT,TERM,USR1"]
UNSHARE = ["unshare", "--pid", "--fork", "--kill-child"]


def env_can_block() -> bool:
    done = subprocess.run([*BLOCKED, "true"], capture_output=True, check=False)
    return done.returncode == 0


def _may_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    )


needs_blocking_env = pytest.mark.skipif(not env_can_block(), reason="needs env --block-signal (GNU coreutils 8.31)")
needs_unshare = pytest.mark.skipif(not _may_unshare(), reason="this user may not make a PID namespace")


def mask(pid: int, name: str) -> set[int]:
    """The signals in a mask of /proc/PID/status: `SigBlk`, `SigIgn` or `SigCgt`."""
    result = re.search(rf"^{name}:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert result is not None
    bits = int(result[1], 16)
    return {number for number in range(1, 65) if bits >> number - 1 & 1}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Young(Command):
    """A server that is "started" before it does anything.

    :param prefix: what runs it.
    :param condition: what is waited for, given the process's id.
    """

    def __init__(self, directory: Path, prefix: list[str], condition: Callable[[int], object], *words: str) -> None:
        self.port = free_port()
        ports = ["--port", str(self.port), "--push-port", str(free_port())]
        twistd = [*twistd_command(), "-n", "chatws", *ports, "--drain-timeout", "0", *words]
        super().__init__([*prefix, *twistd], directory, ready=lambda: bool(condition(self.server)))

    @property
    def server(self) -> int:
        """The process of the server itself; 0 while there is none."""
        if "unshare" not in self.command()[0]:
            return self.pid
        return next(iter(children(self.pid)), 0)

    def send(self, *numbers: int) -> None:
        assert not listens(self.port), "too late: it listens already"
        assert self.server > 0
        for number in numbers:
            os.kill(self.server, number)


def is_blocking(pid: int) -> bool:
    return bool(pid) and {signal.SIGHUP, signal.SIGTERM} <= mask(pid, "SigBlk")


def is_handling(pid: int) -> bool:
    return bool(pid) and {signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1} <= mask(pid, "SigCgt")


@pytest.fixture(
    params=[pytest.param((BLOCKED, is_blocking), marks=needs_blocking_env, id="blocked"), ([], is_handling)],
    ids=lambda _: "handled",
)
def young(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Young]:
    """A server in its first milliseconds (blocked), or from the moment when it is asked for its options (handled)."""
    prefix, condition = request.param
    with Young(tmp_path, prefix, condition) as young:
        yield young


def test_reload_signals_during_the_start_do_not_end_the_server(young: Young) -> None:
    young.send(signal.SIGUSR1, signal.SIGHUP)

    def has_started() -> bool:
        # again and again until it listens; it must survive all of them
        os.kill(young.pid, signal.SIGUSR1)
        return listens(young.port)

    until(has_started, "the server to listen")
    until(lambda: "nothing has changed" in young.log, "the early SIGHUP to be taken for a reload")
    assert young.stop() == 0
    assert "Traceback" not in young.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signals_during_the_start_end_the_server(number: signal.Signals, young: Young) -> None:
    young.send(number)
    assert young.wait() == -number
    assert young.log == ""


@needs_unshare
@pytest.mark.parametrize(
    ("prefix", "condition"),
    [pytest.param(BLOCKED, is_blocking, marks=needs_blocking_env, id="blocked"), ([], is_handling)],
)
def test_process_1_ends_on_sigterm_while_it_starts(
    prefix: list[str], condition: Callable[[int], object], tmp_path: Path
) -> None:
    with Young(tmp_path, [*UNSHARE, *prefix], condition) as young:
        young.send(signal.SIGTERM)
        assert young.wait() == 128 + signal.SIGTERM
        assert young.log == ""


@needs_unshare
def test_process_1_ends_with_status_0_on_sigterm_when_it_runs(tmp_path: Path) -> None:
    young = Young(tmp_path, UNSHARE, lambda pid: pid and listens(young.port))
    with young:
        os.kill(young.server, signal.SIGUSR1)
        os.kill(young.server, signal.SIGTERM)
        assert young.wait() == 0
        assert "Server Shut Down." in young.log


def test_sigterm_between_the_pidfile_and_the_reactor_is_a_clean_end(tmp_path: Path) -> None:
    with Young(tmp_path, [], lambda pid: (tmp_path / "twistd.pid").exists()) as young:
        os.kill(young.pid, signal.SIGTERM)
        assert young.wait() == 0
    assert not (tmp_path / "twistd.pid").exists()


@pytest.mark.parametrize("words", others_long([[], ["--syslog"], ["--logfile", "-"]]), ids=["stdout", "syslog", "dash"])
def test_sigusr1_leaves_a_server_without_a_log_file_alone(words: list[str], chatws_server: Start) -> None:
    server = chatws_server(start=False)
    command = server.command()
    at = command.index("chatws")
    server.command = lambda: [*command[:at], *words, *command[at:]]  # type: ignore[method-assign]
    server.start()
    for _ in range(2):
        os.kill(server.pid, signal.SIGUSR1)
        server.agent(1).settle()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_sigusr1_opens_the_log_file_again(log_format: str, chatws_server: Start, tmp_path: Path) -> None:
    log, moved = tmp_path / "chat.log", tmp_path / "chat.log.1"
    server = chatws_server("--log-format", log_format, start=False)
    command = server.command()
    at = command.index("chatws")
    server.command = lambda: [*command[:at], "--logfile", str(log), *command[at:]]  # type: ignore[method-assign]
    server.start()
    log.rename(moved)
    os.kill(server.pid, signal.SIGUSR1)
    until(log.exists, "the file to be opened again")
    server.stop()
    assert "listening for browsers" in moved.read_text()
    assert "Server Shut Down." in log.read_text()
    assert "Server Shut Down." not in moved.read_text()


@pytest.mark.long
def test_a_worker_that_starts_is_not_ended_by_signals_for_its_supervisor(chatws_server: Start) -> None:
    server = start_workers(chatws_server)
    known = set(children(server.pid))
    os.kill(process_of(server, 0), signal.SIGKILL)
    (young,) = until(lambda: set(children(server.pid)) - known, "the next worker")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        os.kill(young, number)
    until(lambda: process_of(server, 0) == young, "the next worker to serve")
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        os.kill(young, number)
    assert server.log.count("; another one starts") == 1
    assert not {signal.SIGHUP, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM} & mask(young, "SigBlk")
