"""The sockets behind many connections, gathered once for many events.

With thousands connected hardly anything of the one whose turn it is lies in the processor's caches, and each object of
it that is looked at costs as much as several steps of Python. So a delivery to several looks at their sockets alone.
Who may be written to directly changes seldom (a reader falls behind, a connection closes): then they are gathered anew.
"""

from __future__ import annotations

import socket
from array import array
from typing import Any, TypeVar

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


class Recipients(tuple[T, ...]):
    """Connections that get the same events, each once; always the same ones."""

    _sockets: tuple[socket.socket | None, ...] | None = None
    _keys: array[int] | None = None
    _seen = -1

    def sockets(self) -> tuple[socket.socket | None, ...]:
        """What each of the connections (`Writer`) can be written to at once, in their order; None for those that have
        to be asked, because something of theirs waits or is compressed, or because they are closed."""
        if self._seen != _changes.count or self._sockets is None:
            self._forget()
            writers: Any = self
            self._sockets = tuple([one._socket if one._deflated is None else None for one in writers])
        return self._sockets

    def keys(self) -> array[int]:
        """The same for a `Ring`: `NOTHING` for those that have to be asked."""
        if self._seen != _changes.count or self._keys is None:
            self._forget()
            writers: Any = self
            self._keys = array("Q", [one._key for one in writers])
        return self._keys

    def _forget(self) -> None:
        """Let go of what is out of date."""
        if self._seen != _changes.count:
            self._seen = _changes.count
            self._sockets = self._keys = None
