"""Telling the listener: one batch after the other, whatever it does meanwhile."""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from chatws.brokers.contract import Event, Listener

__all__ = ["Delivery"]


class Delivery:
    """Hands batches to one listener in the order in which they were stored.

    A listener that publishes while it is being told (a reply, somebody's `typing`) is told of that batch after it has
    dealt with the present one: otherwise those served later would see the second event before the first.
    """

    _log = Logger()

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._telling = False
        self._waiting: deque[tuple[list[Event], list[Event], Deferred[list[Event]]]] = deque()

    def start(self, listener: Listener) -> None:
        """Tell `listener` from now on."""
        self._listener = listener

    def tell(self, fresh: list[Event], receipts: list[Event]) -> Deferred[list[Event]]:
        """Tell the listener of `fresh`, unless there is nothing to tell.

        :return: fires with `receipts` when the listener has been told: at once, unless it is being told of others.
        """
        if self._telling:
            later: Deferred[list[Event]] = Deferred()
            self._waiting.append((fresh, receipts, later))
            return later
        self._telling = True
        try:
            self._deliver(fresh)
            while self._waiting:
                next_fresh, next_receipts, fired = self._waiting.popleft()
                self._deliver(next_fresh)
                fired.callback(next_receipts)
        finally:
            self._telling = False
        return succeed(receipts)

    def _deliver(self, fresh: list[Event]) -> None:
        if not fresh or self._listener is None:
            return
        try:
            self._listener.deliver(fresh)
        except Exception:
            # The events are in the log, so the backend gets its acknowledgement, and browsers can recover them.
            self._log.failure("listener failed on {count} events", count=len(fresh))
