"""Decides from the request head, before the 101 response, whether a client may open a WebSocket."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from chatws.errors import ConfigError
from chatws.runtime.connection_counts import ConnectionCounts
from chatws.runtime.file_budget import WEBSOCKET, FileBudget
from chatws.server.component import HttpRequest
from chatws.server.handshake import HttpRejection
from chatws.server.origins import parse_allowed_origin, parse_origin
from chatws.server.request import split_host

__all__ = ["Admission"]

#: Seconds after which a rejected client may retry (`Retry-After`, RFC 9110 §10.2.3). Connections that end make room.
RETRY_AFTER = 10
#: Peer addresses kept in parsed form. Parsing one takes some microseconds, and a proxy has one for all clients.
_MAX_CACHED_PEERS = 8192
#: Entries of X-Forwarded-For that are parsed, from the right: more proxies in a chain are unlikely, and a client may
#: send thousands of entries.
_MAX_HOPS = 20
#: Connections of an address besides its WebSockets: a browser opens six at once for a page and its files.
_SPARE_CONNECTIONS = 8

#: Schemes of pages that the server's own host serves.
_PAGE_SCHEMES = ("http", "https")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _parse_address(text: str) -> _Address | None:
    """Parse an address, with or without a port, as proxies write it. IPv4 in IPv6 becomes IPv4."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def _key(address: str) -> str:
    return f"address:{address}"


def _reject_full() -> HttpRejection:
    return HttpRejection(
        503, "full", "the server has as many connections as it can", (("Retry-After", str(RETRY_AFTER)),)
    )


class Admission:
    """Checks origins, determines client addresses, and limits the number of open connections.

    :param allowed_origins: origins besides the page's own host (`chatws.server.origins.parse_allowed_origin`).
    :param trusted_proxies: addresses and networks whose X-Forwarded-For and X-Real-IP count. A peer on a Unix socket
        is trusted.
    :param max_connections: open WebSockets. 0: as many as `budget` admits, which applies to any other number too.
    :param max_connections_per_ip: open WebSockets of one address. 0: no limit. A client without a known address (on a
        Unix socket, without a header) is not limited. With all other connections, an address may have some more.
    :param budget: counts the WebSockets among all connections of the process. By default a new one.
    :param counts: counts the WebSockets of each address. By default a new one.
    :raises ConfigError: an origin, address or network cannot be parsed.

    :ivar open_now: connections admitted and not released.
    :ivar is_draining: whether all WebSockets are rejected, so that a balancer uses another node.
    """

    def __init__(
        self,
        *,
        allowed_origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = ("127.0.0.0/8", "::1/128"),
        max_connections: int = 0,
        max_connections_per_ip: int = 0,
        budget: FileBudget | None = None,
        counts: ConnectionCounts | None = None,
    ) -> None:
        self.budget = budget or FileBudget()
        self.open_now = 0
        self.is_draining = False
        self._counts = counts or ConnectionCounts()
        self._others_by_address: dict[str, int] = {}  # newcomers and ordinary HTTP
        self.reconfigure(
            allowed_origins=allowed_origins,
            trusted_proxies=trusted_proxies,
            max_connections=max_connections,
            max_connections_per_ip=max_connections_per_ip,
        )

    def reconfigure(
        self,
        *,
        allowed_origins: Iterable[str],
        trusted_proxies: Iterable[str],
        max_connections: int,
        max_connections_per_ip: int,
    ) -> None:
        """Apply new settings, all or none of them. Open connections stay open.

        :raises ConfigError: an origin, address or network cannot be parsed.
        """
        origins = {parse_allowed_origin(text, "--allowed-origin") for text in allowed_origins}
        networks: list[_Network] = []
        for text in trusted_proxies:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError:
                raise ConfigError(f"trusted proxy {text!r} is neither an address nor a network") from None
        self._origins = origins
        self._networks = networks
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections_per_ip
        self._peers: dict[str, tuple[str, bool]] = {}  # by address of the peer: normalized, and whether it is trusted

    def remote_address(self, peer: object, request: HttpRequest) -> str:
        """Return the client's address.

        :param peer: the `IAddress` of the other end of the socket.
        :returns: the peer's address. If that is a trusted proxy: the last address in X-Forwarded-For that is not
            trusted, otherwise X-Real-IP. Malformed addresses are ignored. Empty for a Unix socket.
        """
        host = getattr(peer, "host", None)
        if host is None:
            address, trusted = "", True
        else:
            address, trusted = self._peers.get(host) or self._classify_peer(host)
        if not trusted:
            return address
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded is None:
            real_ip = request.headers.get("x-real-ip")
            parsed = None if real_ip is None else _parse_address(real_ip)
            return address if parsed is None else str(parsed)
        for hop in reversed(forwarded.split(",")[-_MAX_HOPS:]):
            parsed = _parse_address(hop)
            if parsed is None:
                break
            address = str(parsed)
            if not self._is_trusted(parsed):
                break
        return address

    def _classify_peer(self, host: str) -> tuple[str, bool]:
        parsed = _parse_address(host)
        if parsed is None:
            return host, False
        if len(self._peers) >= _MAX_CACHED_PEERS:
            self._peers.clear()
        peer = self._peers[host] = str(parsed), self._is_trusted(parsed)
        return peer

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def allows_request(self, request: HttpRequest) -> bool:
        """Return whether the origin of this request may open a WebSocket (RFC 6455 §10.2)."""
        origin = request.headers.get("origin")
        if origin is None:
            return True  # not a browser. Other clients can send any origin
        return self.allows_origin(origin, request.headers.get("host", ""))

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether pages of this origin may connect.

        :param origin: the value of the `Origin` header.
        :param host: the value of the `Host` header. Pages of the same host may always connect.
        """
        parsed = parse_origin(origin)
        if parsed is None:
            return False
        own_host = split_host(host)
        return (parsed.host == own_host and parsed.scheme in _PAGE_SCHEMES) or parsed in self._origins

    def allows_host(self, host: str) -> bool:
        """Return whether a `Host` header names the host of an allowed origin."""
        name = split_host(host)
        return name is not None and any(origin.host == name for origin in self._origins)

    def admit(self, peer: object, request: HttpRequest) -> str | HttpRejection:
        """Count a connection as open, or reject it.

        :returns: the client's address, for `release` when the connection is closed. Or the rejection.
        """
        if not self.allows_request(request):
            return HttpRejection(403, "origin", "pages of this origin may not connect; see allowed_origins")
        if self.is_draining:
            return HttpRejection(503, "draining", "this node is draining", (("Retry-After", str(RETRY_AFTER)),))
        if 0 < self.max_connections <= self.open_now:
            return _reject_full()
        address = self.remote_address(peer, request)
        if address and 0 < self.max_connections_per_ip <= self._counts.total(_key(address)):
            return HttpRejection(
                429,
                "address",
                "too many connections from your address",
                (("Retry-After", str(RETRY_AFTER)),),
            )
        if not self.budget.admit(WEBSOCKET):
            return _reject_full()
        if address:
            self._counts.add(_key(address))
        self.open_now += 1
        return address

    def direct_address(self, peer: object) -> str:
        """Return the peer's address, or an empty string if it is a trusted proxy or a Unix socket."""
        host = getattr(peer, "host", None)
        if host is None:
            return ""
        address, trusted = self._peers.get(host) or self._classify_peer(host)
        return "" if trusted else address

    def arrive(self, address: str) -> bool:
        """Count a connection that is not a WebSocket, or not yet, unless its address has too many of all kinds."""
        others = self._others_by_address.get(address, 0)
        limit = self.max_connections_per_ip
        if limit and others + self._counts.total(_key(address)) >= limit + _SPARE_CONNECTIONS:
            return False
        self._others_by_address[address] = others + 1
        return True

    def depart(self, address: str) -> None:
        """Count a connection that `arrive` has counted as closed, or as a WebSocket."""
        others = self._others_by_address[address] - 1
        if others:
            self._others_by_address[address] = others
        else:
            del self._others_by_address[address]

    def release(self, address: str) -> None:
        """Count a connection that `admit` has counted as closed."""
        self.open_now -= 1
        self.budget.release(WEBSOCKET)
        if address:
            self._counts.remove(_key(address))
