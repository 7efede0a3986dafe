"""Checks the URLs that the server requests, at start, before the first login needs them."""

from __future__ import annotations

import json
import re
from urllib.parse import urlsplit

from chatws.errors import ConfigError

__all__ = ["check_auth_url"]


def check_auth_url(url: str, setting: str = "--auth-url") -> bytes:
    """Return the URL as twisted.web takes it.

    :param setting: the setting that holds the URL.
    :raises ConfigError: it is not an http or https URL (RFC 3986), or has a password, which no error shows.
    """
    if "@" in re.split("[/?#]", url.partition("//")[2])[0]:
        raise ConfigError(f"{setting} must not contain a user or a password")
    quoted = json.dumps(url)
    try:
        encoded = url.encode("ascii")
        parts = urlsplit(url)  # which drops line breaks: they are checked below
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"{setting} {quoted}: {error}") from None
    if any(byte <= 0x20 or byte == 0x7F for byte in encoded):
        raise ConfigError(f"{setting} {quoted} must not contain spaces or control characters: encode them as %20")
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"{setting} must be an http:// or https:// URL, not {quoted}")
    return encoded
