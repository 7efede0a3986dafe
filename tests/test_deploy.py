"""The files under deploy/ and the Dockerfile: each is read, each option in it exists, and the commands in it are run.

nginx's file has tests of its own, with a real nginx. The image cannot be built without a registry of images: what is
shown of it is that its settings start a server.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, chatws_server, twistd_command
from tests.e2e.process import Command, Program, clean_environment, free_port
from tests.e2e.wire import DEADLINE, Backend, Browser, until

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "deploy/systemd/chatws.service"
SOCKET = ROOT / "deploy/systemd/chatws.socket"
SUPERVISOR = ROOT / "deploy/supervisor/chatws.conf"
LOGROTATE = ROOT / "deploy/logrotate/chatws"
DOCKERFILE = ROOT / "Dockerfile"
SECRET = "0123456789abcdef" * 4

__all__ = ["chatws_server"]


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit file: section → key → its values, in order."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(key, []).append(value)
    return found


def exec_start() -> list[str]:
    (line,) = unit(SERVICE)["Service"]["ExecStart"]
    return shlex.split(line)


def supervisor_program() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(SUPERVISOR.read_text())
    assert parser.sections() == ["program:chatws"]
    return parser["program:chatws"]


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, the rest), continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def image_environment() -> dict[str, str]:
    found: dict[str, str] = {}
    for instruction, rest in dockerfile():
        if instruction == "ENV":
            found.update(one.split("=", 1) for one in shlex.split(rest))
    return found


def options(words: list[str]) -> tuple[set[str], set[str]]:
    """The options of a command line, twistd's own and those of chatws."""
    at = words.index("chatws")
    return tuple({one.split("=")[0] for one in some if one.startswith("-")} for some in (words[:at], words[at:]))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def helps() -> tuple[str, str]:
    """What `twistd --help` and `twistd chatws --help` say."""
    return tuple(  # type: ignore[return-value]
        subprocess.run(
            [*twistd_command(), *words], env=clean_environment(), capture_output=True, text=True, timeout=60
        ).stdout
        for words in (["--help"], ["chatws", "--help"])
    )


def commands() -> dict[str, list[str]]:
    """Every command line that starts the server."""
    (entry,) = [rest for instruction, rest in dockerfile() if instruction == "ENTRYPOINT"]
    return {
        "systemd": exec_start(),
        "supervisor": shlex.split(supervisor_program()["command"]),
        "image": json.loads(entry),
    }


@pytest.mark.parametrize("name", ["systemd", "supervisor", "image"])
def test_each_option_exists(name: str, helps: tuple[str, str]) -> None:
    for used, help_page in zip(options(commands()[name]), helps, strict=True):
        known = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", help_page))
        assert used <= known, used - known
    assert "--nodaemon" in commands()[name], "who starts it must see when it ends"


def test_the_image_s_variables_are_settings(helps: tuple[str, str]) -> None:
    known = {"CHATWS_" + one.upper().replace("-", "_") for one in re.findall(r"--([a-z][a-z-]*)", helps[1])}
    used = {one for one in image_environment() if one.startswith("CHATWS_")}
    assert used
    assert used <= known, used - known


# --- systemd --------------------------------------------------------------------------------------------------------

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and os.environ.get("CI") != "true",
    reason="needs the Debian package systemd",
)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Both units, with the path of a program that is there."""
    made = []
    for path in (SERVICE, SOCKET):
        made.append(tmp_path / path.name)
        made[-1].write_text(path.read_text().replace("/opt/chatws/bin/twistd", sys.executable))
    return made


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(units: list[Path]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    about_ours = [line for line in done.stderr.splitlines() if "chatws" in line]
    assert (done.returncode, about_ours) == (0, [])


@needs_systemd
def test_systemd_counts_the_service_among_the_hardened_ones(units: list[Path]) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", str(units[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unrecognized option" in done.stderr or "Unknown option" in done.stderr:
        pytest.skip("this systemd-analyze is older than 250")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


#: Gives the sockets to a program as systemd does (sd_listen_fds(3)): as 3, 4 …, and names it by its process id.
LAUNCHER = """
import fcntl, os, sys
count = int(sys.argv[1])
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 100) for one in sys.argv[2 : 2 + count]]
for number, one in enumerate(high):
    os.dup2(one, 3 + number)
environment = {**os.environ, "LISTEN_FDS": str(count), "LISTEN_PID": str(os.getpid()),
               "LISTEN_FDNAMES": ":".join(["chatws.socket"] * count)}
program = sys.argv[2 + count :]
os.execve(program[0], program, environment)
"""


class Activated(Program):
    """The service's command, with the socket unit's sockets, which this process holds as systemd would."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        browsers = socket.socket()
        browsers.bind(("127.0.0.1", 0))
        backends = socket.socket(socket.AF_UNIX)
        self.push_path = str(directory / "push.sock")
        backends.bind(self.push_path)
        os.chmod(self.push_path, int(unit(SOCKET)["Socket"]["SocketMode"][0], 8))
        self.sockets = [browsers, backends]
        for one in self.sockets:
            one.listen(int(unit(SOCKET)["Socket"]["Backlog"][0]))
        self.port: int = browsers.getsockname()[1]
        numbers = self.options["pass_fds"] = [one.fileno() for one in self.sockets]
        self._launch = [sys.executable, "-c", LAUNCHER, str(len(numbers)), *map(str, numbers)]
        (directory / "secret").write_text(SECRET)
        (directory / "secret").chmod(0o400)
        (directory / "chatws.toml").write_text("drain_seconds = 0.2\n")

    def command(self) -> list[str]:
        def here(word: str) -> str:
            for old in ("${CREDENTIALS_DIRECTORY}", "/etc/chatws", "/var/lib/chatws"):
                word = word.replace(old, str(self.directory))
            return word

        return [*self._launch, *self.twistd(), *(here(word) for word in exec_start()[1:])]

    @staticmethod
    def twistd() -> list[str]:
        found = twistd_command()
        return found if found[0].startswith("/") else [sys.executable, *found[1:]]

    def agent(self, user_id: int) -> Browser:
        import jwt

        browser = Browser(f"ws://127.0.0.1:{self.port}/ws")
        token = jwt.encode({"sub": str(user_id), "exp": int(time.time()) + 300}, SECRET, algorithm="HS256")
        browser.auth(user_id, token=token)
        return browser


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[Activated]:
    one = Activated(tmp_path)
    yield one
    if one.process is not None:
        one.stop()
    for each in one.sockets:
        each.close()


def test_who_comes_before_the_service_runs_is_served_when_it_does(activated: Activated) -> None:
    early: list[Browser] = []
    thread = threading.Thread(target=lambda: early.append(activated.agent(1)))
    thread.start()
    with Backend(activated.push_path) as backend:
        activated.start()
        thread.join(DEADLINE)
        assert early, activated.log
        assert backend.push("note", {"text": "hi"}, to={"user_id": 1})["delivered"] == 1
    early[0].expect("note")
    early[0].close()


def test_a_restart_under_systemd_s_sockets_refuses_nobody(activated: Activated) -> None:
    activated.start()
    problems: list[BaseException] = []
    served: list[int] = []
    over = threading.Event()

    def keep_coming() -> None:
        while not over.is_set():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{activated.port}/healthz", timeout=DEADLINE) as answer:
                    served.append(answer.status)
            except OSError as problem:
                if isinstance(getattr(problem, "reason", problem), ConnectionResetError):
                    served.append(0)  # accepted by the one that went
                else:
                    problems.append(problem)

    with activated.agent(1) as before:
        visitor = threading.Thread(target=keep_coming)
        visitor.start()
        try:
            with Backend(activated.push_path) as backend:
                epoch = backend.push("note", {"n": 1}, to={"user_id": 1})["event_id"]
            until(lambda: len(served) > 2, "the first answers")
            assert activated.stop() == 0
            assert before.expect_close()[0] == 4012
            assert os.stat(activated.push_path).st_mode & 0o777 == 0o660, "as the socket unit has it"
            # nobody runs: both doors are open all the same, and what is written waits
            with Backend(activated.push_path) as patient:
                patient.send({"event": "note", "data": {"n": 2}, "to": {"user_id": 1}, "ack": True})
                assert activated.process is None
                activated.start()
                answer = patient.read_line()
                assert answer["ok"]
                assert answer["event_id"].partition(":")[0] == epoch.partition(":")[0], "the log is the same one"
            known = len(served)
            until(lambda: len(served) > known + 2, "answers after the restart")
        finally:
            over.set()
            visitor.join(DEADLINE)
    assert problems == []
    with activated.agent(1):
        pass
    assert "Traceback" not in activated.log


def test_a_reload_under_systemd_s_sockets_drops_nobody(activated: Activated) -> None:
    assert unit(SERVICE)["Service"]["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    activated.start()
    with activated.agent(1) as agent:
        assert activated.process is not None
        (activated.directory / "chatws.toml").write_text("drain_seconds = 0.2\nmax_subscriptions = 1\n")
        activated.process.send_signal(signal.SIGHUP)
        until(lambda: "max_subscriptions" in activated.log, "the log to say what has changed")
        assert agent.settle() == []
    assert "Traceback" not in activated.log


# --- supervisor and logrotate ---------------------------------------------------------------------------------------

#: Of supervisor 4's manual, [program:x].
SUPERVISOR_OPTIONS = frozenset(
    """
    command process_name numprocs numprocs_start priority autostart startsecs startretries autorestart
    exitcodes stopsignal stopwaitsecs stopasgroup killasgroup user redirect_stderr stdout_logfile
    stdout_logfile_maxbytes stdout_logfile_backups stdout_capture_maxbytes stdout_events_enabled stdout_syslog
    stderr_logfile stderr_logfile_maxbytes stderr_logfile_backups stderr_capture_maxbytes
    stderr_events_enabled stderr_syslog environment directory umask serverurl
    """.split()  # noqa: SIM905
)


def test_supervisor_s_file_has_options_that_supervisor_knows() -> None:
    program = supervisor_program()
    assert set(program) <= SUPERVISOR_OPTIONS
    assert "%" not in program["command"], "supervisor expands %(…)s"


def test_supervisor_and_systemd_wait_longer_than_it_drains() -> None:
    from chatws.config import Config

    for seconds in (supervisor_program()["stopwaitsecs"], unit(SERVICE)["Service"]["TimeoutStopSec"][0]):
        assert int(seconds) >= 2 * Config().drain_seconds + 10


def test_supervisor_s_command_serves(tmp_path: Path) -> None:
    port, push_port = free_port(), free_port()
    (tmp_path / "secret").write_text(SECRET)
    (tmp_path / "secret").chmod(0o400)
    (tmp_path / "chatws.toml").write_text("# settings: docs/configuration.md\n")
    _, *words = shlex.split(supervisor_program()["command"])
    local = {"8080": str(port), "8081": str(push_port)}
    words = [
        local.get(one, one.replace("/etc/chatws", str(tmp_path)).replace("/var/lib/chatws", str(tmp_path)))
        for one in words
    ]
    with Command([*twistd_command(), *words], tmp_path, ready=lambda: is_alive(port)) as server:
        assert server.stop() == 0


def test_the_log_that_logrotate_empties_is_written_on_from_its_beginning(tmp_path: Path) -> None:
    """What `copytruncate` does, to the file that supervisor has opened as it does: to append."""
    assert "copytruncate" in LOGROTATE.read_text()
    (tmp_path / "secret").write_text(SECRET)
    port = free_port()
    log = tmp_path / "log"
    words = ["--nodaemon", "--pidfile=", "chatws", "--port", str(port), "--push-port", "0"]
    with Command([*twistd_command(), *words], tmp_path, ready=lambda: is_alive(port)):
        shutil.copy(log, tmp_path / "log-1")
        os.truncate(log, 0)
    text = log.read_bytes()
    assert text
    assert b"\0" not in text
    assert b"listening for browsers" in (tmp_path / "log-1").read_bytes()


def test_logrotate_s_file_has_directives_that_logrotate_knows() -> None:
    text = LOGROTATE.read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines[0].endswith("{")
    assert lines[-1] == "}"
    known = {"su", "daily", "rotate", "maxsize", "missingok", "notifempty", "compress", "delaycompress", "dateext"}
    assert {line.split()[0] for line in lines[1:-1]} <= known | {"dateformat", "copytruncate"}
    log_directory = str(Path(supervisor_program()["stdout_logfile"]).parent)
    assert lines[0].startswith(f"{log_directory}/*.log")
    assert supervisor_program()["stdout_logfile_maxbytes"] == "0", "one of the two rotates"
    done = shutil.which("logrotate") or shutil.which("logrotate", path="/usr/sbin")
    if done is not None:
        assert subprocess.run([done, "--debug", LOGROTATE], capture_output=True, timeout=60).returncode == 0


# --- the image ------------------------------------------------------------------------------------------------------


def test_the_image_copies_what_is_there_and_is_not_kept_out() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for instruction, rest in dockerfile() if instruction == "COPY" and "--from" not in rest]
    names = {name for names in copied for name in names}
    assert names == let_in
    assert all((ROOT / name).exists() for name in names)


def test_the_image_does_not_run_as_root() -> None:
    instructions = [instruction for instruction, _ in dockerfile()]
    assert "USER" in instructions[instructions.index("FROM", 1) :]
    assert [rest for instruction, rest in dockerfile() if instruction == "USER"] == ["chatws"]


def test_the_image_s_settings_start_a_server_with_a_lock_on_both_doors(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    for name in ("chatws_secret", "chatws_push_secret"):
        (tmp_path / name).write_text(SECRET)
        (tmp_path / name).chmod(0o400)
    variables = {name: value for name, value in image_environment().items() if name.startswith("CHATWS_")}
    moved = {
        name: value.replace("/run/secrets", str(tmp_path)).replace("/var/lib/chatws", str(tmp_path))
        for name, value in variables.items()
    }
    push_port = free_port()
    moved["CHATWS_PUSH_LISTEN"] = moved["CHATWS_PUSH_LISTEN"].replace("8081", f"{push_port}:interface=127.0.0.1")
    server = chatws_server("--interface", "127.0.0.1", "--push-listen", moved.pop("CHATWS_PUSH_LISTEN"), **moved)
    with server.browser() as browser:
        browser.send({"type": "auth", "user_id": 1})
        browser.expect("error", code="auth_failed")
    with Backend(push_port) as backend:
        assert backend.request({"op": "presence"})["code"] == "bad_secret"
    (check,) = [rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK"]
    _, *words = json.loads(check[check.index("CMD") + 3 :])
    words = [word.replace("8080", str(server.port)) for word in words]
    assert subprocess.run([sys.executable, *words], env=clean_environment(), timeout=60).returncode == 0


# --- helpers --------------------------------------------------------------------------------------------------------


def is_alive(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=DEADLINE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
