"""`twistd chatws` as an operator meets it: what goes wrong at start, the daemon, the end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chatws.brokers.interface import Retention
from chatws.brokers.sqlite.store import SqliteStore
from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment, free_port
from tests.e2e.wire import Browser, until
from tests.variants import others_long

Start = Callable[..., Server]


class Run:
    """One run of `twistd … chatws …` in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*twistd_command(), *words],
            cwd=self.directory,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def pid(self) -> int | None:
        try:
            return int((self.directory / "twistd.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def log(self) -> str:
        path = self.directory / "twistd.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs twistd; a daemon that is left is ended by its pidfile."""
    runner = Run(tmp_path)
    yield runner
    pid = runner.pid
    if pid is not None and is_alive(pid):
        os.kill(pid, signal.SIGTERM)
        until(lambda: not is_alive(pid), "the daemon to end")
    assert "Traceback" not in runner.log


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    # where nobody reaps orphans, a daemon that has ended stays a zombie
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


#: One for each stage of a start. What is said of everything else that can be wrong: tests/test_tap.py, test_startup.py.
BAD = [
    (["--prot", "1"], "there is no option --prot; did you mean --port?"),
    (["--listen", "tpc:1"], 'unknown kind of endpoint "tpc"; did you mean tcp:?'),
    (["--interface", "0.0.0.0"], "--interface 0.0.0.0 is reachable from other hosts"),
    (["--config", "none.toml"], "cannot read none.toml: No such file or directory"),
    (["--broker", "sqlite:///none/log.db"], "--broker: there is no directory none"),
]


@pytest.mark.parametrize("mode", others_long([["-n"], []]), ids=["foreground", "daemon"])
def test_operator_errors_are_one_line_and_status_78(mode: list[str], run: Run) -> None:
    for words, line in BAD if mode else (BAD[0], BAD[-1]):
        done = run(*mode, "chatws", *words)
        assert done.returncode == 78
        assert done.stdout == ""
        (output,) = done.stderr.splitlines()
        assert output.startswith("twistd chatws: ")
        assert line in output
        assert run.pid is None


@pytest.mark.parametrize("mode", others_long([["-n"], []]), ids=["foreground", "daemon"])
@pytest.mark.parametrize("option", ["--port", "--push-port"])
def test_a_port_in_use_is_one_line_and_status_1(mode: list[str], option: str, run: Run, server: Server) -> None:
    taken = server.port if option == "--port" else server.push_port
    done = run(*mode, "chatws", "--port", "0", "--push-port", "0", option, str(taken))
    assert done.returncode == 1
    assert done.stderr == (
        f"twistd chatws: {option}: cannot listen on 127.0.0.1 port {taken}: Address already in use: "
        "stop the other server, or choose another port\n"
    )
    assert done.stdout == ""
    assert run.pid is None


def shops_file(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript("CREATE TABLE users (id INTEGER); INSERT INTO users VALUES (1)")


def history_file(path: Path) -> None:
    store = SqliteStore(str(path), Retention(), sync_commits=True, boot=None)
    store.open(0.0)
    store.close()


STORES = [
    (history_file, "--broker", "sqlite:///one.db", "broker: "),
    (shops_file, "--database", "sqlite:///one.db", "--database: "),
    (shops_file, "--demo-database", "one.db", "--demo-database: "),
]


@pytest.mark.parametrize("mode", others_long([["-n"], []]), ids=["foreground", "daemon"])
@pytest.mark.parametrize(("make", "option", "value", "named"), STORES, ids=[store[1] for store in STORES])
@pytest.mark.parametrize("fault", ["in use by another process", "damaged"])
def test_an_sqlite_file_that_cannot_be_used_is_one_line_and_its_status(
    mode: list[str], make: Callable[[Path], None], option: str, value: str, named: str, fault: str, run: Run
) -> None:
    path = run.directory / "one.db"
    make(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        if fault == "damaged":
            with path.open("r+b") as file:
                file.seek(100)
                file.write(b"\xa5" * 3000)
        else:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("BEGIN EXCLUSIVE")
        demo = ["--demo"] if option == "--demo-database" else []
        done = run(*mode, "chatws", "--port", "0", "--push-port", "0", "--auth-timeout", "0.5", *demo, option, value)
    assert done.returncode == (78 if fault == "damaged" else 1)
    assert done.stdout == ""
    output = [line for line in done.stderr.splitlines() if "--auth " not in line]
    assert len(output) == 1
    assert output[0].startswith(f"twistd chatws: {named}")
    assert fault in output[0]
    assert "one.db" in output[0]
    assert run.pid is None


def test_help_and_check_start_nothing(run: Run) -> None:
    helped = run("chatws", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("Usage: twistd [options] chatws [options]\n\nA WebSocket server")
    checked = run("chatws", "--port", "9000", "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "browsers  tcp:9000:interface=127.0.0.1" in checked.stdout
    stores = ["--broker", "sqlite:///log.db", "--database", "sqlite:///shop.db", "--demo", "--demo-database", "demo.db"]
    assert run("chatws", *stores, "--check").returncode == 0
    assert os.listdir(run.directory) == []


def test_a_daemon_serves_and_ends_cleanly_on_sigterm(run: Run) -> None:
    port, push_port = free_port(), free_port()
    done = run("chatws", "--port", str(port), "--push-port", str(push_port), "--drain-timeout", "0.2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    pid = until(lambda: run.pid, "the pidfile")

    def connected() -> Browser | None:
        try:
            return Browser(f"ws://127.0.0.1:{port}/ws")
        except OSError:
            return None

    browser = until(connected, "the daemon to answer")
    assert browser.auth(1)["user_id"] == 1

    again = run("--pidfile", "other.pid", "--logfile", "other.log", "chatws", "--port", str(port))
    assert again.returncode == 1
    assert len(again.stderr.splitlines()) == 1

    os.kill(pid, signal.SIGTERM)
    assert browser.expect_close()[0] == 4012
    until(lambda: not is_alive(pid), "the daemon to end")
    assert run.pid is None
    assert "Server Shut Down." in run.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_the_foreground_it_ends_on_a_signal(number: int, chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "0")
    with server.agent(1) as ana:
        os.kill(server.pid, number)
        assert ana.expect_close()[0] == 4012
        assert server.wait() == (0 if number == signal.SIGTERM else -signal.SIGINT)


def test_after_a_restart_it_listens_on_the_same_ports(chatws_server: Start) -> None:
    server = chatws_server("--drain-timeout", "0")
    for _ in range(2):
        with server.agent(1):
            server.restart()
