"""The local subscriptions, indexed both ways: channel to connections, and connection to channels.

The cost of a close depends on the connection's own subscriptions, and that of an event on its recipients. Neither
depends on the number of other connections.

Hot path: `Hub.recipients_of_each` processes a batch by columns. Its reference is `Hub.recipients`, called for each
audience.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter
from typing import Generic, TypeVar

from chatws.brokers.interface import EXCLUDE, Audience
from chatws.chat.audience import connection_channel, excluding, user_channel
from chatws.server.recipients import CHUNK, Recipients, RecipientsExcept

__all__ = ["Hub", "without"]

T = TypeVar("T")

_channels_of, _excluded_of = attrgetter("channels"), attrgetter("except_user_id")

#: Number of subscribers from which `Recipients` caches their sockets. For a single one there is nothing to save.
CACHE_MIN_RECIPIENTS = 2


class Hub(Generic[T]):
    """Subscriptions of the connections of this process.

    :param connection_id: returns the id of a connection, by which an audience may exclude it.
    :ivar subscriptions: number of (channel, connection) pairs.
    """

    def __init__(self, connection_id: Callable[[T], str] = str) -> None:
        self._connection_id = connection_id
        # Dictionaries and not sets: in order of arrival, connections lie near each other in memory, which makes
        # fewer cache misses when an event goes to all of them.
        self._subscribers: dict[str, dict[T, None]] = {}
        self._channels: dict[T, set[str]] = {}
        # Subscribers of channels that had an event since their last change, ready for the next event.
        self._recipients: dict[str, Collection[T]] = {}
        self.subscriptions = 0

    def add(self, channel: str, connection: T) -> None:
        """Subscribe a connection to a channel. Idempotent."""
        subscribers = self._subscribers.get(channel)
        if subscribers is None:
            self._subscribers[channel] = {connection: None}
        elif connection in subscribers:
            return
        else:
            subscribers[connection] = None
            self._recipients.pop(channel, None)
        channels = self._channels.get(connection)
        if channels is None:
            self._channels[connection] = {channel}
        else:
            channels.add(channel)
        self.subscriptions += 1

    def discard(self, channel: str, connection: T) -> None:
        """Unsubscribe a connection from a channel. Idempotent."""
        channels = self._channels.get(connection)
        if channels is None or channel not in channels:
            return
        channels.discard(channel)
        if not channels:
            del self._channels[connection]
        self._remove_subscriber(channel, connection)

    def remove(self, connection: T) -> None:
        """Unsubscribe a connection from all channels. Idempotent."""
        for channel in self._channels.pop(connection, ()):
            self._remove_subscriber(channel, connection)

    def _remove_subscriber(self, channel: str, connection: T) -> None:
        subscribers = self._subscribers[channel]
        subscribers.pop(connection, None)
        self._recipients.pop(channel, None)
        if not subscribers:
            del self._subscribers[channel]
        self.subscriptions -= 1

    def subscribers(self, channel: str) -> Collection[T]:
        """Return the connections subscribed to a channel now. Later changes do not affect the result."""
        recipients = self._recipients.get(channel)
        if recipients is None:
            recipients = tuple(self._subscribers.get(channel, ()))
            if len(recipients) >= CACHE_MIN_RECIPIENTS:
                recipients = Recipients(recipients)
            if recipients:
                self._recipients[channel] = recipients
        return recipients

    def recipients_of_each(self, audiences: Sequence[Audience]) -> list[Collection[T]]:
        """Return the `recipients` of each audience.

        Takes few steps for the usual batch, in which each audience is one channel and no user is excluded.
        """
        channels = [*map(_channels_of, audiences)]
        if [*map(_excluded_of, audiences)].count(None) != len(audiences) or {*map(len, channels)} != {1}:
            return [*map(self.recipients, audiences)]
        names = [*chain.from_iterable(channels)]
        recipients = [*map(self._recipients.get, names)]
        if None in recipients:
            return [*map(self.subscribers, names)]
        return recipients  # type: ignore[return-value]  # none of them is None

    def count(self, channel: str) -> int:
        """Return the number of connections subscribed to a channel."""
        return len(self._subscribers.get(channel, ()))

    def recipients(self, audience: Audience) -> Collection[T]:
        """Return each connection of an audience once, as of now."""
        channels, except_user_id = audience.channels, audience.except_user_id
        if len(channels) == 1:
            recipients = self.subscribers(channels[0])
        else:
            occupied = [channel for channel in channels if channel in self._subscribers]
            if len(occupied) == 1:
                recipients = self.subscribers(occupied[0])
            else:
                recipients = tuple(dict.fromkeys(chain.from_iterable(map(self._subscribers.__getitem__, occupied))))
            recipients = self._without_excluded(recipients, channels)
        if except_user_id is not None:
            excluded = self._subscribers.get(user_channel(except_user_id))
            if excluded:
                return without(recipients, excluded)
        return recipients

    def has_subscribers(self, channels: Iterable[str]) -> bool:
        """Return whether any of the channels has a subscriber."""
        return not self._subscribers.keys().isdisjoint(channels)

    def channels_of(self, connection: T) -> Collection[str]:
        """Return the channels of a connection now."""
        return tuple(self._channels.get(connection, ()))

    def is_excluded(self, connection: T, channels: Iterable[str], joining: Iterable[str] = ()) -> bool:
        """Return whether a channel that begins with `EXCLUDE` names the connection.

        :param joining: channels that the connection is about to be added to.
        """
        excluded = [channel for channel in channels if channel.startswith(EXCLUDE)]
        if not excluded:
            return False
        own = map(
            excluding, (*self.channels_of(connection), *joining, connection_channel(self._connection_id(connection)))
        )
        return not set(excluded).isdisjoint(own)

    def _without_excluded(self, recipients: Collection[T], channels: Iterable[str]) -> Collection[T]:
        for channel in channels:
            if not channel.startswith(EXCLUDE):
                continue
            name = channel.removeprefix(EXCLUDE)
            excluded = self._subscribers.get(name, ())
            if excluded:
                recipients = without(recipients, excluded)
            elif name.startswith("connection:"):
                ids = map(connection_channel, map(self._connection_id, recipients))
                named = [connection for connection, id in zip(recipients, ids, strict=True) if id == name]
                recipients = without(recipients, dict.fromkeys(named))
        return recipients


def without(recipients: Collection[T], excluded: Mapping[T, object]) -> Collection[T]:
    """Return the recipients that are not excluded. Many are not copied, unless many are excluded."""
    if isinstance(recipients, RecipientsExcept):
        excluded = dict.fromkeys([*recipients.excluded, *excluded])
        recipients = recipients.recipients
    if isinstance(recipients, Recipients) and len(recipients) > CHUNK >= len(excluded):
        positions = recipients.positions()
        return RecipientsExcept(recipients, frozenset([one for one in excluded if one in positions]))
    return [connection for connection in recipients if connection not in excluded]
