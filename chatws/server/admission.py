"""Who may open a WebSocket: decided from the request head, before the 101."""

from __future__ import annotations

import ipaddress
import re
import resource
import sys
from collections.abc import Iterable
from typing import Any

from chatws.errors import OperatorError
from chatws.server.component import HttpRequest
from chatws.server.handshake import Refusal
from chatws.server.request import split_host

__all__ = ["RESERVED_FILES", "Admission", "parse_origin"]

#: Of the files that may be open, those not given to WebSockets where nothing else limits them: for listeners, logs …
RESERVED_FILES = 100
#: Seconds after which one may try again when the server is full.
RETRY_AFTER = 10
_CACHE = 8192
#: Entries of X-Forwarded-For that are looked at, from the right.
_HOPS = 20

_match_origin = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[^/:@?#\s\[\],]+)(?::([0-9]{1,5}))?"
).fullmatch
_DEFAULT_PORTS = {"http": 80, "https": 443}

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_origin(origin: str) -> tuple[str, str, int] | None:
    """(scheme, host, port) of a serialized origin (RFC 6454 §6.1), default ports filled in; None for `null`, junk."""
    match = _match_origin(origin)
    if match is None:
        return None
    scheme = match[1].lower()
    port = int(match[3]) if match[3] else _DEFAULT_PORTS.get(scheme, 0)
    return (scheme, match[2].lower(), port) if port < 65536 else None


def _parse_address(text: str) -> _Address | None:
    """An address, alone or with a port, as proxies write it; IPv4 in IPv6 becomes IPv4."""
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


def _files_for_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files - min(RESERVED_FILES, files // 4)


class Admission:
    """Origins, real addresses, and how many may be open.

    :param allowed_origins: origins besides the page's own host, each exactly: scheme://host[:port].
    :param trusted_proxies: addresses and networks whose X-Forwarded-For and X-Real-IP count. A peer on a Unix socket
        is trusted.
    :param max_connections: open WebSockets; 0 is as many as files may be open, less `RESERVED_FILES`.
    :param max_connections_per_ip: of one address; 0 is no limit. It does not hold those whose address nobody told
        (on a Unix socket, without a header).
    :raises OperatorError: one of them cannot be parsed.

    :ivar open_now: how many have been admitted and not released.
    """

    def __init__(
        self,
        *,
        allowed_origins: Iterable[str] = (),
        trusted_proxies: Iterable[str] = ("127.0.0.0/8", "::1/128"),
        max_connections: int = 0,
        max_connections_per_ip: int = 0,
    ) -> None:
        self.open_now = 0
        self._open_by_address: dict[str, int] = {}
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
        """Take other settings, at any time, all or none of them. Who is in stays in.

        :raises OperatorError: one of them cannot be parsed.
        """
        origins = set()
        for text in allowed_origins:
            origin = parse_origin(text)
            if origin is None:
                raise OperatorError(f"allowed origin {text!r} is not of the form scheme://host or scheme://host:port")
            origins.add(origin)
        networks: list[_Network] = []
        for text in trusted_proxies:
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError:
                raise OperatorError(f"trusted proxy {text!r} is neither an address nor a network") from None
        self._origins = origins
        self._networks = networks
        self.max_connections = max_connections
        self._limit: int | None = None
        self.max_connections_per_ip = max_connections_per_ip
        self._known: dict[str, tuple[str, bool]] = {}  # by peer: its normal form, and whether it is trusted

    def remote_address(self, peer: Any, request: HttpRequest) -> str:
        """The client's address.

        :param peer: the `IAddress` of the other end of the socket.
        :returns: the peer's own, or, where that is trusted, the last in X-Forwarded-For that is not trusted (read from
            the right, hop by hop), else X-Real-IP. What is no address is not believed. Empty for a Unix socket.
        """
        host = getattr(peer, "host", None)
        if host is None:
            address, trusted = "", True
        else:
            address, trusted = self._known.get(host) or self._look_at(host)
        if not trusted:
            return address
        forwarded = request.headers.get("x-forwarded-for")
        if forwarded is None:
            real = request.headers.get("x-real-ip")
            parsed = None if real is None else _parse_address(real)
            return address if parsed is None else str(parsed)
        for hop in reversed(forwarded.split(",")[-_HOPS:]):
            parsed = _parse_address(hop)
            if parsed is None:
                break
            address = str(parsed)
            if not self._is_trusted(parsed):
                break
        return address

    def _look_at(self, host: str) -> tuple[str, bool]:
        parsed = _parse_address(host)
        if parsed is None:
            return host, False
        if len(self._known) >= _CACHE:
            self._known.clear()
        known = self._known[host] = str(parsed), self._is_trusted(parsed)
        return known

    def _is_trusted(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)

    def may_enter(self, request: HttpRequest) -> bool:
        """Whether the page that opens this connection may (RFC 6455 §10.2): the `Origin` of the request."""
        origin = request.headers.get("origin")
        if origin is None:
            return True  # not a browser: it could claim any origin
        parsed = parse_origin(origin)
        if parsed is None:
            return False
        own = split_host(request.headers.get("host", ""))
        return (parsed[1] == own and parsed[0] in _DEFAULT_PORTS) or parsed in self._origins

    def admit(self, peer: Any, request: HttpRequest) -> str | Refusal:
        """Let a connection in and count it, or say why not.

        :returns: the client's address; `release` it when the connection is gone.
        """
        if not self.may_enter(request):
            return Refusal(403, "origin", "pages of this origin may not connect; see allowed_origin")
        if self._limit is None:
            # not before: the soft limit is raised when the server begins to listen
            self._limit = self.max_connections or _files_for_connections()
        if self.open_now >= self._limit:
            return Refusal(
                503, "full", "the server has as many connections as it can", (("Retry-After", str(RETRY_AFTER)),)
            )
        address = self.remote_address(peer, request)
        if address:
            here = self._open_by_address.get(address, 0)
            if self.max_connections_per_ip and here >= self.max_connections_per_ip:
                return Refusal(
                    429,
                    "address",
                    "too many connections from your address",
                    (("Retry-After", str(RETRY_AFTER)),),
                )
            self._open_by_address[address] = here + 1
        self.open_now += 1
        return address

    def release(self, address: str) -> None:
        """Count out a connection that `admit` has let in."""
        self.open_now -= 1
        if address:
            here = self._open_by_address[address] - 1
            if here:
                self._open_by_address[address] = here
            else:
                del self._open_by_address[address]
