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


def read_now(transport: Any, size: int) -> bytes:
    """Up to `size` bytes that have come already, without waiting for the reactor.

    :return: nothing where nothing has come, or no more will, which the reactor then comes upon as well; and where there
        is no plain socket. A connection that turns out to be broken is aborted, as that is told only once.
    """
    plain = plain_socket(transport)
    if plain is None:
        return b""
    try:
        return plain.recv(size)
    except (BlockingIOError, InterruptedError):
        return b""
    except OSError:
        transport.abortConnection()
        return b""
