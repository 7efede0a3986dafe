"""The sockets of many connections, collected once for many events. Hot path: column code.

With thousands of connections each object that a delivery touches is a likely cache miss, which costs as much as several
steps of Python. So a delivery to many touches only their sockets. The set of sockets that may be sent to directly
changes seldom: when a consumer becomes slow, or a connection closes. Only then are the sockets collected again.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Collection, Iterator, Sequence, Set
from operator import attrgetter
from typing import Any, TypeVar

__all__ = ["CHUNK", "Recipients", "RecipientsExcept", "collect_keys", "invalidate_sockets"]

T = TypeVar("T")

#: Connections that a step of a broadcast sends to (chatws.server.broadcasts): less than 2 ms of work. Smaller chunks
#: cost more for each connection, because the kernel's share of the processor's caches is lost between them.
CHUNK = 400


class _SocketVersion:
    """:ivar count: how often the socket of any connection has been set or unset in this process."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_socket_version = _SocketVersion()


def invalidate_sockets() -> None:
    """Have all `Recipients` collect their sockets again: the socket of some connection has been set or unset."""
    _socket_version.count += 1


class Recipients(tuple[T, ...]):
    """Connections (`FrameWriter`) that get the same events. Each occurs once, and they never change."""

    _sockets: tuple[socket.socket | None, ...] = ()
    _sockets_version = -1
    _keys = b""
    _keys_version = -1
    _chunks: tuple[Recipients[T], ...] = ()
    _positions: dict[T, int] | None = None

    def sockets(self) -> tuple[socket.socket | None, ...]:
        """Return the sockets to send to directly, in the order of the connections.

        None stands for a connection that sends by itself: it is closed, its queue is not empty, or it compresses.
        """
        if self._sockets_version != _socket_version.count:
            connections: Any = self
            self._sockets = tuple(
                [connection._socket if connection._compress is None else None for connection in connections]
            )
            self._sockets_version = _socket_version.count
        return self._sockets

    def keys(self) -> bytes:
        """Return the same for a `Ring`, eight bytes each: `NULL_KEY` for a connection that sends by itself."""
        if self._keys_version != _socket_version.count:
            connections: Any = self
            self._keys = array("Q", [connection._key for connection in connections]).tobytes()
            self._keys_version = _socket_version.count
        return self._keys

    def chunks(self) -> tuple[Recipients[T], ...]:
        """Return the connections in chunks of `CHUNK`, in order."""
        if not self._chunks:
            self._chunks = tuple([Recipients(self[start : start + CHUNK]) for start in range(0, len(self), CHUNK)])
        return self._chunks

    def positions(self) -> dict[T, int]:
        """Return the position of each connection."""
        if self._positions is None:
            self._positions = dict(zip(self, range(len(self)), strict=True))
        return self._positions


class RecipientsExcept(Collection[T]):
    """Many connections without a few of them. Nothing is copied, and broadcasts to both are one.

    :ivar recipients: the connections.
    :ivar excluded: those of them that are left out.
    """

    __slots__ = ("excluded", "recipients")

    def __init__(self, recipients: Recipients[T], excluded: Set[T]) -> None:
        self.recipients = recipients
        self.excluded = excluded

    def __len__(self) -> int:
        return len(self.recipients) - len(self.excluded)

    def __iter__(self) -> Iterator[T]:
        excluded = self.excluded
        return (connection for connection in self.recipients if connection not in excluded)

    def __contains__(self, connection: object) -> bool:
        return connection in self.recipients.positions() and connection not in self.excluded


_keys_of, _keys_version_of = attrgetter("_keys"), attrgetter("_keys_version")


def collect_keys(recipient_lists: Sequence[Recipients[Any]]) -> list[bytes]:
    """Return `[recipients.keys() for recipients in recipient_lists]`, without calls if all are up to date."""
    if [*map(_keys_version_of, recipient_lists)].count(_socket_version.count) == len(recipient_lists):
        return [*map(_keys_of, recipient_lists)]
    return [recipients.keys() for recipients in recipient_lists]
