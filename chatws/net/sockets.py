"""Socket helpers: addresses in readable form, a read without a wait, and the unsent data of a transport.

Uses Twisted's private `FileDescriptor._tempDataBuffer` and `_tempDataLen`: no public call drops data that waits.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Any

from twisted.internet import tcp

from chatws.interfaces import Bound

__all__ = [
    "TEMPORARY_BIND_ERRORS",
    "plain_socket",
    "read_now",
    "replace_unsent",
    "shown_address",
    "shown_addresses",
    "shown_path",
    "unsent_bytes",
]

#: Errors of bind(2) that may end without a change of the configuration: another server stops, a cluster manager adds
#: the address.
TEMPORARY_BIND_ERRORS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})


def shown_address(address: Any) -> str:
    """Show a Twisted address of a listener: `127.0.0.1:8080`, `[::1]:8080`, `unix:/run/push.sock`."""
    if hasattr(address, "port"):
        host = f"[{address.host}]" if ":" in address.host else address.host
        return f"{host}:{address.port}"
    return f"unix:{shown_path(getattr(address, 'name', None) or b'?')}"


def shown_addresses(ports: Iterable[Bound]) -> str:
    """Show the addresses of listeners, for people."""
    return ", ".join(shown_address(port.getHost()) for port in ports)


def shown_path(path: str | bytes) -> str:
    """Show the path of a Unix socket. An abstract name begins with @, as in `ss` and systemd."""
    text = os.fsdecode(path)
    return "@" + text[1:] if text.startswith("\0") else text


def plain_socket(transport: object) -> socket.socket | None:
    """Return the socket behind a transport, or None if the bytes on it are not those of the peer (TLS)."""
    if isinstance(transport, tcp.Connection) and not transport.TLS and transport.connected:
        return transport.socket
    return None


def read_now(transport: Any, size: int) -> bytes:
    """Read up to `size` bytes that have arrived already, without waiting for the reactor.

    A broken connection is aborted, because the kernel reports an error of the socket only once.

    :return: empty if no bytes have arrived, or the transport has no plain socket. Empty also at the end of the stream,
        which the reactor then detects too.
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


def unsent_bytes(transport: Any) -> int:
    """Return how many bytes a plain transport has not given to its socket."""
    count: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen
    return count


def replace_unsent(transport: Any, data: bytes) -> None:
    """Have a plain transport send `data` instead of all bytes that it has not given to its socket."""
    transport.dataBuffer = data
    transport.offset = 0
    transport._tempDataBuffer = []
    transport._tempDataLen = 0
