"""Logs under the shipped files for logrotate, with a real logrotate, supervisor and daemon: no line is lost.

Each line that is counted is one of a SIGHUP after a change of `max_subscriptions`: "max_subscriptions: 6 → 7".
"""

from __future__ import annotations

import getpass
import grp
import gzip
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import twistd_command
from tests.e2e.process import Command, clean_environment, free_port
from tests.e2e.test_daemon import is_alive as is_running
from tests.e2e.test_secret_recipe import Created, created
from tests.e2e.wire import DEADLINE, until
from tests.requirements import UNIX_USERS, find_program, needs
from tests.test_deploy import SUPERVISOR, configuration, is_alive
from tests.unix_users import twistd_as

LOGROTATE = Path(__file__).parents[2] / "deploy/logrotate"

__all__ = ["created"]


class Rotated:
    """A server that logs to a file, which logrotate moves.

    :param directory: holds the configuration; its `logs` holds the log.
    :param shipped: the name of the file under deploy/logrotate.
    :param changes: what to replace in that file, besides the log's directory.
    """

    def __init__(self, directory: Path, shipped: str, **changes: str) -> None:
        self.directory = directory
        self.port, push_port = free_port(), free_port()
        self.base = configuration(directory, port=self.port, push_port=push_port)
        self.logs = directory / "logs"
        self.logs.mkdir(mode=0o755)
        self.log = self.logs / "chatws.log"
        self.count = 0
        text = (LOGROTATE / shipped).read_text().replace("/var/log/chatws", str(self.logs))
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        # it stops between the move and the signal, until the test lets it go on
        stop = f"touch {directory}/moved; while [ ! -e {directory}/go ]; do sleep 0.01; done"
        text, result = re.subn(r"(?m)^( *)(kill .*)$", rf"\1{stop}\n\1\2", text)
        assert result == 1
        self.rules = directory / "logrotate.conf"
        self.rules.write_text(text)
        self.rules.chmod(0o644)
        self.set(0)

    def set(self, number: int) -> None:
        """Change the setting in the file."""
        new = self.directory / "chatws.toml.new"
        new.write_text(f"max_subscriptions = {1000 + number}\n{self.base}")
        new.chmod(0o644)
        new.rename(self.directory / "chatws.toml")

    def write_line(self, pid: int) -> Path:
        """Have the server log one numbered line. Return the file that it is in."""
        self.count += 1
        self.set(self.count)
        os.kill(pid, signal.SIGHUP)
        result: Path = until(self._file_of_last, f"line {self.count} in the log")
        return result

    def _file_of_last(self) -> Path | None:
        line = f"→ {1000 + self.count}\n"
        return next((path for path in self.logs.iterdir() if line in text_of(path)), None)

    def rotate(self, pid: int) -> None:
        """Run logrotate, with a line before it, one between the move and the signal, and one after it."""
        assert self.write_line(pid) == self.log
        logrotate = find_program("logrotate")
        assert logrotate
        words = [logrotate, "--force", "--state", str(self.directory / "state"), str(self.rules)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                until(lambda: (self.directory / "moved").exists() or process.poll() is not None, "the log to be moved")
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert self.write_line(pid) != self.log
            finally:
                (self.directory / "go").touch()
            output, _ = process.communicate(timeout=DEADLINE)
        assert (process.returncode, output) == (0, "")
        # logrotate names the files by the second
        moved_at = int(time.time())
        until(lambda: int(time.time()) > moved_at, "the next second")
        until(lambda: self.write_line(pid) == self.log, "the server to write to the new file")
        for name in ("moved", "go"):
            (self.directory / name).unlink()

    def check(self, rotations: int) -> None:
        """Every line is there once, in order, over all files."""
        files = sorted(self.logs.glob("chatws.log-*"))
        assert len(files) == rotations
        text = "".join(text_of(path) for path in (*files, self.log))
        numbers = [int(number) for number in re.findall(r"max_subscriptions: \d+ → (\d+)", text)]
        assert numbers == [1000 + number for number in range(1, self.count + 1)]
        assert [path.suffix == ".gz" for path in files] == [True] * (rotations - 1) + [False]
        assert "Traceback" not in text


def text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (FileNotFoundError, EOFError):  # renamed or being compressed now
        return ""


def own_group() -> str:
    return grp.getgrgid(os.getegid()).gr_name


@needs("logrotate")
@needs("supervisor")
def test_under_supervisor_no_line_is_lost(tmp_path: Path) -> None:
    supervisord, user = find_program("supervisor"), getpass.getuser()
    assert supervisord
    supervisorctl = f"{Path(supervisord).with_name('supervisorctl')} -c {tmp_path}/supervisord.conf"
    changes = {"supervisorctl": supervisorctl}
    if os.geteuid():
        changes["root adm"] = f"{user} {own_group()}"
    rotated = Rotated(tmp_path, "supervisor", **changes)
    program = SUPERVISOR.read_text().replace("/opt/chatws/bin/twistd", shlex.join(twistd_command()))
    program = program.replace("/var/log/chatws", str(rotated.logs)).replace("user=chatws", f"user={user}")
    program = program.replace("/etc/chatws", str(tmp_path)).replace("/var/lib/chatws", str(tmp_path))
    (tmp_path / "supervisord.conf").write_text(f"""
[unix_http_server]
file={tmp_path}/supervisor.sock
[supervisord]
nodaemon=true
user={user}
logfile={tmp_path}/supervisord.log
pidfile={tmp_path}/supervisord.pid
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{tmp_path}/supervisor.sock

{program}""")
    words = [supervisord, "-c", str(tmp_path / "supervisord.conf")]
    with Command(words, tmp_path, ready=lambda: is_alive(rotated.port)) as server:
        asked = subprocess.run(
            [*shlex.split(supervisorctl), "pid", "chatws"], capture_output=True, text=True, check=True, timeout=60
        )
        pid = int(asked.stdout)
        rotated.rotate(pid)
        rotated.rotate(pid)
        assert server.stop() == 0
    assert "chatws.runtime.service#info] listening for browsers" in text_of(
        sorted(rotated.logs.glob("chatws.log-*"))[0]
    )
    assert "Server Shut Down." in rotated.log.read_text()
    rotated.check(2)


@pytest.fixture
def daemon() -> Iterator[Callable[..., int]]:
    """Starts twistd as a daemon, returns its process id, and ends it after the test."""
    pids: list[int] = []

    def start(rotated: Rotated, twistd: list[str], *options: str, **environment: str) -> int:
        pidfile = rotated.directory / "chatws.pid"
        words = [*twistd, "--pidfile", str(pidfile), "--logfile", str(rotated.log), *options, "chatws"]
        words += ["--config", str(rotated.directory / "chatws.toml")]
        subprocess.run(words, cwd=rotated.directory, env=clean_environment(**environment), check=True, timeout=60)
        until(lambda: is_alive(rotated.port), "the daemon to answer")
        pids.append(int(pidfile.read_text()))
        return pids[-1]

    yield start
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not any(map(is_running, pids)), "the daemon to end")


@needs("logrotate")
def test_a_daemon_s_log_file_is_rotated_and_no_line_is_lost(tmp_path: Path, daemon: Callable[..., int]) -> None:
    names = {"chatws chatws": f"{getpass.getuser()} {own_group()}", "/run/chatws.pid": f"{tmp_path}/chatws.pid"}
    rotated = Rotated(tmp_path, "twistd", **names)
    pid = daemon(rotated, twistd_command())
    rotated.rotate(pid)
    rotated.rotate(pid)
    rotated.check(2)


@needs("logrotate")
@needs(UNIX_USERS)
def test_a_daemon_that_has_left_root_reopens_its_log_file(created: Created, daemon: Callable[..., int]) -> None:
    twistd = twistd_as(created.server)
    if twistd is None:
        pytest.skip("needs a Python that other users can run")
    words, variables = twistd
    names = {"chatws chatws": f"{created.server} {created.server}"}
    rotated = Rotated(created.directory, "twistd", **names, **{"/run/chatws.pid": f"{created.directory}/chatws.pid"})
    # the recipe's own, for `configuration` has written another
    subprocess.run(["chgrp", created.server, created.secret], check=True, timeout=60)
    state = created.directory / "state-of-chatws"
    state.mkdir()
    subprocess.run(["chown", created.server, state], check=True, timeout=60)
    rotated.base = rotated.base.replace(f"sqlite:///{created.directory}", f"sqlite:///{state}")
    rotated.set(0)
    pid = daemon(rotated, words, "--uid", created.server, **variables)
    assert f"\nUid:\t{os.stat(state).st_uid}\t" in Path(f"/proc/{pid}/status").read_text()
    rotated.rotate(pid)
    rotated.rotate(pid)
    assert os.stat(rotated.log).st_uid == os.stat(state).st_uid
    rotated.check(2)
