"""The push listener on real sockets: peers that do not read, half-close, send without an end, or are no backends."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import deferLater

from chatws.push import connection as push_connection
from tests.certificates import self_signed
from tests.push_wire import PushServer, in_thread, reactor, read_to_the_end, started, until

__all__ = ["started"]

PUBLISH = b'{"event":"new_message","data":{"conversation_id":1},"ack":true}\n'
PING = b'{"op":"ping"}\n'
OK = b'{"ok":true}\n'


@pytest.fixture(autouse=True)
def no_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers that were refused have the time to finish, however busy the machine is."""
    monkeypatch.setattr(push_connection, "LINGER_TIMEOUT", 20.0)


def codes(received: bytes) -> list[str | None]:
    return [json.loads(line).get("code") for line in received.splitlines()]


def talk(server: PushServer, *output: bytes, fin: bool = True) -> bytes:
    """Say it, and read to the end."""
    with server.connect() as connection:
        for item in output:
            connection.sendall(item)
        if fin:
            connection.shutdown(socket.SHUT_WR)
        return read_to_the_end(connection)


@pytest_twisted.ensureDeferred
async def test_a_backend_that_shuts_down_its_side_still_gets_its_answers(started: Any) -> None:
    server = await started()
    server.target.waiting = []
    talking = in_thread(talk, server, PUBLISH * 3, PUBLISH[:-1])
    await until(lambda: len(server.target.published) == 4)
    await until(lambda: all(connection.input_is_closed for connection in server.factory.connections))
    while server.target.waiting:
        server.target.settle()
    assert codes(await talking) == [None] * 4


@pytest_twisted.ensureDeferred
async def test_a_unix_socket_does_as_well(started: Any, tmp_path: Path) -> None:
    server = await started(path=str(tmp_path / "push.sock"))
    assert codes(await in_thread(talk, server, PUBLISH, b"bad\n", PING[:-1])) == [None, "bad_json", None]


@pytest_twisted.ensureDeferred
async def test_an_incomplete_line_of_a_reset_connection_is_discarded(started: Any) -> None:
    server = await started()
    with server.connect() as connection:
        connection.sendall(PUBLISH + PUBLISH[:-1])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await until(lambda: server.factory.stats.connections == 1 and not server.factory.connections)
    assert len(server.target.published) == server.factory.stats.lines <= 1


@pytest_twisted.ensureDeferred
async def test_a_backend_that_never_reads_is_not_read_either(started: Any) -> None:
    server = await started()
    server.target.online_ids = list(range(500))
    question = b'{"op":"presence"}'.ljust(2047) + b"\n"
    asked = 0
    with server.connect() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        greedy.setblocking(False)
        await until(lambda: server.factory.connections)
        (connection,) = server.factory.connections
        sending = question * 32
        stuck = 0
        end = reactor.seconds() + 20
        while stuck < 50 or connection.is_reading:  # the kernel's buffers are full, and nobody empties them
            try:
                asked += greedy.send(sending[asked % len(question) :])
                stuck = 0
            except BlockingIOError:
                stuck += 1
            await turns_of_the_reactor()
            assert reactor.seconds() < end, "it goes on reading"
        transport = connection.transport
        assert len(transport.dataBuffer) + transport._tempDataLen < 256 * 1024
        assert connection.buffered_bytes <= 65536 + len(question)
        assert codes(await in_thread(talk, server, PUBLISH)) == [None]  # the others are served
        greedy.setblocking(True)
        greedy.settimeout(20)
        rest = -asked % len(question)

        def finish() -> None:
            greedy.sendall(question[len(question) - rest :] if rest else question)
            greedy.shutdown(socket.SHUT_WR)

        finished, reading = in_thread(finish), in_thread(read_to_the_end, greedy)
        answers = codes(await reading)
        await finished
        assert answers == [None] * ((asked + rest) // len(question) + (not rest))


async def turns_of_the_reactor() -> None:
    """A few turns of the reactor."""
    for _ in range(3):
        await deferLater(reactor, 0)


@pytest_twisted.ensureDeferred
async def test_a_sender_of_an_endless_line_receives_the_error(started: Any) -> None:
    server = await started()
    # More than the kernel's buffers hold: had the socket been closed with data unread, this would meet a reset.
    received = await in_thread(talk, server, PUBLISH, b"x" * (32 * 1024 * 1024))
    assert codes(received) == [None, "line_too_long"]
    await until(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_a_backend_that_sends_after_a_rejection_is_aborted(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_connection, "LINGER_TIMEOUT", 0.2)
    server = await started()

    def send_for_ever() -> None:
        with server.connect() as connection:
            connection.settimeout(10)
            while True:
                connection.sendall(b"x" * 65536)

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await in_thread(send_for_ever)
    await until(lambda: not server.factory.connections)
    assert server.factory.stats.errors == {"line_too_long": 1}


@pytest_twisted.ensureDeferred
async def test_http_request_to_the_push_port_publishes_nothing(started: Any) -> None:
    server = await started()

    def post() -> bytes:
        client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            client.request("POST", "/", body=PUBLISH * 100, headers={"Content-Type": "text/plain"})
            client.getresponse()
        except http.client.BadStatusLine as error:
            return str(error).encode()
        finally:
            client.close()
        return b""

    assert b"bad_json" in await in_thread(post)
    assert server.target.published == []


@pytest_twisted.ensureDeferred
async def test_a_wrong_secret_is_answered_and_closed(started: Any) -> None:
    server = await started(secret=lambda: b"sesame")
    assert codes(await in_thread(talk, server, b'{"op":"auth","secret":"x"}\n', PUBLISH, fin=False)) == ["bad_secret"]
    assert codes(await in_thread(talk, server, PUBLISH * 1000, fin=False)) == ["bad_secret"]
    assert codes(await in_thread(talk, server, b'{"op":"auth","secret":"sesame"}\n', PUBLISH)) == [None, None]
    assert len(server.target.published) == 1


@pytest_twisted.ensureDeferred
async def test_over_tls_lines_and_refusals_go_the_same_way(started: Any) -> None:
    certificate = self_signed()
    server = await started(certificate=certificate, max_line_size=1000)
    context = certificate.trusted()

    def talk_tls(*output: bytes, count: int = 0) -> bytes:
        with context.wrap_socket(server.connect(), server_hostname="127.0.0.1") as connection:
            connection.sendall(b"".join(output))
            received = b""
            while not count or received.count(b"\n") < count:
                more = connection.recv(65536)
                if not more:
                    break
                received += more
            if count:
                connection.unwrap()
            return received

    assert codes(await in_thread(talk_tls, PUBLISH, b"bad\n", PING, PUBLISH[:-1], count=3)) == [None, "bad_json", None]
    await until(lambda: len(server.target.published) == 2)  # the last line, ended by close_notify
    assert codes(await in_thread(talk_tls, PUBLISH, b"x" * 5000)) == [None, "line_too_long"]
    await until(lambda: not server.factory.connections)


@pytest_twisted.ensureDeferred
async def test_a_drain_reads_lines_in_the_kernel_s_buffer(started: Any) -> None:
    server = await started()
    quiet, busy = server.connect(), server.connect()
    with quiet, busy:
        await until(lambda: len(server.factory.connections) == 2)
        busy.sendall(PUBLISH * 5000)
        drained = server.factory.drain(20.0)
        assert codes(await in_thread(read_to_the_end, busy)) == [None] * 5000
        assert await in_thread(read_to_the_end, quiet) == b""
        await drained
    assert len(server.target.published) == 5000


@pytest_twisted.ensureDeferred
async def test_a_drain_does_not_wait_for_ever(started: Any) -> None:
    server = await started()
    with server.connect() as half, server.connect() as deaf:
        await until(lambda: len(server.factory.connections) == 2)
        half.sendall(PUBLISH[:20])
        server.target.online_ids = list(range(10_000))
        deaf.sendall(b'{"op":"presence"}\n' * 500)
        await until(lambda: any(not connection.is_reading for connection in server.factory.connections))
        await server.factory.drain(0.2)
    assert server.factory.connections == set()
