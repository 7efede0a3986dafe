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
from tests.e2e.test_signals import BLOCKED, env_can_block
from tests.e2e.wire import DEADLINE, Backend, Browser, until
from tests.requirements import find_program, needs
from tests.test_systemd import Manager

ROOT = Path(__file__).resolve().parents[1]
SERVICE = ROOT / "deploy/systemd/chatws.service"
SOCKET = ROOT / "deploy/systemd/chatws.socket"
SUPERVISOR = ROOT / "deploy/supervisor/chatws.conf"
CONFIGURATION = ROOT / "deploy/chatws.toml"
LOGROTATE = [ROOT / "deploy/logrotate/supervisor", ROOT / "deploy/logrotate/twistd"]
DOCKERFILE = ROOT / "Dockerfile"
SECRET = "0123456789abcdef" * 4

__all__ = ["chatws_server"]


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """A unit file: section → key → its values, in order."""
    result: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = result.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section.setdefault(key, []).append(value)
    return result


def exec_start() -> list[str]:
    (line,) = unit(SERVICE)["Service"]["ExecStart"]
    return shlex.split(line)


def from_twistd(words: list[str]) -> list[str]:
    """The command line without what stands before twistd."""
    return words[words.index("/opt/chatws/bin/twistd") :]


def runnable(words: list[str]) -> list[str]:
    """The command line with the twistd of these tests; its signals are blocked where `env` here can do that."""
    at = words.index("/opt/chatws/bin/twistd")
    twistd = twistd_command()
    if not twistd[0].startswith("/"):
        twistd = [sys.executable, *twistd[1:]]
    return [*(words[:at] if env_can_block() else []), *twistd, *words[at + 1 :]]


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
    result: dict[str, str] = {}
    for instruction, rest in dockerfile():
        if instruction == "ENV":
            result.update(word.split("=", 1) for word in shlex.split(rest))
    return result


def configuration(directory: Path, text: str = "", **ports: int) -> str:
    """The shipped file, or `text`, with its paths in `directory` and other ports. Writes it and the secret there."""
    text = text or CONFIGURATION.read_text()
    text = text.replace("/etc/chatws", str(directory)).replace("/var/lib/chatws", str(directory))
    for name, port in ports.items():
        text, count = re.subn(rf"(?m)^{name} = \d+$", f"{name} = {port}", text)
        assert count == 1, name
    (directory / "chatws.toml").write_text(text)
    (directory / "secret").write_text(SECRET)
    (directory / "secret").chmod(0o640)
    return text


def options(words: list[str]) -> tuple[set[str], set[str]]:
    """The options of a command line, twistd's own and those of chatws."""
    words = from_twistd(words)
    at = words.index("chatws")
    return tuple({item.split("=")[0] for item in some if item.startswith("-")} for some in (words[:at], words[at:]))  # type: ignore[return-value]


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
def test_each_command_blocks_signals_until_the_server_handles_them(name: str) -> None:
    words = commands()[name]
    # tests/e2e/test_signals.py shows what it does
    assert words[: words.index("/opt/chatws/bin/twistd")] == ["/usr/bin/env", *BLOCKED[1:]]
    assert " ".join(["exec", *BLOCKED, "twistd"]) in (ROOT / "docs/operations.md").read_text()


@pytest.mark.parametrize("name", ["systemd", "supervisor", "image"])
def test_each_option_exists(name: str, helps: tuple[str, str]) -> None:
    for used, help_page in zip(options(commands()[name]), helps, strict=True):
        known = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", help_page))
        assert used <= known, used - known
    assert "--nodaemon" in commands()[name], "who starts it must see when it ends"


def test_the_image_s_variables_are_settings(helps: tuple[str, str]) -> None:
    known = {"CHATWS_" + text.upper().replace("-", "_") for text in re.findall(r"--([a-z][a-z-]*)", helps[1])}
    used = {item for item in image_environment() if item.startswith("CHATWS_")}
    assert used
    assert used <= known, used - known


# --- systemd --------------------------------------------------------------------------------------------------------


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Both units, with the path of a program that is there."""
    made = []
    for path in (SERVICE, SOCKET):
        made.append(tmp_path / path.name)
        made[-1].write_text(path.read_text().replace("/opt/chatws/bin/twistd", sys.executable))
    return made


def test_systemd_s_service_logs_to_the_journal_which_rotates_itself() -> None:
    service = unit(SERVICE)["Service"]
    assert not {"StandardOutput", "StandardError", "LogsDirectory"} & set(service)
    assert not {"--logfile", "--syslog"} & options(exec_start())[0]


@needs("systemd")
def test_systemd_analyze_accepts_the_units(units: list[Path]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    about_ours = [line for line in done.stderr.splitlines() if "chatws" in line]
    assert (done.returncode, about_ours) == (0, [])


@needs("systemd")
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
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[2 : 2 + count]]
for number, descriptor in enumerate(high):
    os.dup2(descriptor, 3 + number)
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
        for item in self.sockets:
            item.listen(int(unit(SOCKET)["Socket"]["Backlog"][0]))
        self.port: int = browsers.getsockname()[1]
        numbers = self.options["pass_fds"] = [item.fileno() for item in self.sockets]
        self._launch = [sys.executable, "-c", LAUNCHER, str(len(numbers)), *map(str, numbers)]
        configuration(directory)
        self.environment["CHATWS_DRAIN_TIMEOUT"] = "0.2"
        self.manager = Manager(str(directory / "notify"))
        self.environment["NOTIFY_SOCKET"] = str(directory / "notify")

    def command(self) -> list[str]:
        words = [word.replace("/etc/chatws", str(self.directory)) for word in exec_start()]
        return [*self._launch, *runnable(words)]

    def agent(self, user_id: int) -> Browser:
        import jwt

        browser = Browser(f"ws://127.0.0.1:{self.port}/ws")
        token = jwt.encode({"sub": str(user_id), "exp": int(time.time()) + 300}, SECRET, algorithm="HS256")
        browser.auth(user_id, token=token)
        return browser


@pytest.fixture
def activated(tmp_path: Path) -> Iterator[Activated]:
    first = Activated(tmp_path)
    yield first
    if first.process is not None:
        first.stop()
    for each in first.sockets:
        each.close()
    first.manager.close()


def test_connections_before_the_service_starts_are_served(activated: Activated) -> None:
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


@pytest.mark.parametrize("document", ["README.md", "docs/pt-BR/WEBSOCKET.md"])
def test_the_file_of_the_documents_runs_under_systemd_s_sockets(document: str, activated: Activated) -> None:
    """Both name ports, which exclude `--listen` within one place."""
    (text,) = re.findall(r"```toml\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    configuration(activated.directory, text, port=free_port(), push_port=free_port())
    activated.start()
    with activated.agent(1) as agent, Backend(activated.push_path) as backend:
        assert backend.push("note", {}, to={"user_id": 1})["delivered"] == 1
        agent.expect("note")
    assert f"--listen replaces port in {activated.directory}/chatws.toml" in activated.log
    assert f"--push-listen replaces push_port in {activated.directory}/chatws.toml" in activated.log


@pytest.mark.parametrize("name", ["systemd", "supervisor", "image"])
def test_a_unit_names_only_the_file_and_the_sockets(name: str) -> None:
    used = options(commands()[name])[1]
    if name == "image":
        variables = {item for item in image_environment() if item.startswith("CHATWS_")}
        assert used == set()
        assert variables - {"CHATWS_PUSH_SECRET_FILE", "CHATWS_ALLOW_WORLD_READABLE_SECRETS"} == {
            "CHATWS_CONFIG",
            "CHATWS_INTERFACE",
            "CHATWS_PUSH_LISTEN",
        }
    else:
        assert used <= {"--config", "--listen", "--push-listen"}
    assert shipped_configuration_path(name) == "/etc/chatws/chatws.toml"


def shipped_configuration_path(name: str) -> str:
    words = commands()[name]
    return image_environment()["CHATWS_CONFIG"] if name == "image" else words[words.index("--config") + 1]


def test_a_restart_under_systemd_sockets_refuses_no_connection(activated: Activated) -> None:
    activated.start()
    assert unit(SERVICE)["Service"]["Type"] == ["notify"]
    until(lambda: activated.manager.states == ["READY=1"], "systemd to hear that it serves")
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
            assert activated.manager.states == ["READY=1", "STOPPING=1"]
            assert os.stat(activated.push_path).st_mode & 0o777 == 0o660, "as the socket unit has it"
            # the service does not run: both listeners are open, and written data waits
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


def test_a_reload_under_systemd_sockets_keeps_connections(activated: Activated) -> None:
    assert unit(SERVICE)["Service"]["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    activated.start()
    with activated.agent(1) as agent:
        assert activated.process is not None
        configuration(activated.directory, "max_subscriptions = 1\n" + CONFIGURATION.read_text())
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
    from chatws.config.schema import Config

    for seconds in (supervisor_program()["stopwaitsecs"], unit(SERVICE)["Service"]["TimeoutStopSec"][0]):
        assert int(seconds) >= 2 * Config().drain_timeout + 10


def test_supervisor_s_command_serves(tmp_path: Path) -> None:
    port, push_port = free_port(), free_port()
    configuration(tmp_path, port=port, push_port=push_port)
    words = [word.replace("/etc/chatws", str(tmp_path)) for word in commands()["supervisor"]]
    with Command(runnable(words), tmp_path, ready=lambda: is_alive(port)) as server:
        assert server.stop() == 0


@pytest.mark.parametrize("path", LOGROTATE, ids=lambda path: path.name)
def test_logrotate_s_file_has_directives_that_logrotate_knows(path: Path) -> None:
    text = path.read_text()
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert lines[0] == f"{supervisor_program()['stdout_logfile']} {{"
    assert lines[-1] == "}"
    known = {"daily", "rotate", "maxsize", "missingok", "notifempty", "compress", "delaycompress", "dateext"}
    script = lines.index("postrotate")
    assert {line.split()[0] for line in lines[1:script]} <= known | {"dateformat", "create"}
    assert lines[script + 2] == "endscript"
    assert supervisor_program()["stdout_logfile_maxbytes"] == "0", "one of the two rotates"


@needs("logrotate")
@pytest.mark.parametrize("path", LOGROTATE, ids=lambda path: path.name)
def test_logrotate_reads_the_file(path: Path, tmp_path: Path) -> None:
    logrotate = find_program("logrotate")
    assert logrotate
    shutil.copy(path, tmp_path / "chatws")
    (tmp_path / "chatws").chmod(0o644)
    text = (
        (tmp_path / "chatws").read_text().replace("create 640 chatws chatws", "create 640")
    )  # a user that is not here
    (tmp_path / "chatws").write_text(text)
    words = [logrotate, "--debug", "--state", str(tmp_path / "state"), str(tmp_path / "chatws")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stderr


# --- the image ------------------------------------------------------------------------------------------------------


def test_the_image_copies_only_existing_files_that_are_not_ignored() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for instruction, rest in dockerfile() if instruction == "COPY" and "--from" not in rest]
    names = {name for names in copied for name in names}
    assert names == let_in
    assert all((ROOT / name).exists() for name in names)


def test_the_image_contains_the_drivers_of_every_engine() -> None:
    (extras,) = re.findall(r"--no-build-isolation '\.\[([a-z,]+)\]'", DOCKERFILE.read_text())
    assert set(extras.split(",")) == {"mysql", "redis"}


def test_the_image_does_not_run_as_root() -> None:
    instructions = [instruction for instruction, _ in dockerfile()]
    assert "USER" in instructions[instructions.index("FROM", 1) :]
    assert [rest for instruction, rest in dockerfile() if instruction == "USER"] == ["chatws"]


def test_the_image_s_settings_require_secrets_on_both_ports(
    chatws_server: Callable[..., Server], tmp_path: Path
) -> None:
    port, push_port = free_port(), free_port()
    configuration(tmp_path, port=port)
    (tmp_path / "push_secret").write_text(SECRET)
    for name in ("secret", "push_secret"):
        (tmp_path / name).chmod(0o444)  # as Docker mounts its own secrets
    variables = {name: value for name, value in image_environment().items() if name.startswith("CHATWS_")}
    moved = {name: value.replace("/etc/chatws", str(tmp_path)) for name, value in variables.items()}
    assert moved["CHATWS_INTERFACE"] == "0.0.0.0"
    moved["CHATWS_INTERFACE"] = "127.0.0.1"
    moved["CHATWS_PUSH_LISTEN"] = moved["CHATWS_PUSH_LISTEN"].replace("8081", f"{push_port}:interface=127.0.0.1")
    server = chatws_server(start=False, **moved)
    # the file and the variables alone: no flag
    server.command = lambda: runnable(commands()["image"])  # type: ignore[method-assign]
    server.is_ready = lambda: is_alive(port)  # type: ignore[method-assign]
    server.start()
    server.port = port
    with server.browser() as browser:
        browser.send({"type": "auth", "user_id": 1})
        browser.expect("error", code="auth_failed")
    with Backend(push_port) as backend:
        assert backend.request({"op": "presence"})["code"] == "bad_secret"
    (check,) = [rest for instruction, rest in dockerfile() if instruction == "HEALTHCHECK"]
    program, *words, process = json.loads(check[check.index("CMD") + 3 :])
    assert (program, process) == ("/opt/chatws/bin/chatws", "1")
    words.append(str(server.pid))
    environment = clean_environment(HTTP_PROXY=f"http://127.0.0.1:{free_port()}")
    done = subprocess.run([sys.executable, "-m", "chatws.cli", *words], env=environment, timeout=60)
    assert done.returncode == 0


def test_the_image_s_paths_and_ports_are_those_of_the_shipped_file() -> None:
    from chatws.config.loader import load

    config = load({}, {}, str(CONFIGURATION)).config
    instructions = dockerfile()
    copied = [rest.split() for instruction, rest in instructions if instruction == "COPY"]
    assert ["deploy/chatws.toml", image_environment()["CHATWS_CONFIG"]] in copied
    assert [rest for instruction, rest in instructions if instruction == "EXPOSE"] == [
        f"{config.port} {config.push_port}"
    ]
    assert image_environment()["CHATWS_PUSH_LISTEN"] == f"tcp:{config.push_port}"
    (volume,) = [rest for instruction, rest in instructions if instruction == "VOLUME"]
    (work_directory,) = [rest for instruction, rest in instructions[-12:] if instruction == "WORKDIR"]
    assert {volume, work_directory} == {str(Path(config.broker.removeprefix("sqlite:///")).parent)}
    assert {
        str(Path(path).parent) for path in (*config.secret_files, image_environment()["CHATWS_PUSH_SECRET_FILE"])
    } == {str(Path(image_environment()["CHATWS_CONFIG"]).parent)}
    # each program that is run is one that the installation makes
    for path in re.findall(r"/opt/chatws/bin/\S+?(?=[\"\s])", DOCKERFILE.read_text()):
        name = Path(path).name
        assert name in ("pip", "twistd") or f"{name} = chatws." in (ROOT / "setup.cfg").read_text()


def test_the_units_paths_are_those_of_the_shipped_file() -> None:
    from chatws.config.loader import load

    state = str(Path(load({}, {}, str(CONFIGURATION)).config.broker.removeprefix("sqlite:///")).parent)
    service = unit(SERVICE)["Service"]
    assert service["WorkingDirectory"] == [state] == [f"/var/lib/{service['StateDirectory'][0]}"]
    assert supervisor_program()["directory"] == state


# --- helpers --------------------------------------------------------------------------------------------------------


def is_alive(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=DEADLINE) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
