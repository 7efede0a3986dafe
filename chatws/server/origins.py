"""Web origins (RFC 6454 §6): those that browsers send, and those that an operator allows.

Browsers send an internationalized host in ASCII (punycode, RFC 5891). The origins in the settings are converted as
browsers do it, by UTS #46 without transitional processing. The library `idna` does that, and Twisted depends on it in
any case. Python's own codec implements IDNA 2003, which converts `straße` to another name.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple
from urllib.parse import urlsplit

import idna

from chatws.errors import ConfigError

__all__ = ["FILE", "NULL", "Origin", "parse_allowed_origin", "parse_origin"]

_match_origin = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]*)://(\[[0-9A-Fa-f:.]+\]|[^/:@?#\s\[\],]+)(?::([0-9]{1,5}))?"
).fullmatch
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """An origin in a form that can be compared (RFC 6454 §5).

    :ivar scheme: in lower case.
    :ivar host: in lower case and ASCII. IPv6 in brackets.
    :ivar port: the scheme's default if absent. 0 for schemes without a default.
    """

    scheme: str
    host: str
    port: int


#: An opaque origin: a sandboxed frame, a `data:` URL, a local file in Firefox and Safari.
NULL = Origin("null", "", 0)
#: A local file in Chromium, and therefore in Electron and Cordova on Android.
FILE = Origin("file", "", 0)
#: Origins that have no host.
_BY_NAME = {"null": NULL, "file://": FILE}


def parse_origin(origin: str) -> Origin | None:
    """Parse the value of an `Origin` header. None if it is malformed."""
    match = _match_origin(origin)
    if match is None:
        return _BY_NAME.get(origin)
    scheme = match[1].lower()
    port = int(match[3]) if match[3] else _DEFAULT_PORTS.get(scheme, 0)
    return Origin(scheme, match[2].lower(), port) if port < 65536 else None


def parse_allowed_origin(text: str, source: str) -> Origin:
    """Parse an origin in the settings: in any case, in Unicode, with or without the default port and a final slash.

    :param source: the setting, for the error: "--allowed-origin".
    :raises ConfigError: it cannot match the origin of any page. The message says what to write instead.
    """
    quoted = f'{source} "{text}"'
    if "*" in text:
        raise ConfigError(f"{quoted}: there are no wildcards; list each origin as scheme://host or scheme://host:port")
    if any(character.isspace() or character == "," for character in text):
        raise ConfigError(f"{quoted} must be one origin, scheme://host or scheme://host:port")
    stripped = text[:-1] if text.endswith("/") and not text.endswith("://") else text
    by_name = _BY_NAME.get("file://" if stripped.lower() in ("file:", "file:/") else stripped.lower())
    if by_name is not None:
        return by_name
    try:
        parts = urlsplit(stripped)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{quoted}: {error}") from None
    if not parts.scheme or not parts.netloc:
        raise ConfigError(f"{quoted} must be scheme://host or scheme://host:port, for example https://shop.example")
    if parts.scheme in ("ws", "wss"):
        raise ConfigError(f"{quoted}: an origin is the page's: write {'http' + parts.scheme[2:]}://{parts.netloc}")
    if "@" in parts.netloc or not parts.hostname:
        raise ConfigError(f"{quoted} must be scheme://host or scheme://host:port, without a user")
    if parts.path or parts.query or parts.fragment:
        raise ConfigError(f"{quoted}: an origin has no path: write {parts.scheme}://{parts.netloc}")
    host = _to_ascii(parts.hostname, "[" in parts.netloc, quoted)
    origin = parse_origin(f"{parts.scheme}://{host}" + ("" if port is None else f":{port}"))
    if origin is None:
        raise ConfigError(f"{quoted} must be scheme://host or scheme://host:port")
    return origin


def _to_ascii(host: str, is_ipv6: bool, quoted: str) -> str:
    if is_ipv6:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"  # as browsers write it
        except ValueError:
            raise ConfigError(f"{quoted}: [{host}] is not an IPv6 address") from None
    if host.isascii():
        return host
    try:
        return idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ConfigError(f"{quoted}: {error}; write the name as browsers send it, with xn--") from None
