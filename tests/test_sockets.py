"""chatws.net.sockets: what can be had of a transport's socket without waiting for the reactor."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
from twisted.internet import tcp
from twisted.internet.testing import MemoryReactorClock, StringTransport

from chatws.net.sockets import plain_socket, read_now


class SocketTransport(tcp.Server):
    """One on a socket that is there already."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.connected = True
        self.reactor = MemoryReactorClock()
        self.aborted = 0

    def abortConnection(self) -> None:
        self.aborted += 1


@pytest.fixture
def pair() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    ours.setblocking(False)
    with ours, theirs:
        yield SocketTransport(ours), theirs


def test_read_now_returns_at_most_the_requested_bytes(pair: Any) -> None:
    transport, theirs = pair
    assert read_now(transport, 10) == b""
    theirs.sendall(b"0123456789abc")
    assert read_now(transport, 10) == b"0123456789"
    assert read_now(transport, 10) == b"abc"
    assert transport.aborted == 0


def test_read_now_leaves_the_end_of_input_to_the_reactor(pair: Any) -> None:
    transport, theirs = pair
    theirs.close()
    assert read_now(transport, 10) == b""
    assert transport.aborted == 0


def test_a_reset_during_read_now_aborts_the_connection(pair: Any) -> None:
    transport, theirs = pair
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    assert read_now(transport, 10) == b""
    assert transport.aborted == 1


def test_read_now_reads_plain_sockets_only(pair: Any) -> None:
    transport, theirs = pair
    theirs.sendall(b"a record")
    transport.TLS = True
    assert plain_socket(transport) is None
    assert read_now(transport, 10) == b""
    transport.TLS = False
    assert plain_socket(transport) is transport.socket
    assert read_now(transport, 10) == b"a record"
    assert read_now(StringTransport(), 10) == b""
