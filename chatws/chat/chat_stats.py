"""Counters of the chat, as plain numbers that the metrics page reads.

Hot path: `ChatStats.count` processes a batch by columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

from chatws.brokers.interface import Event
from chatws.errors import CloseCode, ErrorCode

__all__ = ["MAX_NAMES", "OTHER", "ChatStats"]

#: Event names that are counted separately. Backends choose the names, and each one is a metric's label for the life
#: of the process: 100 cover an application's events and bound the metrics page.
MAX_NAMES = 100
#: The label of all other events. It is not a valid event name.
OTHER = "(other)"

_name_of, _delivered_of = attrgetter("name"), attrgetter("delivered")


class ChatStats:
    """Totals since the start of the process.

    :ivar events: events delivered by the broker, with and without recipients.
    :ivar deliveries: the sum of their recipients.
    :ivar names: [events, deliveries] by event name; names after the first `MAX_NAMES` are counted as `OTHER`.
    :ivar errors: `error` replies to clients, by code.
    :ivar closes: connections closed by the chat, by close code.
    :ivar recoveries: successful recoveries.
    :ivar recoveries_failed: recoveries answered with `recovered: false`.
    :ivar internal_publish_failures: events of the server's own (`typing`, `agent_status`) that could not be published.
    :ivar forced_resyncs: connections closed because events were missing.
    """

    __slots__ = (
        "closes",
        "deliveries",
        "errors",
        "events",
        "forced_resyncs",
        "internal_publish_failures",
        "names",
        "recoveries",
        "recoveries_failed",
    )

    def __init__(self) -> None:
        self.events = 0
        self.deliveries = 0
        self.names: dict[str, list[int]] = {}
        self.errors: dict[ErrorCode, int] = {}
        self.closes: dict[CloseCode, int] = {}
        self.recoveries = 0
        self.recoveries_failed = 0
        self.internal_publish_failures = 0
        self.forced_resyncs = 0

    def count(self, events: Sequence[Event]) -> None:
        """Count events whose `delivered` has been set."""
        self.events += len(events)
        for name, group in groupby(events, _name_of):
            delivered = [*map(_delivered_of, group)]
            totals = self.names.get(name)
            if totals is None:
                totals = self.names.setdefault(name if len(self.names) < MAX_NAMES else OTHER, [0, 0])
            deliveries = sum(delivered)
            totals[0] += len(delivered)
            totals[1] += deliveries
            self.deliveries += deliveries
