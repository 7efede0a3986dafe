"""Who listens to what, indexed both ways: channel → connections, and connection → its channels.

A close costs the connection's own subscriptions, a publish its own recipients; neither depends on how many others
are connected.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from chatws.brokers.contract import Audience
from chatws.chat.audience import user_channel

__all__ = ["Hub"]

T = TypeVar("T")


class Hub(Generic[T]):
    """:ivar subscriptions: how many (channel, connection) pairs there are."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[T]] = {}
        self._channels: dict[T, set[str]] = {}
        self.subscriptions = 0

    def add(self, channel: str, connection: T) -> None:
        """Idempotent."""
        listeners = self._listeners.get(channel)
        if listeners is None:
            listeners = self._listeners[channel] = set()
        elif connection in listeners:
            return
        listeners.add(connection)
        channels = self._channels.get(connection)
        if channels is None:
            channels = self._channels[connection] = set()
        channels.add(channel)
        self.subscriptions += 1

    def discard(self, channel: str, connection: T) -> None:
        """Idempotent."""
        channels = self._channels.get(connection)
        if channels is None or channel not in channels:
            return
        channels.discard(channel)
        if not channels:
            del self._channels[connection]
        self._forget(channel, connection)

    def remove(self, connection: T) -> None:
        """Take a connection out of everything."""
        for channel in self._channels.pop(connection, ()):
            self._forget(channel, connection)

    def _forget(self, channel: str, connection: T) -> None:
        listeners = self._listeners[channel]
        listeners.discard(connection)
        if not listeners:
            del self._listeners[channel]
        self.subscriptions -= 1

    def listeners(self, channel: str) -> Iterable[T]:
        """A copy, so that whoever goes through it may close what it finds."""
        return tuple(self._listeners.get(channel, ()))

    def count(self, channel: str) -> int:
        """How many connections listen to `channel`."""
        return len(self._listeners.get(channel, ()))

    def recipients(self, audience: Audience) -> list[T]:
        """Each connection of the audience once, in a list of the caller's own."""
        channels, except_user_id = audience
        if len(channels) == 1:
            found = self._listeners.get(channels[0])
            if found is None:
                return []
        else:
            found = set().union(*(self._listeners.get(channel, ()) for channel in channels))
        if except_user_id is not None:
            found = found.difference(self._listeners.get(user_channel(except_user_id), ()))
        return list(found)
