"""The sending half of a connection.

Why it does not simply call `transport.write`: that puts the bytes into a list, asks the reactor to be told when the
socket is writable (one `epoll_ctl`), and returns; a turn later the reactor joins the list, sends, and asks not to be
told any more (another `epoll_ctl`). A chat's event almost always fits into the socket's buffer at once, so here the
socket is simply given it: one system call instead of three and no second turn. `Writer._socket` is the permission for
that: it is set only while the connection is open and nothing of its own waits to be sent.

What a socket does not take goes into the connection's `Backlog` (chatws.server.backlog). Everything that a connection
sends, Autobahn's pongs and close frames included, comes through `Writer._write` or the fan-out, so frames never cross.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENOBUFS, ENOMEM
from typing import Any

from chatws.server.backlog import Backlog
from chatws.server.io_uring import NOTHING, send_key
from chatws.server.recipients import sockets_have_changed
from chatws.server.stats import Stats
from chatws.sockets import plain_socket

__all__ = ["Writer"]


class Writer:
    """The sending half of a connection. What it knows of WebSocket is that a frame must not be torn.

    :ivar transport: where it goes; None once the connection is gone.
    :ivar _deflated: what makes compressed frames of plain ones, or None. Set before the transport is.
    :ivar _socket: what may be written to directly, or None.
    :ivar _key: the same for a `Ring`; `NOTHING` also where frames are compressed.
    :cvar send_buffer: bytes that may wait to be sent.
    """

    __slots__ = ("_backlog", "_deflated", "_key", "_socket", "transport")

    send_buffer: int = 1048576
    stats: Stats

    transport: Any
    _socket: socket.socket | None
    _key: int
    _backlog: Backlog | None
    _deflated: Callable[[bytes], bytes] | None

    @property
    def is_open(self) -> bool:
        """Whether frames are still taken."""
        raise NotImplementedError

    @property
    def unsent(self) -> int:
        """Bytes that the peer's side has not taken yet."""
        return 0 if self._backlog is None else self._backlog.unsent

    def send_frames(self, frames: bytes) -> None:
        """Send complete frames, joined. Ignored when the connection is no longer open."""
        if self._socket is not None or self.is_open:
            self._write(frames if self._deflated is None else self._deflated(frames))

    def stream(self, chunks: Iterator[bytes]) -> None:
        """Send frames that are made as the peer reads them.

        The next chunk is asked for when the last one has left. What is sent meanwhile waits behind, in order, and
        counts against the send buffer; the chunks do not, nor are they ever compressed: each is for one only. An
        exception out of `chunks` is the component's, and ends the stream.
        """
        if not self.is_open:
            return
        if self._backlog is None:
            self._hold(chunks)
        else:
            self._backlog.add_stream(chunks)

    def _attach(self, transport: Any) -> None:
        self.transport = transport
        self._backlog = None
        # a transport of another kind (TLS, a proxy's wrapper, one in memory) has a buffer that we cannot see into:
        # it tells by pausing us
        self._take(plain_socket(transport))
        if self._socket is None:
            self._backlog = Backlog(self, transport, paused=False)
            transport.registerProducer(self._backlog, True)
            if hasattr(transport.getPeer(), "port") and hasattr(transport, "setTcpNoDelay"):
                transport.setTcpNoDelay(True)
        else:
            # events are not kept back to be joined with later ones; a Unix socket knows nothing of that
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _write(self, frames: bytes) -> None:
        """Send complete frames, whether or not the connection counts as open."""
        direct = self._socket
        if direct is not None:
            try:
                sent = direct.send(frames)
            except OSError as error:
                self._send_failed(error, frames)
                return
            if sent != len(frames):
                self._hold_back(frames, sent)
        elif self._backlog is not None:
            self._backlog.add(frames)
        else:
            return  # nothing follows a close frame
        self.stats.sends += 1
        self.stats.bytes_sent += len(frames)

    def _use(self, direct: socket.socket | None) -> None:
        """Write to this socket from now on; or, with None, to none."""
        if direct is not self._socket:
            self._take(direct)
            sockets_have_changed()

    def _take(self, direct: socket.socket | None) -> None:
        self._socket = direct
        self._key = NOTHING if direct is None or self._deflated is not None else send_key(direct)

    def _hold_back(self, frames: bytes, sent: int) -> None:
        """The socket took only `sent` bytes of `frames`."""
        self._hold(memoryview(frames)[sent:] if sent else frames)

    def _hold(self, first: bytes | memoryview | Iterator[bytes]) -> None:
        self._use(None)
        backlog = self._backlog = Backlog(self, self.transport, paused=True)
        backlog.queue.append(first)
        if isinstance(first, bytes | memoryview):
            backlog.size += len(first)
        self.transport.registerProducer(backlog, False)  # asks for the first piece at once

    def _send_failed(self, error: OSError, frames: bytes) -> None:
        if isinstance(error, BlockingIOError | InterruptedError) or error.errno in (ENOBUFS, ENOMEM):
            self._hold(frames)
        else:
            # a reset or a broken pipe: this connection's end, and nobody else's business
            self._use(None)
            self._lost()

    def _drained(self) -> None:
        """Nothing is held back any more."""
        self._backlog = None
        if self.is_open:
            self._use(plain_socket(self.transport))

    def _progress(self) -> None:
        """The peer's side has taken some of what was held back."""

    def _lost(self) -> None:
        """The socket is broken."""
        raise NotImplementedError

    def _too_slow(self) -> None:
        """More than `send_buffer` bytes wait."""
        raise NotImplementedError

    def _stream_failed(self, error: Exception) -> None:
        """A stream's iterator raised."""
        raise NotImplementedError

    def _detach(self) -> None:
        """The transport is gone."""
        self._use(None)
        self.transport = None
        if self._backlog is not None:
            self._backlog.drop()
            self._backlog = None
