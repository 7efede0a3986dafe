"""Autobahn's server protocol, at a lower cost for each connection.

Autobahn does the framing, the masking, the checks of RFC 6455 §5, UTF-8, the closing handshake and permessage-deflate.
These parts of it are replaced, each because a measurement showed its cost:

- The state of a connection: see `chatws.server.autobahn_base`.
- `connectionMade`, `dataReceived`, `sendData` and `connectionLost` format a debug message for all data, even if it is
  not logged. `onMessageEnd` fires an event through a chain of futures.
- `processHandshake` parses the request, which `chatws.server.http_server` has parsed already.
- Autobahn has one timer for each connection and purpose. Here each connection has one timer, in a `TimerWheel`.
- A short text message in one frame, which pages send most, costs Autobahn a dozen calls. It is unmasked here.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.errors import CloseCode
from chatws.interfaces import TcpTransport
from chatws.server.admission import Admission
from chatws.server.autobahn_base import AutobahnBase
from chatws.server.connection import CLOSED_PROTOCOL, ConnectionOwner, WsConnection
from chatws.server.timer_wheel import Timer

__all__ = ["WsProtocol"]

log = Logger()

#: A ping without a payload (RFC 6455 §5.5.2).
_PING = b"\x89\x00"
#: The start of its answer: an empty masked pong, which four bytes of mask follow.
_PONG = b"\x8a\x80"
_PONG_SIZE = 6
#: The first byte of a text message in one frame.
_TEXT = 0x81
#: Bytes before the payload of a client's short frame: two, and four bytes of mask.
_SHORT_HEADER = 6
#: Bytes before the payload of a client's longest frame (RFC 6455 §5.2).
_MAX_HEADER = 14
#: Bytes read at a time. Twisted's 64 KiB can hold ten thousand messages, during which no other connection is served.
_READ_SIZE = 8192
#: Pings and pongs that a peer may send between two pings of the server. Browsers send one for each; a flood of empty
#: frames costs a peer little and the server much.
_MAX_CONTROL_FRAMES = 1000
#: The first pings are spread over half the interval, in so many steps: clients that connect at once answer in turns.
_PING_STEPS = 16


@implementer(IHalfCloseableProtocol)
class WsProtocol(AutobahnBase):
    """The protocol of one connection, from the end of the request head on.

    :ivar connection: the connection as the component sees it.
    :ivar admission: counts this connection until it is closed, or None.
    :ivar received_since_ping: whether any data came from the peer since the last ping.
    """

    server: ConnectionOwner

    transport: TcpTransport  # type: ignore[assignment]  # a zope interface in Twisted, and None once it is lost
    connection: WsConnection
    admission: Admission | None
    timer: Timer | None = None
    received_since_ping = False

    _opened_at = 0.0
    _fragments = 0
    _control_frames = 0
    _unanswered_for = 0.0  # seconds from the first unanswered ping to the last
    _is_deferred = False  # `_process_buffer` will be called, see `WsServer.run_or_defer`
    _transport_paused = False
    _reading_paused = False  # by the component

    def __init__(self, transport: TcpTransport, admission: Admission | None) -> None:
        super().__init__()
        self.transport = transport
        self.admission = admission

    # opening

    def open(self, connection: WsConnection, response: bytes, rest: bytes) -> None:
        """Accept the handshake.

        :param response: the complete 101 response.
        :param rest: the data that followed the request head.
        """
        self.connection = connection
        server = self.server
        connection._attach(self.transport)
        if connection._socket is not None:
            self.transport.bufferSize = _READ_SIZE
        connection._write(response)
        if self.state != self.STATE_CONNECTING:
            return  # the socket broke
        self.state = self.STATE_OPEN
        self._opened_at = server.idle_limits.now()
        server.connections.add(connection)
        server.stats.connections += 1
        server.stats.connections_now += 1
        if server.ping_interval:
            spread = 1 - (connection.resource_id % _PING_STEPS) / (2 * _PING_STEPS)
            self.timer = server.timer_wheel.schedule(server.ping_interval * spread, self._ping)
        connection._call(server.component.on_open)
        if rest:
            self.dataReceived(rest)

    # receiving

    def dataReceived(self, data: bytes) -> None:
        self.received_since_ping = True
        if self.state == self.STATE_CLOSED:
            return
        self.server.stats.bytes_received += len(data)
        if (
            len(data) == _PONG_SIZE
            and data.startswith(_PONG)
            and not self.data
            and self.current_frame is None
            and self.state == self.STATE_OPEN
        ):
            self._onPong(b"")  # an answer to a ping, which most connections send most of the time
            return
        self.data = self.data + data if self.data else data
        if not self._is_deferred:
            self._is_deferred = True
            self.server.run_or_defer(self._process_buffer)
        elif len(self.data) > _READ_SIZE and not self._transport_paused:
            self._transport_paused = True
            self.transport.pauseProducing()

    def _process_buffer(self) -> None:
        """Parse the received data."""
        if self.state == self.STATE_CLOSED or self._reading_paused:
            self._is_deferred = False
            return
        try:
            self._parse_short_text_frames()
            if self.data and self.state != self.STATE_CLOSED:
                while not self._reading_paused and self.processData() and self.state != self.STATE_CLOSED:
                    pass
        except Exception:
            # a bug: errors of the peer and of the component are handled where they occur
            log.failure("parsing WebSocket data of {connection_id} failed", connection_id=self.connection.id)
            self.data = b""
            self.sendCloseFrame(CloseCode.INTERNAL_ERROR.value, b"internal error")
            self.dropConnection(abort=False)
        if self.failedByMe and len(self.data) > _MAX_HEADER:
            # Autobahn stopped inside a frame and cannot find the next one
            self.data = b""
        if self.current_frame is None:
            self.current_frame_masker = None
        self._is_deferred = False  # not earlier: if a callback resumes reading, the loops above parse what it resumes
        if self._transport_paused and not self._reading_paused and self.state != self.STATE_CLOSED:
            self._transport_paused = False
            self.transport.resumeProducing()

    def pause_reading(self) -> None:
        """Give the component no messages until `resume_reading`; see `chatws.server.component.Connection`."""
        if self.state == self.STATE_OPEN:
            self._reading_paused = True
            if not self._transport_paused:
                self._transport_paused = True
                self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Parse what has been received already, then read again."""
        if not self._reading_paused:
            return
        self._reading_paused = False
        # data that is read now may have come before the last ping
        self.received_since_ping = True
        if not self._is_deferred and self.state != self.STATE_CLOSED:
            self._is_deferred = True
            self.server.run_or_defer(self._process_buffer)

    def _parse_short_text_frames(self) -> None:
        """Parse text messages of up to `max_short_text` bytes, each in one complete frame, as pages mostly send them.

        It stops at anything else and at any error, which Autobahn parses.
        """
        data = self.data
        if self.inside_message or self.current_frame is not None:
            return
        server, connection = self.server, self.connection
        max_length = self.max_short_text
        start, end = 0, len(data)
        while (
            end - start > _SHORT_HEADER
            and data[start] == _TEXT
            and self.state == self.STATE_OPEN
            and not self._reading_paused
        ):
            length = data[start + 1] - 0x80
            after = start + _SHORT_HEADER + length
            if not 0 < length <= max_length or after > end:
                break
            mask = int.from_bytes((data[start + 2 : start + _SHORT_HEADER] * 32)[:length], "big")
            payload = int.from_bytes(data[start + _SHORT_HEADER : after], "big") ^ mask
            try:
                text = payload.to_bytes(length, "big").decode()
            except UnicodeDecodeError:
                break
            start = after
            server.stats.messages_received += 1
            connection._call(server.component.on_message, text)
        if start:
            self.data = data[start:]

    def _onMessageBegin(self, isBinary: bool) -> None:
        self._fragments = 0
        self.onMessageBegin(isBinary)

    def _onMessageFrameBegin(self, length: int) -> None:
        self._fragments += 1
        self.onMessageFrameBegin(length)
        if self._fragments > self.server.max_fragments and not self.failedByMe:
            self._fail_connection(1009, "too many fragments")

    def onMessageEnd(self) -> None:
        if not self.failedByMe and self.state == self.STATE_OPEN:
            self._deliver(b"".join(self.message_data))
        self.message_data = None
        if self._perMessageCompress is not None:
            # some 40 KiB. Without context takeover the next message needs a new one
            self._perMessageCompress._decompressor = None

    def _deliver(self, payload: bytes) -> None:
        server = self.server
        server.stats.messages_received += 1
        if not self.message_is_binary:
            # Autobahn has checked that it is UTF-8
            self.connection._call(server.component.on_message, payload.decode("utf-8", "replace"))
        elif server.on_binary is not None:
            self.connection._call(server.on_binary, payload)
        else:
            self.sendCloseFrame(1003, b"binary messages are not supported")

    def _onPing(self, payload: bytes) -> None:
        self._count_control_frame()
        self.onPing(payload)

    def _onPong(self, payload: bytes) -> None:
        self._count_control_frame()

    def _count_control_frame(self) -> None:
        self._control_frames += 1
        if self._control_frames > _MAX_CONTROL_FRAMES and self.server.ping_interval and self.state == self.STATE_OPEN:
            self._fail_connection(CloseCode.TOO_MANY_ERRORS.value, "too many pings")

    # sending: everything goes through the connection, so that frames keep their order

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self.connection._write(data)

    def _ping(self) -> None:
        server = self.server
        self.received_since_ping = False
        self._control_frames = 0
        self.connection._write(_PING)
        if self.state != self.STATE_OPEN:
            return  # the ping made the send queue too long
        remaining = server.ping_timeout - self._unanswered_for
        self.timer = server.timer_wheel.schedule(min(server.ping_interval, remaining), self._check_pong)

    def _check_pong(self) -> None:
        """Ping again, or drop the connection if nothing came from the peer for `ping_timeout` seconds."""
        server = self.server
        if self.received_since_ping or self._reading_paused:
            if self._unanswered_for:
                self._unanswered_for = 0.0
            if server.ping_interval > server.ping_timeout:
                self.timer = server.timer_wheel.schedule(server.ping_interval - server.ping_timeout, self._ping)
            else:
                self._ping()
        elif server.ping_interval < server.ping_timeout - self._unanswered_for:
            self._unanswered_for += server.ping_interval
            self._ping()
        else:
            server.stats.dead_peers += 1
            self.connection.disconnect_reason = "no answer to a ping"
            self.timer = None
            self.abort()

    # closing

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        if self.state != self.STATE_OPEN:
            return
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self.connection._stop_sending()
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.server.timer_wheel.schedule(self.server.close_timeout, self._on_close_timeout)
        self.resume_reading()  # for the peer's close frame

    def _on_close_timeout(self) -> None:
        """Drop the connection: the peer did not answer the close frame, or does not read the queued data."""
        self.timer = None
        self.abort()

    def abort(self) -> None:
        """Drop the connection, even if it is being closed already."""
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
        self.connection._disconnect(abort=True)

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> bool | None:
        if self.state == self.STATE_OPEN:
            # the peer does not want the queued messages
            self.connection._drop_unsent_frames()
        return bool(super().onCloseFrame(code, reasonRaw))

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        if self.failedByMe:
            # Autobahn resets the connection at the second error, which often is a part of the first. The reset may
            # overtake the close frame. The peer's close frame or `_on_close_timeout` ends the connection.
            return
        self.server.stats.protocol_errors += 1
        self.connection.disconnect_reason = f"protocol error, {reason}"
        super()._fail_connection(code, reason)

    def dropConnection(self, abort: bool = False) -> None:
        if self.state == self.STATE_CLOSED:
            return
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
        # Autobahn resets the connection even after a complete closing handshake. A reset can overtake data.
        self.connection._disconnect(abort and not self.wasClean)

    def readConnectionLost(self) -> None:
        """Close: the peer has closed its side. Deferred in a disconnect burst."""
        if not self._is_deferred:
            if self.state == self.STATE_OPEN:
                self.server.idle_limits.ended(self._opened_at)
            self.state = self.STATE_CLOSED
            self.connection._set_socket(None)
        self.server.run_or_defer(self._on_peer_closed)

    def writeConnectionLost(self) -> None:
        """Do nothing: the server never closes only its own side."""

    def _on_peer_closed(self) -> None:
        if self.transport is not None:
            self.transport.connectionLost(connectionDone)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        connection, server = self.connection, self.server
        connection._detach()  # first: another connection may get the socket's number
        if self.state == self.STATE_OPEN and not connection.disconnect_reason:
            connection.disconnect_reason = "the connection broke"
            server.idle_limits.ended(self._opened_at)
        self.state = self.STATE_CLOSED
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.admission is not None:
            self.admission.release(connection.remote_address)
            self.admission = None
        self.transport = None  # type: ignore[assignment]
        connection._protocol = CLOSED_PROTOCOL
        if connection in server.connections:  # not if the socket broke during the handshake
            server.connections.remove(connection)
            server.stats.connections_now -= 1
            server.connection_lost(connection)
