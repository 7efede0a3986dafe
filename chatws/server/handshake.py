"""The server's side of the opening handshake (RFC 6455 §4.2): checks the request and makes the response."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1
from typing import NamedTuple

from chatws.server.component import HttpRequest

__all__ = ["HttpRejection", "accept_response", "check_handshake", "has_token", "wants_websocket"]

#: The constant that the key is hashed with (RFC 6455 §1.3).
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 16 bytes in base64: the last of 22 digits has two bits
_is_key = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==", re.ASCII).fullmatch
#: Headers of the rejection of other versions (RFC 6455 §4.4).
_VERSION_HEADERS = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))


class HttpRejection(NamedTuple):
    """An HTTP response that rejects a request.

    :ivar reason: one word for the metrics.
    :ivar message: the body, a sentence for people.
    """

    status: int
    reason: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def has_token(value: str, token: str) -> bool:
    """Return whether a comma-separated list has `token`, which is lower-case."""
    return token in value.lower() and token in [item.strip() for item in value.lower().split(",")]


def wants_websocket(request: HttpRequest) -> bool:
    """Return whether this is a request for a WebSocket (RFC 9110 §7.8: `Upgrade` counts only with `Connection`)."""
    headers = request.headers
    return (
        "upgrade" in headers
        and has_token(headers["upgrade"], "websocket")
        and has_token(headers.get("connection", ""), "upgrade")
    )


def check_handshake(request: HttpRequest) -> HttpRejection | None:
    """Return why a request that `wants_websocket` is invalid (RFC 6455 §4.2.1), or None."""
    headers = request.headers
    if request.method != "GET":
        return HttpRejection(405, "method", "a WebSocket is opened with GET", (("Allow", "GET"),))
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return HttpRejection(400, "body", "a request for a WebSocket has no body")
    if headers.get("sec-websocket-version") != "13":
        return HttpRejection(426, "version", "Sec-WebSocket-Version must be 13", _VERSION_HEADERS)
    if not _is_key(headers.get("sec-websocket-key", "")):
        return HttpRejection(400, "key", "Sec-WebSocket-Key must be 16 bytes in base64, once")
    return None


def accept_response(request: HttpRequest, extensions: str = "") -> bytes:
    """Return the 101 response to a request that `check_handshake` has accepted. It selects no subprotocol.

    :param extensions: the value of `Sec-WebSocket-Extensions`. Empty: without that header.
    """
    key = request.headers["sec-websocket-key"].encode("ascii")
    response = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + b64encode(sha1(key + _GUID).digest())
    )
    if extensions:
        response += b"\r\nSec-WebSocket-Extensions: " + extensions.encode("ascii")
    return response + b"\r\n\r\n"
