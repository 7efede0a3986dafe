"""Every server under the same load, one after the other, and what it cost them.

    make bench                                everything, storms and report: about fifteen minutes
    python benchmarks/run.py --quick          a look: fewer messages, one repetition
    python benchmarks/run.py --only chatws ws --workloads room1

The server runs alone on one core, the load client (benchmarks/load.c) on another. What counts is the processor time
that the server's threads used between two moments, read from the kernel's scheduler (/proc/PID/task/*/schedstat, ns).
Of the repetitions the median is taken. Results go to benchmarks/results.json, and from there into
docs/performance.md and docs/images/performance.svg (benchmarks/report.py).

Peers are installed into benchmarks/.peers by pip and npm. Ratchet takes part where `php` is there and RATCHET_VENDOR
names a vendor directory with cboden/ratchet.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = HERE / ".peers"
BUILD = PEERS / "bin"
PYTHON_PEERS = ("websockets", "picows", "socketify", "autobahn[twisted]")
NODE_PEERS = ("ws", "socket.io")
PAD = "x" * 150
#: The people that the connections are of, as far as a server wants to know: each has some pages open.
USERS = 900
#: Seconds for which a server may go on with what the connecting left behind, before messages are sent: chatws tells
#: everybody who is online now, others collect garbage.
QUIET_SECONDS = 20


@dataclass(frozen=True)
class Workload:
    """:ivar per: connections a group, each message going to one group; 0 for one room of all.
    :ivar window: messages outstanding."""

    title: str
    connections: int
    per: int
    messages: int
    window: int
    unit: str  # "delivery" or "message"


WORKLOADS = {
    "room1": Workload("one room of 500, one message at a time", 500, 0, 800, 1, "delivery"),
    "room16": Workload("one room of 500, 16 messages outstanding", 500, 0, 1600, 16, "delivery"),
    "inbox": Workload("9,000 connections, 3 recipients a message, 16 outstanding", 9000, 3, 12000, 16, "message"),
    "inbox1000": Workload("1,000 connections, 3 recipients a message, 16 outstanding", 1000, 3, 12000, 16, "message"),
    "inbox19000": Workload(
        "19,000 connections, 3 recipients a message, 16 outstanding", 19000, 3, 12000, 16, "message"
    ),
}
MAIN = ("room1", "room16", "inbox")


@dataclass(frozen=True)
class Server:
    """:ivar command: with {port} and {push}. :ivar subscribe: what each connection says to be in group %g.
    :ivar publisher: "tcp" or "ws"."""

    title: str
    command: tuple[str, ...]
    path: str = "/"
    publisher: str = "tcp"
    wrap: str = "%s"  # how a published message looks on the wire of this publisher
    prefix: tuple[str, ...] = ()
    subscribe: str = '{"type":"subscribe","conversation_id":%g}'


_TWISTD = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=")
_CHATWS = ("chatws", "--port={port}", "--push-port={push}")
#: chatws on other reactors than the default one.
REACTORS = ("chatws-asyncio", "chatws-uvloop")
PEER_PYTHON = str(PEERS / "venv" / "bin" / "python")
SERVERS = {
    "floor": Server("a C loop of send()", (str(BUILD / "floor"), "{port}", "{push}")),
    "chatws": Server("chatws", (*_TWISTD, *_CHATWS), "/ws"),
    "chatws-asyncio": Server("chatws on asyncio", (*_TWISTD, "--reactor=asyncio", *_CHATWS), "/ws"),
    "chatws-uvloop": Server("chatws on asyncio with uvloop", (*_TWISTD, "--reactor=uvloop", *_CHATWS), "/ws"),
    "uwebsockets": Server(
        "uWebSockets (socketify)", (PEER_PYTHON, "uwebsockets_server.py", "{port}", "{push}"), publisher="ws"
    ),
    "picows": Server("picows", (PEER_PYTHON, "picows_server.py", "{port}", "{push}")),
    "ws": Server("ws (Node)", ("node", "ws_server.mjs", "{port}", "{push}")),
    "websockets": Server("websockets", (PEER_PYTHON, "websockets_server.py", "{port}", "{push}")),
    "socketio": Server(
        "Socket.IO",
        ("node", "socketio_server.mjs", "{port}", "{push}"),
        "/socket.io/?EIO=4&transport=websocket",
        prefix=("40",),
        subscribe='42["subscribe",{"conversation_id":%g}]',
    ),
    "autobahn": Server("Autobahn, sendPreparedMessage", (PEER_PYTHON, "autobahn_server.py", "{port}", "{push}")),
    "ratchet": Server("Ratchet", ("php", "ratchet_server.php", "{port}", "{push}")),
}


def install(names: list[str]) -> None:
    """Bring the peers and build the C programs."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for source in (HERE / "load.c", HERE / "storm.c", HERE / "servers" / "floor.c"):
        target = BUILD / source.stem
        if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-pthread", "-o", str(target), str(source)], check=True)
    if any(SERVERS[name].command[0] == PEER_PYTHON for name in names) and not Path(PEER_PYTHON).exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS / "venv")], check=True)
        subprocess.run([PEER_PYTHON, "-m", "pip", "install", "-q", *PYTHON_PEERS], check=True)
    if "chatws-uvloop" in names and not (PEERS / "uvloop").exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", PEERS / "uvloop", "uvloop"], check=True
        )
    if any(SERVERS[name].command[0] == "node" for name in names) and not (PEERS / "node_modules").exists():
        subprocess.run(["npm", "install", "--silent", "--prefix", str(PEERS), *NODE_PEERS], check=True)


def versions() -> dict[str, str]:
    """What was measured."""
    found = {"python": platform.python_version(), "kernel": platform.release(), "machine": platform.machine()}
    code = "import importlib.metadata as m,json;print(json.dumps({n:m.version(n) for n in %r}))"
    for python, names in (
        (sys.executable, ["chatws", "Twisted", "autobahn", "msgspec"]),
        (PEER_PYTHON, ["websockets", "picows", "socketify"]),
    ):
        if Path(python).exists():
            found |= json.loads(subprocess.check_output([python, "-c", code % (names,)]))
    for name in NODE_PEERS:
        package = PEERS / "node_modules" / name / "package.json"
        if package.exists():
            found[name] = json.loads(package.read_text())["version"]
    for program, arguments in (("node", ["--version"]), ("php", ["-r", "echo PHP_VERSION;"])):
        if shutil.which(program):
            found[program] = subprocess.check_output([program, *arguments], text=True).strip()
    return found


class Running:
    """A server process, alone on its core."""

    def __init__(self, name: str, workload: Workload, options: list[str]) -> None:
        self.server = SERVERS[name]
        self.port, self.push = _free_ports()
        extra = options if name.startswith("chatws") else []
        words = [word.format(port=self.port, push=self.push) for word in self.server.command] + extra
        self.directory = tempfile.TemporaryDirectory()
        environment = dict(os.environ, NODE_PATH=str(PEERS / "node_modules"), PER=str(workload.per))
        if name == "chatws-uvloop":
            environment["PYTHONPATH"] = str(PEERS / "uvloop")
        where = self.directory.name
        if words[1].endswith((".py", ".php")):
            words[1] = str(HERE / "servers" / words[1])
        elif words[1].endswith(".mjs"):
            # modules are looked for beside the script
            where = str(PEERS)
            words[1] = str(shutil.copy(HERE / "servers" / words[1], PEERS))
        if not workload.per:
            del environment["PER"]
        self.process = subprocess.Popen(
            ["taskset", "-c", "0", *words],
            cwd=where,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._await()

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
        """Seconds of processor time, of all its threads."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def await_quiet(self) -> None:
        """Wait until it does nothing of its own accord."""
        deadline = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < deadline:
            start = self.cpu()
            time.sleep(0.5)
            if self.cpu() - start < 0.005:
                break

    def resident(self) -> int:
        """KiB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError("no VmRSS")

    def end(self) -> None:
        """Kill it: how it ends is not measured here."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.directory.cleanup()


def measure(name: str, workload: Workload, options: list[str]) -> dict[str, Any]:
    """One server under one load.

    :returns: `cpu_us` per delivery or message; `connect_us` and `idle_kib` per connection; what the client saw.
    """
    running = Running(name, workload, options)
    server = running.server
    group = server.subscribe if workload.per else server.subscribe.replace("%g", "1")
    hellos = [*server.prefix, *(['{"type":"auth","user_id":%u}'] if not server.prefix else []), group]
    conversation = "%g" if workload.per else "1"
    line = f'{{"event":"new_message","data":{{"conversation_id":{conversation},"ts":%T,"pad":"{PAD}"}}}}'
    publisher = f"tcp:{running.push}" if server.publisher == "tcp" else "ws"
    environment = dict(os.environ, GATE="1", MATCH="new_message", SETTLE="1", USERS=str(USERS))
    environment["HELLO_PAUSE"] = "2" if server.prefix else "0.3"
    if workload.per:
        environment["PER"] = str(workload.per)
    numbers = map(str, (running.port, server.path, workload.connections, workload.messages, workload.window))
    try:
        cpu_0, resident_0 = running.cpu(), running.resident()
        client = subprocess.Popen(
            ["taskset", "-c", "1", str(BUILD / "load"), "127.0.0.1", *numbers, *hellos, "--", publisher, line],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert client.stdin is not None
        assert client.stdout is not None
        ready = client.stdout.readline()
        if not ready:
            raise RuntimeError(f"{server.title}: the client could not connect: {client.stderr.read()[-300:]}")  # type: ignore[union-attr]
        cpu_1, resident_1 = running.cpu(), running.resident()
        running.await_quiet()
        before = running.cpu()
        client.stdin.write("\n")
        client.stdin.flush()
        seen = json.loads(client.stdout.readline())
        cpu_2 = running.cpu()
        client.wait()
    finally:
        running.end()
    if seen["lost"] > 0 or seen["errors"]:
        raise RuntimeError(f"{server.title}: {seen['lost']} frames lost, {seen['errors']} errors")
    deliveries = workload.messages * (workload.per or workload.connections)
    units = deliveries if workload.unit == "delivery" else workload.messages
    return {
        "cpu_us": (cpu_2 - before) / units * 1e6,
        "connect_us": (cpu_1 - cpu_0) / workload.connections * 1e6,
        "idle_kib": (resident_1 - resident_0) / workload.connections,
        "p50_ms": seen["p50_ms"],
        "p99_ms": seen["p99_ms"],
        "per_s": seen["per_s"],
        "client_us_per_frame": seen["client_us_per_frame"],
    }


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=None)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=None)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=13, help="begin no repetition that would take longer")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    parser.add_argument("--chatws-option", action="append", default=[], help="passed on to twistd chatws")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("two cores are needed: one for the server, one for its clients")
    names = arguments.only or [
        name for name in SERVERS if name != "ratchet" or (shutil.which("php") and "RATCHET_VENDOR" in os.environ)
    ]
    install(names)
    # the costs at other numbers of connections show that a message does not pay for who is not addressed
    extra = {"inbox1000": ("floor", "chatws"), "inbox19000": ("floor", "chatws")}
    workloads = arguments.workloads or [*MAIN, *extra]
    reactors = dict.fromkeys(REACTORS, ("room1", "inbox"))
    began = time.monotonic()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for number in range(1 if arguments.quick else arguments.repeat):
        elapsed = time.monotonic() - began
        if number and elapsed * (number + 1) / number > arguments.minutes * 60:
            print(f"{number} repetitions took {elapsed / 60:.0f} minutes: enough", file=sys.stderr)
            break
        for key in workloads:
            workload = WORKLOADS[key]
            if arguments.quick:
                workload = Workload(**{**asdict(workload), "messages": workload.messages // 5})
            if workload.connections + 100 > files:
                print(f"{key}: left out, only {files} files may be open", file=sys.stderr)
                continue
            for name in names:
                if arguments.workloads is None and (
                    name not in extra.get(key, names) or key not in reactors.get(name, (key,))
                ):
                    continue
                try:
                    one = measure(name, workload, arguments.chatws_option)
                except (RuntimeError, json.JSONDecodeError) as error:
                    print(f"{number + 1} {key:10} {name:12} failed: {error}", file=sys.stderr)
                    continue
                results.setdefault(key, {}).setdefault(name, []).append(one)
                print(
                    f"{number + 1} {key:10} {name:12} {one['cpu_us']:9.2f} us/{workload.unit}  "
                    f"connect {one['connect_us']:6.0f} us  idle {one['idle_kib']:5.1f} KiB  p99 {one['p99_ms']} ms",
                    file=sys.stderr,
                )
    medians = {
        key: {
            name: {field: statistics.median(one[field] for one in runs) for field in runs[0]}
            for name, runs in by_server.items()
        }
        for key, by_server in results.items()
    }
    titles = {
        "servers": {name: server.title for name, server in SERVERS.items()},
        "workloads": {key: workload.title for key, workload in WORKLOADS.items()},
    }
    units = {key: workload.unit for key, workload in WORKLOADS.items()}
    document = {
        "versions": versions(),
        "users": USERS,
        "units": units,
        "titles": titles,
        "medians": medians,
        "runs": results,
    }
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
