"""The listening sockets: opened and kept open by the supervisor, read from by the workers.

Of a TCP address there is one socket for each worker (SO_REUSEPORT, socket(7)), and the kernel gives each its share of
those who connect. A worker that has ended leaves its socket, with whoever waits in its queue, to its successor. Of
anything else (a Unix socket, systemd's) there is one, which all workers accept from.

Endpoint strings are made into endpoints by Twisted, as without workers, but with a stand-in for the reactor, which
opens sockets without listening, or listens on a socket that is open already. So TLS and `haproxy:` need no words here.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import unix
from twisted.internet.abstract import isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from chatws.endpoints import adopt_unix_port, make_endpoint, try_to_listen
from chatws.errors import OperatorError
from chatws.server.io_server import describe
from chatws.workers.control import Socket

__all__ = ["Door", "adopting_endpoint", "open_door"]

#: Only Linux spreads connections over sockets with this option; elsewhere the one bound last gets them all.
_ONE_EACH = sys.platform == "linux"


@dataclass
class Door:
    """What one endpoint string comes to.

    :ivar name: "browsers" or "backends".
    :ivar description: for the workers: as it was, but for systemd's descriptors, which they do not have.
    :ivar sockets: one for each worker, or one for all.
    """

    name: str
    description: str
    source: str
    family: int
    sockets: Sequence[socket.socket]
    _port: Any = field(default=None, repr=False)

    def of_worker(self, number: int) -> socket.socket:
        """The socket of that worker (from 0)."""
        return self.sockets[number % len(self.sockets)]

    def inherited(self, descriptor: int) -> Socket:
        """What to tell a worker that has it as `descriptor`."""
        return Socket(self.name, self.description, self.source, descriptor, self.family)

    def getHost(self) -> Any:
        """Where it is: as an IListeningPort says it."""
        if self._port is not None:
            return self._port.getHost()
        return _address(self.sockets[0])

    def close(self) -> Deferred[None]:
        """Accept nobody else, once the workers have let go too."""
        for one in self.sockets:
            one.close()
        return maybeDeferred(self._port.stopListening) if self._port is not None else succeed(None)


def open_door(reactor: Any, name: str, description: str, source: str, workers: int) -> Door:
    """Bind an address.

    :raises OperatorError: it is taken, or not allowed.
    """
    kind, _, rest = description.partition("systemd:")
    if rest and kind in ("", "haproxy:"):
        adopted: Any = serverFromString(reactor, f"systemd:{rest}")  # type: ignore[no-untyped-call]
        one = socket.socket(fileno=os.dup(adopted.fileno))
        one.setblocking(False)
        plain = "unix:inherited" if one.family == socket.AF_UNIX else "tcp:0"
        return Door(name, kind + plain, source, one.family, [one])
    # with SO_REUSEPORT an address is only taken if a socket without it is there
    try_to_listen([(description, source)])
    opening = _Opening(reactor, workers)
    problems: list[Failure] = []
    make_endpoint(opening, description, source).listen(_Nobody()).addErrback(problems.append)
    if problems:
        error = problems[0].value
        if isinstance(error, CannotListenError):
            raise OperatorError(describe(error))
        raise OperatorError(f'{source} "{description}" cannot be shared by workers: {error}')
    return Door(name, description, source, opening.sockets[0].family, opening.sockets, opening.port)


class _Nobody(Factory):
    noisy = False


class _SharedUnixPort(unix.Port):
    # to be closed while others have the socket too, not made useless to them
    _shouldShutdown = False


class _Opening:
    """Stands in for the reactor in a server endpoint: opens the sockets."""

    def __init__(self, reactor: Any, count: int) -> None:
        self._reactor = reactor
        self._count = count
        self.sockets: list[socket.socket] = []
        self.port: Any = None

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> _Opening:
        """See `IReactorTCP`."""
        family = socket.AF_INET6 if isIPv6Address(interface) else socket.AF_INET
        try:
            for _ in range(self._count if _ONE_EACH else 1):
                one = socket.socket(family)
                self.sockets.append(one)
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if _ONE_EACH:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                one.bind(_resolved(interface, port) if family == socket.AF_INET6 else (interface, port))
                port = one.getsockname()[1]
            for one in self.sockets:
                one.listen(backlog)
        except OSError as error:
            for one in self.sockets:
                one.close()
            raise CannotListenError(interface, port, error) from None  # type: ignore[no-untyped-call]
        return self

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorSSL`."""
        return self.listenTCP(port, factory, backlog, interface)

    def listenUNIX(self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0) -> Any:
        """See `IReactorUNIX`."""
        self.port = _SharedUnixPort(address, factory, backlog, mode, self._reactor, wantPID)
        self.port.startListening()
        self.port.stopReading()
        self.sockets = [socket.socket(fileno=os.dup(self.port.fileno()))]
        return self.port


def _resolved(interface: str, port: int) -> Any:
    """An IPv6 address with its scope."""
    return socket.getaddrinfo(interface, port, socket.AF_INET6, socket.SOCK_STREAM)[0][4]


def _address(one: socket.socket) -> Any:
    name = one.getsockname()
    if one.family == socket.AF_UNIX:
        return UNIXAddress(name)
    return (IPv6Address if one.family == socket.AF_INET6 else IPv4Address)("TCP", name[0], name[1])


def adopting_endpoint(reactor: Any, inherited: Socket) -> Any:
    """The endpoint that listens, in a worker, on an inherited socket.

    :raises OperatorError: the endpoint string is no good here, or a certificate can no longer be read.
    """
    return make_endpoint(_Adopting(reactor, inherited), inherited.description, inherited.source)


class _Adopting:
    """Stands in for the reactor in a server endpoint: listens on the inherited socket."""

    def __init__(self, reactor: Any, inherited: Socket) -> None:
        self._reactor = reactor
        self._inherited = inherited

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorTCP`."""
        descriptor = self._inherited.descriptor
        listening = self._reactor.adoptStreamPort(descriptor, self._inherited.family, factory)
        os.close(descriptor)
        return listening

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        """See `IReactorSSL`."""
        return self.listenTCP(port, TLSMemoryBIOFactory(contextFactory, False, factory))

    def listenUNIX(self, address: Any, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0) -> Any:
        """See `IReactorUNIX`."""
        return adopt_unix_port(self._reactor, self._inherited.descriptor, factory)
