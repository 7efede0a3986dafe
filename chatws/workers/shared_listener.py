"""The listening sockets: the supervisor opens them and keeps them open, the workers accept connections from them.

A TCP address has one socket for each worker (SO_REUSEPORT, socket(7)), and the kernel spreads the connections over
them. When a worker ends, the next process inherits its socket with the connections in its queue. Any other address (a
Unix socket, a socket of systemd) has one socket, and all workers accept from it.

The workers handle TLS and the PROXY protocol. The supervisor reads the certificate for all of them, also for those that
start later, because its file may be unreadable or half written by then.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from chatws.interfaces import Reactor
from chatws.net.endpoints import INTERNET, check_endpoint
from chatws.net.listeners import (
    Listener,
    cannot_listen,
    inherited_listener,
    make_tls,
    open_tcp,
    open_unix,
    systemd_socket,
    try_to_listen,
)
from chatws.workers.control_messages import InheritedSocket

__all__ = ["SharedListener", "adopting_endpoint", "bind_listener"]

#: Only Linux spreads connections over sockets with SO_REUSEPORT. On other systems the socket bound last gets them all.
_SOCKET_PER_WORKER = sys.platform == "linux"


@dataclass
class SharedListener:
    """The listening sockets of one endpoint string.

    :ivar name: "browsers", "backends" or "api".
    :ivar description: the endpoint string.
    :ivar source: the setting that holds the string.
    :ivar sockets: one for each worker, or one for all.
    :ivar tls: the `chatws.net.tls.ServerTls` of a TLS listener, else None.
    """

    name: str
    description: str
    source: str
    sockets: Sequence[socket.socket]
    tls: Any = None
    _remove: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def label(self) -> str:
        """The setting with the endpoint string, for log lines."""
        return f'{self.source} "{self.description}"'

    def socket_for(self, number: int) -> socket.socket:
        """Return the socket of that worker (from 0)."""
        return self.sockets[number % len(self.sockets)]

    def inherited(self, descriptor: int) -> InheritedSocket:
        """Return the message that describes the socket to a worker.

        :param descriptor: the number of the socket in the worker.
        """
        return InheritedSocket(self.name, self.description, self.source, descriptor, self.tls.pem if self.tls else None)

    def getHost(self) -> Any:
        """Return the address, as `IListeningPort.getHost` does."""
        return _address(self.sockets[0])

    def close(self) -> None:
        """Close the sockets. New connections are refused once the workers have closed theirs too."""
        self._remove()
        for listening in self.sockets:
            listening.close()


def bind_listener(name: str, description: str, source: str, workers: int) -> SharedListener:
    """Open the sockets of an endpoint string.

    :param workers: number of workers.
    :raises ConfigError: the address is in use or not permitted, or its certificate cannot be used.
    """
    endpoint = check_endpoint(description, source)
    if endpoint.kind == "systemd":
        inherited = systemd_socket(description, source)
        inherited.setblocking(False)
        return SharedListener(name, description, source, [inherited])
    tls = make_tls(endpoint, f'{source} "{description}"')
    # SO_REUSEPORT also binds an address that another server with SO_REUSEPORT uses: try without it first
    try_to_listen([(description, source)])
    sockets: list[socket.socket] = []
    try:
        if endpoint.kind == "unix":
            opened = open_unix(endpoint)
            return SharedListener(name, description, source, [opened.socket], tls, opened.remove)
        assert endpoint.kind in INTERNET, "see `chatws.config.validate.SHAREABLE`"
        port = int(endpoint.arguments["port"])
        for _ in range(workers if _SOCKET_PER_WORKER else 1):
            sockets.append(open_tcp(endpoint, port, shared=_SOCKET_PER_WORKER))
            port = sockets[0].getsockname()[1]
        for listening in sockets:
            listening.listen(endpoint.backlog)
    except OSError as error:
        for listening in sockets:
            listening.close()
        raise cannot_listen(endpoint, source, error) from None
    return SharedListener(name, description, source, sockets, tls)


def _address(listening: socket.socket) -> Any:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return UNIXAddress(name)
    return (IPv6Address if listening.family == socket.AF_INET6 else IPv4Address)("TCP", name[0], name[1])


def adopting_endpoint(reactor: Reactor, inherited: InheritedSocket) -> Listener:
    """Make the listener of a worker, on an inherited socket.

    :raises ConfigError: the certificate cannot be used.
    """
    return inherited_listener(
        reactor, inherited.description, inherited.source, inherited.descriptor, inherited.certificate
    )
