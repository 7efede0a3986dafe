"""The sending half of a connection.

Why `FrameWriter` does not call `transport.write`: that appends the bytes to a list and asks the reactor to report when
the socket is writable (one `epoll_ctl`). In the next turn the reactor joins the list, sends it, and removes the socket
from the watched ones (another `epoll_ctl`). A chat event almost always fits into the socket's buffer at once. So
`FrameWriter` sends it directly: one system call instead of three, and no second turn. `FrameWriter._socket` is set only
while that is allowed: the connection is open and nothing waits in its queue.

Data that a socket does not accept goes into the connection's `SendQueue`. Everything that a connection sends, including
Autobahn's pongs and close frames, goes through `FrameWriter._write` or the fan-out. So frames never interleave.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOBUFS, ENOMEM

from chatws.interfaces import Transport
from chatws.net.sockets import plain_socket
from chatws.server.broadcasts import Broadcasts
from chatws.server.io_uring import NULL_KEY, send_key
from chatws.server.recipients import invalidate_sockets
from chatws.server.send_queue import SendQueue
from chatws.server.server_stats import ServerStats

__all__ = ["FrameWriter"]


class FrameWriter:
    """The sending half of a connection. It sends complete frames, and never a part of one.

    :ivar transport: the connection's transport, or None once the connection is closed.
    :ivar _compress: turns plain frames into compressed ones, or None. Set it before `transport`.
    :ivar _socket: the socket that frames may be sent to directly, or None.
    :ivar _key: the same for a `Ring`. `NULL_KEY` if `_socket` is None or frames are compressed.
    :cvar send_buffer: bytes that may wait to be sent.
    :cvar broadcasts: have frames for this connection that go before everything else, or None.
    """

    __slots__ = ("_compress", "_key", "_send_queue", "_socket", "transport")

    send_buffer: int = 1048576
    stats: ServerStats
    broadcasts: Broadcasts | None = None

    transport: Transport | None
    _socket: socket.socket | None
    _key: int
    _send_queue: SendQueue | None
    _compress: Callable[[bytes], bytes] | None

    @property
    def is_open(self) -> bool:
        """Whether the connection still accepts frames."""
        raise NotImplementedError

    @property
    def unsent(self) -> int:
        """Bytes that the socket has not accepted yet."""
        return 0 if self._send_queue is None else self._send_queue.unsent

    @property
    def has_backlog(self) -> bool:
        """Whether something waits to be sent, so that new data waits behind it."""
        queue = self._send_queue
        return queue is not None and (queue.is_paused or not queue.idle)

    def send_frames(self, frames: bytes) -> None:
        """Send complete frames, joined. Ignored if the connection is not open."""
        if self._socket is not None or self.is_open:
            self._write(frames if self._compress is None else self._compress(frames))

    def stream(self, chunks: Iterator[bytes | None]) -> None:
        """Send frames that are generated as the peer reads them. Ignored if the connection is not open.

        The next chunk is generated when the last one has been sent. Data that is sent meanwhile waits behind, in order,
        and counts against the send buffer. The chunks do not count and are never compressed: each has one recipient.
        None in place of a chunk lets everything wait until `resume_stream`.
        An exception from `chunks` goes to the component's `on_error` and ends the stream.
        """
        if not self.is_open:
            return
        if self.broadcasts is not None and self.broadcasts.active:
            self._write(b"")  # what waits goes before
        if self._send_queue is None:
            self._start_queue(chunks)
        else:
            self._send_queue.add_stream(chunks)

    def cancel_stream(self, chunks: Iterator[bytes | None]) -> None:
        """Drop a stream. What it has generated is still sent."""
        if self._send_queue is not None:
            self._send_queue.cancel_stream(chunks)

    def resume_stream(self) -> None:
        """Ask a stream that has yielded None for its next chunk."""
        if self._send_queue is not None:
            self._send_queue.resume_stream()

    def _attach(self, transport: Transport) -> None:
        self.transport = transport
        self._send_queue = None
        # other transports (TLS, a proxy's wrapper, one in memory) have a buffer of their own, and pause the queue
        self._assign_socket(plain_socket(transport))
        if self._socket is None:
            self._send_queue = SendQueue(self, transport, pull=False)
            transport.registerProducer(self._send_queue, True)
            if hasattr(transport.getPeer(), "port") and hasattr(transport, "setTcpNoDelay"):
                transport.setTcpNoDelay(True)
        else:
            # without Nagle's algorithm (RFC 9293 §3.7.4), which delays an event. Unix sockets do not have the option
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _write(self, frames: bytes) -> None:
        """Send complete frames, whether or not the connection counts as open. Ignored after a close frame."""
        if self.broadcasts is not None and self.broadcasts.active:
            waiting = self.broadcasts.take_frames(self)
            if waiting:
                frames = (waiting if self._compress is None else self._compress(waiting)) + frames
            if not frames:
                return
        sock = self._socket
        if sock is not None:
            try:
                sent = sock.send(frames)
            except OSError as error:
                self._on_send_error(error, frames)
                return
            if sent != len(frames):
                self._enqueue_rest(frames, sent)
        elif self._send_queue is not None:
            self._send_queue.add(frames)
        else:
            return
        self.stats.sends += 1
        self.stats.bytes_sent += len(frames)

    def _set_socket(self, sock: socket.socket | None) -> None:
        """Send directly to `sock` from now on. None: no longer send directly."""
        if sock is not self._socket:
            self._assign_socket(sock)
            invalidate_sockets()

    def _assign_socket(self, sock: socket.socket | None) -> None:
        self._socket = sock
        self._key = NULL_KEY if sock is None or self._compress is not None else send_key(sock)

    def _enqueue_rest(self, frames: bytes, sent: int) -> None:
        """Queue the rest of `frames`: the socket has accepted only `sent` bytes."""
        self._start_queue(memoryview(frames)[sent:] if sent else frames)

    def _start_queue(self, first: bytes | memoryview | Iterator[bytes | None]) -> None:
        self._set_socket(None)
        transport = self.transport
        assert transport is not None, "the connection is open"
        queue = self._send_queue = SendQueue(self, transport, pull=True)
        queue.queue.append(first)
        if isinstance(first, (bytes, memoryview)):
            queue.size += len(first)
        transport.registerProducer(queue, False)  # asks for the first chunk immediately

    def _on_send_error(self, error: OSError, frames: bytes) -> None:
        if isinstance(error, (BlockingIOError, InterruptedError)) or error.errno in (ENOBUFS, ENOMEM):
            self._start_queue(frames)
        else:
            # a reset or a broken pipe: only this connection is affected
            self._set_socket(None)
            self._on_socket_error()

    def _on_drained(self) -> None:
        """Send directly again: the queue is empty."""
        self._send_queue = None
        if self.is_open:
            self._set_socket(plain_socket(self.transport))

    def _on_progress(self) -> None:
        """Handle progress: the peer has read some of the queued data."""

    def _on_socket_error(self) -> None:
        """Handle a broken socket."""
        raise NotImplementedError

    def _on_slow_consumer(self) -> None:
        """Handle a full queue: more than `send_buffer` bytes wait."""
        raise NotImplementedError

    def _on_stream_error(self, error: Exception) -> None:
        """Handle an exception of a stream's iterator."""
        raise NotImplementedError

    def _detach(self) -> None:
        """Forget the transport: it is closed."""
        self._set_socket(None)
        self.transport = None
        if self._send_queue is not None:
            self._send_queue.clear()
            self._send_queue = None
