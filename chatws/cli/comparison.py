"""Compares the events that two servers sent to the same agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Comparison", "Difference", "Side"]

Side = Literal["legacy", "new"]


class Difference(NamedTuple):
    """An event that the servers did not send alike.

    :ivar kind: `missing` (the new server did not send it), `extra` (only the new server sent it) or `different` (both
        sent an event of that name with different data).
    :ivar legacy, new: the data that each sent; None where it sent nothing.
    """

    kind: str
    event: str
    legacy: Any
    new: Any


@dataclass
class _Seen:
    at: float
    event: str
    data: Any
    key: str
    counts: bool


@dataclass
class Comparison:
    """Compares the events of two servers.

    :param window: seconds within which both have to send an event, in any order.
    :ivar same: the number of equal pairs.
    """

    window: float
    same: int = 0
    _waiting: dict[Side, list[_Seen]] = field(default_factory=lambda: {"legacy": [], "new": []})
    _unmatched: list[tuple[Side, _Seen]] = field(default_factory=list)

    def add(self, side: Side, event: str, data: Any, at: float, counts: bool = True) -> None:
        """Add an event that has come from that side.

        :param at: seconds.
        :param counts: whether it is a difference if the other side does not send it. False just before the beginning
            and just after the end.
        """
        self._expire(at)
        seen = _Seen(at, event, data, json.dumps([event, data], sort_keys=True), counts)
        others = self._waiting["new" if side == "legacy" else "legacy"]
        for other in others:
            if other.key == seen.key:
                others.remove(other)
                self.same += 1
                return
        self._waiting[side].append(seen)

    @property
    def is_waiting(self) -> bool:
        """Whether an event came from one side and may still come from the other."""
        return any(seen.counts for waiting in self._waiting.values() for seen in waiting)

    def _expire(self, now: float) -> None:
        """Treat events that have waited for longer than the window as unmatched."""
        for side, waiting in self._waiting.items():
            while waiting and now - waiting[0].at > self.window:
                self._unmatched.append((side, waiting.pop(0)))

    def differences(self) -> list[Difference]:
        """Return all unmatched events, in the order of arrival, including those that still wait."""
        left = [*self._unmatched, *((side, seen) for side, waiting in self._waiting.items() for seen in waiting)]
        left = [entry for entry in left if entry[1].counts]
        left.sort(key=lambda entry: entry[1].at)
        return list(self._pair(left))

    def _pair(self, left: list[tuple[Side, _Seen]]) -> Iterator[Difference]:
        """Combine two events of the same name, one from each side and near each other, into one difference."""
        while left:
            side, first = left.pop(0)
            second = None
            for at, (other_side, other) in enumerate(left):
                if other_side != side and other.event == first.event and other.at - first.at <= self.window:
                    second = left.pop(at)[1]
                    break
            if second is None:
                if side == "legacy":
                    yield Difference("missing", first.event, first.data, None)
                else:
                    yield Difference("extra", first.event, None, first.data)
            else:
                legacy, new = (first, second) if side == "legacy" else (second, first)
                yield Difference("different", first.event, legacy.data, new.data)
