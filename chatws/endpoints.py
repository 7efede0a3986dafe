"""Endpoint strings (`tcp:8080:interface=127.0.0.1`): taken apart, judged, and tried before a daemon forks.

The syntax is Twisted's (https://docs.twisted.org/en/stable/core/howto/endpoints.html): a kind, then arguments by
position or by name, parted by colons; a backslash takes the meaning from the next character.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet import tcp, unix
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import AdoptedStreamServerEndpoint, serverFromString
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.errors import OperatorError

__all__ = [
    "Endpoint",
    "adopt_unix_port",
    "is_loopback",
    "make_endpoint",
    "parse_endpoint",
    "tcp_endpoint",
    "try_to_listen",
]

#: Connections that the kernel may hold ready for us to accept, where the string does not say. Twisted's 50 is soon full
#: when many pages reconnect, and whoever finds it full tries again after a second, then two, then four.
BACKLOG = 2048

_INTERNET = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "ssl": socket.AF_INET}
#: Where positional arguments go, of the kinds that are looked into here.
_POSITIONS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog"),
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}


class Endpoint(NamedTuple):
    """An endpoint string taken apart.

    :ivar kind: `tcp`, `ssl`, `unix`, `systemd` …; wrappers such as `haproxy:` are left away.
    :ivar arguments: by name, for the kinds whose positions are known.
    """

    kind: str
    arguments: dict[str, str]

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it; False where that cannot be told."""
        if self.kind == "unix":
            return True
        if self.kind == "systemd":
            return self.arguments.get("domain", "").upper() == "UNIX"
        return self.kind in _INTERNET and is_loopback(self.arguments.get("interface", ""))


def is_loopback(address: str) -> bool:
    """Whether an interface's address is one of the loopback; the empty one stands for every interface, so it is not."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def tcp_endpoint(port: int, interface: str) -> str:
    """The endpoint string for a port of an IPv4 or IPv6 address, or of a host name; "" is every IPv4 address."""
    escaped = interface.replace("\\", "\\\\").replace(":", "\\:")
    kind = "tcp6" if ":" in interface else "tcp"
    return f"{kind}:{port}:interface={escaped}" if interface else f"{kind}:{port}"


def parse_endpoint(description: str) -> Endpoint:
    """Take an endpoint string apart. Never fails: what is wrong with it shows in `make_endpoint`."""
    first, *rest = _split(description)
    kind = first[1]
    while kind == "haproxy" and rest:
        kind = rest.pop(0)[1]
    names = list(_POSITIONS.get(kind, ()))
    arguments: dict[str, str] = {}
    for name, value in rest:
        if name:
            arguments[name] = value
        elif names:
            arguments[names.pop(0)] = value
    return Endpoint(kind, arguments)


def _split(description: str) -> list[tuple[str, str]]:
    """`(name, value)` of each part; the name is empty for a positional one."""
    parts: list[tuple[str, str]] = []
    name = value = ""
    characters = iter(description)
    for character in characters:
        if character == "\\":
            value += next(characters, "")
        elif character == "=" and not name:
            name, value = value, ""
        elif character == ":":
            parts.append((name, value))
            name = value = ""
        else:
            value += character
    return [*parts, (name, value)]


def make_endpoint(reactor: Any, description: str, source: str) -> Any:
    """Twisted's server endpoint for an endpoint string.

    :param source: where the string comes from, for the error: "--listen".
    :raises OperatorError: Twisted cannot make one of it; also when a certificate that it names cannot be read.
    """
    endpoint = parse_endpoint(description)
    quoted = f'{source} "{description}"'
    if endpoint.kind in _INTERNET:
        port = endpoint.arguments.get("port", "")
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise OperatorError(f"{quoted}: the port must be a number from 0 to 65535")
    if endpoint.kind in (*_INTERNET, "unix") and "backlog" not in endpoint.arguments:
        description += f":backlog={BACKLOG}"
    try:
        made: Any = serverFromString(reactor, description)  # type: ignore[no-untyped-call]
        if isinstance(made, AdoptedStreamServerEndpoint) and made.addressFamily == socket.AF_UNIX:
            return _InheritedUnixSocket(made)
        return made
    except OSError as error:
        raise OperatorError(f"{quoted}: {error.filename or 'a file'}: {error.strerror}") from None
    except Exception as error:
        # the parsers are plugins, each with exceptions of its own
        if str(error).startswith("Unknown endpoint type"):
            near = get_close_matches(endpoint.kind, [*_POSITIONS, "haproxy"], 1)
            hint = f"; did you mean {near[0]}:?" if near else ""
            raise OperatorError(f'{quoted}: no kind of endpoint is called "{endpoint.kind}"{hint}') from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OperatorError(f"{quoted}: {reason}") from None


def adopt_unix_port(reactor: Any, descriptor: int, factory: Any) -> Any:
    """Listen on a Unix socket that was open before us and stays so when we go. The descriptor is taken over.

    Twisted's own way takes it for its property: it opens it to everybody (mode 666), leaves room for 50 waiting
    connections, and at the end shuts it down and deletes its file, so that the next start finds a dead one.

    :returns: an IListeningPort.
    """
    os.set_blocking(descriptor, False)
    port = _InheritedUnixPort._fromListeningDescriptor(reactor, descriptor, factory)  # type: ignore[no-untyped-call]
    os.close(descriptor)
    port.startListening()
    return port


@implementer(IStreamServerEndpoint)
class _InheritedUnixSocket:
    """systemd's Unix socket."""

    def __init__(self, adopted: Any) -> None:
        self._adopted = adopted

    def listen(self, factory: Any) -> Deferred[Any]:
        """See `IStreamServerEndpoint`. Once, as the descriptor is given away."""
        try:
            return succeed(adopt_unix_port(self._adopted.reactor, self._adopted.fileno, factory))
        except Exception:
            return fail()


class _InheritedUnixPort(unix.Port):
    _shouldShutdown = False

    def startListening(self) -> None:
        port: Any = self
        port.factory.doStart()
        port.socket, port._preexistingSocket = port._preexistingSocket, None
        port.fileno = port.socket.fileno
        port.connected = True
        port.numberAccepts = 100
        port.startReading()

    def connectionLost(self, reason: Failure) -> None:
        tcp.Port.connectionLost(self, reason)  # type: ignore[no-untyped-call]


def try_to_listen(descriptions: Iterable[tuple[str, str]]) -> None:
    """Bind every address and let go of it again.

    `twistd` becomes a daemon before it starts the services, and then reports a port in use in two lines of Python, or,
    in the foreground, with a traceback. Tried before, it is one line. Nothing is accepted in between: it takes
    microseconds. Endpoints of other kinds than `tcp`, `ssl` and `unix` are left to Twisted.

    :param descriptions: pairs of an endpoint string and where it comes from.
    :raises OperatorError: one of them is taken, or not allowed.
    """
    with ExitStack() as opened:
        for description, source in descriptions:
            endpoint = parse_endpoint(description)
            if endpoint.kind in _INTERNET:
                interface, port = endpoint.arguments.get("interface", ""), int(endpoint.arguments["port"])
                family = socket.AF_INET6 if ":" in interface else _INTERNET[endpoint.kind]
                one = opened.enter_context(socket.socket(family))
                try:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind((interface, port))
                    one.listen(1)
                except OSError as error:
                    where = f"{interface or '*'} port {port}"
                    raise OperatorError(f"{source}: cannot listen on {where}: {_reason(error)}") from None
            elif endpoint.kind == "unix":
                _try_path(endpoint.arguments.get("address", ""), source)


def _try_path(address: str, source: str) -> None:
    directory = Path(address).parent
    if not directory.is_dir():
        raise OperatorError(f"{source}: cannot listen on {address}: there is no directory {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OperatorError(f"{source}: cannot listen on {address}: {os.strerror(errno.EACCES)}")
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(address)
        except OSError:
            return  # nobody is there
    raise OperatorError(f"{source}: cannot listen on {address}: another server does")


def _reason(error: OSError) -> str:
    """What the system says, in words; a name that cannot be resolved has no errno."""
    return error.strerror or str(error)
