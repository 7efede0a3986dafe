"""The send queue of a connection whose peer reads slowly.

The queue gives its data to the transport in chunks. The transport never holds more than `CHUNK_SIZE` bytes of it, and
the rest can be dropped when the peer turns out not to read at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol, TypeAlias

from twisted.internet.interfaces import IPullProducer, IPushProducer
from zope.interface import implementer

from chatws.interfaces import Transport
from chatws.net.sockets import replace_unsent, unsent_bytes
from chatws.server.frames import rest_of_frame

__all__ = ["CHUNK_SIZE", "SendQueue", "SendQueueOwner"]

#: Bytes given to a transport at a time: the size at which Twisted pauses producers (`FileDescriptor.bufferSize`).
CHUNK_SIZE = 65536

#: A part of complete frames: the frames, and where the part begins and ends in them.
_Part: TypeAlias = tuple[bytes, int, int]


class SendQueueOwner(Protocol):
    """The parts of a `FrameWriter` that its queue uses.

    :ivar send_buffer: bytes that may wait in the queue.
    """

    send_buffer: int

    @property
    def is_open(self) -> bool:
        """Whether the connection still accepts frames."""
        ...

    def _on_slow_consumer(self) -> None:
        """Handle a full queue: more than `send_buffer` bytes wait."""

    def _on_stream_error(self, error: Exception) -> None:
        """Handle an exception of a stream's iterator."""

    def _on_progress(self) -> None:
        """Handle progress: the peer has read some of the queued data."""

    def _on_drained(self) -> None:
        """Send directly again: everything in a pull producer's queue has been sent."""


@implementer(IPullProducer, IPushProducer)
class SendQueue:
    """Frames and streams that wait to be sent on one connection.

    On a plain socket the queue exists only while something waits. It is a pull producer: the transport asks for the
    next chunk when the last one has been sent. On other transports, such as TLS, the queue lives as long as the
    connection. It is a push producer: the transport pauses and resumes it.

    :param pull: register as a pull producer.

    :ivar queue: complete frames, joined or not, and streams. Only the first item may begin inside a frame. A stream
        yields complete frames, or None if it has none yet: then everything waits for `resume_stream`.
    :ivar size: bytes in the queue. They count against `send_buffer`.
    :ivar in_transport: bytes of the last chunk, which the transport of a pull producer has.
    :ivar closing: close the connection when everything has been sent.
    """

    __slots__ = (
        "_is_resuming",
        "_parts",
        "_remainder",
        "_waiting_stream",
        "closing",
        "in_transport",
        "is_paused",
        "is_pull_producer",
        "queue",
        "size",
        "transport",
        "writer",
    )

    def __init__(self, writer: SendQueueOwner, transport: Transport, pull: bool) -> None:
        self.writer = writer
        self.transport = transport
        self.is_pull_producer = pull
        self.is_paused = pull
        self.queue: deque[bytes | memoryview | Iterator[bytes | None]] = deque()
        self.size = 0
        self.in_transport = 0
        self.closing = False
        self._remainder: _Part | None = None  # the rest of an item that is longer than a chunk
        self._parts: list[_Part] = []  # of the chunk that is being made, or that a pull producer's transport has
        self._is_resuming = False
        self._waiting_stream: Iterator[bytes | None] | None = None  # the first item, which has no chunk yet

    @property
    def unsent(self) -> int:
        """Bytes known to wait, without streams."""
        remainder = self._remainder
        return self.size + self.in_transport + (0 if remainder is None else remainder[2] - remainder[1])

    @property
    def idle(self) -> bool:
        """Whether the queue is empty. The transport of a push producer may still hold data."""
        return not self.queue and self._remainder is None and not (self.is_pull_producer and self.in_transport)

    def add(self, frames: bytes) -> None:
        """Send complete frames after everything that waits."""
        if self.is_paused or self.queue or self._remainder is not None:
            self.queue.append(frames)
            self.size += len(frames)
            if self.size > self.writer.send_buffer and self.writer.is_open:
                self.writer._on_slow_consumer()
            if self.is_pull_producer and not self.in_transport and self.queue[0] is not self._waiting_stream:
                self._produce()  # the transport has nothing to send, so it asks for nothing
        else:
            self.transport.write(frames)

    def add_stream(self, chunks: Iterator[bytes | None]) -> None:
        """Send the chunks of a stream after everything that waits."""
        self.queue.append(chunks)
        if not self.is_paused:
            self._produce()

    def cancel_stream(self, chunks: Iterator[bytes | None]) -> None:
        """Drop a stream. What it has generated is still sent."""
        with suppress(ValueError):
            self.queue.remove(chunks)
        if self._waiting_stream is chunks:
            self._waiting_stream = None
            self.resume_stream()

    def resume_stream(self) -> None:
        """Ask the first stream again for a chunk, unless the transport has to ask first."""
        if not (self.in_transport if self.is_pull_producer else self.is_paused):
            self._produce()

    def drop_unsent_frames(self) -> None:
        """Drop everything except the rest of a frame whose first bytes have been sent.

        That includes what the transport of a pull producer has not sent. Other transports keep what they have: up to
        two chunks, which TLS has encrypted already.
        """
        rest = self._rest_of_frame()
        self.queue.clear()
        self.size = 0
        self._remainder = self._waiting_stream = None
        self._parts.clear()
        if self.in_transport:
            replace_unsent(self.transport, rest)
            self.in_transport = len(rest)
        elif rest:
            self.queue.append(rest)
            self.size = len(rest)

    def _rest_of_frame(self) -> bytes:
        """Return a copy of the rest of the frame whose first bytes have been sent."""
        sent = self.in_transport - unsent_bytes(self.transport) if self.in_transport else 0
        parts = [*self._parts]
        if self._remainder is not None:
            parts.append(self._remainder)
        elif self.queue and isinstance(self.queue[0], memoryview):
            parts.append(_part(self.queue[0]))
        for frames, start, end in parts:
            if sent < end - start:
                start += sent
                return frames[start : start + rest_of_frame(frames, start)]
            sent -= end - start
        return b""

    def clear(self) -> None:
        """Drop everything. The transport keeps what it has."""
        self.queue.clear()
        self._parts.clear()
        self._remainder = self._waiting_stream = None
        self.size = self.in_transport = 0
        self.is_paused = True

    def _next_item(self) -> _Part | None:
        """Remove and return the next bytes to send, or None if nothing waits."""
        if self._remainder is not None:
            item, self._remainder = self._remainder, None
            return item
        while self.queue:
            head = self.queue[0]
            if isinstance(head, (bytes, memoryview)):
                self.queue.popleft()
                self.size -= len(head)
                return _part(head)
            self._waiting_stream = None
            try:
                chunk = next(head)
            except StopIteration:
                # the iterator may have closed the connection, which drops the queue
                if self.queue and self.queue[0] is head:
                    self.queue.popleft()
            except Exception as error:
                if self.queue and self.queue[0] is head:
                    self.queue.popleft()
                self.writer._on_stream_error(error)
            else:
                if self.queue and self.queue[0] is head:
                    if chunk is None:
                        self._waiting_stream = head
                        break
                    if chunk:
                        return _part(chunk)
        return None

    def _next_chunk(self) -> bytes:
        parts = self._parts
        parts.clear()
        space = CHUNK_SIZE
        while space > 0:
            part = self._next_item()
            if part is None:
                break
            frames, start, end = part
            if end - start > space:
                self._remainder = (frames, start + space, end)
                end = start + space
            parts.append((frames, start, end))
            space -= end - start
        if len(parts) == 1 and parts[0][2] - parts[0][1] == len(parts[0][0]):
            return parts[0][0]
        return b"".join([memoryview(frames)[start:end] for frames, start, end in parts])

    def resumeProducing(self) -> None:
        """Give the transport the next chunk, or chunks until it pauses (`IPullProducer`, `IPushProducer`)."""
        if self._is_resuming:
            return
        if self.in_transport or not self.is_pull_producer:
            self.in_transport = 0
            self.writer._on_progress()
        if not self.is_pull_producer:
            self.is_paused = False
        self._produce()

    def _produce(self) -> None:
        if self._is_resuming:
            return
        self._is_resuming = True
        try:
            if self.is_pull_producer:
                chunk = self._next_chunk()
                if chunk:
                    self.in_transport = len(chunk)
                    self.transport.write(chunk)
                    return
                self._parts.clear()
                if self.queue:
                    return
                self.transport.unregisterProducer()
                self.writer._on_drained()
            else:
                while not self.is_paused:
                    chunk = self._next_chunk()
                    if not chunk:
                        break
                    self._parts.clear()
                    self.transport.write(chunk)
                if not self.idle:
                    return
        finally:
            self._is_resuming = False
        if self.closing:
            if not self.is_pull_producer:
                self.transport.unregisterProducer()  # TLS sends close_notify only without a producer
            self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """Stop: the transport's buffer is full (`IPushProducer`)."""
        self.is_paused = True

    def stopProducing(self) -> None:
        """Drop everything: the connection is closed (`IProducer`)."""
        self.clear()


def _part(item: bytes | memoryview) -> _Part:
    """Return an item as a part. A `memoryview` is the rest of complete frames."""
    if isinstance(item, bytes):
        return item, 0, len(item)
    frames = item.obj
    assert isinstance(frames, bytes)
    return frames, len(frames) - len(item), len(frames)
