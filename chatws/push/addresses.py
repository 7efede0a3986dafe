"""Where push ports are, as people write it: one address, or those of several nodes with commas between them."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

__all__ = ["Address", "parse_addresses"]

_TLS = "tls://"


class Address(NamedTuple):
    """A push port.

    :ivar text: as it was written.
    :ivar host: a name, an IP address, or the path of a Unix socket.
    :ivar port: None for a Unix socket.
    :ivar tls: whether it was written with `tls://`.
    """

    text: str
    host: str
    port: int | None
    tls: bool = False

    def connect(self, seconds: float, context: ssl.SSLContext | None) -> socket.socket:
        """A connection to it, within about that time.

        :param context: to speak TLS; the certificate is checked against the host.
        :raises OSError: there is none.
        """
        if self.port is None:
            found = socket.socket(socket.AF_UNIX)
            try:
                found.settimeout(seconds)
                found.connect(self.host)
            except BaseException:
                found.close()
                raise
        else:
            found = socket.create_connection((self.host, self.port), seconds)
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return found if context is None else context.wrap_socket(found, server_hostname=self.host)
        except BaseException:
            found.close()
            raise


def parse_addresses(text: str) -> list[Address]:
    """The addresses in "10.0.0.1:8081,[::1]:8081,tls://chat.example:8443,unix:/path", at least one.

    :raises ValueError: one of them is none; says which.
    """
    return [_parse(one.strip()) for one in text.split(",")]


def _parse(text: str) -> Address:
    if text.startswith("unix:"):
        return Address(text, text.removeprefix("unix:"), None)
    host, colon, port = text.removeprefix(_TLS).rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"a push address is host:port or unix:/path, not {text!r}")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"{port} is no port")
    return Address(text, host.strip("[]"), int(port), text.startswith(_TLS))
