"""Questions that take time: each is asked once while it is under way, and a yes is remembered for a while.

Ten thousand browsers that come back at once and subscribe to the same conversation are one query. A no is not
remembered: the conversation that is forbidden because its row is not committed yet is there a moment later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Hashable, Mapping
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.database.contract import Database, QueryFailed, ValueRefused, check_sql, other_spelling
from chatws.errors import Unavailable

__all__ = ["Complaints", "Lookup", "Question"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Answers kept at most, per lookup. The oldest goes first.
MAX_KEPT = 10_000


class _Flight(Generic[V]):
    """A question under way, and who waits for the answer."""

    def __init__(self) -> None:
        self.waiters: list[Deferred[V]] = []
        self.asked: Deferred[V] | None = None
        self.timer: Any = None


class Lookup(Generic[K, V]):
    """Answers by key.

    :param ask: asks for one key. What it raises reaches everybody who waits for that key.
    :param keep: seconds that an answer which is true (in Python's sense) is kept; 0 keeps none.
    :param timeout: seconds that a question may take; then `Unavailable` rises.
    """

    def __init__(
        self,
        ask: Callable[[K], Coroutine[Any, Any, V]],
        *,
        keep: float,
        timeout: float,
        clock: Any,
    ) -> None:
        self._ask = ask
        self._keep = keep
        self._timeout = timeout
        self._clock = clock
        # all are kept equally long: the order of insertion is that of expiry
        self._kept: dict[K, tuple[V, float]] = {}
        self._flights: dict[K, _Flight[V]] = {}

    def get(self, key: K) -> V | Deferred[V]:
        """The answer: itself when it is known, else a Deferred of one's own."""
        kept = self._kept.get(key)
        if kept is not None:
            if self._clock.seconds() < kept[1]:
                return kept[0]
            del self._kept[key]
        flight = self._flights.get(key)
        if flight is not None:
            return self._join(flight)
        flight = self._flights[key] = _Flight()
        waiter = self._join(flight)
        flight.timer = self._clock.callLater(self._timeout, self._too_late, key, flight)
        flight.asked = Deferred.fromCoroutine(self._ask(key))
        flight.asked.addBoth(self._answered, key, flight)
        return waiter

    def forget(self, concerns: Callable[[K], bool]) -> None:
        """Whoever asks from now on gets a new answer; an answer under way still reaches those who wait for it."""
        for key in [one for one in self._kept if concerns(one)]:
            del self._kept[key]
        for key in [one for one in self._flights if concerns(one)]:
            del self._flights[key]

    def _join(self, flight: _Flight[V]) -> Deferred[V]:
        waiter: Deferred[V] = Deferred(flight.waiters.remove)
        flight.waiters.append(waiter)
        return waiter

    def _answered(self, answer: V | Failure, key: K, flight: _Flight[V]) -> None:
        if flight.timer.active():
            flight.timer.cancel()
        if self._flights.get(key) is flight:
            del self._flights[key]
            if self._keep > 0 and answer and not isinstance(answer, Failure):
                self._remember(key, answer)
        waiters, flight.waiters = flight.waiters, []
        for waiter in waiters:
            if isinstance(answer, Failure) and isinstance(answer.value, Unavailable):
                # one each: an exception raised in many places collects all their tracebacks
                waiter.errback(Unavailable(answer.value.message))
            else:
                waiter.callback(answer)

    def _remember(self, key: K, answer: V) -> None:
        now = self._clock.seconds()
        self._kept.pop(key, None)
        while self._kept:
            oldest = next(iter(self._kept))
            if len(self._kept) < MAX_KEPT and self._kept[oldest][1] > now:
                break
            del self._kept[oldest]
        self._kept[key] = (answer, now + self._keep)

    def _too_late(self, key: K, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        waiters, flight.waiters = flight.waiters, []
        if flight.asked is not None:
            flight.asked.cancel()
        for waiter in waiters:
            waiter.errback(Unavailable("no answer in time"))


class Complaints:
    """What the operator must hear of, but not with every question: the same line again after ten minutes only."""

    INTERVAL = 600.0
    #: Distinct lines within the interval.
    MAX = 20

    def __init__(self, log: Logger, clock: Any) -> None:
        self._log = log
        self._clock = clock
        self._made: dict[str, float] = {}

    def make(self, text: str) -> None:
        # engines quote values in their sentences: no control characters from outside on a terminal
        line = "".join(character if character.isprintable() else "?" for character in text[:500])
        now = self._clock.seconds()
        self._made = {made: at for made, at in self._made.items() if now - at < self.INTERVAL}
        if line not in self._made and len(self._made) < self.MAX:
            self._made[line] = now
            self._log.error("{complaint}", complaint=line)


class Question:
    """Does one of the operator's queries return a row?

    :param name: the setting it comes from.
    :param allowed: the placeholders that it may have.
    :ivar placeholders: those that it has.
    :raises OperatorError: it has others.
    """

    _log = Logger()

    def __init__(self, database: Database, name: str, sql: str, allowed: Collection[str], clock: Any) -> None:
        self.placeholders = check_sql(name, sql, allowed)
        self._database = database
        self._name = name
        self._sql = sql
        self._complaints = Complaints(self._log, clock)

    async def ask(self, values: Mapping[str, Any]) -> bool:
        """Also no where the row is another's: where an id that is a text was taken for a number or a uuid which is
        written otherwise. Then the row is there for yet another spelling too.

        :raises Unavailable: it cannot be asked, or is wrong: the log says what is wrong with it.
        """
        try:
            if not await self._returns_row(values):
                return False
            others = [(name, other_spelling(values[name])) for name in self.placeholders]
            for name, other in others:
                if other is not None and await self._returns_row({**values, name: other}):
                    return False
            return True
        except QueryFailed as error:
            self._complaints.make(f"{self._name} fails, everybody it concerns is refused: {error}")
            raise Unavailable("the database cannot answer") from None

    async def _returns_row(self, values: Mapping[str, Any]) -> bool:
        try:
            return bool(await self._database.query(self._sql, values))
        except ValueRefused:
            return False
