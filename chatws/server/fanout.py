"""From one frame to many sockets: the hot path, and what becomes of those who read slowly.

Why it does not simply call `transport.write` for each recipient:

- `write` puts the bytes into a list, asks the reactor to be told when the socket is writable (one `epoll_ctl`), and
  returns; a turn later the reactor joins the list, sends, and asks not to be told any more (another `epoll_ctl`). A
  chat's event almost always fits into the socket's buffer at once, so here the socket is simply given it: one system
  call instead of three and no second turn. `Writer._socket` is the permission for that: it is set only while the
  connection is open and nothing of its own waits to be sent. (`os.write` on the descriptor spares Python 0.1 µs, and
  costs the kernel more than that: it looks at the file and its inode besides the socket.)
- All frames for one audience that came together are joined once, and the same `bytes` goes to every socket.
- A connection that negotiated compression gets the frames deflated: once for all whose window is the same.
- When several audiences are addressed at once, each connection still gets one `send` with all that is its, in order;
  equal sequences are joined once.

What a socket does not take goes into the connection's `Backlog` (chatws.server.backlog). Everything that a connection
sends, Autobahn's pongs and close frames included, comes through `Writer._write`, so frames never cross.

No component is called from here: a set of recipients does not change while it is being sent to.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from errno import ENOBUFS, ENOMEM
from operator import length_hint
from typing import Any

from twisted.internet import tcp

from chatws.server.backlog import PIECE, Backlog
from chatws.server.frames import binary_frame, text_frame
from chatws.server.recipients import Recipients, sockets_have_changed
from chatws.server.stats import Stats

__all__ = ["PIECE", "Backlog", "Writer", "binary_frame", "send_all", "text_frame"]


def send_all(runs: Sequence[tuple[Collection[Any], list[bytes]]]) -> None:
    """Send each run's frames to each of its connections, in the order of the runs.

    :param runs: pairs of connections (`Recipients`, where they are many) and complete frames (`text_frame`).
        Connections that are no longer open are passed over.
    """
    if len(runs) > 1:
        everybody: set[Writer] = set().union(*[recipients for recipients, _ in runs])
        # nobody is in two of them: the usual case where many conversations have few subscribers each
        if len(everybody) != sum([len(recipients) for recipients, _ in runs]):
            runs = _regroup(runs)
    sends = sent_bytes = 0
    connection = None
    for recipients, frames in runs:
        blob = frames[0] if len(frames) == 1 else b"".join(frames)
        size = len(blob)
        if not size:
            continue
        if type(recipients) is Recipients:
            _send_to_many(recipients, blob)
            continue
        sends += len(recipients)
        sent_bytes += len(recipients) * size
        for connection in recipients:
            direct = connection._socket
            if direct is None or connection._deflated is not None:
                sends -= 1  # what counts itself
                sent_bytes -= size
                if direct is None:
                    connection.send_frames(blob)
                else:
                    connection._write(connection._deflated(blob))
                continue
            try:
                sent = direct.send(blob)
            except OSError as error:
                connection._send_failed(error, blob)
                continue
            if sent != size:
                connection._hold_back(blob, sent)
    if connection is not None:
        stats = connection.stats  # all of them belong to one server
        stats.sends += sends
        stats.bytes_sent += sent_bytes


def _send_to_many(recipients: Recipients[Any], blob: bytes) -> None:
    connections = recipients.connections
    size = len(blob)
    left = iter(recipients.sockets())
    directly = 0
    for direct in left:
        if direct is None:
            connections[-1 - length_hint(left)].send_frames(blob)  # counts itself
            continue
        directly += 1
        try:
            sent = direct.send(blob)
        except OSError as error:
            connections[-1 - length_hint(left)]._send_failed(error, blob)
            continue
        if sent != size:
            connections[-1 - length_hint(left)]._hold_back(blob, sent)
    if directly:
        stats = connections[0].stats
        stats.sends += directly
        stats.bytes_sent += directly * size


def _regroup(runs: Sequence[tuple[Collection[Writer], list[bytes]]]) -> list[tuple[list[Writer], list[bytes]]]:
    """The same runs with each connection in one of them: with all that is its, in order."""
    pending: dict[Writer, list[bytes]] = {}
    for recipients, frames in runs:
        blob = frames[0] if len(frames) == 1 else b"".join(frames)
        for connection in recipients:
            if connection in pending:
                pending[connection].append(blob)
            else:
                pending[connection] = [blob]
    together: dict[tuple[int, ...], tuple[list[Writer], list[bytes]]] = {}
    for connection, blobs in pending.items():
        key = tuple(map(id, blobs))
        if key in together:
            together[key][0].append(connection)
        else:
            together[key] = ([connection], blobs)
    return list(together.values())


class Writer:
    """The sending half of a connection. What it knows of WebSocket is that a frame must not be torn.

    :ivar transport: where it goes; None once the connection is gone.
    :ivar _deflated: what makes compressed frames of plain ones, or None.
    :cvar send_buffer: bytes that may wait to be sent.
    """

    __slots__ = ("_backlog", "_deflated", "_socket", "transport")

    send_buffer: int = 1048576
    stats: Stats

    transport: Any
    _socket: socket.socket | None
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
        if self.is_open:
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
        self._socket = _plain_socket(transport)
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
            self._socket = direct
            sockets_have_changed()

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
            self._use(_plain_socket(self.transport))

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


def _plain_socket(transport: Any) -> socket.socket | None:
    """The socket behind a transport, if what is sent on it reaches the peer as it is."""
    if isinstance(transport, tcp.Connection) and not transport.TLS and transport.connected:
        return transport.socket
    return None
