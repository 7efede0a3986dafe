"""The PROXY protocol, versions 1 and 2, in front of a listener (`haproxy:`).

A proxy sends one header with the client's address before any other byte, also before the TLS handshake
(https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt). Twisted has a wrapper too, with three defects. It drops a
connection whose header arrives in two parts, it expects the header inside TLS, and it does not support half-close.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import alsoProvides

from chatws.interfaces import Reactor
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["ProxyFactory", "ProxyHeader", "parse_proxy_header"]

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
#: Bytes of the longest header of version 1, with its end of line (section 2.1 of the specification).
_V1_MAX_SIZE = 107
#: Bytes of a header of version 2 before its addresses.
_V2_FIXED = 16


class ProxyHeader(NamedTuple):
    """The addresses in a PROXY header.

    :ivar source: the client's address. None: the proxy does not know it, or connects for itself, as in a health check.
    :ivar destination: the address that the client connected to, or None likewise.
    :ivar size: length of the header in bytes.
    """

    source: IPv4Address | IPv6Address | None
    destination: IPv4Address | IPv6Address | None
    size: int


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Parse the header at the beginning of `data`. Return None while it is incomplete.

    :raises ValueError: `data` does not begin with a header, or the header is malformed.
    """
    if data.startswith(_V2[: len(data)]):
        return _parse_v2(data)
    if data.startswith(_V1[: len(data)]):
        line, end, _ = data[:_V1_MAX_SIZE].partition(b"\r\n")
        if end:
            return _parse_v1(line)
        if len(data) < _V1_MAX_SIZE:
            return None
    raise ValueError("no PROXY header")


def _parse_v1(line: bytes) -> ProxyHeader:
    size = len(line) + 2
    fields = line.decode("ascii").split(" ")
    if fields[1] == "UNKNOWN":
        return ProxyHeader(None, None, size)
    if len(fields) != 6 or fields[1] not in ("TCP4", "TCP6"):
        raise ValueError("malformed PROXY header")
    source, destination = ipaddress.ip_address(fields[2]), ipaddress.ip_address(fields[3])
    version = int(fields[1][3])
    if not source.version == destination.version == version:
        raise ValueError("malformed PROXY header")
    ports = [int(port) for port in fields[4:] if port.isdigit() and int(port) <= 65535]
    if len(ports) != 2:
        raise ValueError("malformed PROXY header")
    address = IPv4Address if version == 4 else IPv6Address
    return ProxyHeader(address("TCP", str(source), ports[0]), address("TCP", str(destination), ports[1]), size)


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_FIXED:
        return None
    command, family, length = struct.unpack_from("!BBH", data, len(_V2))
    if command not in (0x20, 0x21):  # version 2, LOCAL or PROXY
        raise ValueError("malformed PROXY header")
    size = _V2_FIXED + length
    if len(data) < size:
        return None
    # other families are Unix sockets, datagrams and "unspecified": only the proxy's own address is known
    if command == 0x20 or family not in (0x11, 0x21):
        return ProxyHeader(None, None, size)
    width = 4 if family == 0x11 else 16
    if length < 2 * width + 4:
        raise ValueError("malformed PROXY header")
    source, destination, *ports = struct.unpack_from(f"!{width}s{width}sHH", data, _V2_FIXED)
    address = IPv4Address if family == 0x11 else IPv6Address
    hosts = [str(ipaddress.ip_address(packed)) for packed in (source, destination)]
    return ProxyHeader(address("TCP", hosts[0], ports[0]), address("TCP", hosts[1], ports[1]), size)


class ProxyFactory(WrappingFactory[Any]):
    """Reads the PROXY header of each connection before the wrapped factory (of a protocol or of TLS) sees any byte."""

    noisy = False
    log = Logger()

    def __init__(self, factory: Any, reactor: Reactor) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self.protocol = _ProxiedProtocol
        self._throttled = ThrottledLog(self.log, reactor)
        self._refused_count = 0

    def log_refused(self, peer: Any, reason: str) -> None:
        """Log that a connection was closed because it has no valid header.

        :param peer: the address of the other end.
        :param reason: the error of `parse_proxy_header`.
        """
        self._refused_count += 1
        self._throttled.warn(
            "header",
            "closed a connection from {peer}: {reason}; a haproxy: endpoint is for a proxy that sends the PROXY "
            "protocol, as HAProxy does with send-proxy ({count} so far)",
            peer=getattr(peer, "host", "a Unix socket"),
            reason=reason,
            count=self._refused_count,
        )


class _ProxiedProtocol(ProtocolWrapper):
    """Reads the header. After it, this is the transport of the wrapped protocol, with the addresses of the header."""

    factory: ProxyFactory

    #: `getPeer` returns the proxy until the header has arrived.
    knows_peer_later = True

    def __init__(self, factory: ProxyFactory, protocol: Any) -> None:
        super().__init__(factory, protocol)
        self._buffer = b""
        self._header: ProxyHeader | None = None

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)  # type: ignore[no-untyped-call]
        # as in `chatws.net.tls`, the first wrapped protocol decides this
        if IHalfCloseableProtocol.providedBy(self.wrappedProtocol):
            alsoProvides(self, IHalfCloseableProtocol)

    def dataReceived(self, data: bytes) -> None:
        inner: Any = self.wrappedProtocol
        if self._header is not None:
            inner.dataReceived(data)
            return
        self._buffer += data
        try:
            self._header = parse_proxy_header(self._buffer)
        except ValueError as error:
            self._refuse(str(error))
            return
        if self._header is not None:
            rest, self._buffer = self._buffer[self._header.size :], b""
            if rest:
                inner.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        inner: Any = self.wrappedProtocol
        inner.readConnectionLost()

    def writeConnectionLost(self) -> None:
        """See `IHalfCloseableProtocol`."""
        inner: Any = self.wrappedProtocol
        inner.writeConnectionLost()

    def getPeer(self) -> Any:
        """Return the client's address."""
        transport: Any = self.transport
        return (self._header and self._header.source) or transport.getPeer()

    def getHost(self) -> Any:
        """Return the address that the client connected to."""
        transport: Any = self.transport
        return (self._header and self._header.destination) or transport.getHost()

    def _refuse(self, reason: str) -> None:
        transport: Any = self.transport
        self.factory.log_refused(transport.getPeer(), reason)
        self._buffer = b""
        transport.abortConnection()
