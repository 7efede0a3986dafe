"""The sockets behind many connections, gathered once for many events.

With thousands connected hardly anything of the one whose turn it is lies in the processor's caches, and each object of
it that is looked at costs as much as several steps of Python. So a delivery to several looks at their sockets alone.
Who may be written to directly changes seldom (a reader falls behind, a connection closes): then they are gathered anew.
"""

from __future__ import annotations

import socket
from array import array
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeVar

__all__ = ["Recipients", "keys_of_each", "sockets_have_changed"]

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

    _sockets: tuple[socket.socket | None, ...] = ()
    _sockets_seen = -1
    _keys = b""
    _keys_seen = -1

    def sockets(self) -> tuple[socket.socket | None, ...]:
        """What each of the connections (`Writer`) can be written to at once, in their order; None for those that have
        to be asked, because something of theirs waits or is compressed, or because they are closed."""
        if self._sockets_seen != _changes.count:
            writers: Any = self
            self._sockets = tuple([one._socket if one._deflated is None else None for one in writers])
            self._sockets_seen = _changes.count
        return self._sockets

    def keys(self) -> bytes:
        """The same for a `Ring`: `NOTHING` for those that have to be asked. Eight bytes each."""
        if self._keys_seen != _changes.count:
            writers: Any = self
            self._keys = array("Q", [one._key for one in writers]).tobytes()
            self._keys_seen = _changes.count
        return self._keys


_keys_of, _keys_seen_of = attrgetter("_keys"), attrgetter("_keys_seen")


def keys_of_each(many: Sequence[Recipients[Any]]) -> list[bytes]:
    """`keys` of each of them."""
    if [*map(_keys_seen_of, many)].count(_changes.count) == len(many):
        return [*map(_keys_of, many)]
    return [one.keys() for one in many]
