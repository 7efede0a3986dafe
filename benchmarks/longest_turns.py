"""Measure the longest turn of the reactor for each kind of work that grows with the connections.

    python benchmarks/longest_turns.py [--connections N]

Results go to benchmarks/longest_turns.json, and from there into docs/performance.md (benchmarks/report.py).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from entrants import BUILD, HERE, PAD, USERS, install
from running import PIN_CLIENT, PIN_SERVER, environment_without_settings, free_ports

#: Seconds after each action in which its work is done: longer than the pings and the announcements of presence take.
SETTLE = 3.0
BIG = 1 << 20


class Server:
    """The server, and a client with its connections."""

    def __init__(self, connections: int) -> None:
        self.port, self.push = free_ports()
        self.metrics, self.api = free_ports()
        self.directory = tempfile.TemporaryDirectory()
        secret = Path(self.directory.name, "secret")
        secret.write_text("s" * 32)
        secret.chmod(0o600)
        options = [f"--port={self.port}", f"--push-port={self.push}", f"--metrics-port={self.metrics}"]
        options += [f"--api-port={self.api}", f"--push-secret-file={secret}", "--auth-deadline=300"]
        options += ["--max-line-size=2097152", "--drain-timeout=5"]
        self.process = subprocess.Popen(
            [*PIN_SERVER, sys.executable, str(HERE / "servers" / "chatws_turns.py"), *options],
            stdout=subprocess.PIPE,
            env=environment_without_settings(),
            text=True,
        )
        self.connections = connections
        self.client: subprocess.Popen[str] | None = None
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.1)

    def longest(self) -> float:
        """Milliseconds of processor time of the longest turn since the last call."""
        assert self.process.stdout is not None
        os.kill(self.process.pid, signal.SIGUSR2)
        return float(self.process.stdout.readline())

    def connect(self) -> None:
        subscribe = '{"type":"subscribe","conversation_id":%g}'
        arguments = ["127.0.0.1", str(self.port), "/ws", str(self.connections), "0", "1"]
        arguments += ['{"type":"auth","user_id":%u}', subscribe, "--", f"tcp:{self.push}", '{"op":"ping"}']
        environment = dict(os.environ, GATE="1", MATCH="new_message", SETTLE="1", USERS=str(USERS), PER="3")
        environment["HELLO_PAUSE"] = "0.3"
        self.client = subprocess.Popen(
            [*PIN_CLIENT, str(BUILD / "load"), *arguments],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.client.stdout is not None
        ready = json.loads(self.client.stdout.readline() or "{}").get("ready", 0)
        if ready < self.connections:
            sys.exit(f"only {ready} connections")

    def lines(self, *lines: object) -> None:
        """Send lines to the push API, and wait for the last response."""
        with socket.create_connection(("127.0.0.1", self.push), 60) as backend:
            backend.sendall(b'{"op":"auth","secret":"' + b"s" * 32 + b'"}\n')
            backend.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in (*lines, {"op": "ping", "id": 7})))
            data = b""
            while not data.endswith(b"\n") or b'"id":7' not in data:
                data += backend.recv(1 << 20)

    def post(self, body: bytes) -> None:
        """Send a request to the HTTP API."""
        headers = {"Authorization": "Bearer " + "s" * 32, "Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.api}/push", body, headers)
        urllib.request.urlopen(request, timeout=60).read()

    def get(self, path: str) -> None:
        """Request a page of the metrics listener."""
        urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}{path}", timeout=60).read()

    def end(self) -> None:
        """Kill both."""
        for process in (self.client, self.process):
            if process is not None:
                process.kill()
                process.wait()
        self.directory.cleanup()


def event(size: int = 300, **fields: object) -> dict[str, object]:
    """An event for all agents."""
    data = {"conversation_id": 1, "content": (PAD * (size // len(PAD) + 1))[:size]}
    return {"event": "conversation_updated", "data": data, "ack": True, **fields}


def actions(server: Server) -> list[tuple[str, Callable[[], object], float]]:
    """What is measured: a title, the action, and the seconds for which its work may last."""
    many = [event(n=number) for number in range(100)]
    groups = [event(to={"user_ids": [*range(1, USERS + 1)]})]
    body = json.dumps([event(BIG // 40) for _ in range(16)]).encode()
    return [
        ("all connections open, authenticate and subscribe", server.connect, 20.0),
        ("half an idle minute: pings, timers, garbage collection", lambda: None, 32.0),
        ("an event for all agents", lambda: server.lines(event()), SETTLE),
        ("100 events for all agents in one read", lambda: server.lines(*many), SETTLE),
        ("an event of 100 KB for all agents", lambda: server.lines(event(100_000)), 4 * SETTLE),
        (f"an event for {USERS} users by their ids", lambda: server.lines(*groups), SETTLE),
        ("an event for all agents but one", lambda: server.lines(event(except_user_id=1)), SETTLE),
        ("an HTTP request of 400 KB", lambda: server.post(body), 4 * SETTLE),
        ("the list of agents online (chatws agents)", lambda: server.lines({"op": "presence", "detail": True}), SETTLE),
        ("/metrics", lambda: server.get("/metrics"), SETTLE),
        ("disconnect of a user", lambda: server.lines({"op": "disconnect", "user_id": 1}), SETTLE),
        ("SIGHUP", lambda: os.kill(server.process.pid, signal.SIGHUP), SETTLE),
        ("all connections are lost at once", lambda: server.client and server.client.kill(), 2 * SETTLE),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=16_000)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    install(["chatws"])
    server = Server(arguments.connections)
    rows: list[dict[str, object]] = []
    try:
        for title, action, seconds in actions(server):
            server.longest()
            action()
            time.sleep(seconds)
            longest = server.longest()
            rows.append({"work": title, "ms": longest})
            print(f"{longest:8.2f} ms  {title}", file=sys.stderr)
    finally:
        server.end()
    document = {"connections": arguments.connections, "rows": rows}
    (HERE / "longest_turns.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
