"""The broker on PostgreSQL: what a node does with the log that the schema `chatws` keeps.

docs/design.md ("The log in PostgreSQL") says why offsets are gapless and in the order of commits. Here, in short:
`publish` gathers drafts, and one append at a time takes them to the log; one loop reads on, woken by notifications and
by a clock; both hand what they have to `InOrder`, which tells the listener.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger

from chatws.brokers.contract import Bounds, Draft, Event, Leased, Listener
from chatws.brokers.postgres import schema, wire
from chatws.brokers.postgres.groups import Group, Queue
from chatws.brokers.postgres.listening import Listening
from chatws.brokers.postgres.order import InOrder
from chatws.brokers.postgres.questions import PAGE_BYTES, Questions, Troubles
from chatws.brokers.postgres.trimming import Trimming
from chatws.database.contract import QueryFailed
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["PostgresBroker"]

#: Connections: one appends, one reads on, two are for everything else.
POOL = 4
#: Events that one look brings at most.
PAGE_EVENTS = 500
#: Seconds between two looks when nobody calls: what a lost notification costs at most.
SAFETY = 1.0
#: Seconds between two looks while transactions publish. They wake nobody meanwhile (see `AWAKE`).
BUSY = 0.025
#: For so many seconds transactions are told that nodes look anyway; we do a little longer, as a commit takes its time.
AWAKE, AWAKE_MARGIN = 1.0, 0.5
#: Seconds before the next look after one that failed.
RETRY = 0.25
#: Seconds until a notification of what our own append under way may bring is looked into.
OWN = 0.05


class PostgresBroker:
    """A broker (see chatws.brokers.contract) shared through PostgreSQL.

    :param database: not started; this broker's own.
    :param listen_database: where to LISTEN; the same, or another.
    :param bounds: how much is kept. Nodes should agree on it, for each of them trims.
    :param now: the clock for events, keys and leases; None for the database's own.
    :param timeout: seconds that PostgreSQL may take.
    :param poll: seconds between two looks, instead of LISTEN; 0 to listen.
    """

    _log = Logger()
    epoch: str = ""
    shared = True

    def __init__(
        self,
        database: PostgresDatabase,
        listen_database: PostgresDatabase,
        bounds: Bounds,
        *,
        reactor: Any,
        now: Callable[[], float] | None = None,
        timeout: float = 5.0,
        poll: float = 0.0,
    ) -> None:
        self._database = database
        self._listen_database = listen_database
        self._reactor = reactor
        self._now = now
        self._timeout = timeout
        self._poll = poll
        self._order = InOrder()
        self._listening: Listening | None = None
        if not poll:
            interval = max(1.0, timeout)
            self._listening = Listening(listen_database, self._notify, self._heard, interval=interval, reactor=reactor)
        self._troubles = Troubles()
        self._questions = Questions(database, bounds, self._troubles, now)
        self._running = False
        # Writing: groups that wait, the one under way, and those that are stored and not told yet.
        self._queue = Queue()
        self._appending = False
        self._sequence: bool | None = None
        self._stored: list[Group] = []
        self._idle: list[Deferred[None]] = []
        # Reading on: the loop, its nap, and whether it has been called meanwhile.
        self._following: Deferred[None] | None = None
        self._nap: Deferred[None] | None = None
        self._woken = False
        self._notified_place = 0
        self._own_timer: DelayedCall | None = None
        self._awake_until = 0.0
        self._promised_until = 0.0
        self._trimming = Trimming(self._questions.trim, reactor)

    # Beginning and end

    def start(self, listener: Listener) -> Deferred[None]:
        """See `Broker.start`."""
        return Deferred.fromCoroutine(self._start(listener))

    async def _start(self, listener: Listener) -> None:
        await self._database.start()
        if self._listen_database is not self._database:
            await self._listen_database.start()
        try:
            await schema.check(self._database)
            [head] = await self._database.query(wire.HEAD, {})
        except BaseException:
            await self._database.stop()
            await self._listen_database.stop()
            raise
        self.epoch = head["epoch"]
        self._order.start(listener, head["epoch"], head["place"], head["log_offset"], head["stamp"])
        self._questions.open = self._running = True
        self._following = Deferred.fromCoroutine(self._follow())
        self._following.addErrback(lambda failure: self._log.failure("reading the log has ended", failure))
        if self._listening is not None:
            self._listening.start()
        self._trimming.start()

    def stop(self) -> Deferred[None]:
        """See `Broker.stop`."""
        self._questions.open = False
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        while self._appending or self._queue or self._stored:
            done: Deferred[None] = Deferred()
            self._idle.append(done)
            await done
        self._running = False
        if self._own_timer is not None and self._own_timer.active():
            self._own_timer.cancel()
        self._wake()
        if self._listening is not None:
            await self._listening.stop()
        await self._listen_database.stop()
        await self._database.stop()
        await self._trimming.stop()
        following, self._following = self._following, None
        if following is not None:
            await following

    # Publishing

    def publish(self, drafts: Sequence[Draft]) -> Deferred[list[Event]]:
        """See `Broker.publish`."""
        if not self._questions.open:
            return fail(Unavailable("the log is closed"))
        if not drafts:
            return succeed([])
        encoded = [wire.encode_draft(draft) for draft in drafts]
        later = self._queue.add(drafts, encoded, self._reactor.seconds() + self._timeout)
        self._write()
        return later

    def _write(self) -> None:
        """Append what waits, unless an append is under way: the end of that one comes here again."""
        if self._appending or not (self._queue or self._sequence is not None):
            return
        self._appending = True
        group = self._queue.pop() if self._queue else Group(self._reactor.seconds() + self._timeout)
        must_wait = bool(group) or self._sequence is True
        self._sequence = None
        appending = Deferred.fromCoroutine(self._append(group, must_wait))
        appending.addErrback(self._append_fault, group)
        appending.addCallback(self._append_ended)

    def _append_fault(self, failure: Any, group: Group) -> None:
        self._log.failure("Fault in an append", failure)
        group.fail(Unavailable("the log cannot be written now"))

    def _append_ended(self, _: object) -> None:
        self._appending = False
        self._write()
        if self._notified_place > self._order.place and not self._appending:
            self._wake()
        self._look_for_idle()

    def _look_for_idle(self) -> None:
        if not (self._appending or self._queue or self._stored):
            idle, self._idle = self._idle, []
            for one in idle:
                one.callback(None)

    async def _append(self, group: Group, must_wait: bool) -> None:
        order = self._order
        order.expect()
        values = {
            **self._position(),
            "drafts": f"[{b','.join(group.encoded).decode()}]",
            "wait": must_wait,
            "notify": not self._poll,
            "awake": 0.0 if self._poll else AWAKE,
            "now": self._now and self._now(),
        }
        group.encoded = []
        try:
            rows = await self._database.once(wire.APPEND, values, group.deadline)
        except (Unavailable, QueryFailed) as error:
            order.failed()
            self._troubles.note("written", error)
            group.fail(Unavailable("the log cannot be written now"))
            self._wake()  # it may have been stored all the same
            return
        answer = wire.decode_appended(rows[0]["answer"])
        if answer.busy:
            order.failed()
            self._stay_awake()
            return
        self._troubles.well("written")
        self._take_epoch(answer.epoch)
        if answer.moved:
            self._stay_awake()
        receipts, place = order.appended(group.drafts, answer)
        if group:
            self._stored.append(group)
            order.when_told(place, lambda: self._confirm(group, receipts))
            if group:
                late = max(0.0, group.deadline - self._reactor.seconds())
                group.timer = self._reactor.callLater(late, self._give_up, group)
        if place > order.place or answer.moved:
            self._wake()

    def _confirm(self, group: Group, receipts: list[Event]) -> None:
        if self._forget(group):
            group.answer(receipts)
            self._look_for_idle()

    def _give_up(self, group: Group) -> None:
        """It is stored, and has not been told in time."""
        if self._forget(group):
            group.fail(Unavailable("the log cannot be read now"))
            self._look_for_idle()

    def _forget(self, group: Group) -> bool:
        if group not in self._stored:
            return False
        self._stored.remove(group)
        if group.timer is not None and group.timer.active():
            group.timer.cancel()
        return True

    def _position(self) -> dict[str, Any]:
        order = self._order
        return {"epoch": order.epoch, "place": order.place, "offset": order.offset, "stamp": order.stamp}

    def _take_epoch(self, epoch: str) -> None:
        if epoch == self.epoch:
            return
        listener = self._order.start_over(epoch)
        for group in [*self._stored]:
            self._give_up(group)
        self.epoch = epoch
        self._notified_place = 0
        if listener is not None:
            listener.reset(epoch)

    # Reading on

    def _wake(self) -> None:
        self._woken = True
        nap, self._nap = self._nap, None
        if nap is not None:
            nap.callback(None)

    def _heard(self, payload: str) -> None:
        """PostgreSQL calls: there is something at this place, or in the outbox, or perhaps anywhere."""
        if not self._running:
            return
        if not payload.isdigit():
            self._wake()
            return
        self._notified_place = max(self._notified_place, int(payload))
        if self._notified_place <= self._order.place:
            return
        if not self._appending:
            self._wake()
        elif self._own_timer is None or not self._own_timer.active():
            # most likely what we are appending; its answer is on the way
            self._own_timer = self._reactor.callLater(OWN, self._own_answer_is_late)

    def _own_answer_is_late(self) -> None:
        if self._notified_place > self._order.place:
            self._wake()

    def _stay_awake(self) -> None:
        self._awake_until = self._reactor.seconds() + AWAKE + AWAKE_MARGIN
        self._wake()

    async def _follow(self) -> None:
        while self._running:
            self._woken = False
            try:
                pause = await self._look()
            except Exception:
                self._log.failure("Fault in reading the log")
                pause = SAFETY
            if pause and self._running and not self._woken:
                nap: Deferred[None] = Deferred()
                self._nap = nap
                timer = self._reactor.callLater(pause, self._wake)
                await nap
                if timer.active():
                    timer.cancel()

    async def _look(self) -> float:
        """Read on; returns after how many seconds to do so again."""
        try:
            values = {**self._position(), "limit": PAGE_EVENTS, "size": PAGE_BYTES}
            rows = await self._database.query(wire.POLL, values)
            now = self._reactor.seconds()
            if self._poll and now >= self._promised_until:
                self._promised_until = now + self._poll
                await self._database.once(wire.STAY_AWAKE, {"seconds": 3 * self._poll + AWAKE})
        except (Unavailable, QueryFailed) as error:
            self._troubles.note("read", error)
            return RETRY
        answer = wire.decode_polled(rows[0]["answer"])
        self._troubles.well("read")
        if answer.lost:
            self._sequence = True
        else:
            self._take_epoch(answer.epoch)
            self._order.read(answer.events, answer.upto)
            if answer.outbox and self._sequence is None:
                self._sequence = False
        self._write()
        if answer.more:
            return 0.0
        if now < self._awake_until:
            return BUSY
        return self._poll or SAFETY

    # The rest

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        """See `Broker.read`."""
        return Deferred.fromCoroutine(self._questions.read(after, limit))

    def bounds(self) -> Deferred[tuple[int, int]]:
        """See `Broker.bounds`. Fails also when the last append did, and PostgreSQL still takes nothing."""
        return Deferred.fromCoroutine(self._questions.bounds())

    def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Deferred[Leased]:
        """See `Broker.lease`."""
        return Deferred.fromCoroutine(self._questions.lease(node, tabs, seconds))

    def online(self) -> Deferred[list[Id]]:
        """See `Broker.online`."""
        return Deferred.fromCoroutine(self._questions.online())

    def trim(self) -> Deferred[None]:
        """Delete what the bounds do not keep, and what is too old to matter. Happens by itself every few seconds."""
        return Deferred.fromCoroutine(self._trimming.trim())

    async def _notify(self, payload: str) -> None:
        await self._database.once(wire.NOTIFY, {"payload": payload})
