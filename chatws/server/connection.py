"""One open WebSocket, as a component sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from autobahn.websocket.protocol import WebSocketProtocol
from twisted.logger import Logger

from chatws.errors import CloseCode
from chatws.server.component import HttpRequest, MessageComponent, format_connection_id
from chatws.server.frame_writer import FrameWriter
from chatws.server.frames import binary_frame, text_frame
from chatws.server.idle_limits import IdleLimitWatch
from chatws.server.server_stats import ServerStats
from chatws.server.timer_wheel import TimerWheel

__all__ = ["CLOSED_PROTOCOL", "ConnectionOwner", "WsConnection", "truncate_reason"]

log = Logger()

#: Bytes of a close frame's reason: a control frame has at most 125, and the code takes two (RFC 6455 §5.5).
_MAX_REASON = 123
_STATE_OPEN = WebSocketProtocol.STATE_OPEN


class _ClosedProtocol:
    """Stands for the protocol of a closed connection and ignores every call. So callers need no check."""

    state = WebSocketProtocol.STATE_CLOSED
    received_since_ping = False

    def _ignore(self, *arguments: object) -> None:
        pass

    pause_reading = resume_reading = abort = sendCloseFrame = _ignore


CLOSED_PROTOCOL: Any = _ClosedProtocol()


class ConnectionOwner(Protocol):
    """The server of a connection, as `WsConnection` and `WsProtocol` use it: implemented by `WsServer`."""

    node: str
    component: MessageComponent
    on_binary: Callable[..., object] | None
    connections: set[WsConnection]
    stats: ServerStats
    timer_wheel: TimerWheel
    idle_limits: IdleLimitWatch
    max_fragments: int
    ping_interval: float
    ping_timeout: float
    close_timeout: float

    def run_or_defer(self, call: Callable[[], object]) -> None:
        """Run `call`, which serves one connection, now or in a batch between other work."""
        ...

    def connection_lost(self, connection: WsConnection) -> None:
        """Call the component's `on_close`."""
        ...


def truncate_reason(reason: str) -> bytes:
    """Encode a close frame's reason as UTF-8, and cut it at a character after at most 123 bytes (RFC 6455 §5.5)."""
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) <= _MAX_REASON:
        return encoded
    return encoded[:_MAX_REASON].decode("utf-8", "ignore").encode("utf-8")


class WsConnection(FrameWriter):
    """Implements `chatws.server.component.Connection`. `WsServer` creates it.

    The class has slots, because a server has many connections. It also has a dictionary, created at its first use, for
    attributes that a component sets.

    :ivar client: None at first. The component may keep its own object here.
    :cvar server: `WsServer` makes one subclass for each server, so that connections need no reference to it.
    """

    __slots__ = (
        "__dict__",
        "_protocol",
        "client",
        "disconnect_reason",
        "http_request",
        "remote_address",
        "resource_id",
    )

    server: ConnectionOwner

    def __init__(self, resource_id: int, remote_address: str, http_request: HttpRequest, protocol: Any) -> None:
        self.resource_id = resource_id
        self.remote_address = remote_address
        self.http_request = http_request
        self.client: Any = None
        self.disconnect_reason = ""
        self._compress = None
        self._protocol = protocol  # `WsProtocol`, in the end `CLOSED_PROTOCOL`

    def __repr__(self) -> str:
        return f"<WsConnection {self.id} from {self.remote_address or 'a Unix socket'}>"

    @property
    def id(self) -> str:
        """The id of the connection in logs."""
        return format_connection_id(self.server.node, self.resource_id)

    @property
    def is_open(self) -> bool:
        return bool(self._protocol.state == _STATE_OPEN)

    def send(self, message: str | bytes) -> None:
        """Queue one message: a `str` as a text message, `bytes` as a binary one. Ignored if not open."""
        self.send_frames(text_frame(message.encode("utf-8")) if isinstance(message, str) else binary_frame(message))

    def pause_reading(self) -> None:
        """Stop reading; see `chatws.server.component.Connection`."""
        self._protocol.pause_reading()

    def resume_reading(self) -> None:
        """Read again; see `chatws.server.component.Connection`."""
        self._protocol.resume_reading()

    def close(self, code: int = 1000, reason: str = "", *, drop_unsent: bool = False) -> None:
        """Begin the closing handshake (RFC 6455 §7.1.2), after everything that waits to be sent.

        `on_close` follows when the peer has answered, or after `close_timeout` seconds. A second call is ignored.

        :param code: 1000, or 3000 to 4999.
        :param reason: a text of which at most 123 bytes of UTF-8 are sent.
        :param drop_unsent: drop what waits to be sent, except the rest of a frame whose first bytes have been sent.
        :raises ValueError: any other code.
        """
        code = int(code)
        if code != 1000 and not 3000 <= code <= 4999:
            raise ValueError(f"close code {code} is invalid: use 1000 or 3000 to 4999")
        if drop_unsent and self.is_open:
            self._drop_unsent_frames()
        self._close(code, truncate_reason(reason))

    def abort(self) -> None:
        """Drop the connection without a closing handshake. `on_close` follows after this call has returned."""
        self._protocol.abort()

    def _close(self, code: int, reason: bytes) -> None:
        """Close with any code. Autobahn's `sendClose` rejects the protocol's own codes, such as 1003."""
        self._protocol.sendCloseFrame(code, reason)

    # calls of the component

    def _call(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call the component. An exception goes to its `on_error` and does not leave this method."""
        try:
            callback(self, *arguments)
        except Exception as error:
            self._on_component_error(error)

    def _on_component_error(self, error: Exception) -> None:
        self.stats.component_errors += 1
        try:
            self.server.component.on_error(self, error)
        except Exception:
            log.failure("on_error failed for {reason} on {connection_id}", reason=repr(error), connection_id=self.id)
            self._close(CloseCode.INTERNAL_ERROR.value, b"internal error")

    # hooks of `FrameWriter`

    def _on_progress(self) -> None:
        self._protocol.received_since_ping = True

    def _on_socket_error(self) -> None:
        self.abort()

    def _on_slow_consumer(self) -> None:
        self.stats.slow_consumers += 1
        self.disconnect_reason = "slow consumer"
        self._drop_unsent_frames()
        self._close(CloseCode.SLOW_CONSUMER.value, b"too slow: reconnect and recover")

    def _on_stream_error(self, error: Exception) -> None:
        self._on_component_error(error)

    # calls of `WsProtocol`

    def _stop_sending(self) -> None:
        """Send nothing more: no frame may follow a close frame (RFC 6455 §5.5.1)."""
        self._set_socket(None)

    def _drop_unsent_frames(self) -> None:
        if self.broadcasts is not None and self.broadcasts.active:
            self.broadcasts.take_frames(self)
        if self._send_queue is not None:
            self._send_queue.drop_unsent_frames()

    def _disconnect(self, abort: bool) -> None:
        """Close the transport.

        :param abort: drop queued data. Otherwise close when it has been sent.
        """
        self._set_socket(None)
        transport = self.transport
        if transport is None:
            return
        if abort:
            if self._send_queue is not None:
                self._send_queue.clear()
            transport.abortConnection()
        elif self._send_queue is None:
            transport.loseConnection()
        elif self._send_queue.idle:
            # TLS sends close_notify only without a producer
            transport.unregisterProducer()
            transport.loseConnection()
        else:
            self._send_queue.closing = True
