"""Which agents are online on any node.

`Presence` knows this node's tabs. What it reports becomes leases in the broker (`Broker.lease`), which says for whom
that makes a difference: an agent is online while any node has them. Only such a difference is announced, by the node
that made it. A node that dies says nothing more; the others take its agents offline when its lease has run out.

One call of `lease` is under way at a time, and what comes meanwhile goes with the next. When the engine cannot be
reached nothing is lost: this node's own agents are known here, and all are said again once it can be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from twisted.internet.base import DelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.contract import RESTART_GRACE, Broker, Leased
from chatws.chat.presence import Presence
from chatws.errors import Unavailable
from chatws.ids import Id, sort_ids

__all__ = ["Agents"]

#: How often a lease is renewed in its time.
RENEWALS = 3


class Agents:
    """
    :param node: this process's name.
    :param announce: called with (user_id, is_online) pairs, each time with what has changed for everybody.
    :param grace: seconds between an agent's last tab and `offline`.
    :param lease: seconds for which this node's agents count when it says no more.
    :param clock: an IReactorTime.
    :ivar broker: where leases are kept; to be set before anything is called.
    """

    _log = Logger()
    broker: Broker

    def __init__(
        self, node: str, announce: Callable[[list[tuple[Id, bool]]], None], grace: float, lease: float, clock: Any
    ) -> None:
        self.local = Presence(self._changed, grace, clock)
        self._node = node
        self._announce = announce
        self._lease = lease
        self._clock = clock
        self._online: set[Id] = set()
        #: what `online` says, until somebody comes or goes: every page that opens asks for it
        self._sorted: tuple[int, list[Id]] | None = None
        self._to_tell: dict[Id, int | None] = {}
        self._asking = False
        self._ask_again = False
        self._tell_all = False
        self._next: DelayedCall | None = None

    # What is known

    def online(self) -> list[Id]:
        """The agents online now, those within their grace included, sorted. Not to be changed: it is kept."""
        version = self.local.version
        if self._sorted is None or self._sorted[0] != version:
            self._sorted = (version, sort_ids(self._online.union(self.local.users())))
        return self._sorted[1]

    def heard(self, online: Iterable[Id], offline: Iterable[Id]) -> None:
        """A node, this one included, has announced these."""
        self._online.update(online)
        self._online.difference_update(offline)
        self._sorted = None

    # Time

    async def start(self) -> None:
        """Learn who is online, and keep this node's lease from now on.

        :raises Unavailable: the leases cannot be reached.
        """
        self._online.update(await self.broker.online())
        self._sorted = None
        self._next = self._clock.callLater(self._lease / RENEWALS, self._renew)

    def hold(self, seconds: float) -> None:
        """Announce nothing more: who leaves from now on leaves because this process does, and is expected back within
        `seconds` and then some. Idempotent."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None
        if not self.local.stopped:
            self._to_tell.update(self._with_tabs(self.local.stop()))
            self._lease = seconds + RESTART_GRACE
            self._tell()

    def _renew(self) -> None:
        self._next = self._clock.callLater(self._lease / RENEWALS, self._renew)
        for user_id in self.local.take_recounted():
            self._to_tell.setdefault(user_id, self.local.tabs(user_id))
        self._tell()

    # Telling the broker

    def _changed(self, news: list[tuple[Id, bool]]) -> None:
        self._to_tell.update(self._with_tabs(news))
        self._tell()

    def _with_tabs(self, news: list[tuple[Id, bool]]) -> dict[Id, int | None]:
        return {user_id: self.local.tabs(user_id) if is_online else None for user_id, is_online in news}

    def _tell(self) -> None:
        if self._asking:
            self._ask_again = True
            return
        self._asking, self._ask_again = True, False
        changes = self._to_tell
        self._to_tell = {}
        if self._tell_all:
            changes = {**changes, **{user_id: self.local.tabs(user_id) for user_id in self.local.users()}}
        answer = self.broker.lease(self._node, changes, self._lease + self.local.grace)
        answer.addCallbacks(self._told, self._not_told, errbackArgs=(changes,))
        answer.addErrback(lambda failure: self._log.failure("Fault in keeping presence", failure))

    def _told(self, leased: Leased) -> None:
        self._asking = False
        told_all, self._tell_all = self._tell_all, False
        if leased.changed:
            self._announce(leased.changed)
        if self._ask_again:
            self._tell()
        elif leased.held != self.local.announced and not told_all and not self.local.stopped:
            self._tell_all = True
            self._tell()
        elif leased.online != len(self._online) and not leased.changed:
            self._refresh()

    def _not_told(self, failure: Failure, changes: Mapping[Id, int | None]) -> None:
        """Try again with the next renewal, with everything: the lease may run out before."""
        self._asking = False
        self._to_tell = {**changes, **self._to_tell}
        self._tell_all = True
        if not isinstance(failure.value, Unavailable):
            self._log.failure("Fault in keeping presence", failure)

    def _refresh(self) -> None:
        """Something announced did not arrive here: ask who is online."""

        def heard(users: list[Id]) -> None:
            self._online = set(users)
            self._sorted = None

        asked = self.broker.online()
        asked.addCallbacks(heard, lambda failure: failure.trap(Unavailable))
        asked.addErrback(lambda failure: self._log.failure("Fault in asking for presence", failure))
