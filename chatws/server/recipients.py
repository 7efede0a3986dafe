"""The sockets behind many connections, gathered once for many events.

With hundreds of recipients hardly anything of the one whose turn it is lies in the processor's caches, and each object
of it that is looked at costs as much as several steps of Python. So a delivery to many looks at their sockets alone.
Who may be written to directly changes seldom (a reader falls behind, a connection closes): then they are gathered anew.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Generic, TypeVar

__all__ = ["Recipients", "sockets_have_changed"]

T = TypeVar("T")


class _Changes:
    """:ivar count: how often any connection's socket has come or gone."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


_changes = _Changes()


def sockets_have_changed() -> None:
    """Some connection may be written to directly that could not be before, or the other way round."""
    _changes.count += 1


class Recipients(Collection[T], Generic[T]):
    """Connections that get the same events; always the same ones.

    :ivar connections: each once.
    """

    __slots__ = ("_keys", "_seen", "_sockets", "connections")

    def __init__(self, connections: Iterable[T]) -> None:
        self.connections = tuple(connections)
        self._sockets: tuple[socket.socket | None, ...] | None = None
        self._keys: array[int] | None = None
        self._seen = -1

    def __len__(self) -> int:
        return len(self.connections)

    def __iter__(self) -> Iterator[T]:
        return iter(self.connections)

    def __contains__(self, connection: object) -> bool:
        return connection in self.connections

    def sockets(self) -> tuple[socket.socket | None, ...]:
        """What each of the connections (`Writer`) can be written to at once, in their order; None for those that have
        to be asked, because something of theirs waits or is compressed, or because they are closed."""
        self._look()
        if self._sockets is None:
            writers: Any = self.connections
            self._sockets = tuple([one._socket if one._deflated is None else None for one in writers])
        return self._sockets

    def keys(self) -> array[int]:
        """The same for a `Ring`: `NOTHING` for those that have to be asked."""
        self._look()
        if self._keys is None:
            writers: Any = self.connections
            self._keys = array("Q", [one._key for one in writers])
        return self._keys

    def _look(self) -> None:
        if self._seen != _changes.count:
            self._seen = _changes.count
            self._sockets = self._keys = None
