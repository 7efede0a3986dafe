"""Messages between two processes of one server, over a socket pair: four bytes of length, big-endian, then the message.

This module does not interpret messages. Both ends have the same version of chatws, because one started the other.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from twisted.internet.interfaces import IProtocol, IPullProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.interfaces import Reactor, Transport

__all__ = ["IpcConnection", "adopt_socket", "encode_frame"]

_LENGTH = Struct(">I")
#: Bytes given to the transport at a time, so that `unsent` shows progress while a large frame is sent. 64 KiB is what
#: Twisted reads from a socket at a time.
CHUNK_SIZE = 65536


def encode_frame(message: bytes) -> bytes:
    """Return the message with its length, for `send_framed`. One frame may be sent to several connections."""
    return _LENGTH.pack(len(message)) + message


@implementer(IProtocol, IPullProducer)
class IpcConnection:
    """One end of the connection. Bytes that the other end does not read are held and counted; the owner limits them.

    `send` writes to the socket directly, because it almost always has room. The transport, which waits for the reactor
    first, gets only the rest, in chunks.

    :param receive: called with the messages of each read, one or more. What it raises is logged, and breaks the
        connection.
    :param lost: called once, when the connection has ended, from whichever side.
    :param on_drained: called when the other end has read held bytes.
    :ivar unsent: bytes held because the other end does not read.
    :ivar sent: bytes given to the socket so far. It grows while the other end reads.
    :ivar connected: whether the connection is open.
    """

    _log = Logger()
    _socket: socket.socket  # once connected

    def __init__(
        self,
        receive: Callable[[list[bytes]], None],
        lost: Callable[[], None],
        on_drained: Callable[[], None] | None = None,
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._on_drained = on_drained
        self._buffer = bytearray()
        self._transport: Transport | None = None
        self._queueing = False  # the transport has unsent bytes, which must go first
        self._held: deque[memoryview] = deque()
        self.connected = False
        self.unsent = 0
        self.sent = 0

    # Messages

    def send(self, message: bytes) -> None:
        """Send one message, unless the connection has ended."""
        self.send_framed(encode_frame(message))

    def send_framed(self, data: bytes) -> None:
        """Send one or more frames of `encode_frame`."""
        if not self.connected:
            return
        if self._queueing:
            self._held.append(memoryview(data))
            self.unsent += len(data)
            return
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # the other end is gone: connectionLost is about to be called
            return
        self.sent += sent
        if sent < len(data):
            self._held.append(memoryview(data)[sent:])
            self.unsent += len(data) - sent
            self._queueing = True
            assert self._transport is not None
            self._transport.registerProducer(self, False)

    def close(self) -> None:
        """Close the connection after everything was sent."""
        if self._transport is not None:
            self._transport.loseConnection()

    def abort(self) -> None:
        """Close the connection now."""
        if self._transport is not None:
            self._transport.abortConnection()

    def pause(self) -> None:
        """Stop reading until `resume`."""
        if self._transport is not None and self.connected:
            self._transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        if self._transport is not None and self.connected:
            self._transport.resumeProducing()

    # IPullProducer: the transport has sent its bytes

    def resumeProducing(self) -> None:
        """See `IPullProducer`."""
        assert self._transport is not None
        if not self._held:
            self._queueing = False
            self._transport.unregisterProducer()
            return
        first = self._held.popleft()
        chunk = bytes(first[:CHUNK_SIZE])
        if len(first) > CHUNK_SIZE:
            self._held.appendleft(first[CHUNK_SIZE:])
        self.unsent -= len(chunk)
        self.sent += len(chunk)
        self._transport.write(chunk)
        if self._on_drained is not None:
            self._on_drained()

    def stopProducing(self) -> None:
        """See `IPullProducer`."""

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        """See `IProtocol`."""
        self._transport = transport
        self._socket = transport.getHandle()
        self.connected = True

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        kept = self._buffer
        if kept:
            kept += data
        buffer: bytes | bytearray = kept or data
        messages: list[bytes] = []
        start, end = 0, len(buffer)
        while end - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if end - start - 4 < length:
                break
            messages.append(bytes(buffer[start + 4 : start + 4 + length]))
            start += 4 + length
        if kept:
            del kept[:start]
        else:
            kept += data[start:]
        if not messages:
            return
        try:
            self._receive(messages)
        except Exception:
            self._log.failure("processing a message between processes failed")
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.connected = False
        self._held.clear()
        self.unsent = 0
        self._lost()


class _SingleProtocolFactory:
    """A factory for one existing connection."""

    def __init__(self, channel: IpcConnection) -> None:
        self._channel = channel

    def buildProtocol(self, address: object) -> IpcConnection:
        return self._channel


def adopt_socket(reactor: Reactor, channel: IpcConnection, descriptor: int) -> None:
    """Give a connection its end of a socket pair. The descriptor then belongs to the reactor."""
    os.set_blocking(descriptor, False)
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _SingleProtocolFactory(channel))
    os.close(descriptor)
