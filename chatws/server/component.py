"""What an application written for this server looks like: Ratchet's `MessageComponentInterface` in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

__all__ = ["Connection", "HttpRequest", "MessageComponent"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The head of the HTTP request that opened a connection (RFC 9112 §3, RFC 6455 §4.2.1).

    :ivar path: without the query, percent-encoding as it came.
    :ivar query: what follows the `?`, undecoded; empty when there is none.
    :ivar headers: by lower-case name; the values of a repeated header are joined with ", " (cookies with "; ").
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def cookies(self) -> dict[str, str]:
        """The request's cookies by name (RFC 6265 §5.4), values as sent. The first of two equal names wins."""
        found: dict[str, str] = {}
        for pair in self.headers.get("cookie", "").split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals and name not in found:
                found[name] = value.strip('"')
        return found


class Connection(Protocol):
    """One open WebSocket, as a component sees it. Attributes of the component's own may be set on it.

    :ivar resource_id: counts up from 1 with each connection of this process; Ratchet's `resourceId`.
    :ivar remote_address: the client's IP address, or the empty string for a Unix socket. Behind a trusted
        proxy the address that the proxy names.
    :ivar http_request: the request that opened it.
    :ivar ended: why it came to an end, when that was not in peace; else empty. Known by `on_close`.
    :ivar session: None at first; the component's to use.
    """

    resource_id: int
    remote_address: str
    ended: str
    http_request: HttpRequest
    session: Any

    @property
    def is_open(self) -> bool:
        """Whether `send` still has any effect: false once closing has begun from either side."""
        ...

    def send(self, message: str | bytes) -> None:
        """Queue one message: a `str` as a text message, `bytes` as a binary one. Ignored when no longer open."""
        ...

    def send_frames(self, frames: bytes) -> None:
        """Queue complete frames made by `chatws.server.frames.text_frame`, joined. For fan-out."""
        ...

    def stream(self, chunks: Iterator[bytes]) -> None:
        """Queue frames that are made as the peer reads them: the next chunk is asked for when the last one has left.

        What is sent meanwhile waits behind, in order, and counts against the send buffer; the chunks do not.
        """
        ...

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake (RFC 6455 §7.1.2). `on_close` follows; a second call is ignored.

        :param code: 1000, or 3000 to 4999.
        :param reason: at most 123 bytes of UTF-8; what is longer is cut at a character.
        """
        ...


@runtime_checkable
class MessageComponent(Protocol):
    """An application. A component may also have `on_binary(connection, data)`; without it a binary message closes
    the connection with 1003 (RFC 6455 §7.4.1)."""

    def on_open(self, connection: Any) -> None:
        """The handshake is done."""
        ...

    def on_message(self, connection: Any, text: str) -> None:
        """A whole text message has come."""
        ...

    def on_close(self, connection: Any) -> None:
        """The connection is gone, for whatever reason. Called once for every `on_open`."""
        ...

    def on_error(self, connection: Any, exception: Exception) -> None:
        """One of the callbacks above raised `exception`, on this connection. It stays open unless this closes it."""
        ...
