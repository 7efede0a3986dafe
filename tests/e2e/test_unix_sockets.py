"""Unix sockets: after `kill -9`, in use, in a container, of another user; and what the log says of them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Server, twistd_command
from tests.e2e.process import clean_environment
from tests.e2e.wire import Backend, until
from tests.variants import others_long

Start = Callable[..., Server]


def start_log(workers: str) -> str:
    return "workers listen for browsers" if workers == "2" else "listening for browsers"


@pytest.mark.parametrize("workers", others_long(["1", "2"]))
@pytest.mark.parametrize("lockfile", others_long(["", ":lockfile=1", ":lockfile=0"]))
def test_a_server_starts_over_the_sockets_of_a_killed_one(
    chatws_server: Start, tmp_path: Path, workers: str, lockfile: str
) -> None:
    web, push = tmp_path / "web.sock", tmp_path / "push.sock"
    server = chatws_server(
        "--listen", f"unix:{web}:mode=666{lockfile}", "--push-listen", f"unix:{push}:mode=660{lockfile}",
        "--workers", workers,
    )  # fmt: skip
    server.expect_log(start_log(workers), 60)
    for _ in range(2):
        server.stop(signal.SIGKILL)
        until(lambda: not answers(push), "the workers to end with their supervisor")
        assert push.is_socket()
        before = len(server.log)
        server.start()
        until(lambda seen=before: start_log(workers) in server.log[seen:], "the start", 60)
        with Backend(str(push)) as backend:
            assert backend.request({"op": "ping"})["ok"]
    assert (web.stat().st_mode & 0o777, push.stat().st_mode & 0o777) == (0o666, 0o660)
    assert server.stop() == 0
    assert list(tmp_path.glob("*.sock*")) == []


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.mark.parametrize("target", others_long(["", "1", "another"]))
def test_a_lock_that_names_a_process_is_not_looked_at(chatws_server: Start, tmp_path: Path, target: str) -> None:
    """What Twisted leaves: a link that names the process. In a container that id is the new server's own."""
    push = tmp_path / "push.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(push))
    lock = tmp_path / "push.sock.lock"
    lock.symlink_to({"": str(os.getpid()), "1": "1", "another": "999999999"}[target])
    server = chatws_server("--push-listen", f"unix:{push}")
    with Backend(str(push)) as backend:
        assert backend.request({"op": "ping"})["ok"]
    assert server.stop() == 0
    assert not push.exists()


@pytest.mark.parametrize("words", others_long([["-n", "chatws"], ["chatws"], ["chatws", "--workers", "2"]]))
@pytest.mark.parametrize("option", others_long(["--listen", "--push-listen"]))
def test_a_socket_of_a_living_server_is_one_line_and_status_1(
    chatws_server: Start, tmp_path: Path, words: list[str], option: str
) -> None:
    push = tmp_path / "push.sock"
    server = chatws_server("--push-listen", f"unix:{push}")
    done = run(tmp_path, *words, option, f"unix:{push}", *free_ports(option))
    line = f"{option}: cannot listen on unix:{push}: another server listens there: stop it, or choose another path"
    assert (done.returncode, done.stdout + done.stderr) == (1, f"twistd chatws: {line}\n")
    with Backend(str(push)) as backend:
        assert backend.request({"op": "ping"})["ok"]
    assert server.stop() == 0


@pytest.mark.parametrize("mode", others_long([["-n"], []]), ids=["foreground", "daemon"])
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file", "the path is a file that is not a socket: choose another path"),
        ("none/push.sock", "there is no directory none"),
        ("x" * 200, "AF_UNIX path too long: the longest path of a Unix socket has 107 bytes"),
    ],
)
def test_a_path_that_cannot_be_opened_is_one_line_and_status_78(
    tmp_path: Path, mode: list[str], path: str, reason: str
) -> None:
    (tmp_path / "file").write_text("kept")
    done = run(tmp_path, *mode, "chatws", "--push-listen", f"unix:{path}", *free_ports("--push-listen"))
    line = f"--push-listen: cannot listen on unix:{path}: {reason}"
    assert (done.returncode, done.stdout + done.stderr) == (78, f"twistd chatws: {line}\n")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("path", "more"),
    others_long([("push.sock", []), ("none/push.sock", []), ("push.sock", ["--workers", "2"])]),
)
def test_a_path_that_cannot_be_opened_once_it_is_a_daemon_is_one_line_and_status_78(
    tmp_path: Path, path: str, more: list[str]
) -> None:
    """The path is free where the command runs, and not in the directory that the daemon changes to."""
    (tmp_path / "none").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "push.sock").write_text("kept")
    words = ["chatws", "--port", "0", "--push-listen", f"unix:{path}", *more]
    done = run(tmp_path, "--rundir", "run", "--logfile", str(tmp_path / "log"), *words)
    assert (done.returncode, done.stdout) == (78, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("twistd chatws: ")
    assert path in line
    assert os.listdir(tmp_path / "run") == ["push.sock"]
    assert (tmp_path / "run" / "push.sock").read_text() == "kept"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run as another user")
@pytest.mark.parametrize("is_stale", [True, False])
def test_a_socket_of_another_user_is_one_line(is_stale: bool) -> None:
    # below /tmp: the directories of pytest are closed to other users
    directory = Path(subprocess.check_output(["mktemp", "-d", "/tmp/chatws-XXXXXX"], text=True).strip())
    try:
        directory.chmod(0o1777)  # sticky: the file cannot be removed
        path = directory / "push.sock"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.bind(str(path))
            path.chmod(0o600)
            if not is_stale:
                connection.listen(1)
            script = (
                "import sys; from chatws.net.listeners import try_to_listen; from chatws.errors import ConfigError\n"
                "try: try_to_listen([(sys.argv[1], '--push-listen')])\n"
                "except ConfigError as error: print(error)"
            )
            # imported before the rights are given up: another user may not read the checkout
            done = subprocess.run(
                [sys.executable, "-c", f"import os, chatws.net.listeners, chatws.net.unix_socket; "
                 f"os.setuid(65534)\n{script}",
                 f"unix:{path}"],
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
        assert done.stdout == (
            f"--push-listen: cannot listen on unix:{path}: Permission denied: it belongs to another user: "
            "stop that server, or delete the file if there is none\n"
        ), done.stderr
    finally:
        shutil.rmtree(directory)


def test_the_log_names_unix_sockets_by_their_path(chatws_server: Start, tmp_path: Path) -> None:
    web, push = tmp_path / "web.sock", tmp_path / "push.sock"
    server = chatws_server("--listen", f"unix:{web}", "--push-listen", f"unix:{push}")
    server.expect_log(f"listening for browsers on unix:{web}, for backends on unix:{push};")


def test_the_log_names_abstract_sockets_with_an_at_sign(chatws_server: Start, tmp_path: Path) -> None:
    config = tmp_path / "chatws.toml"
    config.write_text(f'push_listen = ["unix:\\u0000chatws-test-{os.getpid()}"]\n')
    server = chatws_server("--config", str(config), "--push-port", "1", start=False)
    server.arguments = ("--config", str(config))
    server.command = lambda: [*twistd_command(), "-n", "chatws", "--port", str(server.port), *server.arguments]  # type: ignore[method-assign]
    server.start()
    server.expect_log(f"for backends on unix:@chatws-test-{os.getpid()};")
    with Backend(f"\0chatws-test-{os.getpid()}") as backend:
        assert backend.request({"op": "ping"})["ok"]


def free_ports(option: str) -> list[str]:
    """Any free port for what `option` does not say."""
    return ["--push-port", "0"] if option == "--listen" else ["--port", "0"]


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*twistd_command(), *words],
        cwd=directory, env=clean_environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
