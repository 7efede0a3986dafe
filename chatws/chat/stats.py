"""What the chat counts, as plain numbers: metrics read them when they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from chatws.brokers.contract import Event
from chatws.errors import CloseCode, ErrorCode

__all__ = ["MAX_NAMES", "OTHER", "Stats"]

#: Names of events that are counted apart. Backends choose names, and each is kept for the life of the process.
MAX_NAMES = 100
#: What the rest is counted as; not a name that an event can have.
OTHER = "(other)"

_name_of, _delivered_of = attrgetter("name"), attrgetter("delivered")


class Stats:
    """Since the start.

    :ivar events: accepted, :ivar deliveries: and to how many connections they were handed.
    :ivar names: by an event's name: [accepted, delivered]; with more than `MAX_NAMES` of them the rest is `OTHER`.
    :ivar errors: `error` replies to browsers, by code.
    :ivar started_over: connections that were told to reload, because events were gone before they could be read.
    :ivar closes: connections that the chat has closed, by close code.
    """

    __slots__ = (
        "closes",
        "deliveries",
        "errors",
        "events",
        "names",
        "own_events_lost",
        "recoveries",
        "recoveries_failed",
        "started_over",
    )

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.names: dict[str, list[int]] = {}
        self.errors: dict[ErrorCode, int] = {}
        self.closes: dict[CloseCode, int] = {}
        self.recoveries = 0
        self.recoveries_failed = 0
        self.own_events_lost = 0
        self.started_over = 0

    def count(self, events: Sequence[Event]) -> None:
        """Count events that have been handed out."""
        self.events += len(events)
        for name, alike in groupby(events, _name_of):
            delivered = [*map(_delivered_of, alike)]
            tally = self.names.get(name)
            if tally is None:
                tally = self.names.setdefault(name if len(self.names) < MAX_NAMES else OTHER, [0, 0])
            handed = sum(delivered)
            tally[0] += len(delivered)
            tally[1] += handed
            self.deliveries += handed
