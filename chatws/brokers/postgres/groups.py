"""Publishes that wait for their append, gathered so that many share one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred

from chatws.brokers.contract import Draft, Event

__all__ = ["Group", "Queue"]

#: What one append takes at most, but for a single publish that is larger.
GROUP_DRAFTS, GROUP_BYTES = 1000, 4 * 1024 * 1024


class Group:
    """Drafts that go with one append: publishes in their order.

    :ivar deadline: the reactor's seconds at which the first of them has waited long enough.
    :ivar timer: of that, once they are stored and not told yet.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.drafts: list[Draft] = []
        self.encoded: list[bytes] = []
        self.size = 0
        self.timer: Any = None
        self._waiting: list[tuple[int, Deferred[list[Event]]]] = []

    def __bool__(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._waiting)

    def add(self, drafts: Sequence[Draft], encoded: list[bytes]) -> Deferred[list[Event]]:
        """One publish more; returns what its publisher waits for."""
        later: Deferred[list[Event]] = Deferred()
        self.drafts += drafts
        self.encoded += encoded
        self.size += sum(map(len, encoded))
        self._waiting.append((len(drafts), later))
        return later

    def has_room(self, drafts: int, size: int) -> bool:
        """Whether so many drafts of so many bytes may be added."""
        return len(self.drafts) + drafts <= GROUP_DRAFTS and self.size + size <= GROUP_BYTES

    def answer(self, receipts: list[Event]) -> None:
        """Give each publisher its part."""
        start = 0
        waiting, self._waiting = self._waiting, []
        for count, later in waiting:
            later.callback(receipts[start : start + count])
            start += count

    def fail(self, error: Exception) -> None:
        """Tell all publishers."""
        waiting, self._waiting = self._waiting, []
        for _, later in waiting:
            later.errback(error)


class Queue:
    """Groups that wait, the oldest first."""

    def __init__(self) -> None:
        self._groups: list[Group] = []

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, drafts: Sequence[Draft], encoded: list[bytes], deadline: float) -> Deferred[list[Event]]:
        """One publish more, in the last group if that has room, which then keeps its deadline."""
        size = sum(map(len, encoded))
        if not self._groups or not self._groups[-1].has_room(len(drafts), size):
            self._groups.append(Group(deadline))
        return self._groups[-1].add(drafts, encoded)

    def pop(self) -> Group:
        """The oldest group."""
        return self._groups.pop(0)
