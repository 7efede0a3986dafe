"""Signatures of Pusher's protocol: subscriptions, sign-in, HTTP requests and webhooks.

Every signature is the hexadecimal HMAC-SHA256 of a text with the secret of an app. Pusher publishes the texts in its
"auth signatures" page, its HTTP API reference and its webhooks page. All comparisons take constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote, unquote_plus

__all__ = [
    "MAX_PARAMETERS",
    "TOLERANCE",
    "AppCredentials",
    "QueryError",
    "SignatureError",
    "channel_auth",
    "parse_query",
    "sign",
    "user_auth",
    "verify_channel_auth",
    "verify_request",
    "verify_user_auth",
]

#: Seconds by which `auth_timestamp` may differ from the server's time.
TOLERANCE = 600
#: Parameters of a query. Pusher's calls have at most eight.
MAX_PARAMETERS = 32
#: Characters of a signed text that an error shows. They let a developer compare it with what an SDK signs.
_SHOWN = 500


class QueryError(ValueError):
    """The query of a request is malformed. `str()` says how."""


class SignatureError(Exception):
    """A request is not signed, or not correctly. `str()` says why, without secrets."""


class AppCredentials(Protocol):
    """The key and the secret of an app."""

    @property
    def key(self) -> str: ...
    @property
    def secret(self) -> bytes: ...


def sign(secret: bytes, text: str | bytes) -> str:
    """Return the signature of a text. `X-Pusher-Signature` is the signature of the bytes of a webhook."""
    return hmac.digest(secret, text if isinstance(text, bytes) else _encode(text), "sha256").hex()


def channel_auth(app: AppCredentials, socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """Return `auth` for a subscription to a private or presence channel.

    :param channel_data: sent with the subscription, exactly as it was received. None: it was not sent.
    """
    text = f"{socket_id}:{channel}" if channel_data is None else f"{socket_id}:{channel}:{channel_data}"
    return f"{app.key}:{sign(app.secret, text)}"


def user_auth(app: AppCredentials, socket_id: str, user_data: str) -> str:
    """Return `auth` for a sign-in with `user_data`, exactly as it was received."""
    return f"{app.key}:{sign(app.secret, f'{socket_id}::user::{user_data}')}"


def verify_channel_auth(
    app: AppCredentials, auth: str, socket_id: str, channel: str, channel_data: str | None = None
) -> bool:
    """Return whether `auth` permits a connection to subscribe to a channel; see `channel_auth`."""
    return _is_equal(auth, channel_auth(app, socket_id, channel, channel_data))


def verify_user_auth(app: AppCredentials, auth: str, socket_id: str, user_data: str) -> bool:
    """Return whether `auth` permits a connection to sign in; see `user_auth`."""
    return _is_equal(auth, user_auth(app, socket_id, user_data))


def parse_query(query: str) -> dict[str, str]:
    """Return the decoded parameters of a query, with keys in lower case.

    A decoded `&` would make two different queries the same signed text, so it is rejected. Channel names have none.

    :param query: the text after the question mark.
    :raises QueryError: it is malformed, repeats a parameter, or has more than `MAX_PARAMETERS`.
    """
    parameters: dict[str, str] = {}
    pairs = [pair for pair in query.split("&", MAX_PARAMETERS + 1) if pair]
    if len(pairs) > MAX_PARAMETERS:
        raise QueryError(f"the query may have at most {MAX_PARAMETERS} parameters")
    for pair in pairs:
        raw_key, _, raw_value = pair.partition("=")
        try:
            key = unquote_plus(raw_key, errors="strict").lower()
            value = unquote_plus(raw_value, errors="strict")
        except UnicodeDecodeError:
            raise QueryError("the query is not UTF-8") from None
        if "&" in key or "=" in key or "&" in value:
            raise QueryError("a parameter may not contain an encoded &, and its name no encoded =")
        if key in parameters:
            raise QueryError(f"the parameter {key[:40]!r} is repeated")
        parameters[key] = value
    return parameters


def verify_request(
    app: AppCredentials, *, method: str, path: str, parameters: Mapping[str, str], body: bytes, now: float
) -> None:
    """Check the signature of a request to the HTTP API.

    SDKs sign a path before their HTTP library encodes it, so the signature may be for the path or its decoded form.

    :param path: as the server received it: a prefix that a proxy has removed is not signed.
    :param parameters: see `parse_query`.
    :param body: as it was sent. A body needs `body_md5`: nothing else of the signature depends on it.
    :param now: seconds since 1970.
    :raises SignatureError: the request is not accepted.
    """
    if not _is_equal(_parameter(parameters, "auth_key"), app.key):
        raise SignatureError("auth_key is not the key of this app")
    if _parameter(parameters, "auth_version") != "1.0":
        raise SignatureError("auth_version must be 1.0")
    timestamp = _parameter(parameters, "auth_timestamp")
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        raise SignatureError("auth_timestamp must be a number of seconds since 1970")
    if abs(now - int(timestamp)) > TOLERANCE:
        raise SignatureError(
            f"auth_timestamp {timestamp} differs from the server's time {int(now)} by more than {TOLERANCE} s: "
            "check the clocks"
        )
    signature = _parameter(parameters, "auth_signature")
    signed = "&".join(f"{name}={value}" for name, value in sorted(parameters.items()) if name != "auth_signature")
    texts = [f"{method}\n{path}\n{signed}"]
    decoded = unquote(path, errors="surrogateescape")
    if decoded != path and "\n" not in decoded:
        texts.append(f"{method}\n{decoded}\n{signed}")
    if not any(_is_equal(signature, sign(app.secret, text)) for text in texts):
        raise SignatureError(f"auth_signature is wrong: the server signed {texts[0][:_SHOWN]!r}")
    # after the signature: a stranger learns nothing about the body
    if "body_md5" in parameters or body:
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        if not _is_equal(_parameter(parameters, "body_md5"), digest):
            raise SignatureError(f"body_md5 does not match the body of {len(body)} bytes")


def _parameter(parameters: Mapping[str, str], name: str) -> str:
    value = parameters.get(name, "")
    if not value:
        raise SignatureError(f"the parameter {name} is missing")
    return value


def _is_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(_encode(given), _encode(expected))


def _encode(text: str) -> bytes:
    # a lone surrogate of a JSON string must not become an exception
    return text.encode("utf-8", "surrogatepass")
