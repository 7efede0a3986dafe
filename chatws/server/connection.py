"""One open WebSocket, as a component sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.logger import Logger

from chatws.errors import CloseCode
from chatws.server.component import HttpRequest
from chatws.server.frames import binary_frame, text_frame
from chatws.server.writer import Writer

if TYPE_CHECKING:
    from chatws.server.ws_protocol import WsProtocol
    from chatws.server.ws_server import WsServer

__all__ = ["WsConnection", "truncate_reason"]

log = Logger()


def truncate_reason(reason: str) -> bytes:
    """At most 123 bytes of UTF-8, cut at a character: what fits into a close frame (RFC 6455 §5.5)."""
    raw = reason.encode("utf-8", "replace")
    return raw if len(raw) <= 123 else raw[:123].decode("utf-8", "ignore").encode("utf-8")


class WsConnection(Writer):
    """Fulfils `chatws.server.component.Connection`. Made by `WsServer`.

    It has slots, because there are many of it, and a dictionary, made when first used, so that a component may set
    attributes of its own.

    :ivar session: None at first; the component's to use.
    """

    __slots__ = ("__dict__", "_protocol", "ended", "http_request", "remote_address", "resource_id", "session")

    # one subclass is made for each server, so that no connection need remember which is its own
    server: WsServer

    def __init__(self, resource_id: int, remote_address: str, http_request: HttpRequest, protocol: WsProtocol) -> None:
        self.resource_id = resource_id
        self.remote_address = remote_address
        self.http_request = http_request
        self.session: Any = None
        self.ended = ""
        self._deflated = None
        self._protocol: WsProtocol | None = protocol

    def __repr__(self) -> str:
        return f"<WsConnection {self.resource_id} from {self.remote_address or 'a Unix socket'}>"

    @property
    def is_open(self) -> bool:
        protocol = self._protocol
        return protocol is not None and bool(protocol.state == protocol.STATE_OPEN)

    def send(self, message: str | bytes) -> None:
        """Queue one message: a `str` as a text message, `bytes` as a binary one. Ignored when no longer open."""
        self.send_frames(text_frame(message.encode("utf-8")) if isinstance(message, str) else binary_frame(message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake (RFC 6455 §7.1.2), behind what still waits to be sent.

        `on_close` follows: when the peer has answered, or when `close_timeout` seconds are over. A second call is
        ignored.

        :param code: 1000, or 3000 to 4999.
        :param reason: what is longer than 123 bytes of UTF-8 is cut at a character.
        :raises ValueError: another code.
        """
        code = int(code)
        if code != 1000 and not 3000 <= code <= 4999:
            raise ValueError(f"close code {code} is neither 1000 nor one of 3000 to 4999")
        self._close(code, truncate_reason(reason))

    def abort(self) -> None:
        """Drop the connection at once, without a closing handshake. `on_close` follows, but not from within."""
        if self._protocol is not None:
            self._protocol.abort()

    def _close(self, code: int, reason: bytes) -> None:
        """`close` with any code: Autobahn's `sendClose` refuses those that are the protocol's own, such as 1003."""
        if self._protocol is not None:
            self._protocol.sendCloseFrame(code, reason)

    # what the component does is fenced in

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call the component; what it raises goes to its `on_error`, and no further."""
        try:
            callback(self, *arguments)
        except Exception as error:
            self._component_failed(error)

    def _component_failed(self, error: Exception) -> None:
        self.stats.component_errors += 1
        try:
            self.server.component.on_error(self, error)
        except Exception:
            log.failure("on_error failed, for {error!r} on {connection}", error=error, connection=self)
            self._close(CloseCode.INTERNAL_ERROR.value, b"internal error")

    # what `Writer` asks for

    def _progress(self) -> None:
        if self._protocol is not None:
            self._protocol.heard = True

    def _lost(self) -> None:
        self.abort()

    def _too_slow(self) -> None:
        self.stats.slow_consumers += 1
        self.ended = "slow consumer"
        assert self._backlog is not None
        self._backlog.cut()
        self._close(CloseCode.SLOW_CONSUMER.value, b"too slow: reconnect and recover")

    def _stream_failed(self, error: Exception) -> None:
        self._component_failed(error)

    # what `WsProtocol` asks for

    def _stop_sending(self) -> None:
        """The close frame is on its way: nothing may follow it."""
        self._use(None)

    def _cut(self) -> None:
        if self._backlog is not None:
            self._backlog.cut()

    def _disconnect(self, abort: bool) -> None:
        """Let the transport go: at once, or when all that waits has left."""
        self._use(None)
        transport = self.transport
        if transport is None:
            return
        if abort:
            if self._backlog is not None:
                self._backlog.drop()
            transport.abortConnection()
        elif self._backlog is None:
            transport.loseConnection()
        elif self._backlog.idle:
            # TLS says no goodbye before its producer has gone
            transport.unregisterProducer()
            transport.loseConnection()
        else:
            self._backlog.closing = True
