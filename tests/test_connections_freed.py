"""Connections are freed by their reference counts alone, whatever their ending: the collector of the server is off."""

from __future__ import annotations

import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.certificates import self_signed
from tests.e2e.process import free_port
from tests.e2e.wire import DEADLINE, until
from tests.server_wire import frame, head, plain

#: Connections of each ending, about 10,000 in all.
COUNT = 250
#: Connections of each ending before the first measurement: caches, pools and counters have their objects then.
WARM_UP = 30
#: Connections that are open at the same time, and of those endings that wait for a timeout of the server.
THREADS, WAITING_THREADS = 12, 250
#: Objects that may be left over, less than one for each connection. Twisted keeps some cancelled calls for a while.
TOLERATED = 150

AUTH = frame(json.dumps({"type": "auth", "user_id": 5}))
SUBSCRIBE = frame(json.dumps({"type": "subscribe", "conversation_id": 7}))
COMPRESSED = {"Sec_WebSocket_Extensions": "permessage-deflate"}


class Server(NamedTuple):
    """A running server of `tests.object_server`."""

    ports: dict[str, int]

    def connect(self, listener: str = "plain") -> socket.socket:
        """Open a connection, with TLS on the listener `tls`."""
        connection = socket.create_connection(("127.0.0.1", self.ports[listener]), DEADLINE)
        if listener == "tls":
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = context.wrap_socket(connection)
        elif listener == "proxied":
            connection.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 4000 8080\r\n")
        return connection

    def objects(self) -> dict[str, Any]:
        """Return the number of open connections, and of objects by type."""
        with self.connect("objects") as connection:
            data = b""
            while chunk := connection.recv(65536):
                data += chunk
        report: dict[str, Any] = json.loads(data)
        return report

    def quiet(self) -> Counter[str]:
        """Wait until no connection is open, and return the number of objects by type."""
        return Counter(until(lambda: (report := self.objects())["open"] == 0 and report, "all to close")["types"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("objects")
    pem = directory / "pem"
    pem.write_bytes(self_signed().both)
    pem.chmod(0o600)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.object_server", str(directory), str(free_port())],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        yield Server(json.loads(process.stdout.readline()))
    finally:
        process.terminate()
        process.wait(DEADLINE)
        process.stdout.close()


def read_to_end(connection: socket.socket) -> bytes:
    """Return everything up to the end of the connection, or to its reset."""
    data = b""
    with suppress(ConnectionError, ssl.SSLError):
        while chunk := connection.recv(65536):
            data += chunk
    return data


def upgrade(connection: socket.socket, *frames: bytes, expect: bytes = b"", **fields: str) -> None:
    """Open a WebSocket, send frames, and wait for `expect` in what the server sends."""
    connection.sendall(head("/ws", **fields) + b"".join(frames))
    data = b""
    while b"\r\n\r\n" not in data or expect not in data:
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk


def reset(connection: socket.socket) -> None:
    """Make the next `close` send a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def close_frame(connection: socket.socket) -> None:
    upgrade(connection, AUTH, SUBSCRIBE, expect=b"subscribed")
    connection.sendall(frame(struct.pack("!H", 1000), 8))
    read_to_end(connection)


def broken(connection: socket.socket) -> None:
    upgrade(connection, AUTH, SUBSCRIBE, expect=b"subscribed")


def was_reset(connection: socket.socket) -> None:
    upgrade(connection, AUTH, SUBSCRIBE, expect=b"subscribed")
    reset(connection)


def unauthenticated(connection: socket.socket) -> None:
    upgrade(connection)


def auth_deadline(connection: socket.socket) -> None:
    upgrade(connection)
    read_to_end(connection)


def no_pong(connection: socket.socket) -> None:
    upgrade(connection, AUTH, expect=b"authenticated")
    read_to_end(connection)


def invalid_utf8(connection: socket.socket) -> None:
    upgrade(connection, AUTH, frame(b"\xff\xfe"))
    read_to_end(connection)


def invalid_frame(connection: socket.socket) -> None:
    upgrade(connection, frame(b"x", 1, rsv=7))
    read_to_end(connection)


def too_long(connection: socket.socket) -> None:
    upgrade(connection)
    with suppress(ConnectionError, ssl.SSLError):
        connection.sendall(frame(b"x" * 70_000))
    read_to_end(connection)


def within_a_frame(connection: socket.socket) -> None:
    upgrade(connection, AUTH, frame(b'{"type":"ping","padding":"' + b"x" * 3000 + b'"}')[:2000])


def fragmented(connection: socket.socket) -> None:
    upgrade(connection, frame(b'{"type":', fin=False), frame(b'"ping"}', 0), expect=b"pong")


def compressed(connection: socket.socket) -> None:
    upgrade(connection, AUTH, **COMPRESSED)
    connection.sendall(frame(bytes.fromhex("aa562aa92c4855b252cacd4f4a5502"), 1, rsv=4))


def invalid_message(connection: socket.socket) -> None:
    upgrade(connection, frame("not JSON"), frame("x", 2), expect=b"unsupported")


def slow_consumer(connection: socket.socket) -> None:
    upgrade(connection, AUTH, expect=b"authenticated")
    with suppress(ConnectionError):
        connection.sendall(frame("{" + "x" * 20_000 + "}") * 60)
    reset(connection)


def rejected_upgrade(connection: socket.socket) -> None:
    connection.sendall(head("/nowhere"))
    assert b"404" in read_to_end(connection)


def rejected_origin(connection: socket.socket) -> None:
    connection.sendall(head("/ws", Origin="https://other.example"))
    assert b"403" in read_to_end(connection)


def bad_request(connection: socket.socket) -> None:
    connection.sendall(b"\0\1\2\3\r\n\r\n")
    read_to_end(connection)


def half_a_head(connection: socket.socket) -> None:
    connection.sendall(head("/ws")[:40])


def head_timeout(connection: socket.socket) -> None:
    connection.sendall(head("/ws")[:40])
    assert b"408" in read_to_end(connection)


def nothing(connection: socket.socket) -> None:
    pass


def http_request(connection: socket.socket) -> None:
    connection.sendall(plain("/healthz"))
    assert b"200" in read_to_end(connection)


def readiness(connection: socket.socket) -> None:
    connection.sendall(plain("/readyz"))
    assert b"200" in read_to_end(connection)


def client_library(connection: socket.socket) -> None:
    connection.sendall(plain("/websocket-client.js"))
    reset(connection)


def missing_page(connection: socket.socket) -> None:
    connection.sendall(plain("/missing", method="POST", body=b"{}"))
    read_to_end(connection)


def unfinished_body(connection: socket.socket) -> None:
    connection.sendall(plain("/healthz", method="POST", body=b"{}")[:-1])


def metrics(connection: socket.socket) -> None:
    connection.sendall(plain("/metrics", Host="127.0.0.1"))
    assert b"chatws_connections" in read_to_end(connection)


def push_line(connection: socket.socket) -> None:
    connection.sendall(b'{"event":"x","data":{},"to":{"user_id":6},"ack":true,"transient":true}\n')
    assert b"ok" in connection.recv(65536)


def push_reset(connection: socket.socket) -> None:
    connection.sendall(b'{"event":"x","data":{},"to":{"user_id":6},"ack":true,"transient":true}\n{"unfinished')
    reset(connection)


def push_invalid(connection: socket.socket) -> None:
    connection.sendall(b"{nonsense}\n")
    connection.recv(65536)


ENDINGS: dict[str, list[Callable[[socket.socket], None]]] = {
    "plain": [
        close_frame, broken, was_reset, unauthenticated, auth_deadline, no_pong, invalid_utf8, invalid_frame, too_long,
        within_a_frame, fragmented, compressed, invalid_message, slow_consumer, rejected_upgrade, rejected_origin,
        bad_request, half_a_head, head_timeout, nothing, http_request, readiness, client_library, missing_page,
        unfinished_body,
    ],
    "tls": [close_frame, broken, was_reset, rejected_upgrade, nothing, http_request],
    "proxied": [close_frame, was_reset, rejected_upgrade, http_request],
    "push": [push_line, push_reset, push_invalid, nothing],
    "metrics": [metrics],
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("listener", "ending"),
    [(listener, ending) for listener, endings in ENDINGS.items() for ending in endings],
    ids=[f"{listener}-{ending.__name__}" for listener, endings in ENDINGS.items() for ending in endings],
)
def test_connections_with_the_collector_off_are_freed(
    server: Server, listener: str, ending: Callable[[socket.socket], None]
) -> None:
    def first(_: int) -> None:
        with server.connect(listener) as connection:
            ending(connection)

    threads = WAITING_THREADS if ending in (auth_deadline, no_pong, head_timeout) else THREADS
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(first, range(WARM_UP)))
        before = server.quiet()
        list(pool.map(first, range(COUNT)))
    grown = server.quiet() - before
    end = time.monotonic() + DEADLINE
    # The server reports many simultaneous resets to the application in batches, after it has counted them.
    while grown.total() >= TOLERATED:
        assert time.monotonic() < end, f"objects left by {COUNT} connections: {grown.most_common(12)}"
        time.sleep(0.05)
        grown = server.quiet() - before
