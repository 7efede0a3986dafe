"""The newest events of a history, held in memory within `Retention`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import inf
from operator import attrgetter

from chatws.brokers.interface import AGENTS, Audience, Event, Retention

__all__ = ["EventBuffer"]

#: Events that one `extend` drops for their age alone (more with more new ones), so that the first publish after a quiet
#: night does not drop all events of the evening before. The limits on number and bytes are exact: each new event drops
#: about one old event.
AGE_STEP = 64

_data_of = attrgetter("data")

#: Replaces a dropped event until the list is compacted, so that the event's memory is free at once.
_DROPPED = Event(0, "", Audience((AGENTS,)), b"", 0.0)


class EventBuffer:
    """A run of events with consecutive offsets: appended at one end, trimmed at the other.

    Extending, dropping and finding by offset take constant time (dropping: amortised over the list's compactions),
    and an event costs one list slot beyond itself.

    :ivar first: the smallest offset held; `last + 1` when none is.
    :ivar last: the largest offset ever appended.
    :ivar size: bytes of `data` held.
    """

    __slots__ = ("_base", "_events", "_most", "_retention", "_size_limit", "first", "last", "size")

    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._most = retention.events or sys.maxsize
        self._size_limit = retention.size or sys.maxsize
        self.clear(0)

    def clear(self, last: int) -> None:
        """Hold nothing; the next event to come is `last + 1`."""
        self._events: list[Event] = []
        self._base = last + 1  # the offset of _events[0], dropped or not
        self.first = last + 1
        self.last = last
        self.size = 0

    def __len__(self) -> int:
        return self.last + 1 - self.first

    def __getitem__(self, offset: int) -> Event:
        """Return the event with that offset. It must be held."""
        if not self.first <= offset <= self.last:
            raise KeyError(offset)
        return self._events[offset - self._base]

    def extend(self, events: Sequence[Event], now: float) -> list[Event]:
        """Hold more events: at least one, with the offsets that follow `last`.

        Then drop the oldest until the limits hold: those on number and size exactly, the one on age in steps.

        :param now: seconds on the clock that the events' times are of.
        :return: what was dropped, in order.
        """
        count = len(events)
        if events[0].offset != self.last + 1 or events[-1].offset != self.last + count:
            raise ValueError(f"offsets {events[0].offset} to {events[-1].offset} do not follow {self.last}")
        self._events += events
        self.last += count
        self.size += sum(map(len, map(_data_of, events)))
        return self._trim(now, max(AGE_STEP, 2 * count))

    def read(self, after: int, limit: int) -> list[Event]:
        """Up to `limit` events with offsets above `after`, in order, from the first that is held."""
        start = max(after + 1, self.first) - self._base
        return self._events[start : start + max(limit, 0)]

    def _trim(self, now: float, steps: int) -> list[Event]:
        dropped: list[Event] = []
        while self.last + 1 - self.first > self._most or self.size > self._size_limit:
            dropped.append(self._drop())
        oldest_time = now - self._retention.seconds if self._retention.seconds else -inf
        while steps and self.first <= self.last and self._events[self.first - self._base].time < oldest_time:
            dropped.append(self._drop())
            steps -= 1
        return dropped

    def _drop(self) -> Event:
        index = self.first - self._base
        event = self._events[index]
        self._events[index] = _DROPPED
        self.first += 1
        self.size -= len(event.data)
        if index >= 512 and index * 2 > len(self._events):
            del self._events[: index + 1]
            self._base = self.first
        return event
