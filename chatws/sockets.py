"""The sockets under Twisted's transports, for those who save a turn of the reactor by going there themselves."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import tcp

__all__ = ["plain_socket", "read_now"]


def plain_socket(transport: Any) -> socket.socket | None:
    """The socket behind a transport, if what is sent and received on it is what the peer receives and sends."""
    if isinstance(transport, tcp.Connection) and not transport.TLS and transport.connected:
        return transport.socket
    return None


def read_now(plain: socket.socket, size: int) -> bytes:
    """Up to `size` bytes that have come already. Empty at the end of input, too, or when the connection is broken: the
    reactor comes upon that by itself."""
    try:
        return plain.recv(size)
    except OSError:
        return b""
