"""Responses in the order of their lines, also if a later batch finishes first."""

from __future__ import annotations

from collections import deque

__all__ = ["ResponseQueue", "ResponseSlot"]


class ResponseSlot:
    """The place of a batch's responses in the queue.

    :ivar weight: bytes of the batch's events.
    :ivar response: the encoded responses, or None while the batch is pending.
    """

    __slots__ = ("response", "weight")

    def __init__(self, weight: int, response: bytes | None) -> None:
        self.weight = weight
        self.response = response


class ResponseQueue:
    """Pending batches, and finished ones that wait for them.

    :ivar weight: the sum of their weights.
    """

    def __init__(self) -> None:
        self.weight = 0
        self._slots: deque[ResponseSlot] = deque()

    def __bool__(self) -> bool:
        return bool(self._slots)

    def add(self, weight: int, response: bytes | None = None) -> ResponseSlot:
        """Add a slot at the end."""
        slot = ResponseSlot(weight, response)
        self._slots.append(slot)
        self.weight += weight
        return slot

    def resolve(self, slot: ResponseSlot, response: bytes) -> bytes:
        """Set the response of `slot`, and return the responses that can be sent now."""
        slot.response = response
        ready: list[bytes] = []
        while self._slots and (first := self._slots[0].response) is not None:
            self.weight -= self._slots.popleft().weight
            ready.append(first)
        return b"".join(ready)
