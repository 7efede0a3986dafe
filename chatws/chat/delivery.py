"""Group events into deliveries: which frames go to which connections, with as few distinct writes as possible.

A delivery is `(connections, frames)`: all of its frames go to each of its connections in one write. Consecutive
events for the same channels make one delivery. If such events exclude different users (the server's `agent_status`
events exclude the agent itself), they make one delivery for all connections that miss none, and one for each excluded
user. A batch of n such events then costs each recipient one write and not n.

Hot path: processes a batch by columns. Its reference is `plan_deliveries` in tests/chat_reference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain, compress, groupby
from operator import attrgetter
from typing import TypeAlias, TypeVar

from chatws.brokers.interface import Audience, Event
from chatws.chat.audience import user_channel
from chatws.chat.hub import Hub, without
from chatws.ids import Id
from chatws.server.recipients import Recipients, RecipientsExcept

__all__ = ["DeliveryGroup", "plan_deliveries"]

T = TypeVar("T")

#: Connections, and the frames that each of them gets. A plain tuple, because one is made for almost every event.
DeliveryGroup: TypeAlias = tuple[Collection[T], Sequence[bytes]]

_audience_of, _channels_of = attrgetter("audience"), attrgetter("audience.channels")


def plan_deliveries(
    events: Sequence[Event], hub: Hub[T], make_frames: Callable[[Sequence[Event]], list[bytes]]
) -> list[DeliveryGroup[T]]:
    """Return the deliveries of `events`, in order, and set `delivered` of each event.

    :param make_frames: makes one frame for each event. It gets each event with a recipient once.
    """
    if len({*map(_channels_of, events)}) == len(events):
        return _plan_distinct(events, hub, make_frames)
    deliveries: list[DeliveryGroup[T]] = []
    for channels, group in groupby(events, _channels_of):
        batch = [*group]
        if len({event.audience.except_user_id for event in batch}) == 1:
            recipients = hub.recipients(batch[0].audience)
            for event in batch:
                event.delivered = len(recipients)
            if recipients:
                deliveries.append((recipients, make_frames(batch)))
        else:
            deliveries += _plan_with_exclusions(batch, channels, hub, make_frames)
    return deliveries


def _plan_distinct(
    events: Sequence[Event], hub: Hub[T], make_frames: Callable[[Sequence[Event]], list[bytes]]
) -> list[DeliveryGroup[T]]:
    """Plan the usual batch, in which no two events have the same channels: one delivery for each event."""
    recipients = hub.recipients_of_each([*map(_audience_of, events)])
    counts = [*map(len, recipients)]
    for event, count in zip(events, counts, strict=True):
        event.delivered = count
    if not all(counts):
        events, recipients = [*compress(events, counts)], [*compress(recipients, counts)]
    return [*zip(recipients, zip(make_frames(events), strict=True), strict=True)]


def _plan_with_exclusions(
    batch: list[Event],
    channels: tuple[str, ...],
    hub: Hub[T],
    make_frames: Callable[[Sequence[Event]], list[bytes]],
) -> list[DeliveryGroup[T]]:
    """Plan events for the same channels of which some exclude a user."""
    recipients = hub.recipients(Audience(channels))
    if not recipients:
        return []
    if not isinstance(recipients, Recipients | RecipientsExcept):
        recipients = Recipients(recipients)
    positions = recipients.positions() if isinstance(recipients, Recipients) else recipients
    frames = make_frames(batch)
    excluded: dict[Id, list[T]] = {}
    events_excluding: dict[Id | None, list[int]] = {}
    for index, event in enumerate(batch):
        user_id = event.audience.except_user_id
        if user_id is not None and user_id not in excluded:
            connections = hub.subscribers(user_channel(user_id))
            excluded[user_id] = [connection for connection in connections if connection in positions]
        events_excluding.setdefault(user_id, []).append(index)
        event.delivered = len(recipients) - (0 if user_id is None else len(excluded[user_id]))
    deliveries: list[DeliveryGroup[T]] = []
    get_all = without(recipients, dict.fromkeys(chain.from_iterable(excluded.values())))
    if get_all:
        deliveries.append((get_all, frames))
    for excluded_user, user_connections in excluded.items():
        remaining = frames.copy()
        for index in reversed(events_excluding[excluded_user]):
            del remaining[index]
        if user_connections and remaining:
            deliveries.append((user_connections, remaining))
    return deliveries
