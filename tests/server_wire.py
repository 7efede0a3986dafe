"""The server's layers over real sockets, without a running reactor: the test advances the time and serves the sockets.

The server's end of a socket pair is a real Twisted transport, so what is shown is what happens on TCP: short sends,
full buffers, resets, closes that come a turn later. Time is a `Clock`.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from typing import Any

from twisted.internet import tcp
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from chatws.server import Admission, HttpServer, WsServer

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 §1.3


def head(path: str = "/ws", *, method: str = "GET", version: str = "HTTP/1.1", **fields: str | None) -> bytes:
    """A request head that opens a WebSocket; a field set to None is left out, `_` in a name stands for `-`."""
    wanted: dict[str, str | None] = {
        "Host": "chat.example:8080",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
    }
    for name, value in fields.items():
        name = name.replace("_", "-")
        wanted = {key: old for key, old in wanted.items() if key.lower() != name.lower()}
        wanted[name] = value
    lines = [f"{name}: {value}" for name, value in wanted.items() if value is not None]
    return "\r\n".join([f"{method} {path} {version}", *lines, "", ""]).encode("latin-1")


def plain(path: str = "/", method: str = "GET", body: bytes = b"", **fields: str | None) -> bytes:
    """An ordinary request."""
    if body:
        fields.setdefault("Content_Length", str(len(body)))
    without = {"Upgrade": None, "Connection": None, "Sec_WebSocket_Key": None, "Sec_WebSocket_Version": None}
    return head(path, method=method, **{**without, **fields}) + body


def frame(payload: bytes | str, opcode: int = 1, *, fin: bool = True, rsv: int = 0, mask: bytes | None = b"\1\2\3\4"):
    """A client's frame (RFC 6455 §5.2)."""
    if isinstance(payload, str):
        payload = payload.encode()
    masked = 0x80 if mask is not None else 0
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if len(payload) < 126:
        header = first + bytes([masked | len(payload)])
    elif len(payload) < 65536:
        header = first + bytes([masked | 126]) + len(payload).to_bytes(2, "big")
    else:
        header = first + bytes([masked | 127]) + len(payload).to_bytes(8, "big")
    if mask is None:
        return header + payload
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    xored = int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")
    return header + mask + xored.to_bytes(len(payload), "big")


def split_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """A server's frames as (first byte, payload), and what is left over."""
    result = []
    while len(data) >= 2:
        assert not data[1] & 0x80, "a server's frame is not masked"
        length, start = data[1], 2
        if length == 126:
            length, start = int.from_bytes(data[2:4], "big"), 4
        elif length == 127:
            length, start = int.from_bytes(data[2:10], "big"), 10
        if len(data) < start + length:
            break
        result.append((data[0], data[start : start + length]))
        data = data[start + length :]
    return result, data


class HandReactor(Clock):
    """A clock that is also a reactor for sockets, turned by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()

    def advance(self, amount: float) -> None:
        """Let time pass as for a process that runs: it looks at the clock every second."""
        while amount > 1:
            super().advance(1)
            amount -= 1
        super().advance(amount)

    def stop(self, seconds: float) -> None:
        """Let time pass as for a process that was stopped, and do not serve anything yet."""
        self.rightNow += seconds

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def turn(self, turns: int = 200) -> None:
        """Serve what can be served until nothing moves."""
        for _ in range(turns):
            self.advance(0)
            readable, writable, _ = select.select(list(self.readers), list(self.writers), [], 0)
            if not readable and not writable:
                return
            for selectable, work in [(selectable, "doRead") for selectable in readable] + [
                (selectable, "doWrite") for selectable in writable
            ]:
                if hasattr(selectable, "socket"):
                    why = getattr(selectable, work)()
                    if why:
                        self.removeReader(selectable)
                        if work == "doRead" and isinstance(why, ConnectionDone):
                            selectable.readConnectionLost(Failure(why))
                        else:
                            selectable.connectionLost(Failure(why))


class PairServer(tcp.Server):
    """The transport of a socket pair that passes for TCP."""

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "10.0.0.1", 8080)

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Wire:
    """A client, by hand."""

    def __init__(self, reactor: HandReactor, http: HttpServer, peer: tuple[str, int], send_buffer: int = 0) -> None:
        self.reactor = reactor
        self.socket, server_end = socket.socketpair()
        self.socket.setblocking(False)
        if send_buffer:
            server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        protocol = http.buildProtocol(None)
        self.transport = PairServer(server_end, protocol, peer, None, 1, reactor)
        self.received = b""
        self.at_eof = False
        protocol.makeConnection(self.transport)

    def send(self, data: bytes) -> None:
        while data:
            with suppress(BlockingIOError):
                data = data[self.socket.send(data) :]
            self.reactor.turn()

    def read(self, limit: int = 1 << 30) -> bytes:
        """What has come, up to `limit` bytes."""
        self.reactor.turn()
        data = b""
        while len(data) < limit:
            try:
                chunk = self.socket.recv(min(65536, limit - len(data)))
            except BlockingIOError:
                break
            except ConnectionResetError:
                self.at_eof = True
                break
            if not chunk:
                self.at_eof = True
                break
            data += chunk
            self.reactor.turn()
        return data

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """An HTTP response: status, headers by lower-case name, body."""
        data = self.read()
        top, separator, body = data.partition(b"\r\n\r\n")
        assert separator, data
        status, *lines = top.decode("latin-1").split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        return int(status.split(" ")[1]), {name.lower(): value for name, value in fields.items()}, body

    def frames(self, limit: int = 1 << 30) -> list[tuple[int, bytes]]:
        result, self.received = split_frames(self.received + self.read(limit))
        return result

    def texts(self) -> list[str]:
        result = self.frames()
        assert all(first == 0x81 for first, _ in result), result
        return [payload.decode() for _, payload in result]

    def closed_with(self) -> tuple[int, str]:
        """The code and reason of the close frame, which must be the last thing that has come."""
        first, payload = self.frames()[-1]
        assert first == 0x88, (first, payload)
        assert not self.received
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def close(self) -> None:
        self.socket.close()
        self.reactor.turn()


class Recorder:
    """A component that keeps what happens."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.connections: list[Any] = []
        self.errors: list[Exception] = []

    def on_open(self, connection: Any) -> None:
        self.connections.append(connection)
        self.events.append(("open", connection.resource_id))

    def on_message(self, connection: Any, text: str) -> None:
        self.events.append(("message", connection.resource_id, text))

    def on_close(self, connection: Any) -> None:
        self.events.append(("close", connection.resource_id))

    def on_error(self, connection: Any, exception: Exception) -> None:
        self.errors.append(exception)


class BinaryRecorder(Recorder):
    def on_binary(self, connection: Any, data: bytes) -> None:
        self.events.append(("binary", connection.resource_id, data))


class ServerCase(SynchronousTestCase):
    """Ends by asserting that every connection was counted out and no timer is left."""

    def setUp(self) -> None:
        self.reactor = HandReactor()
        self.wires: list[Wire] = []
        self.http: HttpServer | None = None

    def serve(
        self, component: Any = None, *, admission: dict[str, Any] | None = None, http: Any = None, **ws: Any
    ) -> None:
        self.component = Recorder() if component is None else component
        self.ws = WsServer(self.component, reactor=self.reactor, **ws)
        self.admission = Admission(**(admission or {}))
        self.http = HttpServer(self.ws, admission=self.admission, reactor=self.reactor, **(http or {}))

    def wire(self, peer: str = "192.0.2.7", send_buffer: int = 0) -> Wire:
        if self.http is None:
            self.serve()
        assert self.http is not None
        wire = Wire(self.reactor, self.http, (peer, 40000), send_buffer)
        self.wires.append(wire)
        return wire

    def connect(self, peer: str = "192.0.2.7", send_buffer: int = 0, **fields: str | None) -> tuple[Wire, Any]:
        """An open WebSocket: the client and the server's connection."""
        wire = self.wire(peer, send_buffer)
        wire.send(head(**fields))
        status, _, rest = wire.response()
        assert status == 101, (status, rest)
        wire.received = rest
        return wire, self.component.connections[-1]

    def tearDown(self) -> None:
        for wire in self.wires:
            wire.close()
        if self.http is not None:
            self.reactor.turn()
            assert self.ws.connections == set()
            assert self.http.http_connections == set()
            assert self.ws.stats.connections_now == 0
            assert self.admission.open_now == 0
            assert len(self.ws.timer_wheel) == 0
        assert self.reactor.getDelayedCalls() == []
        assert self.reactor.readers | self.reactor.writers == set()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
