"""PHP processes for tests, and a push port that misbehaves."""

from __future__ import annotations

import http.client
import json
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.conftest import clean_environment, free_port
from tests.e2e.wire import DEADLINE, until
from tests.requirements import find_program

__all__ = ["PHP_DIRECTORY", "SCRIPTS", "FakePushPort", "Php", "php_server", "run_php"]

PHP_DIRECTORY = Path(__file__).resolve().parents[2] / "php"
SCRIPTS = Path(__file__).resolve().parents[1] / "php"


def run_php(*arguments: str, environment: dict[str, str] | None = None, deadline: float = 60) -> str:
    """Run the `php` program to its end, which must be a good one, and return what it wrote to stdout."""
    program = find_program("php-cli")
    assert program is not None
    done = subprocess.run(
        [program, *arguments],
        env=clean_environment(**(environment or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline,
        check=False,
    )
    assert done.returncode == 0, f"php {' '.join(arguments)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def php_server(**environment: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """The application's web server; gives a function that makes one request."""
    port = free_port()
    program = find_program("php-cli")
    assert program is not None
    process = subprocess.Popen(
        [program, "-S", f"127.0.0.1:{port}", str(SCRIPTS / "request.php")],
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_up() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    def request() -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("GET", "/")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            return answer
        finally:
            connection.close()

    try:
        until(is_up, "php -S to listen")
        yield request
    finally:
        process.terminate()
        process.wait(DEADLINE)


class Php:
    """A PHP process that lives on between calls: tests/php/worker.php.

    :ivar log: what the last call has logged; :ivar milliseconds: how long it took.
    """

    def __init__(self, *, helper: bool = False, ini: tuple[str, ...] = (), environment: Any = None, **settings: Any):
        """:param helper: call `App\\Helpers\\WebSocket` instead of a `Chatws\\Client`.
        :param ini: `name=value` for php.ini.
        :param settings: for `Chatws\\Config::fromEnv`.
        """
        program = find_program("php-cli")
        assert program is not None
        flags = [word for one in ini for word in ("-d", one)]
        script = str(SCRIPTS / "worker.php")
        self.process = subprocess.Popen(
            [program, *flags, script, json.dumps(settings), "helper" if helper else "client"],
            env=clean_environment(**(environment or {})),
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
        """Begin a call; `receive` gives what it returns."""
        assert self.process.stdin is not None
        assert not (arguments and named), "PHP takes one array of arguments"
        line = json.dumps({"method": method, "arguments": named or arguments})
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> Any:
        assert self.process.stdout is not None
        found, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        assert found, "PHP did not come back"
        line = self.process.stdout.readline()
        assert line, f"PHP ended with status {self.process.wait(DEADLINE)}"
        answer = json.loads(line)
        self.log = answer["log"]
        self.milliseconds = answer["ms"]
        assert answer["thrown"] is None, answer
        return answer["result"]

    def close(self) -> None:
        """Let it come to its end."""
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


class FakePushPort:
    """A push port under the test's control, served by threads.

    :ivar lines: every line that came, parsed, over all connections.
    :ivar connections: how many were accepted.
    :param answer: takes a parsed line, returns the bytes to answer with; None is silence; raises `EOFError` to close.
    :param accept: whether anybody is accepted at all. :param read: whether anything is read. :param host: where it is.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], bytes | None] | None = None,
        *,
        accept: bool = True,
        read: bool = True,
        host: str = "127.0.0.1",
    ) -> None:
        self._answer = answer or (lambda line: json.dumps({"ok": True, "id": line.get("id")}).encode() + b"\n")
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
        for one in closing:
            with suppress(OSError):  # the other side was quicker
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _start(self, do: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=do, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self.socket.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(one)
            if self._read:
                self._start(self._serve, one)

    def _serve(self, one: socket.socket) -> None:
        try:
            with one.makefile("rb") as reader:
                for text in reader:
                    line = json.loads(text)
                    with self._lock:
                        self.lines.append(line)
                    answer = self._answer(line)
                    if answer is not None:
                        one.sendall(answer)
        except (EOFError, OSError, ValueError):
            pass
        finally:
            with self._lock:
                if one in self._open:
                    self._open.remove(one)
            one.close()
