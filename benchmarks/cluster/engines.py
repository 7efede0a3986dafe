"""The processes of a cluster: real engines on the loopback, nodes, and the resources that each used."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg2

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.postgres import find_all_programs  # noqa: E402

#: Seconds in which a process has to accept connections.
DEADLINE = 30.0
#: Settings of the engines other than the defaults. Each has its own data directory on the machine's disk.
REDIS_SETTINGS = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "")
POSTGRES_SETTINGS = ("fsync=on", "synchronous_commit=on", "full_page_writes=on", "shared_buffers=128MB")


def free_ports(count: int) -> list[int]:
    """Free ports of 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [item.getsockname()[1] for item in taken]


def _threads_cpu(pid: int) -> float:
    """Seconds of processor time of a process, all its threads together."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _resident_kib(pid: int) -> int:
    """Memory of a process, with a proportional share of shared pages (PSS)."""
    with contextlib.suppress(OSError):
        return int(re.findall(r"^Pss: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[0])
    return 0


class Single:
    """One process, without its children."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu(self) -> float:
        """Seconds of processor time, of all threads."""
        return _threads_cpu(self._pid)

    def resident_kib(self) -> int:
        return _resident_kib(self._pid)


class Running:
    """A process with its children, in its own directory."""

    #: Parent of the directory: on a disk, not in memory.
    ROOT = "/var/tmp"

    def __init__(self, command: list[str], ports: list[int], **options: Any) -> None:
        self.command = command
        self.directory: str = options.pop("cwd", None) or tempfile.mkdtemp(prefix="chatws-cluster-", dir=self.ROOT)
        self._log = (Path(self.directory) / "output").open("ab")
        self.process = subprocess.Popen(
            command,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            **options,
        )
        try:
            self.await_ports(ports)
        except BaseException:
            self.end()
            raise

    def await_ports(self, ports: list[int]) -> None:
        """Wait until it accepts connections on these ports."""
        deadline = time.monotonic() + DEADLINE
        for port in ports:
            while True:
                if self.process.poll() is not None:
                    tail = (Path(self.directory) / "output").read_text()[-600:]
                    raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.returncode}: {tail}")
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)

    def _family(self) -> list[int]:
        if self.process.poll() is not None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process.pid, *(child.pid for child in psutil.Process(self.process.pid).children(True))]
        return []

    def cpu(self) -> float:
        """Seconds of processor time of all threads and children, including those that have ended."""
        ended = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()[13:15]
        return sum(map(_threads_cpu, self._family())) + sum(map(int, ended)) / os.sysconf("SC_CLK_TCK")

    def resident_kib(self) -> int:
        return sum(map(_resident_kib, self._family()))

    def parts(self) -> list[Single]:
        """The process itself, and then each of its children."""
        return [Single(pid) for pid in self._family()]

    def end(self, ask: int | None = None) -> None:
        """Kill it, because its end is not measured.

        :param ask: a signal to try first.
        """
        if ask is not None and self.process.poll() is None:
            self.process.send_signal(ask)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DEADLINE)
        for pid in reversed(self._family()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Engine:
    """A store that nodes share.

    :ivar url: for `--broker` and the peers.
    """

    url: str
    version: str
    port: int
    running: Running

    def cpu(self) -> float:
        """Seconds of processor time of all its processes."""
        return self.running.cpu()

    def resident_kib(self) -> int:
        return self.running.resident_kib()

    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent on the open connections."""
        ask = ["ss", "-tinH", "state", "established", f"( sport = :{self.port} )"]
        text = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
        received = sum(map(int, re.findall(r"\bbytes_received:(\d+)", text)))
        return received, sum(map(int, re.findall(r"\bbytes_sent:(\d+)", text)))

    def stored(self) -> int:
        """Bytes that it stores."""
        raise NotImplementedError

    def batches(self) -> int:
        """Number of batches that were appended, or published to the peers' channels."""
        raise NotImplementedError

    def end(self) -> None:
        self.running.end()


class Redis(Engine):
    """redis-server with its append-only file, synchronised every second."""

    def __init__(self) -> None:
        [self.port] = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("redis-server is missing: apt-get install redis-server")
        self.running = Running([program, "--port", str(self.port), "--bind", "127.0.0.1", *REDIS_SETTINGS], [self.port])
        self.version = subprocess.check_output([program, "--version"], text=True).split("v=")[1].split()[0]

    def stored(self) -> int:
        return self._info("memory", r"used_memory:(\d+)")

    def batches(self) -> int:
        # chatws publishes a batch once; of the Streams adapter's entries each is one
        published = self._info("commandstats", r"cmdstat_publish:calls=(\d+)")
        return published or self._info("commandstats", r"cmdstat_xadd:calls=(\d+)")

    def _info(self, section: str, pattern: str) -> int:
        with socket.create_connection(("127.0.0.1", self.port)) as figures:
            figures.sendall(f"INFO {section}\r\n".encode())
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += figures.recv(65536)
        results = re.findall(pattern, answer.decode())
        return int(results[0]) if results else 0


class Postgres(Engine):
    """A new PostgreSQL cluster that writes to the disk with every commit."""

    def __init__(self) -> None:
        programs = next(iter(find_all_programs().values()), None)
        if programs is None:
            raise RuntimeError("PostgreSQL is missing: apt-get install postgresql")
        directory = tempfile.mkdtemp(prefix="chatws-cluster-", dir=Running.ROOT)
        options: dict[str, Any] = {"env": {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}}
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            options |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        initdb = [programs / "initdb", "-D", f"{directory}/data", "-U", "postgres", "--auth=trust", "-E", "UTF8"]
        subprocess.run([*initdb, "--locale=C", "--no-sync"], check=True, capture_output=True, cwd="/", **options)
        [self.port] = free_ports(1)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        settings = [word for setting in POSTGRES_SETTINGS for word in ("-c", setting)]
        command = [str(programs / "postgres"), "-D", f"{directory}/data", "-k", directory, "-h", "127.0.0.1"]
        self.running = Running([*command, "-p", str(self.port), *settings], [self.port], cwd=directory, **options)
        deadline = time.monotonic() + DEADLINE
        while True:
            try:
                self._admin = psycopg2.connect(self.url)
                break
            except psycopg2.OperationalError:  # it is starting up
                if time.monotonic() > deadline:
                    self.end()
                    raise
                time.sleep(0.05)
        self._admin.autocommit = True
        self.version = str(self._ask("SHOW server_version")).split()[0]

    def _ask(self, query: str) -> Any:
        with self._admin.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]

    def stored(self) -> int:
        return int(self._ask("SELECT pg_database_size(current_database())"))

    def end(self) -> None:
        """Stop it regularly. Otherwise shared memory would remain."""
        if hasattr(self, "_admin"):
            self._admin.close()
        self.running.end(signal.SIGINT)

    def batches(self) -> int:
        # rows of one append have the same id, and the history keeps more than one phase pushes
        return int(self._ask("SELECT count(DISTINCT append_id) FROM chatws.events"))

    def logged(self) -> int:
        """Bytes of write-ahead log since its creation."""
        return int(self._ask("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')"))


ENGINES = {"redis": Redis, "postgresql": Postgres}


def disk_sync_ms(directory: str = Running.ROOT) -> float:
    """Milliseconds of a write of 8 KiB with fdatasync, the median of 200."""
    took = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(200):
            started = time.perf_counter()
            os.write(file.fileno(), b"x" * 8192)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - started)
    return sorted(took)[len(took) // 2] * 1000
