"""Run PHP programs in tests, and serve a push API that can misbehave."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.process import WebServer, clean_environment
from tests.e2e.wire import DEADLINE
from tests.requirements import find_program

__all__ = ["BOUND", "PHP_DIRECTORY", "SCRIPTS", "FakePushApi", "Php", "PhpWebServer", "php_server", "run_php"]

PHP_DIRECTORY = Path(__file__).resolve().parents[2] / "php"
SCRIPTS = Path(__file__).resolve().parents[1] / "php"

#: Milliseconds: far above the helper's budget of 700 for a busy machine, far below an unbounded wait.
BOUND = 8000
#: Timeouts of the helper for calls that must succeed on a busy machine.
_PATIENT = {
    "CHATWS_PUSH_CONNECT_TIMEOUT_MS": "5000",
    "CHATWS_PUSH_ANSWER_TIMEOUT_MS": "5000",
    "CHATWS_PUSH_BUDGET_MS": "15000",
}


def run_php(*arguments: str, environment: dict[str, str] | None = None, deadline: float = 60) -> str:
    """Run `php` and return its standard output. The exit status must be 0."""
    program = find_program("php-cli")
    assert program is not None
    done = subprocess.run(
        [program, *arguments],
        env=clean_environment(**{**_PATIENT, **(environment or {})}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )
    assert done.returncode == 0, f"php {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


class Php:
    """A long-lived PHP process that executes calls: tests/php/worker.php.

    :ivar log: the messages that the last call has logged.
    :ivar milliseconds: the duration of the last call.
    """

    def __init__(
        self,
        *,
        helper: bool = False,
        ini: tuple[str, ...] = (),
        patient: bool = True,
        file_limit: int | None = None,
        environment: Any = None,
        **settings: Any,
    ) -> None:
        """Start the process.

        :param helper: call `App\\Helpers\\WebSocket` instead of a `Chatws\\Client`.
        :param patient: use long timeouts where none is set, instead of the helper's defaults.
        :param ini: `name=value` for php.ini.
        :param file_limit: limit of open files (`ulimit -n`); None: the limit of this process.
        :param settings: for `Chatws\\Config::fromEnv`.
        """
        program = find_program("php-cli")
        assert program is not None
        flags = [word for setting in ini for word in ("-d", setting)]
        script = str(SCRIPTS / "worker.php")
        limit = [] if file_limit is None else ["sh", "-c", f'ulimit -n {file_limit} && exec "$0" "$@"']
        self.process = subprocess.Popen(
            [*limit, program, *flags, script, json.dumps(settings), "helper" if helper else "client"],
            env=clean_environment(**{**(_PATIENT if patient else {}), **(environment or {})}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.log: list[str] = []
        self.milliseconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.send(method, *arguments, **named)
            return self.receive()

        return call

    def send(self, method: str, *arguments: Any, **named: Any) -> None:
        """Start a call. `receive` returns its result."""
        assert self.process.stdin is not None
        assert not (arguments and named), "PHP takes one array of arguments"
        line = json.dumps({"method": method, "arguments": named or arguments})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        assert ready, "PHP did not respond"
        line = self.process.stdout.readline()
        assert line, f"PHP ended with status {self.process.wait(DEADLINE)}"
        response = json.loads(line)
        self.log = response["log"]
        self.milliseconds = response["ms"]
        assert response["thrown"] is None, response
        return response["result"]

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class PhpWebServer(WebServer):
    """Run PHP's own web server with a script of `tests/php/` for every request.

    :param words: more arguments of `php`.
    """

    def __init__(self, script: str, directory: Path, *words: str, **environment: str) -> None:
        super().__init__(directory, clean_environment(**environment), log="php.log")
        self._words = [*words, "-S", f"127.0.0.1:{self.port}", str(SCRIPTS / script)]

    def command(self) -> list[str]:
        program = find_program("php-cli")
        assert program is not None
        return [program, *self._words]


@contextmanager
def php_server(directory: Path, *, patient: bool = True, **environment: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run the application's web server. Yields a function that makes one request. `patient` is as for `Php`."""
    with PhpWebServer("request.php", directory, **{**(_PATIENT if patient else {}), **environment}) as web:

        def request() -> dict[str, Any]:
            with urllib.request.urlopen(web.url, timeout=DEADLINE) as page:
                results: dict[str, Any] = json.load(page)
                return results

        yield request


class FakePushApi:
    """A push API under the test's control, served by threads.

    :ivar lines: every received line, parsed, over all connections.
    :ivar connections: number of accepted connections.
    :param respond: takes a parsed line and returns the response, or None for no response. It may raise `EOFError` to
        close the connection.
    :param accept: False: connections are not accepted.
    :param read: False: nothing is read from the connections.
    :param host: the address to listen on.
    """

    def __init__(
        self,
        respond: Callable[[dict[str, Any]], bytes | None] | None = None,
        *,
        accept: bool = True,
        read: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        self._respond = respond or (lambda line: json.dumps({"ok": True, "id": line.get("id")}).encode() + b"\n")
        self._read = read
        self.lines: list[dict[str, Any]] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._host = host
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self.socket.bind((host, 0))
        except OSError:
            self.socket.close()
            raise
        self.socket.listen(64 if accept else 0)
        if accept:
            self._start(self._accept)

    @property
    def address(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.socket.getsockname()[1]}"

    @property
    def ids(self) -> list[Any]:
        return [line.get("id") for line in self.lines]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            closing = [self.socket, *self._open]
        for connection in closing:
            with suppress(OSError):  # the peer may have closed it before
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join(DEADLINE)

    def open_connections(self) -> list[socket.socket]:
        with self._lock:
            return list(self._open)

    def _start(self, do: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=do, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            if self._read:
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as reader:
                for text in reader:
                    line = json.loads(text)
                    with self._lock:
                        self.lines.append(line)
                    response = self._respond(line)
                    if response is not None:
                        connection.sendall(response)
        except (EOFError, OSError, ValueError):
            pass
        finally:
            with self._lock:
                if connection in self._open:
                    self._open.remove(connection)
            connection.close()
