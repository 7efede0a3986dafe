"""The one way in which events reach the listener of this process: in the log's order, each once.

Events come from two sides, from what an append answers and from what was read on, and either may be the first to bring
an event. Each of them says from which place to which it is complete; what is known is dropped, and what does not join
on waits until it has been read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from chatws.brokers.contract import Draft, Event, Listener
from chatws.brokers.delivery import Delivery
from chatws.brokers.postgres.wire import Appended, Row, to_event

__all__ = ["InOrder"]


class InOrder:
    """
    :ivar epoch: of the log.
    :ivar place: nothing up to here will be told again.
    :ivar offset: of the last event with one that was told, and :ivar stamp: its stamp: how the log knows whether it is
        still the one that this process has read.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.place = 0
        self.offset = 0
        self.stamp = 0
        self._listener: Listener | None = None
        self._delivery = Delivery()
        # Ours, stored but not told yet; and what was told while an append of ours was under way, which may be ours.
        self._mine: dict[int, Event] = {}
        self._early: dict[int, Event] | None = None
        self._due: deque[tuple[int, Callable[[], None]]] = deque()

    def start(self, listener: Listener, epoch: str, place: int, offset: int, stamp: int) -> None:
        """Tell `listener` of what comes after `place`."""
        self.epoch, self.place, self.offset, self.stamp = epoch, place, offset, stamp
        self._listener = listener
        self._delivery.start(listener)

    def start_over(self, epoch: str) -> Listener | None:
        """The log is another one now, and begins here; returns who is to be told."""
        self.epoch, self.place, self.offset, self.stamp = epoch, 0, 0, 0
        self._mine.clear()
        self._early = None if self._early is None else {}
        self._due.clear()
        return self._listener

    def expect(self) -> None:
        """An append is under way."""
        self._early = {}

    def failed(self) -> None:
        """It brought nothing."""
        self._early = None

    def read(self, rows: Sequence[Row], upto: int) -> None:
        """What was read from our place on, complete up to `upto`."""
        self._tell(self._new(rows), upto)

    def appended(self, drafts: Sequence[Draft], answer: Appended) -> tuple[list[Event], int]:
        """What an append has stored is told, with what was missed before it, if that closes the gap.

        :return: one event per draft, and the place that must have been told for them to be so; see `when_told`.
        """
        known = {index: (offset, time) for index, offset, time in answer.duplicates or ()}
        early, self._early = self._early or {}, None
        place, offset, time = answer.own_place, answer.own_offset, answer.time
        receipts: list[Event] = []
        fresh: list[Event] = []
        joins_on = answer.own_place <= self.place
        if not joins_on and answer.missed is not None:
            fresh = self._new(answer.missed)
            joins_on = True
        for index, draft in enumerate(drafts):
            if index in known:
                first, then = known[index]
                receipts.append(Event(first, draft.name, draft.audience, draft.data, then, duplicate=True))
                continue
            place += 1
            if not draft.transient:
                offset += 1
            event = early.get(place)
            if event is None:
                event = Event(0 if draft.transient else offset, draft.name, draft.audience, draft.data, time)
                if not joins_on:
                    self._mine[place] = event
                elif place > self.place:
                    fresh.append(event)
                    if event.offset:
                        self.offset, self.stamp = event.offset, answer.stamp
            receipts.append(event)
        if joins_on:
            self._tell(fresh, place)
        return receipts, place

    def when_told(self, place: int, call: Callable[[], None]) -> None:
        """Call when the listener has been told of everything up to `place`: at once, if it has been."""
        self._due.append((place, call))
        self._delivery.tell([], []).addCallback(self._told, self.place)

    def _new(self, rows: Sequence[Row]) -> list[Event]:
        events = []
        for row in rows:
            if row.place <= self.place:
                continue
            event = self._mine.pop(row.place, None) or to_event(row)
            events.append(event)
            if row.offset:
                self.offset, self.stamp = row.offset, row.stamp
            if self._early is not None:
                self._early[row.place] = event
        return events

    def _tell(self, events: list[Event], upto: int) -> None:
        self.place = max(self.place, upto)
        for place in [place for place in self._mine if place <= self.place]:
            del self._mine[place]  # trimmed before it could be read
        self._delivery.tell(events, []).addCallback(self._told, self.place)

    def _told(self, _: object, place: int) -> None:
        while self._due and self._due[0][0] <= place:
            self._due.popleft()[1]()
