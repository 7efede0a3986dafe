"""The opening handshake, server's side (RFC 6455 §4.2): is this request for an upgrade one, and the answer."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1
from typing import NamedTuple

from chatws.server.component import HttpRequest
from chatws.server.request import plain

__all__ = ["Refusal", "accept_response", "check_handshake", "has_token", "wants_websocket"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# 16 bytes in base64: the last of 22 digits carries two bits
_is_key = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==", re.ASCII).fullmatch


_VERSION_HEADERS = (("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket"))


class Refusal(NamedTuple):
    """An HTTP answer that is not the 101.

    :ivar reason: one word for the statistics.
    :ivar message: a sentence for people, the body.
    """

    status: int
    reason: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()


def has_token(value: str, token: str) -> bool:
    """Whether a comma-separated list has `token`, which is lower-case."""
    return token in value.lower() and token in [one.strip() for one in value.lower().split(",")]


def wants_websocket(request: HttpRequest) -> bool:
    """Whether this asks for an upgrade to WebSocket (RFC 9110 §7.8: `Upgrade` counts only with `Connection`)."""
    headers = plain(request.headers)
    return (
        "upgrade" in headers
        and has_token(headers["upgrade"], "websocket")
        and has_token(headers.get("connection", ""), "upgrade")
    )


def check_handshake(request: HttpRequest) -> Refusal | None:
    """What is wrong with a request that `wants_websocket`, or None."""
    headers = plain(request.headers)
    if request.method != "GET":
        return Refusal(405, "method", "a WebSocket is opened with GET", (("Allow", "GET"),))
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        return Refusal(400, "body", "a request for a WebSocket has no body")
    if headers.get("sec-websocket-version") != "13":
        # RFC 6455 §4.4
        return Refusal(
            426,
            "version",
            "Sec-WebSocket-Version must be 13",
            _VERSION_HEADERS,
        )
    if not _is_key(headers.get("sec-websocket-key", "")):
        return Refusal(400, "key", "Sec-WebSocket-Key must be 16 bytes in base64, once")
    return None


def accept_response(request: HttpRequest, extensions: str = "") -> bytes:
    """The 101 for a request that `check_handshake` has passed. No subprotocol is ever chosen."""
    key = request.headers["sec-websocket-key"].encode("ascii")
    answer = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + b64encode(sha1(key + _GUID).digest())
    )
    if extensions:
        answer += b"\r\nSec-WebSocket-Extensions: " + extensions.encode("ascii")
    return answer + b"\r\n\r\n"
