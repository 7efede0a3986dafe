"""What this process remembers of the log, indexed so that a browser's recovery costs what it missed.

The broker is the truth; this is a copy of its newest end, fed with every event that the broker tells of, from which
every recovery (docs/protocol.md §4) is answered at once, without asking an engine that may be far away or down.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from operator import attrgetter

from chatws.brokers.contract import Bounds, Broker, Event
from chatws.brokers.window import Window

__all__ = ["History"]

#: Events that `load` reads from the broker at once.
LOAD_CHUNK = 1000

_offset_of = attrgetter("offset")


class _Block:
    """A part of the index.

    :ivar channels: the offsets in each, ascending. :ivar last: up to where that is so.
    """

    __slots__ = ("channels", "last")

    def __init__(self, last: int) -> None:
        self.channels: dict[str, list[int]] = defaultdict(list)
        self.last = last

    def take(self, events: Sequence[Event]) -> None:
        """Add those that follow."""
        for event in events:
            channels, offset = event.audience.channels, event.offset
            for channel in channels if len(channels) == 1 else dict.fromkeys(channels):
                self.channels[channel].append(offset)
        self.last = events[-1].offset


class History:
    """The newest events, within bounds, by offset and by channel.

    Transient events are no part of it. Nor is `except_user_id` looked at: whoever replays knows whose connection it
    is. To replay much without holding up others, read in chunks, each in its own turn of the reactor::

        events = history.since(channels, after, limit=200)
        if events is None: ...                 # trimmed under the reader: no longer complete
        elif len(events) < 200: ...            # caught up with `last`, at this moment
        else: after = events[-1].offset        # more, next time

    The index is made of blocks, each for so many offsets in a row, and a block is made when a recovery first reaches
    back to it: an event that nobody has missed costs nothing but its place in a list. A recovery looks each of its
    channels up once in every block since. Memory beyond the events themselves: one list slot for each event; and in
    blocks that were made, one for each channel it is in, and a list and a dictionary entry for each of their channels.

    :param bounds: how much is kept; trimmed as in chatws.brokers.window.
    :param now: the clock that the events' times are of.
    :ivar epoch: the epoch of the log that this is a copy of; empty before there is one.
    :ivar gaps: how often events were missing between two that the broker told of.
    :cvar block: offsets of a block: making one takes less than a millisecond.
    """

    block = 1024

    def __init__(self, bounds: Bounds | None = None, now: Callable[[], float] = time.time) -> None:
        self.epoch = ""
        self.gaps = 0
        self._now = now
        self._window = Window(bounds or Bounds())
        # By offset // block. Those of offsets that have been dropped are gone, save for the first one's.
        self._blocks: dict[int, _Block] = {}
        self._first_block = 0  # none is older
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
        self._window.extend(events, self._now())
        first = self._window.first // self.block
        while self._first_block < first:
            self._blocks.pop(self._first_block, None)
            self._first_block += 1

    def reset(self, epoch: str) -> None:
        """Forget everything: the log is another one now, and starts at offset 1."""
        self.epoch = epoch
        if self._held is not None:
            self._held.clear()
        self._clear(0)

    def _clear(self, last: int) -> None:
        self._window.clear(last)
        self._blocks.clear()
        self._first_block = self._window.first // self.block

    def since(self, channels: Collection[str], after: int, limit: int | None = None) -> list[Event] | None:
        """The events in any of `channels` with offsets above `after`, each once, in order.

        :param limit: at most so many, the oldest of them; fewer means that these are all up to `last`.
        :return: None when nobody can tell whether that would be all: events after `after` have been dropped, or
            `after` is of the future.
        """
        window = self._window
        if not window.first - 1 <= after <= window.last:
            return None
        found: list[int] = []
        for number in range((after + 1) // self.block, window.last // self.block + 1):
            lanes = [lane[bisect_right(lane, after) :] for lane in map(self._offsets(number).get, channels) if lane]
            found += lanes[0] if len(lanes) == 1 else sorted({*chain.from_iterable(lanes)})
            if limit is not None and len(found) >= limit:
                del found[limit:]
                break
        return [window[offset] for offset in found]

    def _offsets(self, number: int) -> dict[str, list[int]]:
        """The offsets in each channel, ascending, of this block."""
        window = self._window
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = _Block(number * self.block - 1)
        start = max(block.last, window.first - 1)
        last = min((number + 1) * self.block - 1, window.last)
        if start < last:
            block.take(window.read(start, last - start))
        return block.channels

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
