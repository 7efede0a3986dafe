"""What this process remembers of the log, indexed so that a browser's recovery costs what it missed.

The broker is the truth; this is a copy of its newest end, fed with every event that the broker tells of, from which
every recovery (docs/protocol.md §4) is answered at once, without asking an engine that may be far away or down.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

from chatws.brokers.contract import Bounds, Broker, Event
from chatws.brokers.window import Window

__all__ = ["History"]

#: Events that `load` reads from the broker at once.
LOAD_CHUNK = 1000

_offset_of, _channels_of = attrgetter("offset"), attrgetter("audience.channels")


class History:
    """The newest events, within bounds, by offset and by channel.

    Transient events are no part of it. Nor is `except_user_id` looked at: whoever replays knows whose connection it
    is. To replay much without holding up others, read in chunks, each in its own turn of the reactor::

        events = history.since(channels, after, limit=200)
        if events is None: ...                 # trimmed under the reader: no longer complete
        elif len(events) < 200: ...            # caught up with `last`, at this moment
        else: after = events[-1].offset        # more, next time

    Memory beyond the events themselves: one list slot for each event and one for each channel it is in, and a list and
    a dictionary entry for each channel that has events.

    :param bounds: how much is kept; trimmed as in chatws.brokers.window.
    :param now: the clock that the events' times are of.
    :ivar epoch: the epoch of the log that this is a copy of; empty before there is one.
    :ivar gaps: how often events were missing between two that the broker told of.
    :cvar index_later: events that stand outside the index at most, until a recovery asks for it.
    """

    index_later = 1024

    def __init__(self, bounds: Bounds | None = None, now: Callable[[], float] = time.time) -> None:
        self.epoch = ""
        self.gaps = 0
        self._now = now
        self._window = Window(bounds or Bounds())
        # Offsets in each channel, ascending. The first of them may be of events that have been dropped: see _forget.
        self._channels: dict[str, list[int]] = defaultdict(list)
        # Up to which offset that is so. What is newer is taken in when somebody asks, or when it has become much: it is
        # quicker in one go, as each event's channel lies somewhere else in memory.
        self._indexed = 0
        self._held: list[Event] | None = None  # what came while `load` was reading

    @property
    def first(self) -> int:
        """The smallest offset kept; `last + 1` when there is none."""
        return self._window.first

    @property
    def last(self) -> int:
        """The offset of the newest event of the log that this has seen, kept or not; 0 before the first."""
        return self._window.last

    @property
    def size(self) -> int:
        """Bytes of `data` kept."""
        return self._window.size

    def __len__(self) -> int:
        """Events kept."""
        return len(self._window)

    def append(self, event: Event) -> None:
        """Remember one more event that the broker told of: see `extend`."""
        self.extend((event,))

    def extend(self, events: Sequence[Event]) -> None:
        """Remember more events that the broker told of, in their order.

        After a gap (which a broker should never leave) nothing older is kept: completeness could not be proved across
        it. What is not newer than `last` is ignored.
        """
        stored = [*filter(_offset_of, events)]
        if self._held is not None:
            self._held += stored
        elif stored:
            self._extend(stored)

    def _extend(self, events: Sequence[Event]) -> None:
        last = self._window.last
        if events[0].offset == last + 1 and events[-1].offset == last + len(events):
            self._keep(events)
            return
        for event in events:
            last = self._window.last
            if event.offset > last:
                if event.offset != last + 1:
                    self.gaps += 1
                    self._clear(event.offset - 1)
                self._keep((event,))

    def _keep(self, events: Sequence[Event]) -> None:
        for event in self._window.extend(events, self._now()):
            if event.offset <= self._indexed:
                self._forget(event)
        if self._window.last - self._indexed >= self.index_later:
            self._index()

    def _index(self) -> None:
        """Take the newest events into the index."""
        index, window = self._channels, self._window
        events = window.read(self._indexed, window.last - self._indexed)
        for channels, offset in zip(map(_channels_of, events), map(_offset_of, events), strict=True):
            for channel in channels if len(channels) == 1 else dict.fromkeys(channels):
                index[channel].append(offset)
        self._indexed = window.last

    def _forget(self, dropped: Event) -> None:
        """Take a dropped event out of the index: a whole channel when it was the last one there, else half of one
        whenever half of it is out of date, which makes it constant time per event."""
        index, offset = self._channels, dropped.offset
        for channel in dropped.audience.channels:
            lane = index.get(channel)
            if lane is None:
                continue
            if lane[-1] <= offset:
                del index[channel]
            elif lane[len(lane) // 2] <= offset:
                del lane[: bisect_right(lane, offset)]

    def reset(self, epoch: str) -> None:
        """Forget everything: the log is another one now, and starts at offset 1."""
        self.epoch = epoch
        if self._held is not None:
            self._held.clear()
        self._clear(0)

    def _clear(self, last: int) -> None:
        self._window.clear(last)
        self._channels.clear()
        self._indexed = last

    def since(self, channels: Iterable[str], after: int, limit: int | None = None) -> list[Event] | None:
        """The events in any of `channels` with offsets above `after`, each once, in order.

        :param limit: at most so many, the oldest of them; fewer means that these are all up to `last`.
        :return: None when nobody can tell whether that would be all: events after `after` have been dropped, or
            `after` is of the future.
        """
        window = self._window
        if not window.first - 1 <= after <= window.last:
            return None
        self._index()
        found: list[int] = []
        lanes = 0
        for channel in channels:
            lane = self._channels.get(channel)
            if lane is not None and lane[-1] > after:
                start = bisect_right(lane, after)
                found += lane[start:] if limit is None else lane[start : start + limit]
                lanes += 1
        if lanes > 1:
            found = sorted(set(found))[:limit]
        return [window[offset] for offset in found]

    async def load(self, broker: Broker) -> None:
        """Become a copy of the newest end of the started `broker`'s log, as after a restart of this process.

        Events that the broker tells of meanwhile are not lost, and not taken twice. When the log starts anew under it
        (`reset`), what had been read is dropped.

        :raises Unavailable: the broker cannot be read; what was read so far is kept.
        """
        epoch = broker.epoch
        self.reset(epoch)
        held: list[Event] = []
        self._held = held
        try:
            first, _ = await broker.bounds()
            if self.epoch == epoch:
                self._clear(first - 1)
            while self.epoch == epoch:
                events = await broker.read(self.last, LOAD_CHUNK)
                if self.epoch != epoch:
                    break
                if events:
                    self._extend(events)
                if len(events) < LOAD_CHUNK:
                    break
        finally:
            self._held = None
            if held:
                self._extend(held)
