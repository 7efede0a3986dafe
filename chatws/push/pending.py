"""Answers in the order of the lines they are to, whichever is there first."""

from __future__ import annotations

from collections import deque

__all__ = ["Batch", "Pending"]


class Batch:
    """Lines answered together. `weight`: of their events; `answer`: as soon as it can be given."""

    __slots__ = ("answer", "weight")

    def __init__(self, weight: int, answer: bytes | None) -> None:
        self.weight = weight
        self.answer = answer


class Pending:
    """Batches without an answer, and those behind them.

    :ivar weight: of all their events.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._batches: deque[Batch] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def add(self, weight: int, answer: bytes | None = None) -> Batch:
        """One more batch, behind all others."""
        batch = Batch(weight, answer)
        self._batches.append(batch)
        self.weight += weight
        return batch

    def resolve(self, batch: Batch, answer: bytes) -> bytes:
        """This batch has its answer: what can be given now, in order."""
        batch.answer = answer
        ready: list[bytes] = []
        while self._batches and (first := self._batches[0].answer) is not None:
            self.weight -= self._batches.popleft().weight
            ready.append(first)
        return b"".join(ready)
