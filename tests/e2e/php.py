"""PHP programs for tests, and a push port that misbehaves."""

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

__all__ = ["BOUND", "PHP_DIRECTORY", "SCRIPTS", "FakePushPort", "Php", "PhpWebServer", "php_server", "run_php"]

PHP_DIRECTORY = Path(__file__).resolve().parents[2] / "php"
SCRIPTS = Path(__file__).resolve().parents[1] / "php"

#: Milliseconds, far above the helper's budget of 700, for a busy machine; far below what an unbounded wait would take.
BOUND = 8000
#: The helper's times for calls that are to succeed, whatever else the machine does.
_PATIENT = {
    "CHATWS_PUSH_CONNECT_TIMEOUT_MS": "5000",
    "CHATWS_PUSH_ANSWER_TIMEOUT_MS": "5000",
    "CHATWS_PUSH_BUDGET_MS": "15000",
}


def run_php(*arguments: str, environment: dict[str, str] | None = None, deadline: float = 60) -> str:
    """Run the `php` program to its end, which must be a good one, and return what it wrote to stdout."""
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
    """A PHP process that lives on between calls: tests/php/worker.php.

    :ivar log: what the last call has logged; :ivar milliseconds: how long it took.
    """

    def __init__(
        self,
        *,
        helper: bool = False,
        ini: tuple[str, ...] = (),
        patient: bool = True,
        environment: Any = None,
        **settings: Any,
    ) -> None:
        """:param helper: call `App\\Helpers\\WebSocket` instead of a `Chatws\\Client`.
        :param patient: whether times that are not set are long ones, instead of the helper's own.
        :param ini: `name=value` for php.ini.
        :param settings: for `Chatws\\Config::fromEnv`.
        """
        program = find_program("php-cli")
        assert program is not None
        flags = [word for one in ini for word in ("-d", one)]
        script = str(SCRIPTS / "worker.php")
        self.process = subprocess.Popen(
            [program, *flags, script, json.dumps(settings), "helper" if helper else "client"],
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


class PhpWebServer(WebServer):
    """PHP's own web server, with one of `tests/php/` for every request.

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
    """The application's web server; gives a function that makes one request. `patient` is as for `Php`."""
    with PhpWebServer("request.php", directory, **{**(_PATIENT if patient else {}), **environment}) as web:

        def request() -> dict[str, Any]:
            with urllib.request.urlopen(web.url, timeout=DEADLINE) as page:
                answer: dict[str, Any] = json.load(page)
                return answer

        yield request


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
