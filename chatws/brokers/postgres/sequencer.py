"""Puts the events of two sources in sequence, so that the event handler receives each of them once, in order.

Events come from the replies to this node's appends and from polls, and either may bring an event first. Each source
covers a range of sequence numbers completely. Known events are dropped, and events that do not follow the last
delivered one wait until a poll has read the gap. docs/adr/0010-postgresql-order.md has the proof.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from chatws.brokers.interface import Event, EventHandler, NewEvent
from chatws.brokers.listener_queue import ListenerQueue
from chatws.brokers.postgres.messages import Appended, Row, to_event

__all__ = ["Sequencer"]


class Sequencer:
    """Holds this node's position in the history.

    :ivar epoch: of the history.
    :ivar seq: sequence number up to which everything was delivered.
    :ivar offset: of the last delivered event that has one.
    :ivar append_id: of that event. The database compares it, to detect that the history was replaced by another copy.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.seq = 0
        self.offset = 0
        self.append_id = 0
        self._listener: EventHandler | None = None
        self._listener_queue = ListenerQueue()
        # This node's events that are stored and not delivered yet, by seq.
        # Events that a poll delivered during an append of this node, which may be its own, by seq.
        self._own_events: dict[int, Event] = {}
        self._read_during_append: dict[int, Event] | None = None
        self._callbacks: deque[tuple[int, Callable[[], None]]] = deque()

    def start(self, listener: EventHandler, epoch: str, seq: int, offset: int, append_id: int) -> None:
        """Deliver to `listener` what follows `seq`."""
        self.epoch, self.seq, self.offset, self.append_id = epoch, seq, offset, append_id
        self._listener = listener
        self._listener_queue.start(listener)

    def reset(self, epoch: str) -> EventHandler | None:
        """Begin a new epoch, and return the event handler, which has to be notified."""
        self.epoch, self.seq, self.offset, self.append_id = epoch, 0, 0, 0
        self._own_events.clear()
        self._read_during_append = None if self._read_during_append is None else {}
        self._callbacks.clear()
        return self._listener

    def append_started(self) -> None:
        """Note that an append is under way."""
        self._read_during_append = {}

    def append_failed(self) -> None:
        """Note that the append has failed, or did nothing."""
        self._read_during_append = None

    def read(self, rows: Sequence[Row], upto: int) -> None:
        """Deliver the rows of a poll from `seq` on, which are complete up to `upto`."""
        self._deliver(self._new(rows), upto)

    def appended(self, new_events: Sequence[NewEvent], reply: Appended) -> tuple[list[Event], int]:
        """Deliver the events of an append, and the missed ones before it, if there is no gap.

        :return: one event per new event, and the sequence number up to which must be delivered before they may be
            acknowledged, see `call_when_delivered`.
        """
        known = {index: (offset, time) for index, offset, time in reply.duplicates or ()}
        already_read, self._read_during_append = self._read_during_append or {}, None
        seq, offset, time = reply.own_seq, reply.own_offset, reply.time
        receipts: list[Event] = []
        fresh: list[Event] = []
        is_contiguous = reply.own_seq <= self.seq
        if not is_contiguous and reply.missed is not None:
            fresh = self._new(reply.missed)
            is_contiguous = True
        for index, new_event in enumerate(new_events):
            if index in known:
                first, first_time = known[index]
                receipts.append(
                    Event(first, new_event.name, new_event.audience, new_event.data, first_time, duplicate=True)
                )
                continue
            seq += 1
            if not new_event.transient:
                offset += 1
            event = already_read.get(seq)
            if event is None:
                event = Event(
                    0 if new_event.transient else offset, new_event.name, new_event.audience, new_event.data, time
                )
                if not is_contiguous:
                    self._own_events[seq] = event
                elif seq > self.seq:
                    fresh.append(event)
                    if event.offset:
                        self.offset, self.append_id = event.offset, reply.append_id
            receipts.append(event)
        if is_contiguous:
            self._deliver(fresh, seq)
        return receipts, seq

    def call_when_delivered(self, seq: int, call: Callable[[], None]) -> None:
        """Call `call` once everything up to `seq` was delivered: at once, if it was."""
        self._callbacks.append((seq, call))
        self._listener_queue.notify([], []).addCallback(self._on_delivered, self.seq)

    def _new(self, rows: Sequence[Row]) -> list[Event]:
        events = []
        for row in rows:
            if row.seq <= self.seq:
                continue
            event = self._own_events.pop(row.seq, None) or to_event(row)
            events.append(event)
            if row.offset:
                self.offset, self.append_id = row.offset, row.append_id
            if self._read_during_append is not None:
                self._read_during_append[row.seq] = event
        return events

    def _deliver(self, events: list[Event], upto: int) -> None:
        self.seq = max(self.seq, upto)
        for seq in [seq for seq in self._own_events if seq <= self.seq]:
            del self._own_events[seq]  # trimmed before it could be read
        self._listener_queue.notify(events, []).addCallback(self._on_delivered, self.seq)

    def _on_delivered(self, _: object, seq: int) -> None:
        while self._callbacks and self._callbacks[0][0] <= seq:
            self._callbacks.popleft()[1]()
