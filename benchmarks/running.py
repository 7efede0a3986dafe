"""A measured server: a process, alone on its core."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from contacts import SETTINGS
from entrants import HERE, PEERS, SERVERS, Workload

SERVER_CORE = 0
PIN_SERVER, PIN_CLIENT = ("taskset", "-c", f"{SERVER_CORE}"), ("taskset", "-c", "1")
#: Seconds before messages are sent in which chatws may finish the work of connecting: it announces presence to all
#: users. No other server works for longer than the client waits.
QUIET_SECONDS = 20
#: Seconds for overdue timers after a stop: pings to thousands of connections, and their answers. A server that is
#: still busy after them polls.
CATCH_UP_SECONDS = 1
#: Seconds of one look. A server is quiet if it used less than a twentieth of them. The timer wheel of chatws waits for
#: 0.25 s before it catches up.
LOOK_SECONDS = 0.3


class Running:
    """A server process, alone on its core."""

    def __init__(self, name: str, workload: Workload, options: list[str]) -> None:
        self.server = SERVERS[name]
        self.port, self.push = free_ports()
        extra = options if name.startswith("chatws") else []
        words = [word.format(port=self.port, push=self.push) for word in self.server.command] + extra
        self.directory = tempfile.TemporaryDirectory()
        environment = dict(environment_without_settings(), NODE_PATH=str(PEERS / "node_modules"), PER=str(workload.per))
        if workload.contacts:
            environment |= SETTINGS
        where = self.directory.name
        if words[1].endswith((".py", ".php")):
            words[1] = str(HERE / "servers" / words[1])
        elif words[1].endswith(".mjs"):
            # Node searches modules beside the script
            where = str(PEERS)
            words[1] = str(shutil.copy(HERE / "servers" / words[1], PEERS))
        if not workload.per:
            del environment["PER"]
        self.process = subprocess.Popen(
            [*PIN_SERVER, *words],
            cwd=where,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._await()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run it within the block, and stop it after it."""
        os.killpg(self.process.pid, signal.SIGCONT)
        self.await_quiet(CATCH_UP_SECONDS)
        yield
        self.stop()

    def stop(self) -> None:
        """Stop it until its turn."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def _await(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.server.title} ended with status {self.process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def cpu(self) -> float:
        """Seconds of processor time, of all its threads and of the core's ksoftirqd."""
        tasks = [*Path(f"/proc/{self.process.pid}/task").iterdir(), *_ksoftirqd()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def user(self) -> float:
        """Seconds in user mode, counted in clock ticks: add up several."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) / os.sysconf("SC_CLK_TCK")

    def await_quiet(self, seconds: float) -> None:
        """Wait until the process is nearly idle, for up to `seconds`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            start = self.cpu()
            time.sleep(LOOK_SECONDS)
            if self.cpu() - start < LOOK_SECONDS / 20:
                break

    def resident(self) -> int:
        """KiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError("no VmRSS")

    def end(self) -> None:
        """Kill it, because its end is not measured."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.directory.cleanup()


@functools.cache
def _ksoftirqd() -> list[Path]:
    """Find ksoftirqd of the server's core. A container does not see the kernel's threads."""
    results = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended
            if comm.read_text() == f"ksoftirqd/{SERVER_CORE}\n":
                results.append(comm.parent)
    return results


def environment_without_settings() -> dict[str, str]:
    """The environment without CHATWS_* variables, which would change the settings of the measured server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CHATWS_")}


def free_ports() -> tuple[int, int]:
    with socket.socket() as figures, socket.socket() as two:
        figures.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return figures.getsockname()[1], two.getsockname()[1]
