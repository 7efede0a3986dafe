"""Parse and check endpoint strings (`tcp:8080:interface=127.0.0.1`).

The syntax is Twisted's (https://docs.twisted.org/en/stable/core/howto/endpoints.html): a kind, then arguments by
position or by name, separated by colons. A backslash escapes the next character.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from difflib import get_close_matches
from typing import NamedTuple

from chatws.errors import ConfigError

__all__ = [
    "BACKLOG",
    "INTERNET",
    "Endpoint",
    "check_endpoint",
    "is_loopback",
    "parse_endpoint",
    "tcp_endpoint",
]

#: Default of an endpoint's `backlog`: connections that the kernel holds until the server accepts them. When many
#: clients reconnect at once, Twisted's 50 is soon full. TCP then repeats the SYN after 1, 2 and 4 s (RFC 6298).
BACKLOG = 2048

#: The kinds that listen on an IP address, with the address family of each.
INTERNET = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6, "ssl": socket.AF_INET}
#: Names of the positional arguments, by kind, for the kinds that `chatws.net.listeners` opens.
_POSITIONS = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "interface", "backlog"),
    "ssl": ("port", "privateKey", "certKey", "sslmethod", "interface", "backlog", "extraCertChain", "dhParameters"),
    # Twisted's lock file is accepted and not used: see `chatws.net.unix_socket`
    "unix": ("address", "mode", "backlog", "lockfile"),
    "systemd": ("domain", "index", "name"),
}


class Endpoint(NamedTuple):
    """A parsed endpoint string.

    :ivar kind: `tcp`, `ssl`, `unix`, `systemd` …, without the prefix `haproxy:`.
    :ivar arguments: the arguments by name, for the kinds of `_POSITIONS`.
    :ivar is_proxied: whether the string has the prefix `haproxy:`.
    :ivar surplus: positional arguments beyond the last position.
    """

    kind: str
    arguments: dict[str, str]
    is_proxied: bool = False
    surplus: tuple[str, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether `chatws.net.listeners` opens this kind. Twisted's plug-ins open the others."""
        return self.kind in _POSITIONS

    @property
    def backlog(self) -> int:
        """Connections that may wait to be accepted."""
        return int(self.arguments.get("backlog") or BACKLOG)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the endpoint. False if that is unknown."""
        if self.kind == "unix":
            return True
        if self.kind == "systemd":
            return self.arguments.get("domain", "").upper() == "UNIX"
        return self.kind in INTERNET and is_loopback(self.arguments.get("interface", ""))


def is_loopback(address: str) -> bool:
    """Return whether an address is a loopback address. The empty address, which means every interface, is not."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def tcp_endpoint(port: int, interface: str) -> str:
    """Return the endpoint string of a port on an IPv4 or IPv6 address or a host name. "" means every IPv4 address."""
    escaped = interface.replace("\\", "\\\\").replace(":", "\\:")
    kind = "tcp6" if ":" in interface else "tcp"
    return f"{kind}:{port}:interface={escaped}" if interface else f"{kind}:{port}"


def parse_endpoint(description: str) -> Endpoint:
    """Parse an endpoint string. Never fails: `check_endpoint` reports the errors in it."""
    first, *rest = _split(description)
    kind = first[1]
    is_proxied = False
    while kind == "haproxy" and rest:
        is_proxied, kind = True, rest.pop(0)[1]
    names = list(_POSITIONS.get(kind, ()))
    arguments: dict[str, str] = {}
    surplus = []
    for name, value in rest:
        if name:
            arguments[name] = value
        elif names:
            arguments[names.pop(0)] = value
        else:
            surplus.append(value)
    return Endpoint(kind, arguments, is_proxied, tuple(surplus) if kind in _POSITIONS else ())


def _split(description: str) -> list[tuple[str, str]]:
    """Return `(name, value)` of each part. The name of a positional argument is empty."""
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


def check_endpoint(description: str, source: str) -> Endpoint:
    """Parse an endpoint string and check its arguments, but not that its files and addresses exist.

    :param source: the setting that holds the string, for the error: "--listen".
    :raises ConfigError: the string is malformed. The text is one line that says how to write it.
    """
    endpoint = parse_endpoint(description)
    problem = _problem(endpoint, description)
    if problem:
        raise ConfigError(f'{source} "{description}": {problem}')
    return endpoint


def _problem(endpoint: Endpoint, description: str) -> str:
    kind, arguments = endpoint.kind, endpoint.arguments
    if not endpoint.is_known:
        return ""
    address = _unescaped_ipv6(description) if kind in INTERNET else ""
    if address:
        escaped = address.replace(":", "\\:")
        port = arguments.get("port", "")
        example = f"{'ssl' if kind == 'ssl' else 'tcp6'}:{port if port.isdigit() else 'PORT'}:interface={escaped}"
        return f"a colon inside of an address is written as \\: ({example})"
    positions = _POSITIONS[kind]
    for name in arguments:
        if name not in positions:
            near = get_close_matches(name, positions, 1)
            return f'{kind}: has no argument "{name}"' + (f"; did you mean {near[0]}=?" if near else "")
    if endpoint.surplus:
        return f'"{endpoint.surplus[0]}" is one argument too many (a colon inside of a value is written as \\:)'
    port = arguments.get("port", "")
    if kind in INTERNET and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        return "the port must be a number from 0 to 65535"
    if kind == "unix" and not hasattr(socket, "AF_UNIX"):
        return "this system has no Unix sockets: listen on tcp:"
    if kind == "unix" and not arguments.get("address"):
        return "the path is missing: write unix:/run/chatws/push.sock:mode=660"
    backlog = arguments.get("backlog", "1")
    if not (backlog.isascii() and backlog.isdigit() and 0 < int(backlog) < 2**31):
        return "the backlog must be a number of connections"
    if not re.fullmatch("[0-7]{3,4}", arguments.get("mode", "666")):
        return "the mode must be octal permissions, such as mode=660"
    if kind == "systemd":
        return _systemd_problem(arguments)
    return ""


def _systemd_problem(arguments: dict[str, str]) -> str:
    if arguments.get("domain") not in ("INET", "INET6", "UNIX"):
        return "the domain must be INET, INET6 or UNIX"
    if ("index" in arguments) == ("name" in arguments):
        return "name either the index of the socket or its FileDescriptorName: systemd:domain=INET:index=0"
    index = arguments.get("index", "0")
    return "" if index.isascii() and index.isdigit() else "the index must be a number from 0"


def _unescaped_ipv6(description: str) -> str:
    """Return the IPv6 address in the string whose colons are not escaped, or an empty string."""
    for pattern in (r"\[(.+?)\]", r"interface=(.+?)(?=:[a-zA-Z]+=|$)", r"^\w+:\d+:(.+?)(?=:[a-zA-Z]+=|$)"):
        match = re.search(pattern, description.removeprefix("haproxy:"))
        try:
            if match and ipaddress.ip_address(match.group(1).strip("[]")).version == 6:
                return match.group(1).strip("[]")
        except ValueError:
            continue
    return ""
