"""Group commit: publishes that arrive while the engine writes are stored together by the next write."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from twisted.internet.defer import Deferred

from chatws.brokers.interface import Event, NewEvent
from chatws.interfaces import TimerHandle

__all__ = ["PublishBatch", "PublishQueue"]


class PublishBatch:
    """Publishes that one write stores, in their order.

    :ivar new_events: of all publishes.
    :ivar encoded: the new events as the engine sends them, if it gave that to `PublishQueue.add`.
    :ivar deadline: the reactor's seconds at which the first publisher has waited long enough.
    :ivar timer: of that deadline, for the engine's use.
    """

    def __init__(self, deadline: float = 0.0) -> None:
        self.new_events: list[NewEvent] = []
        self.encoded: list[bytes] = []
        self.deadline = deadline
        self.timer: TimerHandle | None = None
        self.size = 0
        self._waiting: list[tuple[int, Deferred[list[Event]]]] = []

    def __bool__(self) -> bool:
        """Whether a publisher waits for the outcome."""
        return bool(self._waiting)

    def add(self, new_events: Sequence[NewEvent], encoded: Sequence[bytes], size: int) -> Deferred[list[Event]]:
        """Add one publish and return the publisher's Deferred."""
        fired: Deferred[list[Event]] = Deferred()
        self.new_events += new_events
        self.encoded += encoded
        self.size += size
        self._waiting.append((len(new_events), fired))
        return fired

    def split(self, receipts: Sequence[Event]) -> Iterator[tuple[Deferred[list[Event]], list[Event]]]:
        """Yield each publisher's Deferred with its part of the receipts. The batch has no publishers afterwards."""
        waiting, self._waiting = self._waiting, []
        start = 0
        for count, fired in waiting:
            yield fired, [*receipts[start : start + count]]
            start += count

    def confirm(self, receipts: Sequence[Event]) -> None:
        """Fire every publisher's Deferred with its part of the receipts, one for each new event."""
        for fired, part in self.split(receipts):
            fired.callback(part)

    def fail(self, error: Exception) -> None:
        """Fail every publisher's Deferred."""
        waiting, self._waiting = self._waiting, []
        for _, fired in waiting:
            fired.errback(error)


class PublishQueue:
    """Batches that wait for a write, the oldest first.

    :param max_events: new events in a batch, unless one publish has more. A publish is never divided.
    :param max_bytes: bytes in a batch, unless one publish has more.
    """

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._batches: deque[PublishBatch] = deque()

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def add(
        self, new_events: Sequence[NewEvent], encoded: Sequence[bytes] = (), deadline: float = 0.0
    ) -> Deferred[list[Event]]:
        """Add one publish to the last batch if it has room, else to a new one.

        :param encoded: the new events as the engine sends them.
        :param deadline: of a new batch.
        """
        size = sum(map(len, encoded)) if encoded else sum(len(new_event.data) for new_event in new_events)
        last = self._batches[-1] if self._batches else None
        if (
            last is None
            or len(last.new_events) + len(new_events) > self._max_events
            or last.size + size > self._max_bytes
        ):
            last = PublishBatch(deadline)
            self._batches.append(last)
        return last.add(new_events, encoded, size)

    def pop(self) -> PublishBatch:
        """Take the oldest batch."""
        return self._batches.popleft()

    def fail(self, error: Exception) -> None:
        """Fail every publisher that waits, and forget the batches."""
        batches, self._batches = self._batches, deque()
        for batch in batches:
            batch.fail(error)
