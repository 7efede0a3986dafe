"""Idempotency keys in memory, and the step that turns new events into events with offsets."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count, repeat
from operator import attrgetter
from typing import NamedTuple

import msgspec

from chatws.brokers.interface import KEY_SECONDS, Event, NewEvent

__all__ = ["AssignedBatch", "IdempotencyCache", "assign_offsets"]

#: Keys that one `remember` forgets for their age: more than it adds, so that memory follows the rate of publishing.
_STEP = 4

_key_of, _is_transient = attrgetter("key"), attrgetter("transient")
_name_of, _audience_of, _data_of = attrgetter("name"), attrgetter("audience"), attrgetter("data")


class _Known(NamedTuple):
    offset: int
    time: float


class IdempotencyCache:
    """The keys of the last `KEY_SECONDS`, each with the offset and time of the event it was first given with."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._order: deque[tuple[str, _Known]] = deque()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str, now: float) -> _Known | None:
        """Return the first use of `key`, unless that is `KEY_SECONDS` ago."""
        known = self._known.get(key)
        return known if known is not None and now - known.time < KEY_SECONDS else None

    def remember(self, key: str, offset: int, time: float) -> list[str]:
        """Keep `key`, which must not be findable at `time`.

        :return: a few keys that were forgotten meanwhile, for their age.
        """
        known = _Known(offset, time)
        forgotten: list[str] = []
        order = self._order
        while order and len(forgotten) < _STEP and time - order[0][1].time >= KEY_SECONDS:
            old_key, old = order.popleft()
            if self._known.get(old_key) is old:  # else the key has been used again since
                del self._known[old_key]
                if old_key != key:
                    forgotten.append(old_key)
        self._known[key] = known
        order.append((key, known))
        return forgotten


class AssignedBatch(msgspec.Struct, gc=False):
    """The outcome of new events once they are stored.

    :ivar receipts: one event per new event, duplicates included.
    :ivar fresh: those that have to be delivered.
    :ivar last: last offset of the history after them.
    :ivar keys: the keys that are new with them.
    """

    receipts: list[Event]
    fresh: list[Event]
    last: int
    keys: dict[str, Event] | None = None


def assign_offsets(new_events: Sequence[NewEvent], last: int, keys: IdempotencyCache, now: float) -> AssignedBatch:
    """Give the new events their offsets, from `last + 1`, and find the duplicates. Changes nothing that exists."""
    if not any(map(_key_of, new_events)) and not any(map(_is_transient, new_events)):
        # most batches: no key to look up
        parts = map(_name_of, new_events), map(_audience_of, new_events), map(_data_of, new_events)
        receipts = [*map(Event, count(last + 1), *parts, repeat(now))]
        return AssignedBatch(receipts, receipts, last + len(new_events))
    receipts = []
    fresh = receipts
    new_keys: dict[str, Event] | None = None
    for new_event in new_events:
        key = new_event.key
        if key is not None:
            first: Event | _Known | None = new_keys.get(key) if new_keys is not None else None
            if first is None:
                first = keys.find(key, now)
            if first is not None:
                if fresh is receipts:
                    fresh = receipts.copy()
                receipts.append(
                    Event(first.offset, new_event.name, new_event.audience, new_event.data, first.time, duplicate=True)
                )
                continue
        if new_event.transient:
            event = Event(0, new_event.name, new_event.audience, new_event.data, now)
        else:
            last += 1
            event = Event(last, new_event.name, new_event.audience, new_event.data, now)
        receipts.append(event)
        if fresh is not receipts:
            fresh.append(event)
        if key is not None:
            if new_keys is None:
                new_keys = {}
            new_keys[key] = event
    return AssignedBatch(receipts, fresh, last, new_keys)
