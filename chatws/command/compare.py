"""Compares the events that two servers sent to the same agent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Comparison", "Difference", "Side"]

Side = Literal["legacy", "new"]


class Difference(NamedTuple):
    """
    :ivar kind: `missing` (the new server did not send it), `extra` (only the new one did) or `different` (both sent an
        event of that name, and its data differ).
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
    """
    :param window: seconds within which both have to send an event. In which order does not matter.
    :ivar same: pairs that were found equal.
    """

    window: float
    same: int = 0
    _waiting: dict[Side, list[_Seen]] = field(default_factory=lambda: {"legacy": [], "new": []})
    _unmatched: list[tuple[Side, _Seen]] = field(default_factory=list)

    def saw(self, side: Side, event: str, data: Any, at: float, counts: bool = True) -> None:
        """An event has come from that side, at that second.

        :param counts: that the other side does not send it would be a difference. Not so just before the beginning
            and just after the end.
        """
        self._give_up(at)
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
        """Whether something came from one side, and may still come from the other."""
        return any(seen.counts for waiting in self._waiting.values() for seen in waiting)

    def _give_up(self, now: float) -> None:
        """What has waited for longer than the window will not be matched any more."""
        for side, waiting in self._waiting.items():
            while waiting and now - waiting[0].at > self.window:
                self._unmatched.append((side, waiting.pop(0)))

    def differences(self) -> list[Difference]:
        """All that was not matched, in the order of arrival. What still waits counts as not matched."""
        left = [*self._unmatched, *((side, seen) for side, waiting in self._waiting.items() for seen in waiting)]
        left = [one for one in left if one[1].counts]
        left.sort(key=lambda one: one[1].at)
        return list(self._pair(left))

    def _pair(self, left: list[tuple[Side, _Seen]]) -> Iterator[Difference]:
        """Two of the same name, one from each side and near each other, are one difference, not two."""
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
