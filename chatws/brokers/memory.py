"""The log in this process's memory: nothing to set up, and gone with the process."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from twisted.internet.defer import Deferred, fail, succeed

from chatws.brokers.contract import Bounds, Draft, Event, Leased, Listener
from chatws.brokers.delivery import Delivery
from chatws.brokers.keys import Keys, accept
from chatws.brokers.leases import Leases
from chatws.brokers.window import Window
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["MemoryBroker"]

_offset_of = attrgetter("offset")


class MemoryBroker:
    """A broker (see chatws.brokers.contract) whose every Deferred has fired when it is returned, except for a publish
    from within the listener's `deliver`: that fires when the listener has been told of it.

    Each instance is a log of its own with an epoch of its own, so that browsers know after a restart that their ids
    are of another log.

    :param bounds: how much `read` can reach back to.
    :param now: seconds since 1970, for the events' times and the age of events and keys.
    """

    shared = False

    def __init__(self, bounds: Bounds | None = None, now: Callable[[], float] = time.time) -> None:
        self.epoch = secrets.token_urlsafe(8)
        self._now = now
        self._window = Window(bounds or Bounds())
        self._keys = Keys()
        self._delivery = Delivery()
        self._leases = Leases()
        self._open = False

    def start(self, listener: Listener) -> Deferred[None]:
        """See `Broker.start`. Never fails."""
        self._delivery.start(listener)
        self._open = True
        return succeed(None)

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        now = self._now()
        window = self._window
        batch = accept(drafts, window.last, self._keys, now)
        if batch.last != window.last:
            window.extend([*filter(_offset_of, batch.fresh)], now)
        if batch.keys is not None:
            for key, event in batch.keys.items():
                self._keys.remember(key, event.offset, now)
        return self._delivery.tell(batch.fresh, batch.receipts)

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        return succeed(self._window.read(after, limit))

    def bounds(self) -> Deferred[tuple[int, int]]:
        """See `Broker.bounds`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        return succeed((self._window.first, self._window.last))

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """See `Broker.lease`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        return succeed(self._leases.lease(node, tabs, seconds, self._now()))

    def online(self) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        return succeed(self._leases.online(self._now()))

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Nothing can be read after it."""
        self._open = False
        return succeed(None)
