"""What is asked of the log besides appending and reading on, each by itself; and what the operator hears of trouble."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.logger import Logger

from chatws.brokers.contract import Bounds, Event, Leased
from chatws.brokers.postgres import wire
from chatws.database.contract import QueryFailed, Values
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["PAGE_BYTES", "Questions", "Troubles"]

#: What one read brings at most.
PAGE_BYTES = 4 * 1024 * 1024


class Troubles:
    """What does not work: "written", "read", "used". The log is told once of each, until it works again."""

    _log = Logger()

    def __init__(self) -> None:
        self._present: set[str] = set()
        self._said: set[str] = set()

    def __contains__(self, what: str) -> bool:
        return what in self._present

    def note(self, what: str, error: Exception) -> None:
        """The database itself says when it cannot be reached; what it refuses is said here."""
        self._present.add(what)
        if isinstance(error, QueryFailed) and what not in self._said:
            self._said.add(what)
            self._log.error("the log cannot be {what}: {reason}", what=what, reason=str(error))

    def well(self, what: str) -> None:
        """This works, and so PostgreSQL can be used."""
        for one in (what, "used"):
            self._present.discard(one)
            self._said.discard(one)


class Questions:
    """
    :param bounds: how much is kept.
    :param now: the clock for keys and leases; None for the database's own.
    :ivar open: whether anything may be asked: else all fail with `Unavailable`.
    """

    def __init__(
        self, database: PostgresDatabase, bounds: Bounds, troubles: Troubles, now: Callable[[], float] | None
    ) -> None:
        self.open = False
        self._database = database
        self._bounds = bounds
        self._troubles = troubles
        self._now = now

    async def read(self, after: int, limit: int) -> list[Event]:
        """See `Broker.read`."""
        events: list[Event] = []
        while len(events) < limit:
            rows = await self._ask(wire.READ, {"after": after, "limit": limit - len(events), "size": PAGE_BYTES})
            page = wire.decode_page(rows[0]["answer"])
            events += [wire.to_event(row) for row in page.events]
            if not page.more:
                break
            after = events[-1].offset
        return events

    async def bounds(self) -> tuple[int, int]:
        """See `Broker.bounds`. Fails also when the last append did, and PostgreSQL still takes nothing."""
        if "written" in self._troubles:
            await self._ask(wire.STAY_AWAKE, {"seconds": 0.0}, writes=True)
            self._troubles.well("written")
        [found] = await self._ask(wire.BOUNDS, {})
        return found["first"], found["last"]

    async def lease(self, node: str, tabs: Mapping[Id, int | None], seconds: float) -> Leased:
        """See `Broker.lease`."""
        values = {"node": node, "tabs": wire.encode_tabs(tabs), "seconds": seconds, "now": self._now and self._now()}
        rows = await self._ask(wire.LEASE, values, writes=True)
        return Leased(*wire.decode_leased(rows[0]["answer"]))

    async def online(self) -> list[Id]:
        """See `Broker.online`."""
        rows = await self._ask(wire.ONLINE, {"now": self._now and self._now()})
        return wire.decode_users(rows[0]["answer"])

    async def trim(self, limit: int) -> int:
        """Delete up to `limit` of what the bounds do not keep, and tell how much that was."""
        bounds = self._bounds
        values = {"events": bounds.events, "seconds": bounds.seconds, "size": bounds.size}
        now = self._now and self._now()
        [trimmed] = await self._ask(wire.TRIM, {**values, "limit": limit, "now": now}, writes=True)
        deleted: int = trimmed["deleted"]
        return deleted

    async def _ask(self, sql: str, values: Values, *, writes: bool = False) -> list[dict[str, Any]]:
        if not self.open:
            raise Unavailable("the log is closed")
        try:
            if writes:
                return await self._database.once(sql, values)
            return await self._database.query(sql, values)
        except QueryFailed as error:
            self._troubles.note("used", error)
            raise Unavailable("the log cannot be used now") from error
