"""The order in which a node is told: every batch once, in the order in which Redis ran the scripts that took them.

A batch comes through Pub/Sub; one of our own also by its answer, which may be here before or after. Batches are
numbered, so the one to come next is known, and what has been told already is recognised.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import Draft, Event
from chatws.brokers.redis.wire import Batch, Reply, Stored, decode_batch
from chatws.errors import Unavailable

__all__ = ["Call", "Follower"]

#: Bytes of batches that may wait for the log to be read up to them. Beyond that it is better to begin again.
MAX_INBOX = 64 * 1024 * 1024
#: Events that are read at once.
PAGE = 1000


class Call:
    """A batch of our own on its way.

    :ivar groups: the publishes in it: how many drafts, and what is to fire.
    :ivar reply: what Redis answered. :ivar fresh: its events that are no duplicates, once the listener was told.
    """

    __slots__ = ("drafts", "fresh", "groups", "name", "problem", "reply")

    def __init__(self, name: str, groups: list[tuple[Sequence[Draft], Deferred[list[Event]]]]) -> None:
        self.name = name
        self.groups = groups
        self.drafts = [draft for drafts, _ in groups for draft in drafts]
        self.reply: Reply | None = None
        self.fresh: list[Event] | None = None
        self.problem = ""

    def events(self, reply: Reply) -> list[Event]:
        """The events that are no duplicates, from our own drafts."""
        skipped = set(reply.duplicates[::3])
        offset = reply.before
        found = []
        for index, draft in enumerate(self.drafts):
            if index not in skipped:
                if not draft.transient:
                    offset += 1
                place = 0 if draft.transient else offset
                found.append(Event(place, draft.name, draft.audience, draft.data, reply.time))
        return found

    def finish(self) -> None:
        """Fire, with a receipt for each draft."""
        if self.problem:
            self.fail(self.problem)
            return
        assert self.reply is not None
        duplicates = self.reply.duplicates
        first = {int(duplicates[n]): (int(duplicates[n + 1]), duplicates[n + 2]) for n in range(0, len(duplicates), 3)}
        fresh = iter(self.fresh or ())
        index = 0
        for drafts, fired in self.groups:
            receipts = []
            for draft in drafts:
                known = first.get(index)
                index += 1
                if known is None:
                    receipts.append(next(fresh))
                else:
                    offset, time = known
                    receipts.append(Event(offset, draft.name, draft.audience, draft.data, time, duplicate=True))
            fired.callback(receipts)

    def fail(self, reason: str) -> None:
        """Fire: nobody can say what became of it, or nothing did."""
        for _, fired in self.groups:
            fired.errback(Unavailable(reason))


class Follower:
    """
    :param tell: called with events for the listener.
    :param read: called with an offset and a number of events, to read from the log.
    :param trouble: called with a reason when the order is lost, and a new session has to find it again.
    :ivar last: offset of the last stored event that the listener was told of, or that had gone before it could be.
    :ivar tip: the name of the batch with that event, if it is known.
    :ivar seq: number of the last batch told, while this `is_live`.
    """

    _log = Logger()

    def __init__(
        self,
        tell: Callable[[list[Event]], object],
        read: Callable[[int, int], Awaitable[tuple[bool, list[Stored]]]],
        trouble: Callable[[str], None],
    ) -> None:
        self._tell = tell
        self._read = read
        self._trouble = trouble
        self.epoch = ""
        self.last = 0
        self.tip = ""
        self.seq = 0
        self.is_live = False
        self._inbox: deque[Batch] = deque()
        self._inbox_size = 0
        self._reading = False
        self._greeting: tuple[str, Deferred[None]] | None = None
        self._calls: dict[str, Call] = {}
        self._ordered: deque[Call] = deque()

    # The beginning of a session

    def expect(self, name: str) -> Deferred[None]:
        """A session begins; batches are kept back. Fires when the greeting of this name has come."""
        self.hold()
        came: Deferred[None] = Deferred()
        self._greeting = name, came
        return came

    def hold(self) -> None:
        """The session is over, or not begun: forget what has come. Calls that wait for their turn fail."""
        self.is_live = self._reading = False
        self._inbox.clear()
        self._inbox_size = 0
        self._greeting = None
        waiting, self._ordered = self._ordered, deque()
        self._calls.clear()
        for call in waiting:
            call.fail("the log was lost before the events had come back")

    async def catch_up(self, name: str, *, anew: bool) -> None:
        """Tell of all that came while there was no session, and go on from there.

        :param name: of the greeting, which has come.
        :param anew: begin at the greeting instead, with nothing to be told.
        """
        place = next(index for index, batch in enumerate(self._inbox) if batch.name == name)
        # what came before the greeting from a log that has been given up since then is no part of this one
        stale = [index for index in range(place) if anew or self._inbox[index].epoch != self.epoch]
        for _ in range(stale[-1] + 1 if stale else 0):
            self._drop_first()
        first = self._inbox[0]
        if anew:
            self.last = first.before
        await self._read_to(first.before)
        self.seq = first.seq if first.name == name else first.seq - 1
        self.is_live = True
        self.flush()

    async def _read_to(self, offset: int) -> None:
        while self.last < offset:
            ended, found = await self._read(self.last, min(PAGE, offset - self.last))
            if found:
                self.last, self.tip = found[-1].event.offset, found[-1].name
                self._tell([one.event for one in found])
            if ended:
                break
        if self.last < offset:  # the rest has been trimmed already
            self.last, self.tip = offset, ""

    # Batches

    def receive(self, payload: bytes) -> None:
        """Pub/Sub brings something."""
        try:
            batch = decode_batch(payload)
        except ValueError:
            self._log.warn("something that is not ours came through the log's channel")
            return
        self._inbox.append(batch)
        self._inbox_size += batch.size
        if self._greeting is not None and batch.name == self._greeting[0]:
            _, came = self._greeting
            self._greeting = None
            came.callback(None)
        elif self._inbox_size > MAX_INBOX and (not self.is_live or self._reading):
            self._trouble("more came than could be kept back")

    def _drop_first(self) -> Batch:
        batch = self._inbox.popleft()
        self._inbox_size -= batch.size
        return batch

    def flush(self) -> None:
        """Tell of what has come, all that came together at once."""
        if not self.is_live or self._reading:
            return
        ready: list[Event] = []
        incomplete: Batch | None = None
        while self._inbox:
            batch = self._inbox[0]
            if batch.epoch != self.epoch:
                self._trouble("the log started anew")
                break
            if batch.seq <= self.seq:
                self._drop_first()
                continue
            if batch.seq != self.seq + 1 or batch.before != self.last:
                self._trouble("events are missing")
                break
            call = self._calls.get(batch.name)
            if call is not None and call.reply is not None:
                events = call.events(call.reply)
            elif batch.is_whole:
                events = batch.events()
            elif call is not None:
                break  # our own, and its answer will be here in a moment
            else:
                incomplete = batch
                self._reading = True
                break
            self._drop_first()
            ready += self._take(batch, events)
        if ready:
            self._tell(ready)
        self._finish()
        if incomplete is not None:
            completing = Deferred.fromCoroutine(self._complete(incomplete))
            completing.addErrback(self._not_completed, incomplete)

    def _take(self, batch: Batch, events: list[Event]) -> list[Event]:
        self.seq = batch.seq
        if batch.last != batch.before:
            self.last, self.tip = batch.last, batch.name
        call = self._calls.get(batch.name)
        if call is not None:
            call.fresh = events
        return events

    async def _complete(self, batch: Batch) -> None:
        """The batch was too large for Pub/Sub: its events are in the log."""
        stored: dict[int, Event] = {}
        after = batch.before
        while after < batch.last:
            ended, found = await self._read(after, min(PAGE, batch.last - after))
            stored.update((one.event.offset, one.event) for one in found)
            if ended or not found:
                break
            after = found[-1].event.offset
        if self._is_next(batch):
            self._reading = False
            self._drop_first()
            self._tell(self._take(batch, batch.events(stored)))
            self.flush()

    def _is_next(self, batch: Batch) -> bool:
        """Whether it still is: its session may be over."""
        return bool(self._inbox) and self._inbox[0] is batch

    def _not_completed(self, failure: Failure, batch: Batch) -> None:
        if self._is_next(batch):
            self._trouble(f"the log cannot be read: {failure.getErrorMessage()}")

    # Our own

    def sent(self, call: Call) -> None:
        """This batch goes to Redis now."""
        self._calls[call.name] = call

    def answered(self, call: Call, reply: Reply | None, problem: str = "") -> None:
        """Redis has taken it, or (None) has not. It fires when everything up to it has been told.

        :param problem: it is in the log, but must not be acknowledged, for this reason.
        """
        if self._calls.pop(call.name, None) is None:
            call.fail("the log was lost before the events had come back")
            return
        if reply is None:
            call.fail(problem)
            return
        call.reply, call.problem = reply, problem
        self._ordered.append(call)
        fresh = len(call.drafts) - len(reply.duplicates) // 3
        if call.fresh is not None or not fresh:
            self._finish()
        elif reply.seq == self.seq + 1 and not self._inbox and self.is_live:
            self.seq = reply.seq
            events = call.fresh = call.events(reply)
            if offset := max(event.offset for event in events):
                self.last, self.tip = offset, call.name
            self._tell(events)
            self._finish()
        else:
            self._calls[call.name] = call  # to be told when what comes before it, and its copy, have come
            self.flush()

    def _finish(self) -> None:
        while self._ordered:
            call = self._ordered[0]
            assert call.reply is not None
            if call.reply.seq > self.seq:
                return
            self._ordered.popleft()
            self._calls.pop(call.name, None)
            call.finish()

    @property
    def waits(self) -> bool:
        """Whether calls that Redis has answered wait for what comes before them."""
        return bool(self._ordered)
