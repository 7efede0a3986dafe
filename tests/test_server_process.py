"""The server as a process of its own: scripts, signals, TLS, Unix sockets, too few files, and a reader who stops."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect, unix_connect

from tests.certificates import self_signed
from tests.server_wire import frame, head, split_frames
from tests.standstill import Standstill

SCRIPT = """
import sys
from chatws import EchoServer, HttpServer, IoServer, WsServer
IoServer.factory(HttpServer(WsServer(EchoServer())), int(sys.argv[1])).run()
"""

ENDPOINTS = """
import sys
from twisted.internet import endpoints, reactor
from chatws.server import EchoServer, HttpServer, IoServer, WsServer
from chatws.server.fanout import FanOut
from chatws.server.frames import text_frame

fan_out = FanOut()

class Room(EchoServer):
    everybody = set()

    def on_open(self, connection):
        self.everybody.add(connection)

    def on_close(self, connection):
        self.everybody.discard(connection)

    def on_message(self, connection, text):
        if text.startswith("blast "):
            fan_out.send_all([(self.everybody, [text_frame(b"x" * 1000)] * int(text[6:]))])
        elif text == "how many":
            connection.send(str(len(self.everybody)))
        else:
            connection.send(text)

app = HttpServer(WsServer(Room(), close_timeout=60))
IoServer(app, [endpoints.serverFromString(reactor, description) for description in sys.argv[1:]], reactor).run()
"""


#: Seconds after which a wait has failed.
DEADLINE = 20.0


class Server:
    """A server process; what it says on standard error is in `output`."""

    def __init__(self, script: str, *arguments: str, **options: Any) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE, text=True, env=environment, **options
        )
        self.output: list[str] = []

    def wait_for(self, words: str) -> str:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output.append(line)
            if words in line:
                return line
        raise AssertionError("".join(self.output))

    def port(self) -> int:
        line = self.wait_for("listening on")
        return int(line.partition(",")[0].rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(DEADLINE)
        assert self.process.stderr is not None
        self.output += self.process.stderr.readlines()
        self.process.stderr.close()
        return status

    def cpu(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def starter(script: str, *arguments: str, **options: Any) -> Server:
        servers.append(Server(script, *arguments, **options))
        return servers[-1]

    yield starter
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        if server.process.stderr is not None:
            server.process.stderr.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_script_of_the_readme_serves_and_ends_cleanly(start: Any, number: int) -> None:
    server = start(SCRIPT, "0")
    port = server.port()
    with connect(f"ws://127.0.0.1:{port}/", compression=None) as client:
        client.send("olá")
        assert client.recv(timeout=DEADLINE) == "olá"
        client.send(b"\x00\x01")
        assert client.recv(timeout=DEADLINE) == b"\x00\x01"
        with Standstill() as standstill:
            started = time.monotonic()
            assert server.end(number) == 0
            assert time.monotonic() - started < 5 + standstill.seconds
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(timeout=DEADLINE)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 4012
    assert "Traceback" not in "".join(server.output)


def test_a_port_in_use_is_one_line_and_status_1(start: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = start(SCRIPT, str(port))
        assert server.end(signal.SIGCONT) == 1
    way_out = "stop the other server or choose another with --port"
    assert server.output == [f"port {port} on 127.0.0.1 is in use: {way_out}\n"]


def test_importing_chooses_no_reactor_and_the_package_alone_loads_nothing() -> None:
    script = """
import sys
import chatws
assert not [name for name in sys.modules if name.split(".")[0] in ("autobahn", "twisted")]
assert "WsServer" in dir(chatws)
try:
    chatws.Nonsense
except AttributeError as error:
    assert "Nonsense" in str(error)
chatws.IoServer, chatws.HttpServer, chatws.WsServer, chatws.EchoServer, chatws.MessageComponent, chatws.Connection
assert "twisted.internet.reactor" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_unix_socket_is_served_and_trusted(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "ws.sock"
    server = start(ENDPOINTS, f"unix:{path}")
    server.wait_for("listening on")
    with unix_connect(str(path), "ws://chat.example/ws", compression=None) as client:
        client.send("x" * 60_000)
        assert client.recv(timeout=DEADLINE) == "x" * 60_000
    assert server.end() == 0
    assert "Traceback" not in "".join(server.output)
    assert "error" not in "".join(server.output)


def test_tls_is_served_messages_and_pages_and_a_closing_handshake(start: Any, tmp_path: Path) -> None:
    certificate, pem = self_signed(), tmp_path / "both.pem"
    pem.write_bytes(certificate.both)
    server = start(ENDPOINTS, f"ssl:0:privateKey={pem}:interface=127.0.0.1")
    port = server.port()
    context = certificate.trusted()
    context.set_alpn_protocols(["h2", "http/1.1"])  # as browsers do; with Twisted's own endpoint the factory chooses
    address = f"wss://localhost:{port}/ws"
    tcp = socket.create_connection(("127.0.0.1", port))
    with connect(address, sock=tcp, ssl=context, compression=None, max_size=None) as client:
        for text in ("a", "b" * 65_000):
            client.send(text)
            assert client.recv(timeout=DEADLINE) == text
        client.send("blast 900")
        for _ in range(900):
            assert client.recv(timeout=DEADLINE) == "x" * 1000
        client.close()
        assert client.close_code == 1000
    with socket.create_connection(("127.0.0.1", port)) as raw:
        page = context.wrap_socket(raw, server_hostname="localhost")
        assert page.selected_alpn_protocol() == "http/1.1"
        page.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b"".join(iter(lambda: page.recv(4096), b""))
        assert answer.endswith(b"\r\n\r\nok\n")
    with socket.create_connection(("127.0.0.1", port)) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in silent.recv(100)
    assert server.end() == 0
    assert "Traceback" not in "".join(server.output)


def test_a_server_out_of_files_rejects_connections_and_serves_others(start: Any) -> None:
    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 80))

    server = start(SCRIPT, "0", preexec_fn=few_files)
    port = server.port()
    assert "up to 80 open files" in server.output[-1]
    address = f"ws://127.0.0.1:{port}/"
    with ExitStack() as silent, ExitStack() as others, connect(address, compression=None) as first:
        for _ in range(80 - 20 - 20 - 1):  # a quarter is the server's own, and one is for newcomers
            others.enter_context(connect(address, compression=None))
        with pytest.raises(InvalidStatus) as caught:
            others.enter_context(connect(address, compression=None))
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["Retry-After"]
        # those who say nothing take up the rest, and more
        for _ in range(60):
            silent.enter_context(socket.create_connection(("127.0.0.1", port)))
        before = server.cpu()
        for number in range(20):
            first.send(str(number))
            assert first.recv(timeout=DEADLINE) == str(number)
            time.sleep(0.02)
        assert server.cpu() - before < 0.3, "it does not spin"
        silent.close()
        others.close()

        def lets_in_again() -> bool:
            try:
                with connect(address, compression=None):
                    return True
            except (InvalidStatus, OSError):
                return False

        until(lets_in_again)
    assert server.end() == 0
    assert "Traceback" not in "".join(server.output)


def test_a_peer_that_stops_reading_does_not_delay_others(start: Any) -> None:
    server = start(ENDPOINTS, "tcp:0:interface=127.0.0.1")
    port = server.port()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    slow.connect(("127.0.0.1", port))
    slow.sendall(head(Host="x"))
    slow.settimeout(DEADLINE)
    assert slow.recv(100, socket.MSG_PEEK), "it is in the room before the other comes"
    with connect(f"ws://127.0.0.1:{port}/ws", compression=None, max_queue=None) as good:
        good.send("how many")
        assert good.recv(timeout=DEADLINE) == "2"
        before = server.memory()
        for _ in range(30):
            good.send("blast 500")
            for _ in range(500):
                assert good.recv(timeout=DEADLINE) == "x" * 1000
        assert server.memory() - before < 6_000_000, "half a megabyte thirty times was sent"
        data = b""
        try:
            while chunk := slow.recv(65536):
                data += chunk
                if data.endswith(b"recover"):
                    break
        except ConnectionResetError:
            pytest.fail("it was dropped before it could read why")
        frames, rest = split_frames(data.partition(b"\r\n\r\n")[2])
        assert rest == b""
        assert frames[-1][0] == 0x88
        assert int.from_bytes(frames[-1][1][:2], "big") == 4001
        assert all(received == (0x81, b"x" * 1000) for received in frames[:-1])
        slow.sendall(frame(frames[-1][1][:2], opcode=8))
        assert slow.recv(100) == b""

        def is_alone() -> bool:
            good.send("how many")
            return good.recv(timeout=DEADLINE) == "1"

        until(is_alone)
    slow.close()
    assert server.end() == 0
