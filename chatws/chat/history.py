"""This process's copy of the newest part of the event history, indexed by channel.

The broker is authoritative. The copy gets every event that the broker delivers, so that a recovery
(docs/protocol.md §4) needs no query to an engine that may be slow or unavailable. The index makes its cost
proportional to the missed events.

Hot path: a batch with consecutive offsets is appended as a whole. The reference is the loop in `_extend`, and the
model in tests/test_chat_history.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import chain
from operator import attrgetter

from chatws.brokers.event_buffer import EventBuffer
from chatws.brokers.interface import EXCLUDE, Broker, Event, Retention

__all__ = ["History"]

#: Events that `load` reads from the broker at once, which bounds the memory of one answer of the engine.
LOAD_CHUNK = 1000

_offset_of = attrgetter("offset")


class _IndexBlock:
    """The index of a range of offsets.

    :ivar channels: the offsets of the events in each channel, ascending.
    :ivar last: the last offset that has been indexed.
    """

    __slots__ = ("channels", "last")

    def __init__(self, last: int) -> None:
        self.channels: dict[str, list[int]] = defaultdict(list)
        self.last = last

    def extend(self, events: Sequence[Event]) -> None:
        """Index the events after `last`."""
        for event in events:
            channels, offset = event.audience.channels, event.offset
            for channel in channels if len(channels) == 1 else dict.fromkeys(channels):
                if channel[:1] != EXCLUDE:
                    self.channels[channel].append(offset)
        self.last = events[-1].offset


class History:
    """The newest events within a retention, by offset and by channel.

    Transient events are ignored. `except_user_id` is ignored too: the caller knows the user. To replay many events
    without delaying other connections, read in chunks, each in its own turn of the reactor::

        events = history.since(channels, after, limit=200)
        if events is None: ...                 # trimmed meanwhile: no longer complete
        elif len(events) < 200: ...            # up to `last`, as of now
        else: after = events[-1].offset        # more in the next turn

    The index consists of blocks of consecutive offsets. A block is built when a recovery first needs it: indexing
    every event on arrival would add 7 % of CPU time per event, and most events are never replayed. A recovery looks
    up each of its channels in every block since its position. Besides the events, memory holds one list slot for
    each event and, in blocks that were built, a list slot for each event and channel, and a list and a dictionary
    entry for each channel.

    :param retention: the limits; trimmed as in chatws.brokers.event_buffer.
    :ivar epoch: the epoch of the history; empty before `load` or `reset`.
    :ivar missing_ranges: how many times events were missing between two that the broker delivered.
    :cvar block: offsets in a block. Building one takes less than a millisecond. Recovery (chatws.chat.recovery)
        searches one block in each step.
    """

    block = 1024

    def __init__(self, retention: Retention | None = None) -> None:
        self.epoch = ""
        self.missing_ranges = 0
        self._events = EventBuffer(retention or Retention())
        # By offset // block. The blocks of dropped offsets are removed, except for one that is partly dropped.
        self._blocks: dict[int, _IndexBlock] = {}
        self._first_block = 0
        self._loading: list[Event] | None = None  # events that arrived while `load` reads

    @property
    def first(self) -> int:
        """The smallest offset stored; `last + 1` if there is none."""
        return self._events.first

    @property
    def last(self) -> int:
        """The newest offset that the broker has delivered, stored or not; 0 before the first."""
        return self._events.last

    @property
    def size(self) -> int:
        """Bytes of `data` stored."""
        return self._events.size

    def __len__(self) -> int:
        """Return the number of events stored."""
        return len(self._events)

    def append(self, event: Event) -> None:
        """Append one event that the broker has delivered: see `extend`."""
        self.extend((event,))

    def extend(self, events: Sequence[Event]) -> None:
        """Append events that the broker has delivered, in order.

        Events that are not newer than `last` are ignored. If offsets are missing before an event, all older events
        are dropped, because no recovery across the gap could be proved complete.
        """
        stored = [*filter(_offset_of, events)]
        if self._loading is not None:
            self._loading += stored
        elif stored:
            self._extend(stored)

    def _extend(self, events: Sequence[Event]) -> None:
        last = self._events.last
        if events[0].offset == last + 1 and events[-1].offset == last + len(events):
            self._store(events)
            return
        for event in events:
            last = self._events.last
            if event.offset > last:
                if event.offset != last + 1:
                    self.missing_ranges += 1
                    self._clear(event.offset - 1)
                self._store((event,))

    def _store(self, events: Sequence[Event]) -> None:
        # Ages are measured by the events' own times: this machine's clock may differ, or be set.
        self._events.extend(events, events[-1].time)
        first = self._events.first // self.block
        while self._first_block < first:
            self._blocks.pop(self._first_block, None)
            self._first_block += 1

    def reset(self, epoch: str) -> None:
        """Drop all events, and begin a new epoch with offset 1."""
        self.epoch = epoch
        if self._loading is not None:
            self._loading.clear()
        self._clear(0)

    def _clear(self, last: int) -> None:
        self._events.clear(last)
        self._blocks.clear()
        self._first_block = self._events.first // self.block

    def since(
        self, channels: Collection[str], after: int, limit: int | None = None, until: int | None = None
    ) -> list[Event] | None:
        """Return the events in any of `channels` with offsets above `after`, each once, in order.

        :param limit: the maximum number of events, the oldest first. Fewer events mean that these are all.
        :param until: the last offset to look at, by default `last`.
        :return: None if completeness cannot be proved: events after `after` have been dropped, or `after` is newer
            than `last`.
        """
        buffer = self._events
        if not buffer.first - 1 <= after <= buffer.last:
            return None
        result: list[int] = []
        last = buffer.last if until is None else min(until, buffer.last)
        for number in range((after + 1) // self.block, last // self.block + 1):
            offset_lists = [
                offsets[bisect_right(offsets, after) :]
                for offsets in map(self._offsets(number).get, channels)
                if offsets
            ]
            result += offset_lists[0] if len(offset_lists) == 1 else sorted({*chain.from_iterable(offset_lists)})
            if limit is not None and len(result) >= limit:
                del result[limit:]
                break
        if last < buffer.last and result and result[-1] > last:
            del result[bisect_right(result, last) :]
        return [buffer[offset] for offset in result]

    def _offsets(self, number: int) -> dict[str, list[int]]:
        """Return the offsets in each channel of a block, ascending, after indexing its new events."""
        buffer = self._events
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = _IndexBlock(number * self.block - 1)
        start = max(block.last, buffer.first - 1)
        last = min((number + 1) * self.block - 1, buffer.last)
        if start < last:
            block.extend(buffer.read(start, last - start))
        return block.channels

    async def load(self, broker: Broker) -> None:
        """Copy the stored events of a started broker, as after a restart of this process.

        Events that the broker delivers meanwhile are appended behind them, each once. A `reset` meanwhile drops the
        events that were read.

        :raises Unavailable: The broker cannot be read. Events read so far are kept.
        """
        epoch = broker.epoch
        self.reset(epoch)
        arrived: list[Event] = []
        self._loading = arrived
        try:
            first, _ = await broker.offset_range()
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
            self._loading = None
            if arrived:
                self._extend(arrived)
