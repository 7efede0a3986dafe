"""Measure what hostile clients do to a bystander: the delay of its events and logins, and the server's memory.

    python benchmarks/hostile.py [--seconds N] [--only ATTACK]

Each attack has a process of its own. Results go to benchmarks/hostile.json, and from there into docs/performance.md
(benchmarks/report.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from running import environment_without_settings, free_ports
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

HERE = Path(__file__).resolve().parent
#: Events in the history that recoveries search.
HISTORY = 20_000
#: Seconds of an answer of the application.
ANSWER_SECONDS = 0.02
#: Seconds of a slow answer of the application, below `auth_timeout`.
SLOW_SECONDS = 4.0
#: Maximum delay of a bystander's event (ms).
LIMIT_MS = 100
#: Seconds between two events and two logins of the bystander.
EVENT_INTERVAL, LOGIN_INTERVAL = 0.02, 0.5


class _Session(BaseHTTPRequestHandler):
    """The application's page about sessions: `good-N` is user N, `slow` takes long, `headers` never ends."""

    def do_GET(self) -> None:
        session = (self.headers.get("Cookie") or "").partition("=")[2]
        if session == "headers":
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    self.wfile.write(b"X-Padding: " + b"x" * 8000 + b"\r\n")
        time.sleep(SLOW_SECONDS if session == "slow" else ANSWER_SECONDS)
        body = b'{"user_id":%d}' % int(session[5:]) if session.startswith("good-") else b""
        with suppress(OSError):
            self.send_response(200 if body else 401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _Application(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024


@dataclass(frozen=True)
class Target:
    """The server under attack.

    :ivar position: a position before all events.
    """

    port: int
    push: int
    position: str

    def login(self, session: str, address: str, **auth: Any) -> ClientConnection:
        """Connect from a client's address, and send `auth`."""
        headers = {"Cookie": f"session={session}", "X-Forwarded-For": address}
        url = f"ws://127.0.0.1:{self.port}/ws"
        opening = connect(url, additional_headers=headers, compression=None, max_size=None, ping_interval=None)
        page = opening.__enter__()  # it lives as long as its caller needs it
        page.send(json.dumps({"type": "auth", **auth}))
        return page


def _recoveries(target: Target, reads: bool) -> None:
    pages = [target.login("good-2", "203.0.113.2") for _ in range(10)]
    if reads:
        for page in pages:
            threading.Thread(target=lambda page=page: [None for _ in page], daemon=True).start()
    request = json.dumps({"type": "subscribe", "conversation_id": 456, "last_event_id": target.position})
    again = json.dumps({"type": "auth", "last_event_id": target.position})
    while True:
        for page in pages:
            page.send(request)
            page.send(again)
        time.sleep(0.05)


def recoveries_read(target: Target) -> None:
    """10 connections of one user ask for 20,000 events again and again, and read them"""
    _recoveries(target, True)


def recoveries_unread(target: Target) -> None:
    """the same, and read nothing"""
    _recoveries(target, False)


def forbidden_subscribes(target: Target) -> None:
    """50 connections of one user subscribe to other conversations, 20 times a second each"""
    pages = [target.login("good-3", "203.0.113.3") for _ in range(49)]
    number = 1000
    while True:
        for page in pages:
            number += 1
            page.send(json.dumps({"type": "subscribe", "conversation_id": number}))
        time.sleep(0.05)


def unknown_callers(target: Target) -> None:
    """clients without a session from 10 addresses log in as fast as they can"""

    def call(address: str) -> None:
        while True:
            with suppress(Exception), target.login("nobody", address) as page:
                page.recv(10)

    for number in range(40):
        threading.Thread(target=call, args=(f"198.51.100.{number % 10}",), daemon=True).start()
    threading.Event().wait()


def silent_connections(target: Target) -> None:
    """420 TCP connections send nothing, and are opened again when they are closed"""
    sockets: list[socket.socket] = []
    while True:
        while len(sockets) < 420:
            sockets.append(socket.create_connection(("127.0.0.1", target.port)))
            sockets[-1].setblocking(False)
        for silent in tuple(sockets):
            with suppress(BlockingIOError):
                try:
                    ended = not silent.recv(4096)
                except ConnectionError:
                    ended = True
                if ended:
                    silent.close()
                    sockets.remove(silent)
        time.sleep(0.05)


def held_messages(target: Target) -> None:
    """200 connections send messages while the application decides about their login"""
    message = json.dumps({"type": "subscribe", "conversation_id": "x" * 128, "last_event_id": "x" * 60_000})

    def flood(number: int) -> None:
        while True:
            with suppress(Exception), target.login("slow", f"198.51.100.{number % 250}") as page:
                while True:
                    page.send(message)

    for number in range(200):
        threading.Thread(target=flood, args=(number,), daemon=True).start()
    threading.Event().wait()


def endless_headers(target: Target) -> None:
    """the application answers 24 logins at once with headers that never end"""

    def call(number: int) -> None:
        while True:
            with suppress(Exception), target.login("headers", f"198.51.100.{number}") as page:
                page.recv(10)

    for number in range(24):
        threading.Thread(target=call, args=(number,), daemon=True).start()
    threading.Event().wait()


#: In the order of the table. The first line of each is its title there.
ATTACKS: tuple[Callable[[Target], None], ...] = (
    recoveries_read,
    recoveries_unread,
    forbidden_subscribes,
    unknown_callers,
    silent_connections,
    held_messages,
    endless_headers,
)


@contextmanager
def server(directory: Path) -> Iterator[tuple[psutil.Process, Target]]:
    """A server with a history, a database with slow queries, and an application with sessions."""
    application = _Application(("127.0.0.1", 0), _Session)
    threading.Thread(target=application.serve_forever, daemon=True).start()
    with closing(sqlite3.connect(directory / "shop.db")) as database:
        database.execute("CREATE TABLE conversations (id INTEGER PRIMARY KEY)")
        database.execute("INSERT INTO conversations VALUES (7), (456)")
        database.commit()
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT max(i) FROM n"
    query = f"SELECT 1 FROM conversations WHERE id = %(conversation_id)s AND %(user_id)s > 0 OR ({slow}) < 0"
    port, push = free_ports()
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "chatws"]
    command += [f"--port={port}", f"--push-port={push}", f"--database=sqlite:///{directory}/shop.db"]
    command += ["--user-query=SELECT %(user_id)s AS known", f"--conversation-query={query}", "--auth-cache=0"]
    command += ["--auth=callback", f"--auth-url=http://127.0.0.1:{application.server_port}/"]
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=HERE.parent, env=environment_without_settings(), stdout=log, stderr=log)
    try:
        try:
            target = _filled(port, push)
        except OSError:
            sys.exit(f"the server does not listen:\n{(directory / 'log').read_text()}")
        yield psutil.Process(process.pid), target
    finally:
        process.kill()
        process.wait()
        application.shutdown()


def _filled(port: int, push: int) -> Target:
    """Wait until the server listens, and publish its history."""
    deadline = time.monotonic() + 30
    while True:
        try:
            backend = socket.create_connection(("127.0.0.1", push), 30)
            break
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    with backend, backend.makefile("rb") as responses:
        first = b'{"event":"new_message","data":{"conversation_id":456},"ack":true}\n'
        backend.sendall(first)
        position = json.loads(responses.readline())["event_id"]
        line = b'{"event":"new_message","data":{"conversation_id":456,"message":{"id":1}}}\n'
        backend.sendall(line * (HISTORY - 2) + first)
        responses.readline()
    return Target(port, push, position)


class Bystander:
    """An agent and a backend that have nothing to do with the attack.

    :ivar events: delays of its events, in ms.
    :ivar logins: durations of logins from another address, up to `subscribed` or their failure, in ms.
    """

    def __init__(self, target: Target, process: psutil.Process) -> None:
        self.events: list[float] = []
        self.logins: list[float] = []
        self.failed_logins = 0
        self.memory = 0.0
        self._target = target
        self._process = process
        self._page = self._login("good-1", "192.0.2.1")

    def _login(self, session: str, address: str) -> ClientConnection:
        page = self._target.login(session, address)
        page.send('{"type":"subscribe","conversation_id":7}')
        while json.loads(page.recv(60))["event"] != "subscribed":
            pass
        return page

    def watch(self, seconds: float) -> None:
        """Measure for a time."""
        before = self._process.memory_info().rss
        end = time.monotonic() + seconds
        logins = threading.Thread(target=self._log_in, args=(end,))
        logins.start()
        with socket.create_connection(("127.0.0.1", self._target.push), 60) as backend:
            number = 0
            while time.monotonic() < end:
                number += 1
                sent = time.monotonic()
                backend.sendall(b'{"event":"new_message","data":{"conversation_id":7,"n":%d}}\n' % number)
                while json.loads(self._page.recv(60)).get("data", {}).get("n") != number:
                    pass
                self.events.append((time.monotonic() - sent) * 1000)
                self.memory = max(self.memory, self._process.memory_info().rss - before)
                time.sleep(max(0.0, EVENT_INTERVAL - (time.monotonic() - sent)))
        logins.join()
        self._page.close()

    def _log_in(self, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            began = time.monotonic()
            try:
                self._login("good-4", f"192.0.2.{2 + number % 200}").close()
            except (ConnectionClosed, OSError):
                self.failed_logins += 1
            self.logins.append((time.monotonic() - began) * 1000)
            time.sleep(LOGIN_INTERVAL)


def measure(attack: Callable[[Target], None] | None, seconds: float) -> dict[str, Any]:
    """Run an attack against a server of its own, and return the figures."""
    with tempfile.TemporaryDirectory() as directory, server(Path(directory)) as (process, target):
        bystander = Bystander(target, process)
        attacker = None
        if attack is not None:
            attacker = multiprocessing.Process(target=attack, args=(target,), daemon=True)
            attacker.start()
        try:
            bystander.watch(seconds)
        finally:
            if attacker is not None:
                attacker.kill()
                attacker.join()
    title = "no attack" if attack is None else (attack.__doc__ or "").strip()
    return {
        "attack": title,
        "events": len(bystander.events),
        "event_max_ms": max(bystander.events),
        "logins": len(bystander.logins),
        "failed_logins": bystander.failed_logins,
        "login_max_ms": max(bystander.logins),
        "memory_mib": bystander.memory / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=[attack.__name__ for attack in ATTACKS])
    arguments = parser.parse_args()
    attacks = [attack for attack in ATTACKS if arguments.only in (None, attack.__name__)]
    results = []
    load = os.getloadavg()[0]
    for attack in (None, *attacks):
        results.append(measure(attack, arguments.seconds))
        print(json.dumps(results[-1]), file=sys.stderr)
    if arguments.only is None:
        document = {
            "limit_ms": LIMIT_MS,
            "load": load,
            "history": HISTORY,
            "answer_ms": ANSWER_SECONDS * 1000,
            "attacks": results,
        }
        (HERE / "hostile.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
