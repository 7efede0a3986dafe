"""Measurements for /metrics: histograms, the lag of the event loop, the durations of database queries."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from chatws.database.interface import Database, DatabaseEngine, QueryFailed, Row, ValueRefused, Values
from chatws.interfaces import Clock, zope_clock

__all__ = ["LAG_INTERVAL", "STORE_BUCKETS", "Histogram", "Lag", "MeasuredDatabase"]

T = TypeVar("T")

#: Seconds between two measurements of the event loop's lag: enough samples for a 15 s scrape, at no visible cost.
LAG_INTERVAL = 0.5
#: Seconds of a lag: below 1 ms it is noise, above 2.5 s the server is as good as stopped.
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
#: Seconds of a query or of a call of the broker: from a local answer to `auth_timeout` and `broker_timeout`.
STORE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Counts of values by bucket, with their sum.

    :param bounds: the buckets' upper ends, ascending. A value on a bound is in the bucket that it ends.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Return (upper end, number of values up to it) pairs, as `HistogramMetricFamily` takes them."""
        buckets, total = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class Lag:
    """Measures how late the event loop runs calls that are due."""

    def __init__(self, clock: Clock) -> None:
        self.histogram = Histogram(LAG_BUCKETS)
        self.latest = 0.0
        self._clock = clock
        self._due = 0.0
        self._looping = LoopingCall(self._measure)
        self._looping.clock = zope_clock(clock)

    def start(self) -> None:
        """Start to measure."""
        self._due = self._clock.seconds() + LAG_INTERVAL
        self._looping.start(LAG_INTERVAL, now=False)

    def _measure(self) -> None:
        now = self._clock.seconds()
        self.latest = max(0.0, now - self._due)
        self.histogram.observe(self.latest)
        # LoopingCall keeps to its grid and skips missed calls
        self._due += LAG_INTERVAL
        if self._due <= now:
            self._due += ((now - self._due) // LAG_INTERVAL + 1) * LAG_INTERVAL

    def stop(self) -> None:
        """Stop measuring. Idempotent."""
        if self._looping.running:
            self._looping.stop()


class MeasuredDatabase:
    """Measures the queries of a database. Implements `chatws.database.interface.Database`.

    :ivar histograms: seconds until the result or error, by kind of query.
    :ivar errors: failed queries, by reason: `unavailable`, `failed` (the SQL, the schema or a privilege is wrong) or
        `refused` (the column's type does not accept a value).
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.histograms = {name: Histogram(STORE_BUCKETS) for name in ("query", "execute", "execute_many")}
        self.errors = {"unavailable": 0, "failed": 0, "refused": 0}

    @property
    def engine(self) -> DatabaseEngine:
        return self._database.engine

    @property
    def healthy(self) -> bool:
        return self._database.healthy

    def start(self) -> Deferred[None]:
        return self._database.start()

    def stop(self) -> Deferred[None]:
        return self._database.stop()

    async def query(self, sql: str, values: Values) -> list[Row]:
        return await self._measured("query", self._database.query(sql, values))

    async def execute(self, sql: str, values: Values) -> int:
        return await self._measured("execute", self._database.execute(sql, values))

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        return await self._measured("execute_many", self._database.execute_many(sql, batch))

    async def _measured(self, kind: str, result: Awaitable[T]) -> T:
        began = self._clock.seconds()
        try:
            return await result
        except ValueRefused:
            self.errors["refused"] += 1
            raise
        except QueryFailed:
            self.errors["failed"] += 1
            raise
        except Exception:
            self.errors["unavailable"] += 1
            raise
        finally:
            self.histograms[kind].observe(self._clock.seconds() - began)
