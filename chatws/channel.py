"""Messages between two processes of one server, over a socket pair: four bytes of length, big-endian, then the message.

What a message means is not known here. Both ends are of the same version, for one started the other.
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

__all__ = ["Channel", "framed", "take_over"]

_LENGTH = Struct(">I")
#: Bytes given to the transport at a time.
PIECE = 65536


def framed(message: bytes) -> bytes:
    """The message as it goes over the wire, to be sent to several ends."""
    return _LENGTH.pack(len(message)) + message


@implementer(IProtocol, IPullProducer)
class Channel:
    """One end. What the other end does not read is held here and counted, and holding it back is for the owner.

    The socket is given what is sent directly, as it has room for it almost always; the transport, which would ask the
    reactor first, only gets what is left, piece by piece.

    :param receive: called with the messages of each read, one or more. What it raises is logged, and breaks the
        connection.
    :param lost: called once, when the connection has ended, from whichever side.
    :param moved: called when the other end has read what was held here, or a part of it.
    :ivar unsent: bytes held back because the other end does not read.
    :ivar sent: bytes given to the socket so far: grows as long as the other end reads.
    :ivar connected: whether there is another end.
    """

    _log = Logger()

    def __init__(
        self,
        receive: Callable[[list[bytes]], None],
        lost: Callable[[], None],
        moved: Callable[[], None] | None = None,
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._moved = moved
        self._buffer = bytearray()
        self._transport: Any = None
        self._socket: Any = None
        self._queueing = False  # the transport has something to send, so that nothing may be sent past it
        self._held: deque[memoryview] = deque()
        self.connected = False
        self.unsent = 0
        self.sent = 0

    # Messages

    def send(self, message: bytes) -> None:
        """Send one message, after those before it; nothing, once the connection has ended."""
        self.send_framed(framed(message))

    def send_framed(self, data: bytes) -> None:
        """Send what `framed` has returned, or several such."""
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
        except OSError:  # there is no other end any more: the transport is about to hear of it
            return
        self.sent += sent
        if sent < len(data):
            self._held.append(memoryview(data)[sent:])
            self.unsent += len(data) - sent
            self._queueing = True
            self._transport.registerProducer(self, False)

    def close(self) -> None:
        """End the connection when everything is sent."""
        if self._transport is not None:
            self._transport.loseConnection()

    def abort(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abortConnection()

    def pause(self) -> None:
        """Read nothing more until `resume`."""
        if self.connected:
            self._transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self.connected:
            self._transport.resumeProducing()

    # IPullProducer, for the transport: it has sent what it had

    def resumeProducing(self) -> None:
        """See `IPullProducer`."""
        if not self._held:
            self._queueing = False
            self._transport.unregisterProducer()
            return
        first = self._held.popleft()
        piece = bytes(first[:PIECE])
        if len(first) > PIECE:
            self._held.appendleft(first[PIECE:])
        self.unsent -= len(piece)
        self.sent += len(piece)
        self._transport.write(piece)
        if self._moved is not None:
            self._moved()

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
            self._log.failure("A message between processes could not be dealt with")
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.connected = False
        self._held.clear()
        self.unsent = 0
        self._lost()


class _Once:
    """A factory for the one connection there is."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def buildProtocol(self, address: object) -> Channel:
        return self._channel


def take_over(reactor: Any, channel: Channel, descriptor: int) -> None:
    """Give a channel its end of a socket pair. The descriptor is taken over."""
    os.set_blocking(descriptor, False)
    reactor.adoptStreamConnection(descriptor, socket.AF_UNIX, _Once(channel))
    os.close(descriptor)
