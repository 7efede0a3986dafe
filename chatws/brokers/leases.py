"""Leases and member data in memory, for the engines that one process holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from chatws.brokers.interface import AGENT_SPACE, RESTART_GRACE, LeaseResult, MemberData
from chatws.ids import Id

__all__ = ["Spaces"]

#: Name of the node that holds the members of the time before a restart.
_BEFORE = ""


class _Node:
    __slots__ = ("members", "until")

    def __init__(self) -> None:
        self.until = 0.0
        self.members: dict[Id, int] = {}


class _Space:
    """The members of one space, by node."""

    def __init__(self) -> None:
        self.nodes: dict[str, _Node] = {}
        self.data: dict[Id, MemberData] = {}
        self._holders: dict[Id, int] = {}

    def expect(self, members: Iterable[Id], now: float) -> None:
        """Hold the members that were online when the previous process ended, for `RESTART_GRACE`."""
        before = self.nodes[_BEFORE] = _Node()
        before.until = now + RESTART_GRACE
        for member in members:
            before.members[member] = 0
            self._holders[member] = 1

    def lease(self, node: str, connection_counts: Mapping[Id, int | None], seconds: float, now: float) -> LeaseResult:
        """See `Broker.lease`."""
        mine = self.nodes.get(node)
        if mine is None:
            mine = self.nodes[node] = _Node()
        mine.until = now + seconds
        before: dict[Id, bool] = {}
        for member, count in connection_counts.items():
            if count is None:
                if mine.members.pop(member, None) is not None:
                    self._release(member, before)
            else:
                if member not in mine.members:
                    self._hold(member, before)
                mine.members[member] = count
        for name in [name for name, other in self.nodes.items() if other.until <= now and other is not mine]:
            for member in self.nodes.pop(name).members:
                self._release(member, before)
        holders = self._holders
        changed = [(member, member in holders) for member, was in before.items() if (member in holders) != was]
        return LeaseResult(changed, len(mine.members), len(holders))

    def online(self, now: float) -> list[Id]:
        """See `Broker.online`."""
        if any(node.until <= now for node in self.nodes.values()):
            return list({member for node in self.nodes.values() if node.until > now for member in node.members})
        return list(self._holders)

    def _hold(self, member: Id, before: dict[Id, bool]) -> None:
        holders = self._holders.get(member, 0)
        before.setdefault(member, holders > 0)
        self._holders[member] = holders + 1

    def _release(self, member: Id, before: dict[Id, bool]) -> None:
        holders = self._holders[member]
        before.setdefault(member, True)
        if holders == 1:
            del self._holders[member]
        else:
            self._holders[member] = holders - 1


class Spaces:
    """The leases and the data of all spaces. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._spaces: dict[str, _Space] = {}

    def _space(self, name: str) -> _Space:
        space = self._spaces.get(name)
        if space is None:
            space = self._spaces[name] = _Space()
        return space

    def restore(
        self, members: Mapping[str, Iterable[Id]], data: Iterable[tuple[str, Id, MemberData]], now: float
    ) -> None:
        """Restore what the previous process has stored.

        :param members: by space: those that were online at its end. They are held for `RESTART_GRACE`.
        :param data: space, member and data.
        """
        for space, held in members.items():
            self._space(space).expect(held, now)
        for space, member, stored in data:
            self._space(space).data[member] = stored

    def lease(
        self, space: str, node: str, connection_counts: Mapping[Id, int | None], seconds: float, now: float
    ) -> LeaseResult:
        """See `Broker.lease`."""
        return self._space(space).lease(node, connection_counts, seconds, now)

    def online(self, space: str, now: float) -> list[Id]:
        """See `Broker.online`."""
        return self._space(space).online(now)

    def nodes_without(self, space: str, now: float) -> list[str]:
        """See `Broker.nodes_without`."""
        have = self._space(space).nodes
        agents = self._space(AGENT_SPACE).nodes
        return sorted(
            name
            for name, node in agents.items()
            if name != _BEFORE and node.until > now and (name not in have or have[name].until <= now)
        )

    def set_data(self, space: str, member: Id, data: str | None, seconds: float, now: float) -> bool:
        """See `Broker.set_data`."""
        stored = self._space(space).data
        for expired in [member for member, old in stored.items() if old.expires_at <= now]:
            del stored[expired]
        before = stored.get(member)
        if data is None:
            stored.pop(member, None)
        else:
            stored[member] = MemberData(data, now + seconds)
        return (None if before is None else before.data) != data

    def data(self, space: str, now: float) -> dict[Id, MemberData]:
        """See `Broker.data`."""
        return {member: data for member, data in self._space(space).data.items() if data.expires_at > now}
