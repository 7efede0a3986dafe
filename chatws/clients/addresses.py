"""Addresses of the push API: one, or those of several nodes separated by commas."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple

__all__ = ["Address", "parse_addresses"]

_TLS = "tls://"


class Address(NamedTuple):
    """The address of a push listener.

    :ivar text: the text that it was parsed from.
    :ivar host: a name, an IP address, or the path of a Unix socket.
    :ivar port: None for a Unix socket.
    :ivar tls: whether the text begins with `tls://`.
    """

    text: str
    host: str
    port: int | None
    tls: bool = False

    def connect(self, seconds: float, context: ssl.SSLContext | None) -> socket.socket:
        """Open a connection.

        :param seconds: the timeout of each step.
        :param context: for TLS; the certificate must match the host. None for plain TCP.
        :raises OSError: the connection failed.
        """
        if self.port is None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(seconds)
                connection.connect(self.host)
            except BaseException:
                connection.close()
                raise
        else:
            connection = socket.create_connection((self.host, self.port), seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return connection if context is None else context.wrap_socket(connection, server_hostname=self.host)
        except BaseException:
            connection.close()
            raise


def parse_addresses(text: str) -> list[Address]:
    """Parse one or more addresses: "10.0.0.1:8081,[::1]:8081,tls://chat.example:8443,unix:/path".

    :raises ValueError: an address is invalid; the message names it.
    """
    return [_parse(address.strip()) for address in text.split(",")]


def _parse(text: str) -> Address:
    if text.startswith("unix:"):
        if not hasattr(socket, "AF_UNIX"):
            raise ValueError(f"this system has no Unix sockets: use host:port instead of {text!r}")
        return Address(text, text.removeprefix("unix:"), None)
    host, colon, port = text.removeprefix(_TLS).rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"a push address is host:port or unix:/path, not {text!r}")
    if not 1 <= int(port) <= 65535:
        raise ValueError(f"the port {port} is not between 1 and 65535")
    return Address(text, host.strip("[]"), int(port), text.startswith(_TLS))
