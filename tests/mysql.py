"""A real MariaDB that a test starts, stops, kills and freezes.

`from tests.mysql import mysql` gives a module the fixture. There is one server for the whole run, on a port of its own
on 127.0.0.1, with its data in a temporary directory. It ends with the run, and with this process if that dies.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pymysql
import pytest
from pymysql.constants import CLIENT

from tests.certificates import Authority
from tests.e2e.process import free_port
from tests.requirements import find_program

_DEADLINE = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)
#: The account of the tests. The password has a character that is not in ASCII, and those of URLs.
USER, PASSWORD = "shop_tests", "ç@not-asked/for"
#: Global variables that tests change, and what they are otherwise.
DEFAULTS = {
    "wait_timeout": "28800",
    "read_only": "0",
    "max_connections": "60",
    "group_concat_max_len": "1024",
}


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Mysql:
    """One server. The methods block, for a second at most as a rule.

    :param arguments: further ones of the server.
    """

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self.directory = Path(tempfile.mkdtemp(prefix="chatws-mysql-"))
        self._options: dict[str, Any] = {"cwd": "/", "env": {"PATH": "/usr/bin:/bin:/usr/sbin", "LC_ALL": "C"}}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
        self.port = free_port()
        self.socket = self.directory / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self.certificate_authority = self.directory / "ca.pem"
        self._write_certificates()
        server = find_program("mariadb-server")
        assert server is not None
        self._server = server
        installer = Path(server).parent.parent / "bin" / "mariadb-install-db"
        subprocess.run(
            [
                installer,
                *("--no-defaults", f"--datadir={self.directory / 'data'}", "--skip-test-db", "--skip-name-resolve"),
                "--auth-root-authentication-method=normal",
            ],
            check=True,
            capture_output=True,
            **self._options,
        )
        self.start()
        self.admin(
            f"CREATE USER {USER} IDENTIFIED BY '{PASSWORD}';"
            f"GRANT ALL ON *.* TO {USER} WITH GRANT OPTION; REVOKE SUPER, READ_ONLY ADMIN ON *.* FROM {USER}"
        )

    def _write_certificates(self) -> None:
        authority = Authority()
        signed = authority.issue("db.shop.test")
        self.certificate_authority.write_bytes(authority.root)
        (self.directory / "server.pem").write_bytes(signed.fullchain)
        (self.directory / "key.pem").write_bytes(signed.key)

    @property
    def url(self) -> str:
        return self.url_of("shop")

    def url_of(self, database: str, *, user: str = USER, password: str = PASSWORD, port: int = 0) -> str:
        return f"mysql://{user}:{quote(password, safe='')}@127.0.0.1:{port or self.port}/{database}"

    @property
    def socket_url(self) -> str:
        return f"mysql://{USER}:{quote(PASSWORD, safe='')}@/shop?unix_socket={self.socket}"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, wait: bool = True) -> None:
        """:param wait: return when it takes connections."""
        if not self.is_running:
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        self._server,
                        *("--no-defaults", f"--datadir={self.directory / 'data'}", f"--socket={self.socket}"),
                        *(f"--port={self.port}", "--bind-address=127.0.0.1", "--skip-log-bin", "--skip-name-resolve"),
                        *("--innodb-buffer-pool-size=16M", "--innodb-flush-log-at-trx-commit=2"),
                        *("--character-set-server=utf8mb4", f"--pid-file={self.directory / 'pid'}"),
                        *(f"--ssl-cert={self.directory / 'server.pem'}", f"--ssl-key={self.directory / 'key.pem'}"),
                        *(f"--{name.replace('_', '-')}={value}" for name, value in DEFAULTS.items()),
                        *self._arguments,
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
                self._connect("root", "").close()
                return
            except pymysql.Error:
                if not self.is_running or time.monotonic() > deadline:
                    raise AssertionError((self.directory / "log").read_text()) from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it in order; clients are told."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

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
        """Freeze it: connections stay open, new ones are taken by the kernel, nothing answers."""
        assert self._process is not None
        psutil.Process(self._process.pid).suspend()
        self._is_frozen = True

    def resume(self) -> None:
        """Undo `silence`."""
        if self._is_frozen and self._process is not None:
            psutil.Process(self._process.pid).resume()
        self._is_frozen = False

    def _connect(self, user: str, password: str, database: str | None = None) -> Any:
        return pymysql.connect(
            unix_socket=str(self.socket),
            user=user,
            password=password.encode(),
            database=database,
            charset="utf8mb4",
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            connect_timeout=_DEADLINE,
            ssl_disabled=True,
        )

    def connect(self, database: str = "shop") -> Any:
        """Open a connection of the test's own, in autocommit mode."""
        return self._connect(USER, PASSWORD, database)

    def admin(self, sql: str) -> list[tuple[Any, ...]]:
        """Run statements as root, and return the last one's rows."""
        with closing(self._connect("root", "")) as connection:
            return _last_rows(connection, sql)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Run statements in the shop's database, and return the last one's rows."""
        with closing(self.connect()) as connection:
            return _last_rows(connection, sql)

    def clear(self) -> None:
        """Back to an empty database that runs and answers, and to the global settings of a new server."""
        self.resume()
        self.start()
        settings = ";".join(f"SET GLOBAL {name} = {value}" for name, value in DEFAULTS.items())
        self.admin(f"{settings};")
        self.kill_connections()
        self.admin("DROP DATABASE IF EXISTS shop; CREATE DATABASE shop CHARACTER SET utf8mb4")

    def connections(self) -> list[tuple[int, str]]:
        """The ids and running statements of the server's clients, but for root's."""
        return [
            (number, info or "")
            for number, info in self.admin(
                "SELECT id, info FROM information_schema.processlist WHERE user NOT IN ('root', 'system user')"
            )
        ]

    def kill_connections(self) -> int:
        """End every connection but root's; returns how many there were."""
        numbers = [number for number, _ in self.connections()]
        for number in numbers:
            with closing(self._connect("root", "")) as connection:
                try:
                    connection.kill(number)
                except pymysql.Error as error:
                    if error.args[0] != 1094:  # it has ended meanwhile
                        raise
        return len(numbers)

    def close(self) -> None:
        """Stop it and remove its data."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


def _last_rows(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        rows = cursor.fetchall()
        while cursor.nextset():
            rows = cursor.fetchall()
        return list(rows)


_SERVER: pytest.StashKey[Mysql] = pytest.StashKey()


@pytest.fixture
def mysql(request: pytest.FixtureRequest) -> Mysql:
    """The run's server, running, with an empty database `shop`."""
    config = request.config
    if _SERVER not in config.stash:
        config.stash[_SERVER] = Mysql()
        config.add_cleanup(config.stash[_SERVER].close)
    server = config.stash[_SERVER]
    server.clear()
    return server
