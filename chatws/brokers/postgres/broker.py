"""The event history in PostgreSQL, for any number of nodes: the node's side of the schema `chatws`.

docs/adr/0010-postgresql-order.md proves that a node misses no event. In short: `publish` collects events, and one
append at a time stores them. A loop reads on, woken by notifications and by a clock. Both pass their events to
`Sequencer`, which delivers them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from chatws.brokers.base import NO_WEBHOOKS, BaseBroker, requires_open
from chatws.brokers.interface import AGENT_SPACE, Event, EventHandler, LeaseResult, MemberData, NewEvent, Retention
from chatws.brokers.postgres import messages, schema
from chatws.brokers.postgres.notification_listener import NotificationListener
from chatws.brokers.postgres.queries import PAGE_BYTES, ErrorState, Queries
from chatws.brokers.postgres.retention import RetentionTask
from chatws.brokers.postgres.sequencer import Sequencer
from chatws.brokers.publish_queue import PublishBatch, PublishQueue
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    WebhookQueueSettings,
    WebhookReply,
    WebhookRequest,
)
from chatws.database.interface import QueryFailed
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Clock

__all__ = ["PostgresBroker"]

#: Connections: one appends, one polls, two are for everything else.
POOL = 4
#: Limits of one append, unless a single publish is larger: they bound how long the lock of appends is held.
BATCH_EVENTS, BATCH_BYTES = 1000, 4 * 1024 * 1024
#: Events that one poll brings at most.
PAGE_EVENTS = 500
#: Seconds between two polls without a notification: the delay that a lost notification causes at most.
POLL_INTERVAL = 1.0
#: Seconds between two polls while transactions publish. They skip NOTIFY meanwhile (see `POLL_HINT_TTL`).
FAST_POLL_INTERVAL = 0.025
#: Seconds for which SQL publishers may skip NOTIFY because a node is polling, and seconds for which the node polls on
#: after that, to cover slow commits.
POLL_HINT_TTL, POLL_HINT_MARGIN = 1.0, 0.5
#: Seconds before the next poll after one that failed.
RETRY = 0.25
#: Seconds to wait for the reply to this node's own append before its notification causes a poll.
OWN_ANSWER_DELAY = 0.05


class PostgresBroker(BaseBroker):
    """A broker (see chatws.brokers.interface) shared through PostgreSQL.

    :param database: not started; this broker's own.
    :param listen_database: where to LISTEN; the same, or another.
    :param retention: limits of what is kept. Nodes should agree on them, because each of them trims.
    :param now: the clock for events, keys and leases; None for the database's own.
    :param timeout: seconds within which PostgreSQL has to respond.
    :param poll: seconds between two polls, instead of LISTEN. 0 to LISTEN.
    :param webhook_queue: settings of the queue of webhooks.
    """

    _log = Logger()
    epoch: str = ""
    shared = True

    def __init__(
        self,
        database: PostgresDatabase,
        listen_database: PostgresDatabase,
        retention: Retention,
        *,
        reactor: Clock,
        now: Callable[[], float] | None = None,
        timeout: float = 5.0,
        poll: float = 0.0,
        webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
    ) -> None:
        super().__init__()
        self._database = database
        self._listen_database = listen_database
        self._reactor = reactor
        self._now = now
        self._timeout = timeout
        self._poll = poll
        self._sequencer = Sequencer()
        self._notification_listener: NotificationListener | None = None
        if not poll:
            interval = max(1.0, timeout)
            self._notification_listener = NotificationListener(
                listen_database, self._notify, self._on_notification, interval=interval, reactor=reactor
            )
        self._errors = ErrorState()
        self._queries = Queries(database, retention, self._errors, now, webhook_queue)
        self._has_webhooks = webhook_queue.limit > 0
        self._running = False
        # Publishing: batches that wait, whether an append is under way, the append that a poll has asked for (True: it
        # must wait for the lock), and batches that are stored and not delivered yet.
        self._queue = PublishQueue(BATCH_EVENTS, BATCH_BYTES)
        self._appending = False
        self._requested_append: bool | None = None
        self._stored: list[PublishBatch] = []
        # Polling: the loop, its sleep, and whether it was woken meanwhile.
        self._polling: Deferred[None] | None = None
        self._sleep: Deferred[None] | None = None
        self._wake_requested = False
        self._notified_seq = 0
        self._own_timer: DelayedCall | None = None
        self._fast_poll_until = 0.0
        self._poll_hint_until = 0.0
        self._retention_task = RetentionTask(self._queries.trim, reactor)

    # Start and stop

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`."""
        return Deferred.fromCoroutine(self._start(listener))

    async def _start(self, listener: EventHandler) -> None:
        await self._database.start()
        if self._listen_database is not self._database:
            await self._listen_database.start()
        try:
            await schema.check(self._database)
            [head] = await self._database.query(messages.HEAD, {})
        except BaseException:
            await self._database.stop()
            await self._listen_database.stop()
            raise
        self.epoch = head["epoch"]
        self._sequencer.start(listener, head["epoch"], head["seq"], head["event_offset"], head["append_id"])
        self._open = self._running = True
        self._polling = Deferred.fromCoroutine(self._poll_loop())
        self._polling.addErrback(lambda failure: self._log.failure("the poll loop failed", failure))
        if self._notification_listener is not None:
            self._notification_listener.start()
        self._retention_task.start()

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`."""
        self._open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._appending or self._queue or self._stored:
            await self._wait_until_idle()
        self._running = False
        if self._own_timer is not None and self._own_timer.active():
            self._own_timer.cancel()
        self._wake()
        if self._notification_listener is not None:
            await self._notification_listener.stop()
        await self._listen_database.stop()
        await self._database.stop()
        await self._retention_task.stop()
        following, self._polling = self._polling, None
        if following is not None:
            await following

    # Publishing

    @requires_open
    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if not new_events:
            return succeed([])
        encoded = [messages.encode_new_event(new_event) for new_event in new_events]
        published = self._queue.add(new_events, encoded, self._reactor.seconds() + self._timeout)
        self._write()
        return published

    def _write(self) -> None:
        """Append the oldest batch, unless an append is under way: its end calls this again."""
        if self._appending or not (self._queue or self._requested_append is not None):
            return
        self._appending = True
        batch = self._queue.pop() if self._queue else PublishBatch(self._reactor.seconds() + self._timeout)
        must_wait = bool(batch) or self._requested_append is True
        self._requested_append = None
        appending = Deferred.fromCoroutine(self._append(batch, must_wait))
        appending.addErrback(self._log_append_fault, batch)
        appending.addCallback(self._on_append_done)

    def _log_append_fault(self, failure: Any, batch: PublishBatch) -> None:
        self._log.failure("an append failed", failure)
        batch.fail(Unavailable("the event history cannot be written now"))

    def _on_append_done(self, _: object) -> None:
        self._appending = False
        self._write()
        if self._notified_seq > self._sequencer.seq and not self._appending:
            self._wake()
        self._check_idle()

    def _check_idle(self) -> None:
        if not (self._appending or self._queue or self._stored):
            self._signal_idle()

    async def _append(self, batch: PublishBatch, must_wait: bool) -> None:
        sequencer = self._sequencer
        sequencer.append_started()
        values = {
            **self._position(),
            "new_events": f"[{b','.join(batch.encoded).decode()}]",
            "wait": must_wait,
            "notify": not self._poll,
            "poll_hint": 0.0 if self._poll else POLL_HINT_TTL,
            "now": self._now and self._now(),
        }
        batch.encoded = []
        try:
            rows = await self._database.execute_returning(messages.APPEND, values, batch.deadline)
        except (Unavailable, QueryFailed) as error:
            sequencer.append_failed()
            self._errors.mark_failed("written", error)
            batch.fail(Unavailable("the event history cannot be written now"))
            self._wake()  # it may have been stored all the same
            return
        reply = messages.decode_appended(rows[0]["reply"])
        if reply.busy:
            sequencer.append_failed()
            self._extend_poll_hint()
            return
        self._errors.mark_working("written")
        self._update_epoch(reply.epoch)
        if reply.moved:
            self._extend_poll_hint()
        receipts, seq = sequencer.appended(batch.new_events, reply)
        if batch:
            self._stored.append(batch)
            sequencer.call_when_delivered(seq, lambda: self._confirm(batch, receipts))
            if batch:
                late = max(0.0, batch.deadline - self._reactor.seconds())
                batch.timer = self._reactor.callLater(late, self._expire, batch)
        if seq > sequencer.seq or reply.moved:
            self._wake()

    def _confirm(self, batch: PublishBatch, receipts: list[Event]) -> None:
        if self._remove_stored(batch):
            batch.confirm(receipts)
            self._check_idle()

    def _expire(self, batch: PublishBatch) -> None:
        """Fail a batch that is stored and was not delivered in time."""
        if self._remove_stored(batch):
            batch.fail(Unavailable("the event history cannot be read now"))
            self._check_idle()

    def _remove_stored(self, batch: PublishBatch) -> bool:
        if batch not in self._stored:
            return False
        self._stored.remove(batch)
        if batch.timer is not None and batch.timer.active():
            batch.timer.cancel()
        return True

    def _position(self) -> dict[str, Any]:
        sequencer = self._sequencer
        return {
            "epoch": sequencer.epoch,
            "seq": sequencer.seq,
            "offset": sequencer.offset,
            "append_id": sequencer.append_id,
        }

    def _update_epoch(self, epoch: str) -> None:
        if epoch == self.epoch:
            return
        self._log.warn(
            "the event history in PostgreSQL was reset: epoch {old_epoch} ends at offset {offset}, epoch {epoch} "
            "begins, pages reload; reason: it no longer holds what was read from it (a restored backup, a promoted "
            "standby), or chatws.reset_history() was called",
            old_epoch=self.epoch,
            offset=self._sequencer.offset,
            epoch=epoch,
        )
        listener = self._sequencer.reset(epoch)
        for batch in [*self._stored]:
            self._expire(batch)
        self.epoch = epoch
        self._notified_seq = 0
        if listener is not None:
            listener.reset(epoch)

    # Polling

    def _wake(self) -> None:
        self._wake_requested = True
        sleep, self._sleep = self._sleep, None
        if sleep is not None:
            sleep.callback(None)

    def _on_notification(self, payload: str) -> None:
        """Take a notification: the sequence number of a new event, or another text when events may be anywhere."""
        if not self._running:
            return
        if not payload.isdigit():
            self._wake()
            return
        self._notified_seq = max(self._notified_seq, int(payload))
        if self._notified_seq <= self._sequencer.seq:
            return
        if not self._appending:
            self._wake()
        elif self._own_timer is None or not self._own_timer.active():
            # probably this node's own append: its reply is about to arrive
            self._own_timer = self._reactor.callLater(OWN_ANSWER_DELAY, self._on_own_answer_late)

    def _on_own_answer_late(self) -> None:
        if self._notified_seq > self._sequencer.seq:
            self._wake()

    def _extend_poll_hint(self) -> None:
        self._fast_poll_until = self._reactor.seconds() + POLL_HINT_TTL + POLL_HINT_MARGIN
        self._wake()

    async def _poll_loop(self) -> None:
        while self._running:
            self._wake_requested = False
            try:
                pause = await self._poll_once()
            except Exception:
                self._log.failure("a poll of the event history failed")
                pause = POLL_INTERVAL
            if pause and self._running and not self._wake_requested:
                sleep: Deferred[None] = Deferred()
                self._sleep = sleep
                timer = self._reactor.callLater(pause, self._wake)
                await sleep
                if timer.active():
                    timer.cancel()

    async def _poll_once(self) -> float:
        """Poll once, and return the seconds until the next poll."""
        try:
            values = {**self._position(), "limit": PAGE_EVENTS, "size": PAGE_BYTES}
            rows = await self._database.query(messages.POLL, values)
            now = self._reactor.seconds()
            if self._poll and now >= self._poll_hint_until:
                self._poll_hint_until = now + self._poll
                await self._database.execute_returning(
                    messages.EXTEND_POLL_HINT, {"seconds": 3 * self._poll + POLL_HINT_TTL}
                )
        except (Unavailable, QueryFailed) as error:
            self._errors.mark_failed("read", error)
            return RETRY
        reply = messages.decode_polled(rows[0]["reply"])
        self._errors.mark_working("read")
        if reply.lost:
            self._requested_append = True
        else:
            self._update_epoch(reply.epoch)
            self._sequencer.read(reply.events, reply.upto)
            if reply.outbox and self._requested_append is None:
                self._requested_append = False
        self._write()
        if reply.more:
            return 0.0
        if now < self._fast_poll_until:
            return FAST_POLL_INTERVAL
        return self._poll or POLL_INTERVAL

    # Queries

    @requires_open
    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return Deferred.fromCoroutine(self._queries.read(after, limit))

    @requires_open
    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`. Fails, too, if the last append failed and PostgreSQL still rejects writes."""
        return Deferred.fromCoroutine(self._queries.offset_range())

    @requires_open
    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        return Deferred.fromCoroutine(self._queries.lease(node, connection_counts, seconds, space))

    @requires_open
    def online(self, space: str = AGENT_SPACE) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return Deferred.fromCoroutine(self._queries.online(space))

    @requires_open
    def nodes_without(self, space: str) -> Deferred[list[str]]:
        """See `Broker.nodes_without`."""
        return Deferred.fromCoroutine(self._queries.nodes_without(space))

    @requires_open
    def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> Deferred[bool]:
        """See `Broker.set_data`."""
        return Deferred.fromCoroutine(self._queries.set_data(space, member, data, seconds))

    @requires_open
    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return Deferred.fromCoroutine(self._queries.data(space))

    @requires_open
    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        if not self._has_webhooks:
            return fail(Unavailable(NO_WEBHOOKS))
        return Deferred.fromCoroutine(self._queries.add_webhooks(webhooks, reset))

    @requires_open
    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        if not self._has_webhooks:
            return fail(Unavailable(NO_WEBHOOKS))
        return Deferred.fromCoroutine(self._queries.exchange_webhooks(request, self.epoch))

    @requires_open
    def trim(self) -> Deferred[None]:
        """Delete what is past its retention. This also happens every few seconds."""
        return Deferred.fromCoroutine(self._retention_task.trim())

    async def _notify(self, payload: str) -> None:
        await self._database.execute_returning(messages.NOTIFY, {"payload": payload})
