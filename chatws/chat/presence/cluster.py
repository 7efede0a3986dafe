"""The members of one space that are online on any node: the agents, or the contacts in conversations.

`LocalPresence` counts this node's connections. Its changes become leases in the broker (`Broker.lease`). The broker
returns the members whose status has changed for the cluster: a member is online while any node holds a lease. The node
that caused a change announces it. If a node dies, its leases expire, and another node announces its members as offline.

One call of `lease` is in progress at a time, and later changes go with the next call. While the engine is unavailable
nothing is lost: this node knows its own members, and reports all of them when the engine is available again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import NamedTuple

from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.interface import AGENT_SPACE, RESTART_GRACE, Broker, LeaseResult
from chatws.chat.presence.local import LocalPresence
from chatws.errors import Unavailable
from chatws.ids import Id, sort_ids
from chatws.interfaces import Clock, TimerHandle

__all__ = ["ClusterPresence", "MemberChange"]

#: Renewals of a lease within its lifetime: two may fail before it expires.
RENEWALS = 3


class MemberChange(NamedTuple):
    """A member has come online or gone offline, for the cluster.

    :ivar unseen: seconds since the last connection ended, at least, if the member went offline. 0 if it came online.
    """

    member: Id
    is_online: bool
    unseen: float


class ClusterPresence:
    """Maintains this node's leases and the set of members online.

    :param node: this node's name.
    :param announce: called with the members that have changed for the cluster.
    :param grace: seconds between the end of a member's last connection and `offline`.
    :param ttl: seconds until this node's leases expire if it does not renew them.
    :param clock: schedules renewals.
    :param space: names the leases in the broker.
    :ivar broker: stores the leases. Must be set before any method is called.
    """

    _log = Logger()
    broker: Broker

    def __init__(
        self,
        node: str,
        announce: Callable[[list[MemberChange]], None],
        grace: float,
        ttl: float,
        clock: Clock,
        space: str = AGENT_SPACE,
    ) -> None:
        self.local = LocalPresence(self._on_local_change, grace, clock)
        self._node = node
        self._announce = announce
        self._ttl = ttl
        self._clock = clock
        self._space = space
        self._refreshed_at = -inf
        self._online: set[Id] = set()
        # The result of `online` and the local version that it is for. Every page that opens asks for it.
        self._sorted: tuple[int, list[Id]] | None = None
        self._unreported: dict[Id, int | None] = {}
        self._reporting = False
        self._report_again = False
        self._report_all = False
        self._renewal: TimerHandle | None = None

    # The set of members online

    def __contains__(self, member: Id) -> bool:
        return member in self._online or member in self.local

    def __len__(self) -> int:
        return len(self._online)

    def online(self) -> list[Id]:
        """Return the members online, including those within their grace period, sorted.

        The list is cached. Callers must not change it.
        """
        version = self.local.version
        if self._sorted is None or self._sorted[0] != version:
            self._sorted = (version, sort_ids(self._online.union(self.local.users())))
        return self._sorted[1]

    def apply_remote_status(self, online: Iterable[Id], offline: Iterable[Id]) -> None:
        """Apply a presence update that a node, this one included, has published."""
        self._online.update(online)
        self._online.difference_update(offline)
        self._sorted = None

    # Lifetime

    async def start(self) -> None:
        """Read the members online, and begin to renew this node's leases.

        :raises Unavailable: The broker cannot be reached.
        """
        self._replace(await self.broker.online(self._space))
        if self.local.stopped:
            return  # the process stops during its start
        self._renewal = self._clock.callLater(self._ttl / RENEWALS, self._renew)

    def freeze(self, seconds: float) -> None:
        """Announce nothing more: from now on connections close because this process stops. Idempotent.

        :param seconds: how long the process takes to stop. The leases last until its successor has started.
        """
        if self._renewal is not None and self._renewal.active():
            self._renewal.cancel()
        self._renewal = None
        if not self.local.stopped:
            self._unreported.update(self._with_counts(self.local.stop()))
            self._ttl = seconds + RESTART_GRACE
            self._report()

    def _renew(self) -> None:
        self._renewal = self._clock.callLater(self._ttl / RENEWALS, self._renew)
        for user_id in self.local.pop_changed_counts():
            self._unreported.setdefault(user_id, self.local.connection_count(user_id))
        self._report()

    # Reports to the broker

    def _on_local_change(self, changes: list[tuple[Id, bool]]) -> None:
        self._unreported.update(self._with_counts(changes))
        self._report()

    def _with_counts(self, changes: list[tuple[Id, bool]]) -> dict[Id, int | None]:
        return {user_id: self.local.connection_count(user_id) if is_online else None for user_id, is_online in changes}

    def _report(self) -> None:
        if self._reporting:
            self._report_again = True
            return
        self._reporting, self._report_again = True, False
        changes = self._unreported
        self._unreported = {}
        if self._report_all:
            changes = {**changes, **{user_id: self.local.connection_count(user_id) for user_id in self.local.users()}}
        result = self.broker.lease(self._node, changes, self._ttl + self.local.grace, self._space)
        result.addCallbacks(self._on_result, self._on_failure, callbackArgs=(changes,), errbackArgs=(changes,))
        result.addErrback(lambda failure: self._log.failure("Presence report failed", failure))

    def _on_result(self, result: LeaseResult, reported: Mapping[Id, int | None]) -> None:
        self._reporting = False
        reported_all, self._report_all = self._report_all, False
        if result.changed:
            self._announce([self._to_change(*change, reported) for change in result.changed])
        if self._report_again:
            self._report()
        elif result.held != self.local.announced and not reported_all and not self.local.stopped:
            self._report_all = True
            self._report()
        elif result.online != len(self._online) and not result.changed:
            self._refresh()

    def _to_change(self, user_id: Id, is_online: bool, reported: Mapping[Id, int | None]) -> MemberChange:
        """Return a change. This node has reported it, or has found the lease of another node expired."""
        grace = self.local.grace
        return MemberChange(
            user_id, is_online, 0.0 if is_online else grace if user_id in reported else self._ttl + grace
        )

    def _on_failure(self, failure: Failure, changes: Mapping[Id, int | None]) -> None:
        """Report again with the next renewal. All members are then reported, as the leases may have expired."""
        self._reporting = False
        self._unreported = {**changes, **self._unreported}
        self._report_all = True
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Presence report failed", failure)

    def _replace(self, members: Iterable[Id]) -> None:
        self._online = set(members)
        self._sorted = None

    def _refresh(self) -> None:
        """Read the members online again: this node has missed an update.

        While many members come and go, the numbers differ because updates are under way. The space is therefore read
        once per lifetime of a lease at most.
        """
        now = self._clock.seconds()
        if now < self._refreshed_at + self._ttl:
            return
        self._refreshed_at = now
        members = self.broker.online(self._space)
        members.addCallbacks(self._replace, lambda failure: failure.trap(Unavailable))
        members.addErrback(lambda failure: self._log.failure("Reading presence failed", failure))
