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
    """The first use of a key. `time` is later if the key is remembered for longer than `KEY_SECONDS`."""

    offset: int
    time: float


class IdempotencyCache:
    """The keys of the last `KEY_SECONDS`, each with the offset and time of the event it was first given with.

    A key that is remembered for longer is kept with a time that lies so much later.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        # by what is added to their times: each in the order in which they are forgotten
        self._orders: dict[float, deque[tuple[str, _Known]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def find(self, key: str, now: float) -> _Known | None:
        """Return the first use of `key`, unless that is `KEY_SECONDS` ago."""
        known = self._known.get(key)
        return known if known is not None and now - known.time < KEY_SECONDS else None

    def restore(self, key: str, offset: int, time: float) -> None:
        """Keep a key from a file. Call it in the order of their times, before any `remember`."""
        self._known[key] = known = _Known(offset, time)
        self._orders.setdefault(0.0, deque()).append((key, known))

    def remember(self, key: str, offset: int, time: float, extra: float = 0.0) -> list[str]:
        """Keep `key`, which must not be findable at `time`.

        :param extra: seconds beyond `KEY_SECONDS`.
        :return: a few keys that were forgotten meanwhile, for their age.
        """
        known = _Known(offset, time + extra)
        forgotten: list[str] = []
        for order in self._orders.values():
            while order and len(forgotten) < _STEP and time - order[0][1].time >= KEY_SECONDS:
                old_key, old = order.popleft()
                if self._known.get(old_key) is old:  # else the key has been used again since
                    del self._known[old_key]
                    if old_key != key:
                        forgotten.append(old_key)
        self._known[key] = known
        self._orders.setdefault(extra, deque()).append((key, known))
        return forgotten


class AssignedBatch(msgspec.Struct, gc=False):
    """The outcome of new events once they are stored.

    :ivar receipts: one event per new event, duplicates included.
    :ivar fresh: those that have to be delivered.
    :ivar last: last offset of the history after them.
    :ivar keys: the keys that are new with them.
    :ivar extra: the seconds beyond `KEY_SECONDS` for which some of these are remembered.
    """

    receipts: list[Event]
    fresh: list[Event]
    last: int
    keys: dict[str, Event] | None = None
    extra: dict[str, float] = {}


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
    extra: dict[str, float] = {}
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
            if new_event.key_seconds > KEY_SECONDS:
                extra[key] = new_event.key_seconds - KEY_SECONDS
    return AssignedBatch(receipts, fresh, last, new_keys, extra)
