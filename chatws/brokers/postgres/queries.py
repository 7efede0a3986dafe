"""Single queries besides append and poll, and the log lines about a history that does not work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.logger import Logger

from chatws.brokers.interface import Event, LeaseResult, MemberData, Retention
from chatws.brokers.postgres import messages
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    WebhookQueueSettings,
    WebhookReply,
    WebhookRequest,
)
from chatws.database.interface import QueryFailed, Values
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import Unavailable
from chatws.ids import Id

__all__ = ["PAGE_BYTES", "ErrorState", "Queries"]

#: Bytes in one read: bounds the memory of a reply, and the time for which decoding it blocks the reactor.
PAGE_BYTES = 4 * 1024 * 1024


class ErrorState:
    """Which uses of the history fail: "written", "read", "used". Each is logged once, until it works again."""

    _log = Logger()

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._logged: set[str] = set()

    def __contains__(self, what: str) -> bool:
        return what in self._failing

    def mark_failed(self, what: str, error: Exception) -> None:
        """Note a failure, and log a rejected query. The database logs by itself when it is unreachable."""
        self._failing.add(what)
        if isinstance(error, QueryFailed) and what not in self._logged:
            self._logged.add(what)
            self._log.error("the event history cannot be {use}: {reason}", use=what, reason=str(error))

    def mark_working(self, what: str) -> None:
        """Note that this use works, so PostgreSQL is usable."""
        for use in (what, "used"):
            self._failing.discard(use)
            self._logged.discard(use)


class Queries:
    """The queries, each in a transaction of its own.

    :param retention: limits of what is kept.
    :param now: the clock for keys and leases; None for the database's own.
    :param webhook_queue: settings of the queue of webhooks.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        retention: Retention,
        errors: ErrorState,
        now: Callable[[], float] | None,
        webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
    ) -> None:
        self._database = database
        self._retention = retention
        self._errors = errors
        self._now = now
        self._webhook_queue = webhook_queue

    async def read(self, after: int, limit: int) -> list[Event]:
        """See `Broker.read`."""
        events: list[Event] = []
        while len(events) < limit:
            rows = await self._query(messages.READ, {"after": after, "limit": limit - len(events), "size": PAGE_BYTES})
            page = messages.decode_page(rows[0]["reply"])
            events += [messages.to_event(row) for row in page.events]
            if not page.more:
                break
            after = events[-1].offset
        return events

    async def offset_range(self) -> tuple[int, int]:
        """See `Broker.offset_range`. Fails, too, if the last append failed and PostgreSQL still rejects writes."""
        if "written" in self._errors:
            await self._query(messages.EXTEND_POLL_HINT, {"seconds": 0.0}, writes=True)
            self._errors.mark_working("written")
        [row] = await self._query(messages.OFFSET_RANGE, {})
        return row["first"], row["last"]

    async def lease(
        self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, space: str
    ) -> LeaseResult:
        """See `Broker.lease`."""
        values = {
            "space": space,
            "node": node,
            "connections": messages.encode_connection_counts(connection_counts),
            "seconds": seconds,
            "now": self._now and self._now(),
            "limit": self._webhook_queue.limit_for(space),
        }
        sql = messages.LEASE_WITH_WEBHOOKS if values["limit"] else messages.LEASE
        rows = await self._query(sql, values, writes=True)
        return LeaseResult(*messages.decode_leased(rows[0]["reply"]))

    async def online(self, space: str) -> list[Id]:
        """See `Broker.online`."""
        return messages.decode_members(await self._of_space(messages.ONLINE, space))

    async def nodes_without(self, space: str) -> list[str]:
        """See `Broker.nodes_without`."""
        return messages.decode_nodes(await self._of_space(messages.NODES_WITHOUT, space))

    async def set_data(self, space: str, member: Id, data: str | None, seconds: float) -> bool:
        """See `Broker.set_data`."""
        key, text = messages.encode_data(member, data)
        values = {"space": space, "member": key, "data": text, "seconds": seconds, "now": self._now and self._now()}
        [row] = await self._query(messages.SET_DATA, values, writes=True)
        changed: bool = row["changed"]
        return changed

    async def data(self, space: str) -> dict[Id, MemberData]:
        """See `Broker.data`."""
        return messages.decode_data(await self._of_space(messages.DATA, space))

    async def _of_space(self, sql: str, space: str) -> str:
        [row] = await self._query(sql, {"space": space, "now": self._now and self._now()})
        reply: str = row["reply"]
        return reply

    async def add_webhooks(self, webhooks: Sequence[NewWebhook], reset: bool) -> None:
        """See `Broker.add_webhooks`."""
        values = {"webhooks": messages.encode_webhooks(webhooks), "reset": reset, "limit": self._webhook_queue.limit}
        await self._query(messages.ADD_WEBHOOKS, {**values, "now": self._now and self._now()}, writes=True)

    async def exchange_webhooks(self, request: WebhookRequest, epoch: str) -> WebhookReply:
        """See `Broker.exchange_webhooks`.

        :param epoch: of the history.
        """
        fields = ("owner", "seconds", "name", "acked", "after", "limit", "reset_done", "numbers")
        values = {field: getattr(request, field) for field in fields}
        now = self._now and self._now()
        rows = await self._query(messages.EXCHANGE_WEBHOOKS, {**values, "epoch": epoch, "now": now}, writes=True)
        return messages.decode_webhooks(rows[0]["reply"], request.limit)

    async def trim(self, limit: int) -> int:
        """Delete up to `limit` rows past their retention, and return how many were deleted."""
        retention = self._retention
        values = {"events": retention.events, "seconds": retention.seconds, "size": retention.size}
        now = self._now and self._now()
        [trimmed] = await self._query(messages.TRIM, {**values, "limit": limit, "now": now}, writes=True)
        deleted: int = trimmed["deleted"]
        return deleted

    async def _query(self, sql: str, values: Values, *, writes: bool = False) -> list[dict[str, Any]]:
        try:
            if writes:
                return await self._database.execute_returning(sql, values)
            return await self._database.query(sql, values)
        except QueryFailed as error:
            self._errors.mark_failed("used", error)
            raise Unavailable("the event history cannot be used now") from error
