"""Delivers every batch to the node once, in the order in which Redis ran the scripts that appended them.

A batch arrives through Pub/Sub. A batch of this node also arrives as the reply to its script, before or after that.
Batches are numbered (`seq`), so the consumer knows the next one and recognizes those that were delivered.
docs/adr/0012-redis-order.md has the proof.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import Event
from chatws.brokers.publish_queue import PublishBatch
from chatws.brokers.redis.batches import AppendReply, PublishedBatch, StoredEvent, decode_batch
from chatws.errors import Unavailable

__all__ = ["BatchConsumer", "PendingBatch"]

#: Bytes of batches that may wait until the history has been read up to them: bounds memory. With more, a new session
#: begins.
MAX_INBOX = 64 * 1024 * 1024
#: Events in one read: a reply of this size keeps Redis and the reactor busy for milliseconds only.
PAGE = 1000


class PendingBatch:
    """A batch that this node has sent to Redis.

    :ivar publishes: the publishes in it.
    :ivar reply: the reply of Redis.
    :ivar fresh: its events that are no duplicates, once they were delivered.
    :ivar failure_reason: why it must not be acknowledged though it is stored, "" if it may be.
    """

    __slots__ = ("failure_reason", "fresh", "name", "new_events", "publishes", "reply")

    def __init__(self, name: str, publishes: PublishBatch) -> None:
        self.name = name
        self.publishes = publishes
        self.new_events = publishes.new_events
        self.reply: AppendReply | None = None
        self.fresh: list[Event] | None = None
        self.failure_reason = ""

    def events(self, reply: AppendReply) -> list[Event]:
        """Return the events that are no duplicates, made from the new events."""
        skipped = set(reply.duplicates[::3])
        offset = reply.before
        events = []
        for index, new_event in enumerate(self.new_events):
            if index not in skipped:
                if not new_event.transient:
                    offset += 1
                events.append(
                    Event(
                        0 if new_event.transient else offset,
                        new_event.name,
                        new_event.audience,
                        new_event.data,
                        reply.time,
                    )
                )
        return events

    def finish(self) -> None:
        """Fire the publishers' Deferreds, with a receipt for each new event."""
        if self.failure_reason:
            self.fail(self.failure_reason)
            return
        assert self.reply is not None
        duplicates = self.reply.duplicates
        first = {int(duplicates[n]): (int(duplicates[n + 1]), duplicates[n + 2]) for n in range(0, len(duplicates), 3)}
        fresh = iter(self.fresh or ())
        receipts = []
        for index, new_event in enumerate(self.new_events):
            if index in first:
                offset, time = first[index]
                receipts.append(Event(offset, new_event.name, new_event.audience, new_event.data, time, duplicate=True))
            else:
                receipts.append(next(fresh))
        self.publishes.confirm(receipts)

    def fail(self, reason: str) -> None:
        """Fail the publishers' Deferreds: the batch was not stored, or its outcome is unknown."""
        self.publishes.fail(Unavailable(reason))


class BatchConsumer:
    """Holds this node's position in the history.

    :param deliver: called with events to deliver.
    :param read: called with an offset and a number of events, to read from the history. Returns whether that was the
        end of the history, and the events.
    :param on_failure: called with a reason when the order is lost, so that a new session has to restore it.
    :ivar last: offset of the last stored event that was delivered, or was dropped before it could be.
    :ivar last_batch_id: the id of the batch with that event, "" if it is unknown.
    :ivar seq: number of the last batch delivered, while `is_live`.
    """

    _log = Logger()

    def __init__(
        self,
        deliver: Callable[[list[Event]], object],
        read: Callable[[int, int], Awaitable[tuple[bool, list[StoredEvent]]]],
        on_failure: Callable[[str], None],
    ) -> None:
        self._deliver = deliver
        self._read = read
        self._on_failure = on_failure
        self.epoch = ""
        self.last = 0
        self.last_batch_id = ""
        self.seq = 0
        self.is_live = False
        self._inbox: deque[PublishedBatch] = deque()
        self._inbox_size = 0
        self._reading = False
        self._sync_marker: tuple[str, Deferred[None]] | None = None
        self._sent: dict[str, PendingBatch] = {}
        self._ordered: deque[PendingBatch] = deque()

    # Sessions

    def expect(self, name: str) -> Deferred[None]:
        """Begin a session and hold batches back. The Deferred fires when the sync marker of this name has arrived."""
        self.hold()
        synced: Deferred[None] = Deferred()
        self._sync_marker = name, synced
        return synced

    def hold(self) -> None:
        """End the session: drop the batches that arrived, and fail those of this node that wait for their turn."""
        self.is_live = self._reading = False
        self._inbox.clear()
        self._inbox_size = 0
        self._sync_marker = None
        waiting, self._ordered = self._ordered, deque()
        self._sent.clear()
        for batch in waiting:
            batch.fail("the event history was lost before the events were delivered")

    async def catch_up(self, name: str, *, is_new: bool) -> None:
        """Deliver what was published while there was no session, and go on from there.

        :param name: of the sync marker, which has arrived.
        :param is_new: begin at the sync marker, and deliver nothing from before it.
        """
        marker_index = next(index for index, batch in enumerate(self._inbox) if batch.name == name)
        # batches before the sync marker may belong to an epoch that has ended since
        stale = [index for index in range(marker_index) if is_new or self._inbox[index].epoch != self.epoch]
        for _ in range(stale[-1] + 1 if stale else 0):
            self._drop_first()
        first = self._inbox[0]
        if is_new:
            self.last = first.before
        await self._read_to(first.before)
        self.seq = first.seq if first.name == name else first.seq - 1
        self.is_live = True
        self.flush()

    async def _read_to(self, offset: int) -> None:
        while self.last < offset:
            ended, page = await self._read(self.last, min(PAGE, offset - self.last))
            if page:
                self.last, self.last_batch_id = page[-1].event.offset, page[-1].name
                self._deliver([stored.event for stored in page])
            if ended:
                break
        if self.last < offset:  # the rest was trimmed
            self.last, self.last_batch_id = offset, ""

    # Batches

    def receive(self, payload: bytes) -> None:
        """Take a message from Pub/Sub."""
        try:
            batch = decode_batch(payload)
        except ValueError:
            self._log.warn("ignoring a malformed message on the Redis channel of the history")
            return
        self._inbox.append(batch)
        self._inbox_size += batch.size
        if self._sync_marker is not None and batch.name == self._sync_marker[0]:
            _, synced = self._sync_marker
            self._sync_marker = None
            synced.callback(None)
        elif self._inbox_size > MAX_INBOX and (not self.is_live or self._reading):
            self._on_failure("more batches arrived than may be held back")

    def _drop_first(self) -> PublishedBatch:
        batch = self._inbox.popleft()
        self._inbox_size -= batch.size
        return batch

    def flush(self) -> None:
        """Deliver the batches that are next in order, all in one call."""
        if not self.is_live or self._reading:
            return
        ready: list[Event] = []
        incomplete: PublishedBatch | None = None
        while self._inbox:
            batch = self._inbox[0]
            if batch.epoch != self.epoch:
                self._on_failure("the history was reset")
                break
            if batch.seq <= self.seq:
                self._drop_first()
                continue
            if batch.seq != self.seq + 1 or batch.before != self.last:
                self._on_failure("events are missing")
                break
            pending = self._sent.get(batch.name)
            if pending is not None and pending.reply is not None:
                events = pending.events(pending.reply)
            elif batch.is_whole:
                events = batch.events()
            elif pending is not None:
                break  # this node's own batch: its reply is about to arrive
            else:
                incomplete = batch
                self._reading = True
                break
            self._drop_first()
            ready += self._take(batch, events)
        if ready:
            self._deliver(ready)
        self._finish()
        if incomplete is not None:
            completing = Deferred.fromCoroutine(self._complete(incomplete))
            completing.addErrback(self._not_completed, incomplete)

    def _take(self, batch: PublishedBatch, events: list[Event]) -> list[Event]:
        self.seq = batch.seq
        if batch.last != batch.before:
            self.last, self.last_batch_id = batch.last, batch.name
        pending = self._sent.get(batch.name)
        if pending is not None:
            pending.fresh = events
        return events

    async def _complete(self, batch: PublishedBatch) -> None:
        """Read the events of a batch that was too large for Pub/Sub, and deliver them."""
        stored: dict[int, Event] = {}
        after = batch.before
        while after < batch.last:
            ended, page = await self._read(after, min(PAGE, batch.last - after))
            stored.update((entry.event.offset, entry.event) for entry in page)
            if ended or not page:
                break
            after = page[-1].event.offset
        if self._is_next(batch):
            self._reading = False
            self._drop_first()
            self._deliver(self._take(batch, batch.events(stored)))
            self.flush()

    def _is_next(self, batch: PublishedBatch) -> bool:
        """Whether the batch is still the next one: its session may have ended."""
        return bool(self._inbox) and self._inbox[0] is batch

    def _not_completed(self, failure: Failure, batch: PublishedBatch) -> None:
        if self._is_next(batch):
            self._on_failure(f"the event history cannot be read: {failure.getErrorMessage()}")

    # Batches of this node

    def sent(self, batch: PendingBatch) -> None:
        """Note that this batch is being sent to Redis."""
        self._sent[batch.name] = batch

    def answered(self, batch: PendingBatch, reply: AppendReply | None, failure_reason: str = "") -> None:
        """Take the reply of Redis, None if the batch was not stored. Its publishers are told after all earlier events.

        :param failure_reason: why the batch failed, or must not be acknowledged though it is stored.
        """
        if self._sent.pop(batch.name, None) is None:
            batch.fail("the event history was lost before the events were delivered")
            return
        if reply is None:
            batch.fail(failure_reason)
            return
        batch.reply, batch.failure_reason = reply, failure_reason
        self._ordered.append(batch)
        fresh = len(batch.new_events) - len(reply.duplicates) // 3
        if batch.fresh is not None or not fresh:
            self._finish()
        elif reply.seq == self.seq + 1 and not self._inbox and self.is_live:
            self.seq = reply.seq
            events = batch.fresh = batch.events(reply)
            if offset := max(event.offset for event in events):
                self.last, self.last_batch_id = offset, batch.name
            self._deliver(events)
            self._finish()
        else:
            self._sent[batch.name] = batch  # delivered once the earlier batches, and its copy, have arrived
            self.flush()

    def _finish(self) -> None:
        while self._ordered:
            batch = self._ordered[0]
            assert batch.reply is not None
            if batch.reply.seq > self.seq:
                return
            self._ordered.popleft()
            self._sent.pop(batch.name, None)
            batch.finish()

    @property
    def waits(self) -> bool:
        """Whether batches that Redis has stored wait for earlier ones."""
        return bool(self._ordered)
