"""Maintains `chatws_online`, the view of the agents online, in the application's database.

The holder of the outbox writes the agents of all nodes, and renews one row every few seconds. If all nodes die, that
row expires, and the view is empty.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from chatws.ids import Id
from chatws.interfaces import Clock
from chatws.outbox.dialects import Dialect

__all__ = ["OnlineTable"]

#: Seconds between renewals, and until the view is empty without one.
RENEW_INTERVAL, EXPIRY = 5.0, 20
#: Seconds between two looks at the agents online.
UPDATE_INTERVAL = 0.5
#: Of BIGINT.
_MAX_NUMBER = 2**63 - 1

_Run = Callable[..., Awaitable[Any]]


class OnlineTable:
    """The table behind the view.

    :param online: returns the agents online on all nodes.
    :param statuses: returns those of their statuses that are not `online`, by the text of the id.
    :param wall_clock: returns seconds since 1970.
    """

    def __init__(
        self,
        dialect: Dialect,
        prefix: str,
        online: Callable[[], list[Id]],
        statuses: Callable[[], Mapping[str, str]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._dialect = dialect
        self._prefix = prefix
        self._online = online
        self._statuses = statuses
        self._wall_clock = wall_clock
        self._stored: dict[Id, str] | None = None
        self._next_update = self._next_renewal = 0.0

    def reset(self) -> None:
        """Write everything at the next update: another node may have written."""
        self.forget()
        self._next_update = self._next_renewal = 0.0

    def forget(self) -> None:
        """Read the table again at the next update: the last one failed, and may have written a part."""
        self._stored = None

    async def update(self, run: _Run, clock: Clock) -> None:
        """Write what has changed, if it is time to.

        :param run: executes a statement.
        """
        now = clock.seconds()
        if now < self._next_update:
            return
        self._next_update = now + UPDATE_INTERVAL
        statuses = self._statuses()
        online = {user_id: statuses.get(str(user_id), "online") for user_id in self._online()}
        table = f"{self._prefix}chatws_online_agents"
        if self._stored is None:
            rows, _ = await run(f"SELECT user_id, status FROM {table}")
            self._stored = {_to_id(str(row["user_id"])): str(row["status"]) for row in rows}
        for user_id in self._stored.keys() - online.keys():
            await run(f"DELETE FROM {table} WHERE user_id = %(user_id)s", {"user_id": str(user_id)})
        since = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
        for user_id, status in online.items() - self._stored.items():
            values = {"user_id": str(user_id), "status": status}
            if user_id in self._stored:
                await run(f"UPDATE {table} SET status = %(status)s WHERE user_id = %(user_id)s", values)
            else:
                await run(
                    f"INSERT INTO {table} (user_id, user_number, status, since)"
                    " VALUES (%(user_id)s, %(user_number)s, %(status)s, %(since)s)",
                    {**values, "user_number": _number(user_id), "since": since},
                )
        self._stored = online
        if now >= self._next_renewal:
            await run(self._dialect.renew.format(p=self._prefix, seconds=EXPIRY))
            self._next_renewal = now + RENEW_INTERVAL


def _number(user_id: Id) -> int | None:
    return user_id if isinstance(user_id, int) and user_id <= _MAX_NUMBER else None


def _to_id(text: str) -> Id:
    return int(text) if text.isdecimal() and text.isascii() and str(int(text)) == text else text
