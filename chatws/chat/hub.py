"""Who listens to what, indexed both ways: channel → connections, and connection → its channels.

A close costs the connection's own subscriptions, a publish its own recipients; neither depends on how many others
are connected.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from operator import attrgetter
from typing import Generic, TypeVar

from chatws.brokers.contract import Audience
from chatws.chat.audience import user_channel
from chatws.server.recipients import Recipients

__all__ = ["Hub"]

T = TypeVar("T")

_channels_of, _left_out_of = attrgetter("channels"), attrgetter("except_user_id")

#: From how many listeners on their sockets are worth being gathered.
MANY = 2


class Hub(Generic[T]):
    """:ivar subscriptions: how many (channel, connection) pairs there are."""

    def __init__(self) -> None:
        # in the order in which they came: so do their sockets lie in memory, and are quicker gone through
        self._listeners: dict[str, dict[T, None]] = {}
        self._channels: dict[T, set[str]] = {}
        # the listeners of channels that had events since somebody came or went: nothing to copy for the next one
        self._recipients: dict[str, Collection[T]] = {}
        self.subscriptions = 0

    def add(self, channel: str, connection: T) -> None:
        """Idempotent."""
        listeners = self._listeners.get(channel)
        if listeners is None:
            self._listeners[channel] = {connection: None}
        elif connection in listeners:
            return
        else:
            listeners[connection] = None
            self._recipients.pop(channel, None)
        channels = self._channels.get(connection)
        if channels is None:
            self._channels[connection] = {channel}
        else:
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
        listeners.pop(connection, None)
        self._recipients.pop(channel, None)
        if not listeners:
            del self._listeners[channel]
        self.subscriptions -= 1

    def listeners(self, channel: str) -> Collection[T]:
        """Those of now: whoever goes through them may close what it finds."""
        found = self._recipients.get(channel)
        if found is None:
            found = tuple(self._listeners.get(channel, ()))
            if len(found) >= MANY:
                found = Recipients(found)
            if found:
                self._recipients[channel] = found
        return found

    def recipients_of_each(self, audiences: Sequence[Audience]) -> list[Collection[T]]:
        """`recipients` of each of them: in a few steps for all, where nobody is left out and each has one channel."""
        channels = [*map(_channels_of, audiences)]
        if [*map(_left_out_of, audiences)].count(None) != len(audiences) or {*map(len, channels)} != {1}:
            return [*map(self.recipients, audiences)]
        names = [*chain.from_iterable(channels)]
        found = [*map(self._recipients.get, names)]
        if None in found:
            return [*map(self.listeners, names)]
        return found  # type: ignore[return-value]

    def count(self, channel: str) -> int:
        """How many connections listen to `channel`."""
        return len(self._listeners.get(channel, ()))

    def recipients(self, audience: Audience) -> Collection[T]:
        """Each connection of the audience once, as of now."""
        channels, except_user_id = audience.channels, audience.except_user_id
        if len(channels) == 1:
            found = self.listeners(channels[0])
        else:
            found = tuple(dict.fromkeys([one for channel in channels for one in self._listeners.get(channel, ())]))
        if except_user_id is not None:
            left_out = self._listeners.get(user_channel(except_user_id))
            if left_out:
                return [one for one in found if one not in left_out]
        return found
