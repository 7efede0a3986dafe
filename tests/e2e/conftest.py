"""A real `twistd chatws` for a test, started, waited for, and stopped by its process id."""

from __future__ import annotations

import http.client
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chatws.net.endpoints import parse_endpoint
from tests.e2e.process import WebServer, clean_environment, free_port
from tests.e2e.wire import DEADLINE, Backend, Browser, until

__all__ = ["Server", "chatws_server", "run_server", "twistd_command"]


def twistd_command() -> list[str]:
    """The `twistd` of the Python that runs the tests."""
    beside = Path(sys.executable).with_name("twistd")
    if beside.exists():
        return [str(beside)]
    return [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


class Server(WebServer):
    """One `twistd -n chatws` process. Its log file is `chatws.log`.

    :ivar port: the WebSocket port.
    :ivar push_port: the port of the push API.
    :ivar arguments: options of chatws, which may be changed while it is stopped.
    :ivar allow_errors: whether the log may have tracebacks when the test ends.
    """

    def __init__(self, directory: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        super().__init__(directory, environment, log="chatws.log")
        self.arguments = arguments
        self.push_port = free_port()
        self.allow_errors = False
        self._browsers: list[Browser] = []

    def command(self) -> list[str]:
        def given(*names: str) -> bool:
            return any(argument.split("=")[0] in names for argument in self.arguments)

        ports = [] if given("--port", "--listen") else ["--port", str(self.port)]
        ports += [] if given("--push-port", "--push-listen") else ["--push-port", str(self.push_port)]
        return [*twistd_command(), "-n", "chatws", *ports, *self.arguments]

    def expect_log(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until the log holds `text`."""
        until(lambda: text in self.log, f"{text!r} in the log", deadline)

    def expect_log_count(self, text: str, count: int) -> None:
        """Wait until the log holds `text` exactly `count` times. A thread of the server writes the log."""
        until(lambda: self.log.count(text) == count, f"{text!r} {count} times in the log")

    def browser(self, path: str = "/ws", **options: Any) -> Browser:
        """Open a WebSocket. Close it, or let `clear` or the server's end close it."""
        self._browsers.append(Browser(f"ws://127.0.0.1:{self.port}{path}", **options))
        return self._browsers[-1]

    def agent(self, user_id: Any, *conversations: Any, **options: Any) -> Browser:
        """Open a WebSocket, authenticate and subscribe."""
        browser = self.browser(**options)
        browser.auth(user_id)
        for conversation in conversations:
            browser.subscribe(conversation)
        return browser

    def backend(self) -> Backend:
        """Connect to the push API."""
        return Backend(self.push_port)

    def clear(self) -> None:
        """Close all WebSockets, and wait until no user is online, for the next test."""
        while self._browsers:
            self._browsers.pop().close()
        with self.backend() as backend:
            until(lambda: backend.request({"op": "presence"})["online"] == [], "everybody to leave")

    def finish(self) -> None:
        """Stop it, and fail if its log has an unhandled error, unless `allow_errors` is set.

        WebSockets that the test has left open are dropped first: the server would drain them for seconds.
        """
        while self._browsers:
            with suppress(OSError):  # it is closed
                self._browsers.pop().drop()
        if self.process is not None:
            self.stop()
        result = [word for word in ("Traceback", "Unhandled") if word in self.log]
        assert self.allow_errors or not result, f"{' and '.join(result)} in the log of {self}:\n{self.log}"

    def is_ready(self) -> bool:
        """Whether it accepts connections on its ports."""
        try:
            for address in self._addresses():
                if isinstance(address, str):
                    with socket.socket(socket.AF_UNIX) as client:
                        client.connect(address)
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
        """The TCP ports and Unix sockets in its arguments."""
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


@contextmanager
def run_server(directory: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """A server for a block, which several tests may share. `finish` is called at its end."""
    with Server(directory, arguments, clean_environment(**environment)) as server:
        yield server
        assert server.stop() == 0, server.log
    server.finish()


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
        try:
            server.finish()
        except AssertionError as problem:
            problems.append(str(problem))
    if problems:
        pytest.fail("\n".join(problems))


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("server"), "--presence-grace", "0.1") as server:
        yield server


@pytest.fixture
def server(_server: Server) -> Iterator[Server]:
    """The module's server. Tests use it one after the other, each without earlier connections."""
    yield _server
    _server.clear()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The module's Chromium (tests/e2e/browser.py)."""
    from tests.e2e.browser import open_browser

    with open_browser() as connection:
        yield connection
