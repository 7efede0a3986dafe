"""Calls the event handler with one batch after the other, also when it publishes meanwhile."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.brokers.interface import Event, EventHandler

__all__ = ["ListenerQueue"]


class ListenerQueue:
    """Delivers batches to one event handler in the order in which they were stored.

    An event handler may publish while it handles a batch, for example `typing`. It receives the new batch after the
    present one: otherwise connections served later would see the second event before the first.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._listener: EventHandler | None = None
        self._notifying = False
        self._waiting: deque[tuple[list[Event], list[Event], Deferred[list[Event]]]] = deque()

    def start(self, listener: EventHandler) -> None:
        """Deliver to `listener` from now on."""
        self._listener = listener

    def notify(self, fresh: list[Event], receipts: list[Event]) -> Deferred[list[Event]]:
        """Deliver `fresh`, unless it is empty.

        :return: fires with `receipts` after the delivery: at once, unless another batch is being delivered.
        """
        if self._notifying:
            later: Deferred[list[Event]] = Deferred()
            self._waiting.append((fresh, receipts, later))
            return later
        self._notifying = True
        try:
            self._deliver(fresh)
            while self._waiting:
                next_fresh, next_receipts, fired = self._waiting.popleft()
                self._deliver(next_fresh)
                fired.callback(next_receipts)
        finally:
            self._notifying = False
        return succeed(receipts)

    def _deliver(self, fresh: list[Event]) -> None:
        if not fresh or self._listener is None:
            return
        try:
            self._listener.deliver(fresh)
        except Exception:
            # The events are stored: the backend gets its acknowledgement, and browsers can recover them.
            self._log.failure("the delivery of {count} events failed", count=len(fresh))
