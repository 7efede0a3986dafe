"""Signatures of webhooks (docs/protocol.md §8): `verify` for the application that receives them.

It needs the raw body. A framework that parses and encodes the body again changes its bytes, and so its signature.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Sequence

__all__ = ["HEADER", "TOLERANCE", "sign", "verify"]

#: The header with the signature.
HEADER = "X-Chatws-Signature"
#: Seconds by which the clocks of sender and receiver may differ, the time on the way included.
TOLERANCE = 300


def _digest(secret: str | bytes, timestamp: str, body: bytes) -> str:
    key = secret.encode() if isinstance(secret, str) else secret
    return hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def sign(body: bytes, secrets: Sequence[str | bytes], now: float) -> str:
    """Return the value of the header.

    :param secrets: one signature each. During a rotation two: the new one and the old one.
    :param now: seconds since 1970.
    """
    timestamp = str(int(now))
    return ",".join([f"t={timestamp}", *(f"v1={_digest(secret, timestamp, body)}" for secret in secrets)])


def verify(
    body: bytes,
    header: str | None,
    secret: str | bytes | Sequence[str | bytes],
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE,
) -> bool:
    """Return whether a request is from the server, and recent.

    :param body: the raw body, as it was received.
    :param header: the value of `X-Chatws-Signature`, or None without one.
    :param secret: the secret, or several of which one has to match. An empty secret matches nothing.
    :param now: seconds since 1970; by default the present.
    :param tolerance: seconds by which the time in the signature may differ from `now`.
    """
    timestamp, signatures = "", []
    for part in (header or "").split(","):
        name, _, value = part.strip().partition("=")
        if name == "t" and not timestamp:
            timestamp = value
        elif name == "v1":
            signatures.append(value.encode("utf-8", "replace"))
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        return False
    if abs((time.time() if now is None else now) - int(timestamp)) > tolerance:
        return False
    known = [secret] if isinstance(secret, str | bytes) else secret
    expected = [_digest(one, timestamp, body).encode() for one in known if one]
    return any(hmac.compare_digest(one, signature) for one in expected for signature in signatures)
