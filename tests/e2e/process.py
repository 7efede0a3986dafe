"""Processes that a test starts, waits for, and ends by their own ids; and the ports they listen on."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.wire import DEADLINE, until

__all__ = ["Command", "Program", "WebServer", "clean_environment", "free_port", "listens"]


def _ports() -> Iterator[int]:
    """Ports for this test process only, by the name from pytest-xdist: gw0, gw1 …"""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    # not those of outgoing connections (32768 and above on Linux), which might take one before the server does
    ports = range(20000 + worker, 32000, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    start = random.randrange(len(ports))
    return cycle([*ports[start:], *ports[:start]])


_candidates = _ports()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free just now, and that no other test gets."""
    while True:
        port = next(_candidates)
        with socket.socket() as connection, suppress(OSError):
            connection.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether a process accepts connections on this port of 127.0.0.1."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any `CHATWS_*`, and with `more`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CHATWS_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


class Program:
    """A program that runs until it is stopped. As a context manager it runs for the block.

    :ivar directory: its working directory.
    :ivar environment: its variables.
    :ivar log_path: the file of its standard output and error, of all its runs.
    :ivar options: more options of `subprocess.Popen`.
    :ivar process: the running process, None when stopped.
    """

    def __init__(self, directory: Path, environment: dict[str, str] | None = None, *, log: str = "log") -> None:
        self.directory = directory
        self.environment = clean_environment() if environment is None else environment
        self.log_path = directory / log
        self.options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for the tests, which stop it
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """The program and its arguments."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether it is ready. It runs, at least."""
        return True

    @property
    def log(self) -> str:
        """Its output so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        assert self.process is not None, "it is stopped"
        return self.process.pid

    def start(self) -> None:
        """Start it and wait until it is ready."""
        assert self.process is None, "it is running"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **self.options,
            )
        try:
            until(self._has_started, f"{self} to be ready")
        except BaseException:
            if self.process is not None:
                self.stop(signal.SIGKILL)
            raise

    def _has_started(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            status, self.process = self.process.returncode, None
            raise AssertionError(f"{self} ended at once with status {status}:\n{self.log}")
        return self.is_ready()

    def stop(self, signal_number: int = signal.SIGTERM, deadline: float = DEADLINE) -> int:
        """Send a signal, wait for the end, return the exit status (negative: the signal that killed it)."""
        assert self.process is not None, "it is not running"
        self.process.send_signal(signal_number)
        return self.wait(deadline)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Wait until it ends by itself, return the exit status."""
        assert self.process is not None, "it is not running"
        process, self.process = self.process, None
        try:
            return process.wait(deadline)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self} still ran after {deadline:g} s:\n{self.log}") from None

    def restart(self, signal_number: int = signal.SIGTERM) -> None:
        """Stop it and start it again."""
        self.stop(signal_number)
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self.process is not None:
            self.stop()

    def __str__(self) -> str:
        return " ".join(self.command())


class WebServer(Program):
    """A program that listens on its own TCP port.

    :ivar port: stays the same after `restart`.
    """

    def __init__(self, directory: Path, environment: dict[str, str] | None = None, *, log: str = "log") -> None:
        super().__init__(directory, environment, log=log)
        self.port = free_port()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """`ws://127.0.0.1:PORT/ws`."""
        return f"ws://127.0.0.1:{self.port}/ws"

    def is_ready(self) -> bool:
        return listens(self.port)


class Command(Program):
    """A program with fixed arguments.

    :param ready: whether it is ready.
    """

    def __init__(
        self, words: list[str], directory: Path, *, ready: Callable[[], bool] = lambda: True, **environment: str
    ) -> None:
        super().__init__(directory, clean_environment(**environment))
        self._words = words
        self._ready = ready

    def command(self) -> list[str]:
        return self._words

    def is_ready(self) -> bool:
        return self._ready()
