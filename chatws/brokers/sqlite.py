"""The log in an SQLite file: it survives this process, however that ends, and needs no other one.

Every `publish` is one transaction in WAL mode. Two levels of safety:

- As a rule (`synchronous=NORMAL`) a commit hands the events to the kernel and waits for no disk: a killed chatws loses
  nothing, a power cut may lose the last seconds. Then, and only then, the log gets a new epoch at the next start (the
  file notes which boot of the machine its writer ran in), since offsets that browsers have seen are given out again.
  `synchronous=OFF` would be no safer for a killed process and could leave a damaged file behind a power cut. This
  happens on the reactor's thread, as a commit is a few system calls; but every 1,000 pages of WAL SQLite moves them
  into the file and syncs it, and that publish takes as long as the disk does.
- `durable`: `synchronous=FULL`, a commit has reached the disk. With a disk to wait for each time, this happens in one
  of the reactor's threads, one transaction at a time; what is published meanwhile shares the next one, and its sync.

One process at a time: the file stays locked until `stop`, or until the kernel has cleared the process away.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import Bounds, Draft, Event, Leased, Listener
from chatws.brokers.delivery import Delivery
from chatws.brokers.keys import Batch
from chatws.brokers.leases import Leases
from chatws.brokers.sqlite_store import SqliteStore, boot_id
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["SqliteBroker"]

T = TypeVar("T")


class SqliteBroker:
    """A broker (see chatws.brokers.contract) whose Deferreds have fired when they are returned, unless it is `durable`
    or the listener publishes from within `deliver`.

    :param path: of the file; its directory must exist. SQLite keeps a second one beside it, `PATH-wal`.
    :param bounds: how much is kept.
    :param now: seconds since 1970.
    :param durable: see the module.
    :param reactor: whose threads `durable` uses.
    :param boot: names the time since the machine was started.
    """

    _log = Logger()
    epoch: str
    shared = False

    def __init__(
        self,
        path: str,
        bounds: Bounds,
        now: Callable[[], float],
        *,
        durable: bool = False,
        reactor: Any = None,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._now = now
        self._durable = durable
        self._reactor = reactor
        self._store = SqliteStore(path, bounds, durable=durable, boot=boot())
        self._delivery = Delivery()
        self._leases = Leases()
        self._open = False
        self._failing = False
        # Of `durable`: publishes that wait for the thread, whether it has the store, and who else waits for that.
        self._waiting: list[tuple[Sequence[Draft], Deferred[list[Event]]]] = []
        self._busy = False
        self._idle: list[Deferred[None]] = []

    def start(self, listener: Listener) -> Deferred[None]:
        """See `Broker.start`."""
        return maybeDeferred(self._start, listener)

    def _start(self, listener: Listener) -> None:
        self._store.open(self._now())
        self.epoch = self._store.epoch
        self._leases.expect(self._store.online(), self._now())
        self._delivery.start(listener)
        self._open = True

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        if self._durable:
            later: Deferred[list[Event]] = Deferred()
            self._waiting.append((drafts, later))
            self._write_waiting()
            return later
        try:
            batch = self._store.append(drafts, self._now())
        except Exception as error:
            return fail(self._explain(error))
        self._failing = False
        return self._delivery.tell(batch.fresh, batch.receipts)

    def _write_waiting(self) -> None:
        """Store what waits, in one transaction, unless another is on its way: the end of that one comes here again."""
        if self._busy or not self._waiting:
            return
        self._busy = True
        group, self._waiting = self._waiting, []
        drafts = [draft for some, _ in group for draft in some]
        pool = self._reactor.getThreadPool()
        written: Deferred[Batch] = deferToThreadPool(self._reactor, pool, self._store.append, drafts, self._now())
        written.addBoth(self._written, group)
        written.addErrback(lambda failure: self._log.failure("after a write to the log", failure))

    def _written(self, outcome: Batch | Failure, group: list[tuple[Sequence[Draft], Deferred[list[Event]]]]) -> None:
        if isinstance(outcome, Failure):
            reason = self._explain(outcome.value or RuntimeError("unknown"))
            for _, later in group:
                later.errback(reason)
        else:
            self._failing = False
            start = 0
            for drafts, later in group:
                receipts = outcome.receipts[start : start + len(drafts)]
                start += len(drafts)
                fresh = [event for event in receipts if not event.duplicate]
                self._delivery.tell(fresh, receipts).chainDeferred(later)
        self._busy = False
        waiting, self._idle = self._idle, []
        for one in waiting:
            one.callback(None)
        self._write_waiting()

    def _explain(self, error: BaseException) -> BaseException:
        """What to tell a publisher. The log is told once, not with every event that a full disk turns away."""
        if not isinstance(error, sqlite3.Error):
            return error
        if not self._failing:
            self._failing = True
            self._log.error("the log cannot be written: {reason}", reason=str(error))
        return Unavailable("the log cannot be written now")

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return Deferred.fromCoroutine(self._ask(lambda: self._store.read(after, limit)))

    def bounds(self) -> Deferred[tuple[int, int]]:
        """See `Broker.bounds`."""
        return Deferred.fromCoroutine(self._ask(self._store.bounds))

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """See `Broker.lease`. That the file cannot be written now does not matter: it is for the next process only."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        leased = self._leases.lease(node, tabs, seconds, self._now())
        if leased.changed:
            noted = Deferred.fromCoroutine(self._ask(lambda: self._store.note_presence(leased.changed)))
            noted.addErrback(lambda failure: None)  # told to the log already, and to be done without
        return succeed(leased)

    def online(self) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        if not self._open:
            return fail(Unavailable("the log is closed"))
        return succeed(self._leases.online(self._now()))

    async def _ask(self, question: Callable[[], T]) -> T:
        """Ask the store, once no thread has it."""
        while self._open and self._busy:
            await self._wait_until_idle()
        if not self._open:
            raise Unavailable("the log is closed")
        try:
            return question()
        except sqlite3.Error as error:
            self._log.error("the log cannot be used: {reason}", reason=str(error))
            raise Unavailable("the log cannot be used now") from error

    def _wait_until_idle(self) -> Deferred[None]:
        """Fires at the end of the present write, before the next begins, unless somebody else waited and publishes."""
        idle: Deferred[None] = Deferred()
        self._idle.append(idle)
        return idle

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`. Fires when the file is free for another process; what was published before is written."""
        self._open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._busy or self._waiting:
            await self._wait_until_idle()
        try:
            self._store.close()
        except sqlite3.Error as error:
            self._log.error("the log was not closed cleanly: {reason}", reason=str(error))
