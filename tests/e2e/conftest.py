"""A real `twistd chatws` for a test: started, waited for, and ended by its own process id."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatws.endpoints import parse_endpoint
from tests.e2e.wire import DEADLINE, Backend, Browser, until

__all__ = ["Server", "chatws_server", "clean_environment", "free_port", "twistd_command"]


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago, and is none that the kernel gives to outgoing connections
    (32768 and above on Linux): one of those might have it before the server."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port


def twistd_command() -> list[str]:
    """The `twistd` of the Python that runs the tests."""
    beside = Path(sys.executable).with_name("twistd")
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any `CHATWS_*`, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATWS_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


class Server:
    """One `twistd -n chatws` process.

    :ivar port: the browsers' port, :ivar push_port: the backends'; both stay the same over `restart`.
    :ivar directory: where it runs; its log file is `chatws.log` there.
    :ivar allow_errors: whether the log may hold tracebacks when the test ends.
    :ivar process: the running process, None when stopped.
    """

    def __init__(self, directory: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.directory = directory
        self.arguments = arguments
        self.environment = environment
        self.port = free_port()
        self.push_port = free_port()
        self.allow_errors = False
        self.process: subprocess.Popen[bytes] | None = None
        self._log_path = directory / "chatws.log"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """`ws://127.0.0.1:PORT/ws`."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def log(self) -> str:
        """What it has written so far, stdout and stderr, over all its restarts."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is stopped"
        return self.process.pid

    def command(self) -> list[str]:
        def given(*names: str) -> bool:
            return any(one.split("=")[0] in names for one in self.arguments)

        ports = [] if given("--port", "--listen") else ["--port", str(self.port)]
        ports += [] if given("--push-port", "--push-listen") else ["--push-port", str(self.push_port)]
        return [*twistd_command(), "-n", "chatws", *ports, *self.arguments]

    def start(self) -> None:
        """Start it and wait until it answers on its ports."""
        assert self.process is None, "it is running"
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._is_ready, "the server to answer")

    def stop(self, signal_number: int = signal.SIGTERM, deadline: float = DEADLINE) -> int:
        """Send a signal, wait for the end, return the exit status (negative: the signal it died of)."""
        assert self.process is not None, "it is not running"
        self.process.send_signal(signal_number)
        return self.wait(deadline)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for its end without doing anything towards it, return the exit status."""
        assert self.process is not None, "it is not running"
        process, self.process = self.process, None
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"still running after {deadline:g} s:\n{self.log}") from None

    def restart(self, signal_number: int = signal.SIGTERM) -> None:
        """Stop and start again on the same ports, with the same arguments (`arguments` may be changed before)."""
        self.stop(signal_number)
        self.start()

    def expect_log(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until the log holds `text`."""
        until(lambda: text in self.log, f"{text!r} in the log", deadline)

    def browser(self, path: str = "/ws", **options: Any) -> Browser:
        """A WebSocket to it. Close it, or leave that to the server's end."""
        return Browser(f"ws://127.0.0.1:{self.port}{path}", **options)

    def agent(self, user_id: Any, *conversations: Any, **options: Any) -> Browser:
        """A WebSocket that is authenticated and subscribed."""
        browser = self.browser(**options)
        browser.auth(user_id)
        for conversation in conversations:
            browser.subscribe(conversation)
        return browser

    def backend(self) -> Backend:
        """A line connection to its push port."""
        return Backend(self.push_port)

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            status, self.process = self.process.returncode, None
            raise AssertionError(f"the server ended at once with status {status}:\n{self.log}")
        try:
            for address in self._addresses():
                if isinstance(address, str):
                    with socket.socket(socket.AF_UNIX) as one:
                        one.connect(address)
                elif address == self.port:
                    connection = http.client.HTTPConnection("127.0.0.1", address, timeout=DEADLINE)
                    connection.request("GET", "/healthz")
                    connection.getresponse().read()
                    connection.close()
                else:
                    socket.create_connection(("127.0.0.1", address), timeout=DEADLINE).close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _addresses(self) -> Iterator[int | str]:
        """The TCP ports and Unix sockets that it listens on, as far as the arguments say."""
        words: list[str] = []
        for word in self.command():
            words += word.split("=", 1) if word.startswith("--") else [word]
        for option, value in pairwise(words):
            if option in ("--port", "--push-port"):
                yield int(value)
            elif option in ("--listen", "--push-listen"):
                endpoint = parse_endpoint(value)
                if endpoint.kind == "unix":
                    yield endpoint.arguments["address"]
                elif "port" in endpoint.arguments:
                    yield int(endpoint.arguments["port"])


@pytest.fixture
def chatws_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """A factory: `server = chatws_server("--presence-grace", "0", CHATWS_SECRET="…")` starts one and waits for it.

    `--port` and `--push-port` are added unless given. `start=False` only prepares it. Afterwards each is ended, and the
    test fails when its log shows an unhandled error, unless `server.allow_errors` was set.
    """
    servers: list[Server] = []

    def start_server(*arguments: str, start: bool = True, **environment: str) -> Server:
        directory = tmp_path / f"server-{len(servers) + 1}"
        directory.mkdir()
        server = Server(directory, arguments, clean_environment(**environment))
        servers.append(server)
        if start:
            server.start()
        return server

    yield start_server

    problems = []
    for server in servers:
        if server.process is not None:
            try:
                server.stop()
            except AssertionError as problem:
                problems.append(str(problem))
        found = [word for word in ("Traceback", "Unhandled") if word in server.log]
        if found and not server.allow_errors:
            problems.append(f"{' and '.join(found)} in the log of {' '.join(server.command())}:\n{server.log}")
    if problems:
        pytest.fail("\n".join(problems))
