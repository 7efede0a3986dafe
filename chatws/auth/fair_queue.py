"""A queue in which owners take turns: a page with 1,000 subscriptions delays another user by a few queries at most.

An owner is a user or an address. An owner that has run nothing for `RECENT` seconds is a newcomer. Newcomers and the
others get every second slot each, and within both, owners take turns. One login therefore does not wait for all owners
of a crowd, and newcomers cannot keep the others out.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred

from chatws.errors import Unavailable
from chatws.interfaces import Clock

__all__ = ["FairQueue"]

V = TypeVar("V")

#: Waiting jobs of one owner: ten pages with 1,000 subscriptions each, the default limit of a connection.
MAX_WAITING = 10_000
#: Waiting jobs of all owners, at some 2 KB each. Beyond it, an owner may have an equal share of them.
MAX_TOTAL = 50_000
#: Seconds for which an owner counts as recent after its last job: a client that repeats requests is no newcomer.
RECENT = 1.0
#: One owner leaves a quarter of the slots to others, so that the next one rarely has to wait.
RESERVED_PART = 4


class _Turn(Deferred[None]):
    """Fires when its job may start.

    :ivar since: the clock's time when it was queued.
    """

    def __init__(self, since: float) -> None:
        super().__init__()
        self.since = since


class FairQueue:
    """Run jobs, at most `slots` at the same time.

    A waiting job has no timeout as long as others succeed. When a job fails because the database does not respond,
    all jobs that have waited for `timeout` seconds or longer fail too: they would fail in the same way.

    :param slots: jobs that run at the same time.
    :param timeout: seconds.
    """

    def __init__(self, slots: int, timeout: float, clock: Clock) -> None:
        self._free = slots
        self._max_running = slots - slots // RESERVED_PART
        self._timeout = timeout
        self._clock = clock
        self._total = 0
        self._running: Counter[Hashable] = Counter()
        self._ended: dict[Hashable, float] = {}  # when the last job of an owner ended, the oldest first
        # The owners that wait, in the order of their turns. A newcomer moves to the others after its first job.
        self._newcomers: dict[Hashable, deque[_Turn]] = {}
        self._others: dict[Hashable, deque[_Turn]] = {}
        self._prefers_newcomers = True
        self._is_starting = False

    async def run(self, owner: Hashable, job: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Run the job when its owner has a turn, and return its result.

        :raises Unavailable: too many jobs of this owner wait, or the database does not respond.
        """
        if self._free and self._running[owner] < self._max_running:
            self._free -= 1
            self._running[owner] += 1
        else:
            await self._enqueue(owner)
        try:
            return await job()
        except (Unavailable, CancelledError):
            self._reject_overdue()
            raise
        finally:
            self._release(owner)

    def _enqueue(self, owner: Hashable) -> _Turn:
        turns = self._newcomers.get(owner) or self._others.get(owner)
        if turns is None:
            queue = self._others if self._is_recent(owner) else self._newcomers
            turns = queue[owner] = deque()
        elif len(turns) >= MAX_WAITING or (
            self._total >= MAX_TOTAL and len(turns) >= MAX_TOTAL // (len(self._newcomers) + len(self._others))
        ):
            raise Unavailable("too many checks of this user or address are pending")
        turn = _Turn(self._clock.seconds())
        turns.append(turn)
        self._total += 1
        return turn

    def _is_recent(self, owner: Hashable) -> bool:
        limit = self._clock.seconds() - RECENT
        while self._ended:
            oldest = next(iter(self._ended))
            if self._ended[oldest] > limit:
                break
            del self._ended[oldest]
        return owner in self._running or owner in self._ended

    def _release(self, owner: Hashable) -> None:
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
            self._ended.pop(owner, None)
            self._ended[owner] = self._clock.seconds()
        self._free += 1
        self._start_next()

    def _start_next(self) -> None:
        if self._is_starting:
            return  # a job has ended at once: the loop below goes on
        self._is_starting = True
        try:
            while self._free and self._start_one():
                pass
        finally:
            self._is_starting = False

    def _start_one(self) -> bool:
        """Give the next owner its turn, and return whether there was one."""
        queues = [self._newcomers, self._others] if self._prefers_newcomers else [self._others, self._newcomers]
        for queue in queues:
            owner = next((owner for owner in queue if self._running[owner] < self._max_running), None)
            if owner is not None:
                break
        else:
            return False
        self._prefers_newcomers = queue is self._others
        turns = queue.pop(owner)
        turn = turns.popleft()
        if turns:
            self._others[owner] = turns  # to the end
        self._total -= 1
        if not turn.called:  # cancelled
            self._free -= 1
            self._running[owner] += 1
            turn.callback(None)
        return True

    def _reject_overdue(self) -> None:
        limit = self._clock.seconds() - self._timeout
        overdue: list[_Turn] = []
        for queue in (self._newcomers, self._others):
            for owner, turns in list(queue.items()):
                while turns and turns[0].since <= limit:
                    overdue.append(turns.popleft())
                if not turns:
                    del queue[owner]
        self._total -= len(overdue)
        for turn in overdue:
            turn.errback(Unavailable("no answer in time"))
