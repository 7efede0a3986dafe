"""The statuses that agents have set: `away`, `busy` and others (docs/protocol.md §6).

Every node has all of them. The broker keeps them as the data of members, so they survive a restart. A status outlives
the connections of its agent for a time. An agent without one is `online`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from chatws.brokers.interface import MemberData
from chatws.chat.presence.changes import ONLINE
from chatws.errors import ClientError, ErrorCode
from chatws.ids import Id

__all__ = ["AgentStatuses", "is_valid_status", "parse_status"]

_STATUS = re.compile(r"[a-z0-9_-]{1,32}")


def is_valid_status(status: object) -> bool:
    """Return whether an agent may have this status. `offline` is not one, because the server decides it."""
    return isinstance(status, str) and status != "offline" and _STATUS.fullmatch(status) is not None


def parse_status(status: object) -> str:
    """Return `status` if an agent may have it.

    :raises ClientError: `bad_message`.
    """
    if not is_valid_status(status):
        text = "status must be 1 to 32 characters of a-z 0-9 _ -, and not offline"
        raise ClientError(ErrorCode.BAD_MESSAGE, text)
    return str(status)


class AgentStatuses:
    """The statuses other than `online`.

    :param keep: seconds for which a status outlives the connections of its agent.
    :param wall_clock: returns seconds since 1970.
    :ivar version: incremented by every change.
    """

    def __init__(self, keep: float, wall_clock: Callable[[], float]) -> None:
        self.version = 0
        self._keep = keep
        self._wall_clock = wall_clock
        self._statuses: dict[Id, str] = {}
        self._expiry: dict[Id, float] = {}  # of agents that are offline

    def __len__(self) -> int:
        return len(self._statuses)

    def get(self, user_id: Id) -> str:
        """Return an agent's status, whether or not the agent is online."""
        expires_at = self._expiry.get(user_id)
        if expires_at is not None and expires_at <= self._wall_clock():
            self._remove(user_id)
        return self._statuses.get(user_id, ONLINE)

    def set(self, user_id: Id, status: str, is_online: bool) -> bool:
        """Set an agent's status, and return whether it was another one."""
        changed = self.get(user_id) != status
        self._remove(user_id)
        if status != ONLINE:
            self._statuses[user_id] = status
            if not is_online:
                self._expiry[user_id] = self._wall_clock() + self._keep
        return changed

    def apply_presence(self, online: Iterable[Id], offline: Iterable[Id]) -> None:
        """Note that agents have come online or gone offline."""
        for user_id in online:
            if self.get(user_id) != ONLINE:
                self._expiry.pop(user_id, None)
        for user_id in offline:
            if user_id in self._statuses:
                self._expiry[user_id] = self._wall_clock() + self._keep
        self.version += 1

    def replace(self, stored: Mapping[Id, MemberData], online: Collection[Id]) -> dict[Id, str]:
        """Take the statuses that the broker keeps, and return those that have changed for agents online."""
        before = {user_id: self.get(user_id) for user_id in online}
        self._statuses = {user_id: data for user_id, (data, _) in stored.items() if is_valid_status(data)}
        self._expiry = {user_id: stored[user_id].expires_at for user_id in self._statuses if user_id not in before}
        self.version += 1
        return {user_id: self.get(user_id) for user_id, status in before.items() if self.get(user_id) != status}

    def of(self, online: Collection[Id]) -> dict[str, str]:
        """Return the statuses of agents online, except `online` itself, by the text of the id."""
        if len(self._statuses) < len(online):
            members = set(online)
            return {str(user_id): status for user_id, status in self._statuses.items() if user_id in members}
        return {str(user_id): self._statuses[user_id] for user_id in online if user_id in self._statuses}

    def prune(self) -> None:
        """Forget the statuses of agents that have been offline for too long."""
        now = self._wall_clock()
        for user_id in [user_id for user_id, expires_at in self._expiry.items() if expires_at <= now]:
            self._remove(user_id)

    def _remove(self, user_id: Id) -> None:
        self._expiry.pop(user_id, None)
        self._statuses.pop(user_id, None)
        self.version += 1
