"""Leases in memory, for the engines that one process holds: the users of each node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatws.brokers.interface import RESTART_GRACE, LeaseResult
from chatws.ids import Id

__all__ = ["Leases"]

#: Name of the node that holds the users of the time before a restart.
_BEFORE = ""


class _Node:
    __slots__ = ("until", "users")

    def __init__(self) -> None:
        self.until = 0.0
        self.users: dict[Id, int] = {}


class Leases:
    """See `Broker.lease`. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node] = {}
        self._holders: dict[Id, int] = {}

    def expect(self, users: Iterable[Id], now: float) -> None:
        """Hold the users that were online when the previous process ended, for `RESTART_GRACE`."""
        before = self._nodes[_BEFORE] = _Node()
        before.until = now + RESTART_GRACE
        for user_id in users:
            before.users[user_id] = 0
            self._holders[user_id] = 1

    def lease(self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, now: float) -> LeaseResult:
        """See `Broker.lease`."""
        mine = self._nodes.get(node)
        if mine is None:
            mine = self._nodes[node] = _Node()
        mine.until = now + seconds
        before: dict[Id, bool] = {}
        for user_id, count in connection_counts.items():
            if count is None:
                if mine.users.pop(user_id, None) is not None:
                    self._release(user_id, before)
            else:
                if user_id not in mine.users:
                    self._hold(user_id, before)
                mine.users[user_id] = count
        for name in [name for name, other in self._nodes.items() if other.until <= now and other is not mine]:
            for user_id in self._nodes.pop(name).users:
                self._release(user_id, before)
        changed = [(user, user in self._holders) for user, was in before.items() if (user in self._holders) != was]
        return LeaseResult(changed, len(mine.users), len(self._holders))

    def online(self, now: float) -> list[Id]:
        """See `Broker.online`."""
        if any(node.until <= now for node in self._nodes.values()):
            return list({user for node in self._nodes.values() if node.until > now for user in node.users})
        return list(self._holders)

    def _hold(self, user_id: Id, before: dict[Id, bool]) -> None:
        holders = self._holders.get(user_id, 0)
        before.setdefault(user_id, holders > 0)
        self._holders[user_id] = holders + 1

    def _release(self, user_id: Id, before: dict[Id, bool]) -> None:
        holders = self._holders[user_id]
        before.setdefault(user_id, True)
        if holders == 1:
            del self._holders[user_id]
        else:
            self._holders[user_id] = holders - 1
