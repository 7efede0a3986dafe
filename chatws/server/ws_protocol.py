"""Autobahn's server protocol, with its costs per connection taken away.

Framing, masking, the checks of RFC 6455 §5, UTF-8, the closing handshake and permessage-deflate are Autobahn's. What
is gone round, each for a reason found by measuring:

- `_connectionMade` copies some 25 options and as many initial values into every instance. Here they are attributes of
  the class (one subclass for each server, see `make_protocol_class`), and only what differs is set on the instance.
- `connectionMade`, `dataReceived`, `sendData` and `connectionLost` format a debug message for everything that passes,
  whether logged or not; `onMessageEnd` fires an event through a chain of futures.
- `processHandshake` parses the request; it has been parsed already (chatws.server.http_server).
- Timers: Autobahn has one per connection and purpose. Here one timer per connection stands in a wheel with all others.
- `__init__` makes two futures and a transport description that nobody reads.
- A short text message in one frame, as pages send them, costs Autobahn a dozen calls: it is unmasked here.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import TrafficStats
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.errors import CloseCode
from chatws.server.connection import WsConnection

if TYPE_CHECKING:
    from chatws.server.admission import Admission
    from chatws.server.wheel import Timer
    from chatws.server.ws_server import WsServer

__all__ = ["WsProtocol", "make_protocol_class"]

log = Logger()

_PING = b"\x89\x00"
#: The answer: an empty pong, masked, with four bytes of mask.
_PONG = b"\x8a\x80"
_PONG_SIZE = 6
#: Bytes read at a time. Twisted's 64 KiB can hold ten thousand messages, and nobody else is served meanwhile.
_READ = 8192
#: Pings and pongs that a peer may send between two of our pings.
_MAX_CONTROL_FRAMES = 1000


class _Silence:
    """Autobahn logs what its peers do wrong as warnings of ours: whoever can connect could fill a disk with them."""

    def _nothing(self, *arguments: object, **fields: object) -> None:
        pass

    debug = info = warn = trace = _nothing

    def error(self, message: str, *arguments: object, **fields: Any) -> None:
        log.error(message, **fields)


@implementer(IHalfCloseableProtocol)
class WsProtocol(WebSocketServerProtocol):
    """The protocol of one connection, from the end of the request head on.

    :ivar connection: what the component knows this by.
    :ivar gate: who counted this connection in and has to count it out, or None.
    :ivar heard: whether anything came from the peer since the last ping.
    """

    log = _Silence()
    server: WsServer

    transport: Any
    connection: WsConnection
    gate: Admission | None
    longest_short: int  # bytes of a text that is understood here: see make_protocol_class
    timer: Timer | None = None
    heard = False

    # what Autobahn's _connectionMade sets on every instance
    state = WebSocketServerProtocol.STATE_CONNECTING
    send_state = WebSocketServerProtocol.SEND_STATE_GROUND
    data = b""
    current_frame: Any = None
    current_frame_masker: Any = None
    control_frame_data: Any = None
    inside_message = False
    message_data: Any = None
    frame_data: Any = None
    send_queue: Any = ()
    triggered = False
    trackedTimings: Any = None
    wasMaxFramePayloadSizeExceeded = False
    wasMaxMessagePayloadSizeExceeded = False
    closedByMe = False
    failedByMe = False
    droppedByMe = False
    wasClean = False
    wasNotCleanReason: Any = None
    wasServerConnectionDropTimeout = False
    wasOpenHandshakeTimeout = False
    wasCloseHandshakeTimeout = False
    wasServingFlashSocketPolicyFile = False
    localCloseCode: Any = None
    localCloseReason: Any = None
    remoteCloseCode: Any = None
    remoteCloseReason: Any = None
    openHandshakeTimeoutCall = None
    closeHandshakeTimeoutCall = None
    autoPingTimeoutCall = None
    autoPingPending = None
    autoPingPendingCall = None
    websocket_version = 13
    _perMessageCompress: Any = None
    _fragments = 0
    _control_frames = 0
    _silence = 0.0  # seconds from the first ping that was not answered to the last
    _waits = False  # for its turn, in a storm
    _paused = False

    def __init__(self, transport: Any, gate: Admission | None) -> None:
        # not Autobahn's: see above
        self.transport = transport
        self.gate = gate

    @cached_property
    def utf8validator(self) -> Utf8Validator:  # type: ignore[override]  # an attribute of each instance there
        """Not before it is needed: what most connections say is understood without it."""
        return Utf8Validator()  # type: ignore[no-untyped-call]

    # opening

    def open(self, connection: WsConnection, response: bytes, rest: bytes) -> None:
        """Accept the handshake.

        :param response: the 101, complete.
        :param rest: what came behind the request head.
        """
        self.connection = connection
        server = self.server
        connection._attach(self.transport)
        if connection._socket is not None:
            self.transport.bufferSize = _READ
        connection._write(response)
        if self.state != self.STATE_CONNECTING:
            return  # reset while we answered
        self.state = self.STATE_OPEN
        server.connections.add(connection)
        server.stats.connections += 1
        server.stats.connections_now += 1
        if server.ping_interval:
            # not all at the same time, where all came at the same time
            spread = 1 - (connection.resource_id % 16) / 32
            self.timer = server.wheel.schedule(server.ping_interval * spread, self._ping)
        connection._call(server.component.on_open)
        if rest:
            self.dataReceived(rest)

    # receiving

    def dataReceived(self, data: bytes) -> None:
        self.heard = True
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
            self._onPong(b"")  # the answer to our ping: what most connections say most of the time
            return
        self.data = self.data + data if self.data else data
        if not self._waits:
            self._waits = True
            self.server.when_there_is_time(self._go_on)
        elif len(self.data) > _READ and not self._paused:
            self._paused = True
            self.transport.pauseProducing()

    def _go_on(self) -> None:
        """Understand what has come."""
        self._waits = False
        if self.state == self.STATE_CLOSED:
            return
        if self._paused:
            self._paused = False
            self.transport.resumeProducing()
        try:
            self._take_short_texts()
            if self.data and self.state != self.STATE_CLOSED:
                while self.processData() and self.state != self.STATE_CLOSED:
                    pass
        except Exception:
            # neither the peer's fault nor the component's
            log.failure("the WebSocket protocol failed on {connection}", connection=self.connection)
            self.data = b""
            self.sendCloseFrame(CloseCode.INTERNAL_ERROR.value, b"internal error")
            self.dropConnection(abort=False)
        if self.failedByMe and len(self.data) > 14:
            # Autobahn gave up in the middle of a frame: it will not find the next one
            self.data = b""
        if self.current_frame is None:
            self.current_frame_masker = None

    def _take_short_texts(self) -> None:
        """What pages mostly send: text messages of up to 125 bytes, each in one frame that has come whole. Whatever
        else it is, and whatever is wrong with it, is left in `data` to Autobahn."""
        data = self.data
        if self.inside_message or self.current_frame is not None:
            return
        server, connection = self.server, self.connection
        longest = self.longest_short
        start, end = 0, len(data)
        while end - start > 6 and data[start] == 0x81 and self.state == self.STATE_OPEN:
            length = data[start + 1] - 0x80
            after = start + 6 + length
            if not 0 < length <= longest or after > end:
                break
            mask = int.from_bytes((data[start + 2 : start + 6] * 32)[:length], "big")
            try:
                text = (int.from_bytes(data[start + 6 : after], "big") ^ mask).to_bytes(length, "big").decode()
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
            # some 40 KiB, and the next message needs a new one
            self._perMessageCompress._decompressor = None

    def _deliver(self, payload: bytes) -> None:
        server = self.server
        server.stats.messages_received += 1
        if not self.message_is_binary:
            # Autobahn has validated it
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

    # sending: all of it goes the connection's way, so that frames keep their order

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self.connection._write(data)

    def _ping(self) -> None:
        server = self.server
        self.heard = False
        self._control_frames = 0
        self.connection._write(_PING)
        if self.state != self.STATE_OPEN:
            return  # that was one frame too many for a slow reader
        patience = server.ping_timeout - self._silence
        self.timer = server.wheel.schedule(min(server.ping_interval, patience), self._look_for_life)

    def _look_for_life(self) -> None:
        """The time to answer is over, or that for another ping has come before."""
        server = self.server
        if self.heard:
            if self._silence:
                self._silence = 0.0
            if server.ping_interval > server.ping_timeout:
                self.timer = server.wheel.schedule(server.ping_interval - server.ping_timeout, self._ping)
            else:
                self._ping()
        elif server.ping_interval < server.ping_timeout - self._silence:
            self._silence += server.ping_interval
            self._ping()
        else:
            server.stats.dead_peers += 1
            self.connection.ended = "no answer to a ping"
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
        self.timer = self.server.wheel.schedule(self.server.close_timeout, self._close_is_due)

    def _close_is_due(self) -> None:
        """The peer has neither answered the close frame nor gone, or does not read what we still have for it."""
        self.timer = None
        self.abort()

    def abort(self) -> None:
        """Drop the connection, also when it is being let go already and that takes too long."""
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
        self.connection._disconnect(abort=True)

    def onCloseFrame(self, code: Any, reasonRaw: Any) -> bool | None:
        if self.state == self.STATE_OPEN:
            # it does not want to hear any more
            self.connection._cut()
        return bool(super().onCloseFrame(code, reasonRaw))

    def _fail_connection(self, code: int = 1001, reason: str = "going away") -> None:
        if self.failedByMe:
            # Autobahn closes the socket at the second mistake, which often is but the rest of the first: a reset may
            # then overtake the close frame. The peer's answer or `_close_is_due` will end it.
            return
        self.server.stats.protocol_errors += 1
        self.connection.ended = f"protocol error, {reason}"
        super()._fail_connection(code, reason)

    def dropConnection(self, abort: bool = False) -> None:
        if self.state == self.STATE_CLOSED:
            return
        self.droppedByMe = True
        self.state = self.STATE_CLOSED
        # Autobahn resets the connection even at the end of a proper closing handshake; a reset can overtake data
        self.connection._disconnect(abort and not self.wasClean)

    def readConnectionLost(self) -> None:
        """The peer has closed: so do we, now or, in a storm, between other work."""
        if not self._waits:
            self.state = self.STATE_CLOSED
            self.connection._use(None)
        self.server.when_there_is_time(self._peer_has_closed)

    def writeConnectionLost(self) -> None:
        """We never close one half alone."""

    def _peer_has_closed(self) -> None:
        if self.transport is not None:
            self.transport.connectionLost(connectionDone)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.connection._detach()  # before anything else: another connection may have the socket's number next
        if self.state == self.STATE_OPEN and not self.connection.ended:
            self.connection.ended = "the connection broke"
        self.state = self.STATE_CLOSED
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.gate is not None:
            self.gate.release(self.connection.remote_address)
            self.gate = None
        connection, server = self.connection, self.server
        self.transport = None
        if connection in server.connections:  # it is not, when it was lost while we answered the handshake
            server.connections.remove(connection)
            server.stats.connections_now -= 1
            connection._protocol = None
            server._lost(connection)
        connection._protocol = None


def make_protocol_class(server: WsServer, factory: WebSocketServerFactory) -> type[WsProtocol]:
    """A protocol class with the factory's options as attributes of the class."""
    options = {name: getattr(factory, name) for name in WebSocketServerProtocol.CONFIG_ATTRS}
    # a function, which as an attribute of a class would be a method
    options["perMessageCompressionAccept"] = staticmethod(options["perMessageCompressionAccept"])
    # counted into for all connections together, and read by nobody
    traffic = TrafficStats()  # type: ignore[no-untyped-call]
    own = {"CONFIG_ATTRS": (), "factory": factory, "server": server, "trafficStats": traffic}
    own["longest_short"] = min(options["maxMessagePayloadSize"] or 125, 125)
    return type("WsProtocol", (WsProtocol,), {**options, **own})
