"""The interface between the server and an application: Ratchet's `MessageComponentInterface` in Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable
from urllib.parse import parse_qsl

__all__ = ["Connection", "HttpRequest", "MessageComponent", "format_connection_id"]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The head of the HTTP request that opened a connection (RFC 9112 §3, RFC 6455 §4.2.1).

    :ivar path: without the query, percent-encoding as received.
    :ivar query: the part after the `?`, undecoded. Empty if there is none.
    :ivar headers: by lower-case name. Values of a repeated header are joined with ", " (cookies with "; ").
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def cookies(self) -> dict[str, str]:
        """The request's cookies by name (RFC 6265 §5.4), values as sent. The first of two equal names counts."""
        cookies: dict[str, str] = {}
        for pair in self.headers.get("cookie", "").split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals and name not in cookies:
                cookies[name] = value.strip('"')
        return cookies

    def has_parameter(self, name: str) -> bool:
        """Return whether the query has a parameter of this name, with or without a value."""
        return any(key == name for key, _ in parse_qsl(self.query, keep_blank_values=True))


def format_connection_id(node: str, resource_id: int) -> str:
    """Return the id of a connection for clients, backends and logs, such as `5f3a9c1e-41`.

    :param node: the id of the node. Empty: the connection's number is its id.
    """
    return f"{node}-{resource_id}" if node else str(resource_id)


class Connection(Protocol):
    """One open WebSocket, as a component sees it. A component may set its own attributes on it.

    :ivar resource_id: counts up from 1 with each connection of this process. Ratchet's `resourceId`.
    :ivar remote_address: the client's IP address, or the empty string for a Unix socket. Behind a trusted proxy, the
        address that the proxy forwards.
    :ivar http_request: the request that opened it.
    :ivar disconnect_reason: why it ended abnormally, otherwise empty. Set before `on_close`.
    :ivar client: None at first. The component may keep its own object here.
    """

    resource_id: int
    remote_address: str
    disconnect_reason: str
    http_request: HttpRequest
    client: Any

    @property
    def is_open(self) -> bool:
        """Whether `send` has an effect. False once either side has begun to close."""
        ...

    @property
    def has_backlog(self) -> bool:
        """Whether something waits to be sent, so that new data waits behind it."""
        ...

    def send(self, message: str | bytes) -> None:
        """Queue one message: a `str` as a text message, `bytes` as a binary one. Ignored if not open."""
        ...

    def send_frames(self, frames: bytes) -> None:
        """Queue complete frames made by `chatws.server.frames.text_frame`, joined. For fan-out."""
        ...

    def stream(self, chunks: Iterator[bytes | None]) -> None:
        """Queue frames that are generated as the peer reads them.

        The next chunk is generated when the last one has been sent. Data that is sent meanwhile waits behind, in order,
        and counts against the send buffer. The chunks do not count. None in place of a chunk lets everything wait
        until `resume_stream`.
        """
        ...

    def cancel_stream(self, chunks: Iterator[bytes | None]) -> None:
        """Drop a stream. What it has generated is still sent."""
        ...

    def resume_stream(self) -> None:
        """Ask a stream that has yielded None for its next chunk."""
        ...

    def pause_reading(self) -> None:
        """Stop calling `on_message` and `on_binary` until `resume_reading`, and stop reading from the socket.

        The peer's messages wait in the network, and a few kilobytes of them in the server. Meanwhile the server notices
        neither that the peer closes the connection nor that it is gone.
        """
        ...

    def resume_reading(self) -> None:
        """End `pause_reading`. Ignored if not paused. Closing the connection ends it too."""
        ...

    def close(self, code: int = 1000, reason: str = "", *, drop_unsent: bool = False) -> None:
        """Begin the closing handshake (RFC 6455 §7.1.2). `on_close` follows. A second call is ignored.

        :param code: 1000, or 3000 to 4999.
        :param reason: a text of which at most 123 bytes of UTF-8 are sent.
        :param drop_unsent: drop what waits to be sent, except the rest of a frame whose first bytes have been sent.
        :raises ValueError: any other code.
        """
        ...


@runtime_checkable
class MessageComponent(Protocol):
    """An application.

    It may also have `on_binary(connection, data)`. Without it, a binary message closes the connection with 1003
    (RFC 6455 §7.4.1). A connection is a `Connection`. It is annotated as `Any`, because a component may set attributes
    of its own on it.
    """

    def on_open(self, connection: Any) -> None:
        """Handle a new connection: the handshake is complete."""
        ...

    def on_message(self, connection: Any, text: str) -> None:
        """Handle one complete text message."""
        ...

    def on_close(self, connection: Any) -> None:
        """Handle the end of a connection, for any reason. Called once for every `on_open`."""
        ...

    def on_error(self, connection: Any, exception: Exception) -> None:
        """Handle an exception of one of the methods above. The connection stays open unless this closes it."""
        ...
