"""A log output that nobody reads: browsers and backends notice nothing, and what was dropped is counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from tests.e2e.conftest import Server
from tests.e2e.process import clean_environment, free_port
from tests.e2e.test_operations import samples
from tests.e2e.wire import Browser, until
from tests.variants import others_long

Start = Callable[..., Server]

#: What is logged here: many times what a pipe holds (64 KiB), and what the server holds (1 MiB).
LOGGED = 5 << 20
#: What may come out of that: the server's megabyte, a line that was being written, one more, and the pipe.
KEPT = 3 << 20


class Flood:
    """Has a server log much: each SIGHUP brings a line with two long lists of origins."""

    def __init__(self, server: Server, settings: Path) -> None:
        self.server = server
        self._settings = settings
        self._number = 0
        self._origin = ""

    def run(self) -> None:
        """Have it log `LOGGED` bytes, and see after each line that events still flow."""
        logged = 0
        with self.server.agent(1, 456) as agent, self.server.backend() as backend:
            while logged < LOGGED:
                logged += self._write()
                os.kill(self.server.pid, signal.SIGHUP)
                until(self._is_reloaded, "the reload")
                backend.push("new_message", {"conversation_id": 456, "n": logged})
                assert agent.expect("new_message")["data"]["n"] == logged

    def _write(self) -> int:
        """Put other origins into the file. Returns about how many bytes will be logged of it."""
        self._number += 1
        # long names: the server checks each origin, and the lines of the log count by their bytes
        domain = ".".join(["x" * 60] * 3) + ".example"
        origins = [f"https://shop-{self._number}-{number:05}.{domain}" for number in range(1_500)]
        self._origin = origins[0]
        self._settings.write_text("allowed_origins = [" + ",".join(f'"{origin}"' for origin in origins) + "]\n")
        return sum(map(len, origins)) * (1 if self._number == 1 else 2)

    def _is_reloaded(self) -> bool:
        with suppress(InvalidStatus), self.server.browser(origin=self._origin):
            return True
        return False


class Reader:
    """The other end of the log output, which reads only when it is asked to.

    :ivar path: what the server is to write to.
    """

    def __init__(self, kind: str, directory: Path) -> None:
        if kind == "terminal":
            self._descriptor, self._terminal = os.openpty()
            self.path = os.ttyname(self._terminal)
        else:
            self.path = str(directory / "pipe")
            os.mkfifo(self.path)
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(self._descriptor, False)
        self.read = b""

    def expect(self, text: str) -> None:
        """Read until `text` has come."""

        def has_come() -> bool:
            with suppress(BlockingIOError):
                while data := os.read(self._descriptor, 65536):
                    self.read += data
            return text.encode() in self.read

        until(has_come, f"{text!r} in the log")


def dropped(port: int) -> float:
    return sum(value for (name, _), value in samples(port).items() if name == "chatws_log_lines_dropped_total")


MODES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "a pipe on standard output and error": ("pipe", "redirected", ()),
    "a stopped terminal": ("terminal", "redirected", ()),
    "a named pipe as log file": ("pipe", "--logfile", ()),
    "a pipe of a supervisor and its workers": ("pipe", "redirected", ("--workers", "2")),
    "a named pipe of a supervisor and its workers": ("pipe", "--logfile", ("--workers", "2")),
}


@pytest.mark.parametrize(("kind", "how", "arguments"), others_long(MODES.values()), ids=MODES)
def test_events_are_delivered_while_the_log_is_blocked(
    kind: str, how: str, arguments: tuple[str, ...], chatws_server: Start, tmp_path: Path
) -> None:
    settings, metrics = tmp_path / "chatws.toml", free_port()
    settings.write_text("")
    options = ("--config", str(settings), "--metrics-port", str(metrics), "--drain-timeout", "0", *arguments)
    server = chatws_server(*options, start=False)
    reader = Reader(kind, tmp_path)
    command = server.command()
    if how == "redirected":
        command = ["sh", "-c", 'log=$1; shift; exec "$@" >"$log" 2>&1', "sh", reader.path, *command]
    else:
        at = command.index("chatws")
        command[at:at] = ["--logfile", reader.path]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    reader.expect("2 workers listen" if arguments else "listening for browsers")
    Flood(server, settings).run()
    assert dropped(metrics) > 0
    reader.expect("log lines were dropped: the log output was blocked")
    assert len(reader.read) < KEPT < LOGGED
    assert server.stop() == 0


@pytest.mark.long
def test_a_server_stops_while_the_log_is_blocked(chatws_server: Start, tmp_path: Path) -> None:
    settings = tmp_path / "chatws.toml"
    settings.write_text("")
    server = chatws_server("--config", str(settings), "--drain-timeout", "0", start=False)
    reader = Reader("pipe", tmp_path)
    command = ["sh", "-c", 'log=$1; shift; exec "$@" >"$log" 2>&1', "sh", reader.path, *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    Flood(server, settings).run()
    assert server.stop() == 0


SCRIPT = """
import sys
from twisted.logger import Logger
from chatws import EchoServer, HttpServer, IoServer, WsServer

class Loud(EchoServer):
    def on_message(self, connection, text):
        Logger().info("{text}", text=text * 100_000)
        super().on_message(connection, text)

IoServer.factory(HttpServer(WsServer(Loud())), int(sys.argv[1])).run()
"""


def test_a_script_s_server_works_while_standard_error_is_blocked(tmp_path: Path) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(port)], cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        while b"listening on" not in process.stderr.readline():
            pass
        with Browser(f"ws://127.0.0.1:{port}/ws") as browser:
            for number in range(50):
                browser.send_text(f"{number:02}")
                assert browser.socket.recv(timeout=20) == f"{number:02}"
        process.terminate()
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
