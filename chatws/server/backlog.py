"""What a connection could not be given yet, because its peer reads slowly.

It goes to the transport piece by piece: so the transport never holds more than `PIECE` bytes, and what it does not hold
can be dropped again when the peer turns out not to read at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer

from chatws.server.frames import rest_of_frame

if TYPE_CHECKING:
    from chatws.server.writer import Writer

__all__ = ["PIECE", "Backlog"]

#: Bytes given to a transport at a time: what Twisted too takes for a full buffer.
PIECE = 65536


@implementer(IPullProducer, IPushProducer)
class Backlog:
    """What one connection could not be given yet.

    On a plain socket it exists only while something waits, and is asked for the next piece when the last one has
    left (a pull producer). On other transports it lives as long as the connection, and is told when to pause.

    :ivar queue: whole frames, joined or not, but for the very first, which may begin inside one; and streams.
    :ivar size: bytes in the queue: what is held against the limit.
    :ivar handed: bytes that the transport has, of the last piece.
    :ivar closing: lose the connection when all has left.
    """

    __slots__ = ("_busy", "_current", "closing", "handed", "paused", "pull", "queue", "size", "transport", "writer")

    def __init__(self, writer: Writer, transport: Any, paused: bool) -> None:
        self.writer = writer
        self.transport = transport
        self.pull = paused
        self.paused = paused
        self.queue: deque[bytes | memoryview | Iterator[bytes]] = deque()
        self.size = 0
        self.handed = 0
        self.closing = False
        self._current: memoryview | None = None  # the rest of a blob too long for one piece
        self._busy = False

    @property
    def unsent(self) -> int:
        """Bytes known to wait, streams left out."""
        return self.size + self.handed + (0 if self._current is None else len(self._current))

    @property
    def idle(self) -> bool:
        """Whether nothing waits here (a transport that pauses us may still hold something)."""
        return not self.queue and self._current is None and not (self.pull and self.handed)

    def add(self, frames: bytes) -> None:
        """Send complete frames after all that waits."""
        if self.paused or self.queue or self._current is not None:
            self.queue.append(frames)
            self.size += len(frames)
            if self.size > self.writer.send_buffer and self.writer.is_open:
                self.writer._too_slow()
        else:
            self.transport.write(frames)

    def add_stream(self, chunks: Iterator[bytes]) -> None:
        """Send the chunks of a stream after all that waits."""
        self.queue.append(chunks)
        if not self.paused:
            self.resumeProducing()

    def cut(self) -> None:
        """Drop all but the rest of a frame that has been begun."""
        current = self._current
        if current is None and self.queue and isinstance(self.queue[0], memoryview):
            current = self.queue[0]
        self.queue.clear()
        self.size = 0
        self._current = None
        if current is not None:
            frames = current.obj
            assert isinstance(frames, bytes)
            rest = rest_of_frame(frames, len(frames) - len(current))
            if rest:
                # a copy: the rest of the blob need not be kept for it
                self.queue.append(bytes(current[:rest]))
                self.size = rest

    def drop(self) -> None:
        """Drop everything; what the transport holds is the transport's."""
        self.queue.clear()
        self._current = None
        self.size = self.handed = 0
        self.paused = True

    def _next_blob(self) -> memoryview | bytes | None:
        """The next thing to hand over, or None when there is nothing."""
        if self._current is not None:
            blob, self._current = self._current, None
            return blob
        while self.queue:
            head = self.queue[0]
            if isinstance(head, bytes | memoryview):
                self.queue.popleft()
                self.size -= len(head)
                return head
            try:
                chunk = next(head)
            except StopIteration:
                # the iterator may have had the connection closed, and the queue cut
                if self.queue and self.queue[0] is head:
                    self.queue.popleft()
            except Exception as error:
                if self.queue and self.queue[0] is head:
                    self.queue.popleft()
                self.writer._stream_failed(error)
            else:
                if chunk and self.queue and self.queue[0] is head:
                    return chunk
        return None

    def _next_piece(self) -> bytes:
        piece: list[bytes | memoryview] = []
        room = PIECE
        while room > 0:
            blob = self._next_blob()
            if blob is None:
                break
            if len(blob) > room:
                view = memoryview(blob)
                self._current = view[room:]
                blob = view[:room]
            piece.append(blob)
            room -= len(blob)
        return b"".join(piece)

    def resumeProducing(self) -> None:
        """The transport has room."""
        if self._busy:
            return
        self._busy = True
        try:
            if self.pull:
                if self.handed:
                    self.handed = 0
                    self.writer._progress()
                piece = self._next_piece()
                if piece:
                    self.handed = len(piece)
                    self.transport.write(piece)
                    return
                self.transport.unregisterProducer()
                self.writer._drained()
            else:
                self.paused = False
                self.writer._progress()
                while not self.paused:
                    piece = self._next_piece()
                    if not piece:
                        break
                    self.transport.write(piece)
                if not self.idle:
                    return
        finally:
            self._busy = False
        if self.closing:
            if not self.pull:
                self.transport.unregisterProducer()  # TLS says no goodbye before its producer has gone
            self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """The transport's buffer is full."""
        self.paused = True

    def stopProducing(self) -> None:
        """The connection is gone."""
        self.drop()
