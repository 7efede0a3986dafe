"""The event history in an SQLite file, for one process: it survives the process, and needs no server.

Every `publish` is one transaction in WAL mode. There are two levels of safety:

- By default (`synchronous=NORMAL`) a commit passes the events to the kernel and does not wait for the disk. A killed
  process loses nothing, and a power cut may lose the last seconds. After a power cut the history gets a new epoch at
  the next start, because offsets that browsers have seen are assigned again. The file therefore notes the boot in which
  its writer ran. `synchronous=OFF` would be no safer for a killed process, and a power cut could damage the file.
  Commits run on the reactor's thread, because each is a few system calls. Every 1,000 pages SQLite moves the
  write-ahead log into the file and syncs it, and that publish waits for the disk.
- `sync_commits` (`synchronous=FULL`): a commit has reached the disk. Commits run in a thread, one at a time.
  Publishes that arrive meanwhile share the next transaction and its sync. A history whose boot id is unreadable is
  always written this way, because a killed process cannot be distinguished from a power cut.

The file stays locked for other processes until `stop`, or until the kernel has removed the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from chatws.brokers.base import CLOSED, NO_WEBHOOKS, BaseBroker, requires_open
from chatws.brokers.idempotency import AssignedBatch
from chatws.brokers.interface import AGENT_SPACE, Event, EventHandler, LeaseResult, MemberData, NewEvent, Retention
from chatws.brokers.leases import Spaces
from chatws.brokers.listener_queue import ListenerQueue
from chatws.brokers.publish_queue import PublishBatch, PublishQueue
from chatws.brokers.sqlite.format import BOOT_ID, FORMAT, boot_id
from chatws.brokers.sqlite.store import SqliteStore
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    WebhookQueueSettings,
    WebhookReply,
    WebhookRequest,
)
from chatws.errors import Unavailable
from chatws.ids import Id
from chatws.interfaces import Reactor
from chatws.runtime.threads import daemon_pool

__all__ = ["SqliteBroker"]

T = TypeVar("T")

#: Of one transaction, so that readers, which wait for its end, wait for tens of milliseconds at most.
MAX_EVENTS, MAX_BYTES = 1000, 4 * 1024 * 1024


class SqliteBroker(BaseBroker):
    """A broker (see chatws.brokers.interface) on a SQLite file.

    Its Deferreds have fired when they are returned, unless `sync_commits` is set or the listener publishes from within
    `deliver`.

    :param path: of the file; its directory must exist. SQLite keeps a second one beside it, `PATH-wal`.
    :param retention: how much is kept.
    :param now: seconds since 1970.
    :param sync_commits: see the module.
    :param reactor: the reactor to which the thread of `sync_commits` reports.
    :param boot: names the machine's present boot; None if that cannot be read.
    :param webhook_queue: settings of the queue of webhooks.
    """

    _log = Logger()
    epoch: str
    shared = False

    def __init__(
        self,
        path: str,
        retention: Retention,
        now: Callable[[], float],
        *,
        sync_commits: bool = False,
        reactor: Reactor | None = None,
        boot: Callable[[], str | None] = boot_id,
        webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
    ) -> None:
        super().__init__()
        self._now = now
        self._path = path
        boot_name = boot()
        self._forced = boot_name is None and not sync_commits
        self._sync_commits = sync_commits or self._forced
        self._reactor = reactor
        self._store = SqliteStore(path, retention, sync_commits=self._sync_commits, boot=boot_name)
        self._has_webhooks = webhook_queue.limit > 0
        self._store.webhook_queue = webhook_queue
        self._lost_webhooks = False
        self._listener_queue = ListenerQueue()
        self._spaces = Spaces()
        self._failing = False
        self._shortened = 0
        # For `sync_commits`: publishes that wait for the thread, and whether the thread uses the store.
        self._queue = PublishQueue(MAX_EVENTS, MAX_BYTES)
        self._busy = False
        self._pool: ThreadPool | None = None

    def start(self, listener: EventHandler) -> Deferred[None]:
        """See `Broker.start`."""
        return maybeDeferred(self._start, listener)

    def _start(self, listener: EventHandler) -> None:
        self._store.open(self._now())
        self.epoch = self._store.epoch
        if self._forced:
            self._log.warn(
                "the boot id cannot be read from {boot_id_path}: each publish waits for the disk, as with "
                "--sqlite-synchronous full, so that the history in {path} is valid after a crash; make the file "
                "readable to avoid that",
                boot_id_path=BOOT_ID,
                path=self._path,
            )
        if self._store.is_new:
            self._log.info("a new event history begins in {path}, epoch {epoch}", path=self._path, epoch=self.epoch)
        if self._store.migrated_from:
            self._log.warn(
                "the history in {path} was migrated from format {old_format} to {new_format}: earlier versions of "
                "chatws can no longer open it",
                path=self._path,
                old_format=self._store.migrated_from,
                new_format=FORMAT,
            )
        if self._store.is_unsettled:
            self._log.warn(
                "the disk of {path} is full: the history can be read, and published to once there is space",
                path=self._path,
            )
        if self._store.dropped:
            self._log.info(
                "{count} events of {path} were older than --history-seconds at the start and have been dropped",
                count=self._store.dropped,
                path=self._path,
            )
        if self._store.discarded:
            self._log.warn(
                "the history in {path} is discarded and a new epoch begins, pages reload: {reason}",
                path=self._path,
                reason=self._store.discarded,
            )
        self._spaces.restore(self._store.members(), self._store.data(), self._now())
        self._listener_queue.start(listener)
        if self._sync_commits:
            self._pool = daemon_pool("history")
        self._open = True

    @requires_open
    def publish(self, new_events: Sequence[NewEvent]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if self._sync_commits:
            published = self._queue.add(new_events)
            self._write_waiting()
            return published
        try:
            batch = self._store.append(new_events, self._now())
        except Exception as error:
            return fail(self._explain(error))
        self._succeeded()
        return self._listener_queue.notify(batch.fresh, batch.receipts)

    def _write_waiting(self) -> None:
        """Store the oldest batch in one transaction, unless the thread is busy: then `_written` calls this again."""
        if self._busy or not self._queue:
            return
        self._busy = True
        batch = self._queue.pop()
        assert self._pool is not None
        reactor: Any = self._reactor  # annotated as zope's IReactorFromThreads
        written: Deferred[AssignedBatch] = deferToThreadPool(
            reactor, self._pool, self._store.append, batch.new_events, self._now()
        )
        written.addBoth(self._written, batch)
        written.addErrback(lambda failure: self._log.failure("processing a write to the event history failed", failure))

    def _written(self, outcome: AssignedBatch | Failure, batch: PublishBatch) -> None:
        if isinstance(outcome, Failure):
            batch.fail(self._explain(outcome.value or RuntimeError("unknown")))
        else:
            self._succeeded()
            for fired, receipts in batch.split(outcome.receipts):
                fresh = [event for event in receipts if not event.duplicate]
                self._listener_queue.notify(fresh, receipts).chainDeferred(fired)
        self._busy = False
        self._signal_idle()
        self._write_waiting()

    def _succeeded(self) -> None:
        """Note a successful write. A disk that is repeatedly full is logged once."""
        if self._failing:
            self._failing = False
            self._log.info("the event history in {path} can be written again", path=self._path)
        shortened = self._store.shortened
        if shortened and not self._shortened:
            self._log.warn(
                "the disk of {path} is full: the oldest events make room for new ones, sooner than --history-events, "
                "--history-seconds and --history-bytes say; pages that missed them reload",
                path=self._path,
            )
        self._shortened = shortened

    def _explain(self, error: BaseException) -> Exception:
        """Return the error for publishers, and log the reason once, not for each event that a full disk rejects."""
        if not isinstance(error, sqlite3.Error):
            return error if isinstance(error, Exception) else RuntimeError(repr(error))
        if not self._failing:
            self._failing = True
            self._log.error("the event history cannot be written: {reason}", reason=str(error))
        return Unavailable("the event history cannot be written now")

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return Deferred.fromCoroutine(self._query(lambda: self._store.read(after, limit)))

    def offset_range(self) -> Deferred[tuple[int, int]]:
        """See `Broker.offset_range`."""
        return Deferred.fromCoroutine(self._query(self._store.offset_range))

    # Presence. The file holds it for the next process only, so a failed write is no error.

    @requires_open
    def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str = AGENT_SPACE
    ) -> Deferred[LeaseResult]:
        """See `Broker.lease`."""
        now = self._now()
        leased = self._spaces.lease(space, node, connection_counts, seconds, now)
        if leased.changed:
            self._note(lambda: self._store.note_members(space, leased.changed, now))
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
        now = self._now()
        changed = self._spaces.set_data(space, member, data, seconds, now)
        stored = None if data is None else MemberData(data, now + seconds)
        self._note(lambda: self._store.note_data(space, member, stored, now))
        return succeed(changed)

    @requires_open
    def data(self, space: str) -> Deferred[dict[Id, MemberData]]:
        """See `Broker.data`."""
        return succeed(self._spaces.data(space, self._now()))

    def _note(self, write: Callable[[], None]) -> None:
        Deferred.fromCoroutine(self._query(write)).addErrback(self._presence_not_noted)

    def _presence_not_noted(self, failure: Failure) -> None:
        """Make up for a failed write, which is logged already: webhooks report the whole state later."""
        self._lost_webhooks = self._has_webhooks

    @requires_open
    def add_webhooks(self, webhooks: Sequence[NewWebhook], *, reset: bool = False) -> Deferred[None]:
        """See `Broker.add_webhooks`."""
        if not self._has_webhooks:
            return fail(Unavailable(NO_WEBHOOKS))
        now = self._now()
        return Deferred.fromCoroutine(self._query(lambda: self._store.add_webhooks(webhooks, now, reset=reset)))

    @requires_open
    def exchange_webhooks(self, request: WebhookRequest) -> Deferred[WebhookReply]:
        """See `Broker.exchange_webhooks`."""
        if not self._has_webhooks:
            return fail(Unavailable(NO_WEBHOOKS))
        return Deferred.fromCoroutine(self._query(lambda: self._exchange_webhooks(request)))

    def _exchange_webhooks(self, request: WebhookRequest) -> WebhookReply:
        if self._lost_webhooks:
            self._store.add_webhooks([], self._now(), reset=True)
            self._lost_webhooks = False
        return self._store.exchange_webhooks(request, self._now())

    async def _query(self, operation: Callable[[], T]) -> T:
        """Query the store, once the thread does not use it."""
        while self._open and self._busy:
            await self._wait_until_idle()
        if not self._open:
            raise Unavailable(CLOSED)
        try:
            return operation()
        except sqlite3.Error as error:
            self._log.error("the event history cannot be used: {reason}", reason=str(error))
            raise Unavailable("the event history cannot be used now") from error

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Fires when the file is free for another process; what was published before is written."""
        self._open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._busy or self._queue:
            await self._wait_until_idle()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()  # joins an idle thread
        try:
            self._store.close()
        except sqlite3.Error as error:
            self._log.error("the history was not closed cleanly: {reason}", reason=str(error))
