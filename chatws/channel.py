"""Messages between two processes of one server, over a socket pair: four bytes of length, big-endian, then the message.

What a message means is not known here. Both ends are of the same version, for one started the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from struct import Struct
from typing import Any

from twisted.internet.interfaces import IProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["Channel", "framed"]

_LENGTH = Struct(">I")


def framed(message: bytes) -> bytes:
    """The message as it goes over the wire, to be sent to several ends."""
    return _LENGTH.pack(len(message)) + message


@implementer(IProtocol, IPushProducer)
class Channel:
    """One end. What the other end does not read is held here and counted, and holding it back is for the owner.

    :param receive: called with each message. What it raises is logged, and breaks the connection.
    :param lost: called once, when the connection has ended, from whichever side.
    :param moved: called when the other end has read what was held here, or a part of it.
    :ivar unsent: bytes held back because the other end does not read.
    :ivar sent: bytes given to the socket so far: grows as long as the other end reads.
    :ivar connected: whether there is another end.
    """

    _log = Logger()

    def __init__(
        self,
        receive: Callable[[bytes], None],
        lost: Callable[[], None],
        moved: Callable[[], None] | None = None,
    ) -> None:
        self._receive = receive
        self._lost = lost
        self._moved = moved
        self._buffer = bytearray()
        self._transport: Any = None
        self._blocked = False
        self._held: deque[bytes] = deque()
        self.connected = False
        self.unsent = 0
        self.sent = 0

    # Messages

    def send(self, message: bytes) -> None:
        """Send one message, after those before it; nothing, once the connection has ended."""
        self.send_framed(framed(message))

    def send_framed(self, data: bytes) -> None:
        """Send what `framed` has returned."""
        if not self.connected:
            return
        if self._blocked:
            self._held.append(data)
            self.unsent += len(data)
        else:
            self.sent += len(data)
            self._transport.write(data)

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

    # IPushProducer, for the transport: how much the kernel takes

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self._blocked = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self._blocked = False
        while self._held and not self._blocked:
            data = self._held.popleft()
            self.unsent -= len(data)
            self.sent += len(data)
            self._transport.write(data)
        if self._moved is not None:
            self._moved()

    def stopProducing(self) -> None:
        """See `IPushProducer`."""

    # IProtocol

    def makeConnection(self, transport: Any) -> None:
        """See `IProtocol`."""
        self._transport = transport
        self.connected = True
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        while self.connected and end - start >= 4:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if end - start - 4 < length:
                break
            message = bytes(buffer[start + 4 : start + 4 + length])
            start += 4 + length
            try:
                self._receive(message)
            except Exception:
                self._log.failure("A message between processes could not be dealt with")
                self.abort()
                return
        del buffer[:start]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.connected = False
        self._held.clear()
        self.unsent = 0
        self._lost()
