"""A cache of asynchronous lookups: concurrent lookups of one key share one query, and positive results are kept.

When 10,000 browsers reconnect and subscribe to the same conversation, the database gets one query. Negative results
are not kept: a conversation may be forbidden only because its row is not committed yet.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.auth.fair_queue import FairQueue
from chatws.errors import Unavailable
from chatws.interfaces import Clock, TimerHandle
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["RepeatedErrorLog", "SingleFlightCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Results kept at most, per cache; the oldest goes first. Bounds the memory when many ids are looked up.
MAX_ENTRIES = 10_000


class _Query(Generic[V]):
    """A query that waits for a turn or is in progress.

    :ivar waiters: the callers' Deferreds, each with its owner.
    :ivar turns: the owners in whose name it waits for a turn. The first turn starts it.
    :ivar running: the query itself, once it has started.
    :ivar timer: the timeout, set when the query starts.
    """

    def __init__(self) -> None:
        self.waiters: dict[Deferred[V], Hashable] = {}
        self.turns: set[Hashable] = set()
        self.running: Deferred[V] | None = None
        self.timer: TimerHandle | None = None


class SingleFlightCache(Generic[K, V]):
    """Look up values by key, with at most one query per key at a time.

    :param load: loads the value of one key. Its exceptions reach every caller that waits for that key.
    :param ttl: seconds for which a true value (in Python's sense) is kept; 0 keeps none.
    :param timeout: seconds that a query may take. After that its callers get `Unavailable`.
    :param queue: limits the queries that run at the same time. Waiting in it does not count towards `timeout`.
    """

    def __init__(
        self,
        load: Callable[[K], Coroutine[Any, Any, V]],
        *,
        ttl: float,
        timeout: float,
        clock: Clock,
        queue: FairQueue | None = None,
    ) -> None:
        self._load = load
        self._queue = queue
        self._ttl = ttl
        self._timeout = timeout
        self._clock = clock
        # value and expiry; all have the same TTL, so the order of insertion is that of expiry
        self._entries: dict[K, tuple[V, float]] = {}
        self._queries: dict[K, _Query[V]] = {}

    def get(self, key: K, owner: Hashable = None) -> V | Deferred[V]:
        """Return the value if it is cached, else a Deferred that the caller may cancel.

        :param owner: the queue gives each owner its turn.
        :raises Unavailable: (through the Deferred) there was no result within the timeout.
        """
        entry = self._entries.get(key)
        if entry is not None:
            if self._clock.seconds() < entry[1]:
                return entry[0]
            del self._entries[key]
        query = self._queries.get(key)
        if query is None:
            query = self._queries[key] = _Query()
        waiters = query.waiters

        def leave(waiter: Deferred[V]) -> None:
            waiters.pop(waiter, None)

        waiter: Deferred[V] = Deferred(leave)
        query.waiters[waiter] = owner
        if query.running is None and owner not in query.turns:
            query.turns.add(owner)
            self._request_turn(key, query, owner)
        return waiter

    def is_running(self, key: K) -> bool:
        """Return whether a query of `key` is in progress or waits for its turn."""
        return key in self._queries

    def forget(self, matches: Callable[[K], bool]) -> None:
        """Drop the keys that match. Later lookups start a new query; running queries still reach their callers."""
        for key in [key for key in self._entries if matches(key)]:
            del self._entries[key]
        for key in [key for key in self._queries if matches(key)]:
            del self._queries[key]

    def _request_turn(self, key: K, query: _Query[V], owner: Hashable) -> None:
        """Start the query when the owner has a turn.

        Each owner that waits for the query has a turn of its own: the first one may have a thousand others before it.
        """

        async def start() -> None:
            query.turns.discard(owner)
            if query.running is None and query.waiters:
                await self._run(key, query)
            self._drop_unused(key, query)

        turn = Deferred.fromCoroutine(start() if self._queue is None else self._queue.run(owner, start))
        turn.addErrback(self._on_turn_failed, key, query, owner)

    async def _run(self, key: K, query: _Query[V]) -> None:
        """Run the query and report its result. Also raise its exception, for the queue."""
        query.timer = self._clock.callLater(self._timeout, self._on_timeout, key, query)
        query.running = Deferred.fromCoroutine(self._load(key))
        try:
            result = await query.running
        except Exception:
            self._on_result(Failure(), key, query)  # type: ignore[no-untyped-call]
            raise
        self._on_result(result, key, query)

    def _on_turn_failed(self, failure: Failure, key: K, query: _Query[V], owner: Hashable) -> None:
        """Report that the queue has rejected an owner. An exception of the query itself has been reported."""
        if owner not in query.turns:
            return
        query.turns.discard(owner)
        for waiter in [waiter for waiter, its_owner in query.waiters.items() if its_owner == owner]:
            del query.waiters[waiter]
            # a new exception for each, as below
            error = failure.value
            waiter.errback(Unavailable(error.message) if isinstance(error, Unavailable) else failure)
        self._drop_unused(key, query)

    def _drop_unused(self, key: K, query: _Query[V]) -> None:
        if not query.turns and query.running is None and self._queries.get(key) is query:
            del self._queries[key]

    def _on_result(self, result: V | Failure, key: K, query: _Query[V]) -> None:
        if query.timer is not None and query.timer.active():
            query.timer.cancel()
        if self._queries.get(key) is query:
            del self._queries[key]
            if self._ttl > 0 and result and not isinstance(result, Failure):
                self._store(key, result)
        waiters, query.waiters = query.waiters, {}
        for waiter in waiters:
            if isinstance(result, Failure) and isinstance(result.value, Unavailable):
                # a new exception for each: one that is raised in many places collects all their tracebacks
                waiter.errback(Unavailable(result.value.message))
            else:
                waiter.callback(result)

    def _store(self, key: K, value: V) -> None:
        now = self._clock.seconds()
        self._entries.pop(key, None)
        while self._entries:
            oldest = next(iter(self._entries))
            if len(self._entries) < MAX_ENTRIES and self._entries[oldest][1] > now:
                break
            del self._entries[oldest]
        self._entries[key] = (value, now + self._ttl)

    def _on_timeout(self, key: K, query: _Query[V]) -> None:
        if self._queries.get(key) is query:
            del self._queries[key]
        waiters, query.waiters = query.waiters, {}
        if query.running is not None:
            query.running.cancel()
        for waiter in waiters:
            waiter.errback(Unavailable("no answer in time"))


class RepeatedErrorLog(ThrottledLog):
    """Errors that every query may cause, with text of the other side: each once in ten minutes."""

    INTERVAL = 600.0
    #: Distinct lines within the interval.
    MAX = 20

    def __init__(self, log: Logger, clock: Clock) -> None:
        super().__init__(log, clock, interval=self.INTERVAL, max_reasons=self.MAX)

    def make(self, text: str) -> None:
        """Log `text`, cut and without control characters: databases quote values of clients in their messages."""
        line = "".join(character if character.isprintable() else "?" for character in text[:500])
        self.error(line, "{complaint}", complaint=line)
