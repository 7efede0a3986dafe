"""What a channel stands on, in this process: a socket that is full when it is told to be, and its transport."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import StringTransport

__all__ = ["FakePipe"]


class FakePipe(StringTransport):
    """A transport of a socket pair's end: what is sent, by it or past it, is in `value()` in the order of sending.

    :ivar room: how many bytes the socket still takes; None: all.
    """

    def __init__(self, room: int | None = None) -> None:
        super().__init__()
        self.room = room
        self._queued = b""
        self._pulled: Any = None

    # the socket

    def getHandle(self) -> FakePipe:
        return self

    def send(self, data: bytes) -> int:
        assert not self._queued, "sent past what waits"
        taken = len(data) if self.room is None else min(self.room, len(data))
        if not taken:
            raise BlockingIOError
        if self.room is not None:
            self.room -= taken
        super().write(bytes(data[:taken]))
        return taken

    # the transport

    def write(self, data: bytes) -> None:
        assert self._pulled is not None
        assert len(self._queued) <= 65536, "a transport is given a piece at a time"
        self._queued += data

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert not streaming
        assert self._pulled is None
        self._pulled = producer
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self._pulled = None

    def drain(self, room: int | None = None) -> None:
        """The other end has read: there is room for so much more."""
        self.room = room
        while self._pulled is not None and (self.room is None or self.room):
            taken = len(self._queued) if self.room is None else min(self.room, len(self._queued))
            super().write(self._queued[:taken])
            self._queued = self._queued[taken:]
            if self.room is not None:
                self.room -= taken
            if not self._queued:
                self._pulled.resumeProducing()
