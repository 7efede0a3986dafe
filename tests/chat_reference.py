"""Plain references of the chat's column code: one event at a time, with no cache and no grouping."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from chatws.brokers.interface import NODES, Audience, Event
from chatws.chat.audience import user_channel

__all__ = ["count_events", "event_payload", "plan_deliveries", "recipients"]


def recipients(audience: Audience, subscriptions: Mapping[Any, set[str]]) -> list[Any]:
    """Return the connections of an audience.

    :param subscriptions: the channels of each connection, in order of arrival.
    """
    excluded = None if audience.except_user_id is None else user_channel(audience.except_user_id)
    return [
        connection
        for connection, channels in subscriptions.items()
        if channels.intersection(audience.channels) and excluded not in channels
    ]


def plan_deliveries(events: Sequence[Event], subscriptions: Mapping[Any, set[str]]) -> dict[Any, list[Event]]:
    """Return the events that each connection gets, in order."""
    deliveries: dict[Any, list[Event]] = {connection: [] for connection in subscriptions}
    for event in events:
        if event.audience.channels[0] != NODES:
            for connection in recipients(event.audience, subscriptions):
                deliveries[connection].append(event)
    return deliveries


def event_payload(event: Event, epoch: str) -> bytes:
    """Return an event as docs/protocol.md §2 describes it."""
    event_id = b',"id":' + json.dumps(f"{epoch}:{event.offset}").encode() if event.offset else b""
    return b'{"event":' + json.dumps(event.name).encode() + b',"data":' + event.data + event_id + b"}"


def count_events(events: Sequence[Event]) -> tuple[Counter[str], Counter[str]]:
    """Return the number of events and of their recipients, by name."""
    counts, deliveries = Counter[str](), Counter[str]()
    for event in events:
        counts[event.name] += 1
        deliveries[event.name] += event.delivered
    return counts, deliveries
