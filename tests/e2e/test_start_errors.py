"""What the operator got wrong in twistd's own options, and what a daemon learns late: one line and its exit status."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatws.errors import ConfigError
from chatws.runtime.start_report import StartReport, _wait
from chatws.runtime.twistd_options import check_pidfile, check_twistd_options
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.test_daemon import Run, run
from tests.e2e.test_secret_recipe import Created, created
from tests.requirements import UNIX_USERS, needs
from tests.test_deploy import is_alive
from tests.unix_users import run_as
from tests.variants import others_long

__all__ = ["created", "run"]

FOREGROUND_AND_DAEMON = pytest.mark.parametrize("mode", others_long([["-n"], []]), ids=["foreground", "daemon"])
#: Fields of /etc/passwd are 32 bits; systems give this one to no user.
NO_USER = 2**32 - 2


#: The exit status of a configuration error (EX_CONFIG), and of a start that may succeed later.
CONFIG_ERROR, START_ERROR = 78, 1


def refused(run: Run, *words: str, status: int = CONFIG_ERROR) -> str:
    """The one line of a start that fails."""
    done = run(*words)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("twistd chatws: ")
    return line.removeprefix("twistd chatws: ")


@FOREGROUND_AND_DAEMON
@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--logfile=none/chatws.log", "--logfile: there is no directory HERE/none: create it, or name another file"),
        ("--logfile=.", "--logfile: . is a directory: name a file"),
        ("--pidfile=none/pid", "--pidfile: there is no directory HERE/none: create it, or name another file"),
        ("--pidfile=.", "--pidfile: HERE is a directory: name a file"),
        ("--rundir=none", "--rundir: there is no directory none: create it, or name another one"),
        ("--chroot=none", "--chroot: there is no directory none: create it, or name another one"),
        (f"--uid={NO_USER}", f"--uid: there is no user {NO_USER}: create it, or give its group with --gid"),
        ("--umask=-1", "--umask must be an octal number from 0 to 777, not -1"),
        ("--umask=77777777777777777777", "--umask must be an octal number from 0 to 777, not 77777777777777777777"),
        ("--logger=no.such.observer", "--logger: cannot import no.such.observer: "),
    ],
)
def test_a_mistake_in_an_option_of_twistd_is_one_line(option: str, line: str, mode: list[str], run: Run) -> None:
    expected = line.replace("HERE", str(run.directory))
    assert refused(run, *mode, option, "chatws", "--port", "0", "--push-port", "0").startswith(expected)
    assert os.listdir(run.directory) == []


def test_a_daemon_cannot_log_to_standard_output(run: Run) -> None:
    assert refused(run, "--logfile=-", "chatws").startswith("--logfile -: a daemon has no standard output; ")


@FOREGROUND_AND_DAEMON
def test_a_pidfile_of_a_running_process_is_one_line(mode: list[str], run: Run) -> None:
    pidfile = run.directory / "pid"
    pidfile.write_text(str(os.getpid()))
    line = refused(run, *mode, "--pidfile=pid", "chatws", status=START_ERROR)
    assert line.startswith(
        f"--pidfile: process {os.getpid()}, which {pidfile} names, is running: stop it first, or give "
    )
    assert pidfile.read_text() == str(os.getpid())


@pytest.mark.parametrize("content", others_long(["", "chatws\n", "0", "-5", "9" * 30]))
def test_a_pidfile_without_a_process_id_is_one_line(content: str, run: Run) -> None:
    (run.directory / "pid").write_text(content)
    line = refused(run, "-n", "--pidfile=pid", "chatws")
    assert line == f"--pidfile: {run.directory}/pid does not hold a process id: delete it, or name another file"


def test_a_pidfile_of_a_process_that_has_ended_does_not_keep_the_daemon_from_starting(run: Run) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    (run.directory / "twistd.pid").write_text(str(ended.pid))
    done = run("chatws", "--port", "0", "--push-port", "0")
    assert (done.returncode, done.stderr) == (0, f"Removing stale pidfile {run.directory}/twistd.pid\n")


def test_a_pidfile_with_this_process_s_own_id_is_of_an_earlier_container(tmp_path: Path) -> None:
    """Process ids begin with 1 again in each container, while the directory may stay."""
    (tmp_path / "pid").write_text(str(os.getpid()))
    check_pidfile({"pidfile": str(tmp_path / "pid")})
    assert not (tmp_path / "pid").exists()


def test_check_finds_mistakes_in_twistd_s_options_and_ignores_a_running_server(run: Run) -> None:
    (run.directory / "twistd.pid").write_text(str(os.getpid()))
    assert run("chatws", "--check").returncode == 0
    assert refused(run, "--rundir=none", "chatws", "--check").startswith("--rundir: there is no directory none")
    (run.directory / "twistd.pid").unlink()


# --- as a user that is not root -------------------------------------------------------------------------------------


@needs(UNIX_USERS)
@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"logfile": "HERE/log"}, "--logfile: this user cannot write HERE/log: name another file, or run in "),
        (
            {"pidfile": ""},
            "--logfile: this user cannot write HERE/twistd.log: name another file, or run in the foreground (-n)",
        ),
        (
            {"nodaemon": True, "pidfile": "HERE/pid"},
            "--pidfile: this user cannot write HERE/pid: name another file, or",
        ),
        (
            {"nodaemon": True, "pidfile": "HERE/own"},
            "--pidfile: HERE/own names a process that has ended, and this user",
        ),
        ({"nodaemon": True, "rundir": "HERE/closed"}, "--rundir: this user cannot enter HERE/closed: name another one"),
        (
            {"nodaemon": True, "chroot": "HERE"},
            "--chroot: only root can change the root directory: start twistd as root",
        ),
        ({"nodaemon": True, "uid": 0}, "--uid: only root can become another user: start twistd as root, or leave "),
        ({"nodaemon": True, "gid": 0}, "--gid: only root can take another group: start twistd as root, or leave --gid"),
    ],
)
def test_options_that_need_root_are_one_line(options: dict[str, Any], line: str, created: Created) -> None:
    here = str(created.directory)
    (created.directory / "closed").mkdir(mode=0o700)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    (created.directory / "own").write_text(str(ended.pid))
    (created.directory / "own").chmod(0o666)
    options = {
        name: value.replace("HERE", here) if isinstance(value, str) else value for name, value in options.items()
    }

    def check() -> None:
        os.chdir(here)
        check_twistd_options(options, starting=True)
        check_pidfile(options)

    outcome = run_as(created.server, check)
    assert isinstance(outcome, ConfigError), outcome
    assert str(outcome).startswith(line.replace("HERE", here))


@needs(UNIX_USERS)
def test_check_works_in_a_directory_that_cannot_be_written(created: Created) -> None:
    def check() -> None:
        os.chdir(created.directory)
        check_twistd_options({"pidfile": "twistd.pid"}, starting=False)

    assert run_as(created.server, check) is None


# --- what a daemon learns after it has left the terminal ------------------------------------------------------------


def test_a_daemon_serves_when_its_start_returns(run: Run) -> None:
    port = free_port()
    assert run("chatws", "--port", str(port), "--push-port", "0").returncode == 0
    assert is_alive(port)


def test_a_daemon_with_workers_serves_when_its_start_returns(run: Run) -> None:
    port = free_port()
    assert run("chatws", "--port", str(port), "--push-port", "0", "--workers", "2").returncode == 0
    assert is_alive(port)


def damage(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"damaged " * 1000)


@FOREGROUND_AND_DAEMON
@pytest.mark.parametrize("workers", others_long(["0", "2"]))
def test_a_redis_that_does_not_answer_is_status_1(workers: str, mode: list[str], run: Run) -> None:
    broker = f"redis://127.0.0.1:{free_port()}"
    words = ["--port", "0", "--push-port", "0", "--broker", broker, "--broker-timeout", "0.3", "--workers", workers]
    done = run(*mode, "chatws", *words)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("twistd chatws: ")]
    assert len(lines) == 1
    assert "Redis" in lines[0]


@FOREGROUND_AND_DAEMON
def test_a_sqlite_file_that_is_damaged_is_status_78(mode: list[str], run: Run) -> None:
    damage(run.directory / "log.db")
    words = ["chatws", "--port", "0", "--push-port", "0", "--broker", "sqlite:///log.db"]
    line = refused_late(run, *mode, *words, status=CONFIG_ERROR)
    assert "log.db" in line or "SQLite" in line


@FOREGROUND_AND_DAEMON
def test_a_sqlite_file_in_use_is_status_1(mode: list[str], run: Run, chatws_server: Callable[..., Server]) -> None:
    path = run.directory / "log.db"
    chatws_server("--broker", f"sqlite:///{path}")
    line = refused_late(run, *mode, "chatws", "--port", "0", "--push-port", "0", "--broker", f"sqlite:///{path}")
    assert f"{path} is in use by another process" in line


def refused_late(run: Run, *words: str, status: int = START_ERROR) -> str:
    """The line on standard error. In the foreground the log is on standard output."""
    done = run(*words)
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("twistd chatws: ")
    assert run.pid is None
    return line


def test_the_first_process_of_a_daemon_ends_with_its_status(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    report = StartReport({"nodaemon": True, "statusPipe": writing})
    report.take_over()
    report.failed("no schema", CONFIG_ERROR)
    os.close(writing)
    assert _wait(reading) == CONFIG_ERROR
    os.close(reading)
    assert capfd.readouterr().err == "twistd chatws: no schema\n"


def test_a_daemon_that_ends_without_a_word_is_status_1(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(writing)
    assert _wait(reading) == 1
    os.close(reading)
    assert capfd.readouterr().err == "twistd chatws: the daemon ended while it started: its log says why\n"


def test_the_first_outcome_of_a_start_is_the_one_that_is_reported() -> None:
    reading, writing = os.pipe()
    options = {"nodaemon": True, "statusPipe": writing}
    report = StartReport(options)
    report.failed("no port", START_ERROR)
    report.started()
    report.take_over()
    assert options == {"nodaemon": True}, "twistd reports nothing by itself"
    assert os.read(reading, 100) == b"1 no port"
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 100)  # open until the daemon has ended
    os.close(writing)
    os.close(reading)
