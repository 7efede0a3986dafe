"""The event history in the memory of one process. It ends with the process."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter

from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from chatws.brokers.base import NO_WEBHOOKS, BaseBroker, requires_open
from chatws.brokers.event_buffer import EventBuffer
from chatws.brokers.idempotency import IdempotencyCache, assign_offsets
from chatws.brokers.interface import AGENT_SPACE, Event, EventHandler, LeaseResult, MemberData, NewEvent, Retention
from chatws.brokers.leases import Spaces
from chatws.brokers.listener_queue import ListenerQueue
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    SqlWebhookQueue,
    WebhookQueueSettings,
    WebhookReply,
    WebhookRequest,
    presence_webhooks,
)
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.runtime.clock import steady_time

__all__ = ["MemoryBroker"]

_offset_of = attrgetter("offset")


class MemoryBroker(BaseBroker):
    """A broker (see chatws.brokers.interface) in memory.

    Every Deferred has fired when it is returned. A publish from within the listener's `deliver` is the exception: it
    fires when the listener has the event.

    Each instance has an epoch of its own, so that browsers detect after a restart that their offsets are invalid.

    :param retention: limits of what `read` returns.
    :param now: seconds since 1970, for the events' times and the age of events and keys.
    :param webhook_queue: settings of the queue of webhooks.
    """

    _log = Logger()
    shared = False

    def __init__(
        self,
        retention: Retention | None = None,
        now: Callable[[], float] = steady_time,
        *,
        webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
    ) -> None:
        super().__init__()
        self.epoch = secrets.token_urlsafe(8)
        self._now = now
        self._window = EventBuffer(retention or Retention())
        self._keys = IdempotencyCache()
        self._listener_queue = ListenerQueue()
        self._spaces = Spaces()
        self._webhook_settings = webhook_queue
        self._webhooks: SqlWebhookQueue | None = None

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`. Never fails."""
        self._log.warn(
            "the history is in memory and starts empty, epoch {epoch}: what an earlier process had is lost, and its "
            "pages reload; --broker sqlite:///path keeps it",
            epoch=self.epoch,
        )
        self._listener_queue.start(listener)
        if self._webhook_settings.limit:
            database = sqlite3.connect(":memory:", isolation_level=None)
            self._webhooks = SqlWebhookQueue(database, self._webhook_settings.limit, self.epoch, self._now())
        self._open = True
        return succeed(None)

    @requires_open
    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        now = self._now()
        window = self._window
        batch = assign_offsets(new_events, window.last, self._keys, now)
        if batch.last != window.last:
            window.extend([*filter(_offset_of, batch.fresh)], now)
        if batch.keys is not None:
            for key, event in batch.keys.items():
                self._keys.remember(key, event.offset, now, batch.extra.get(key, 0.0))
        return self._listener_queue.notify(batch.fresh, batch.receipts)

    @requires_open
    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return succeed(self._window.read(after, limit))

    @requires_open
    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`."""
        return succeed((self._window.first, self._window.last))

    @requires_open
    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        now = self._now()
        leased = self._spaces.lease(space, node, connection_counts, seconds, now)
        if self._webhooks is not None and leased.changed and self._webhook_settings.limit_for(space):
            self._webhooks.add(presence_webhooks(space, leased.changed), now)
        return succeed(leased)

    @requires_open
    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return succeed(self._spaces.online(space, self._now()))

    @requires_open
    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """See `Broker.nodes_without`."""
        return succeed(self._spaces.nodes_without(space, self._now()))

    @requires_open
    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """See `Broker.set_data`."""
        return succeed(self._spaces.set_data(space, member, data, seconds, self._now()))

    @requires_open
    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return succeed(self._spaces.data(space, self._now()))

    @requires_open
    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        if self._webhooks is None:
            return fail(Unavailable(NO_WEBHOOKS))
        self._webhooks.add(webhooks, self._now())
        if reset:
            self._webhooks.require_reset()
        return succeed(None)

    @requires_open
    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        if self._webhooks is None:
            return fail(Unavailable(NO_WEBHOOKS))
        return succeed(self._webhooks.exchange(request, self._now(), lasts=False))

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Nothing can be read after it."""
        self._open = False
        return succeed(None)
