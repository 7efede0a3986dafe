"""Which agents are online: several tabs of one user are one agent.

An agent is online with the first tab, and offline a grace period after the last, so that a reload or a short loss of
the network is no news. News goes out in batches: at once while it is quiet, and seldom enough to take a twentieth of
the time when a whole shop arrives at the same moment (each arrival is news for everybody, so the work would grow with
the square of the agents). An agent that came and went between two batches is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.base import DelayedCall

from chatws.ids import Id, sort_ids

__all__ = ["Presence"]

#: Announcements in one batch: small enough for any socket's buffer to take at once.
BATCH = 500
#: Seconds for which agents are waited for after a restart, at least: browsers come back one after the other.
RESTART_GRACE = 10.0
#: The part of the time that announcing may take: one twentieth.
SHARE = 20


class Presence:
    """:param announce: called with (user_id, is_online) pairs, each time with what is new.
    :param grace: seconds between the last tab's end and `offline`.
    :param clock: an IReactorTime.
    """

    def __init__(self, announce: Callable[[list[tuple[Id, bool]]], None], grace: float, clock: Any) -> None:
        self.grace = grace
        self._announce = announce
        self._clock = clock
        self._tabs: dict[Id, int] = {}
        self._leaving: dict[Id, DelayedCall] = {}
        self._news: dict[Id, bool] = {}
        self._next: DelayedCall | None = None
        self._resting_until = 0.0
        self._stopped = False
        #: what `online` says, until somebody comes or goes: every page that opens asks for it
        self._sorted: list[Id] | None = None

    def __len__(self) -> int:
        return len(self._tabs) + len(self._leaving)

    def __contains__(self, user_id: Id) -> bool:
        return user_id in self._tabs or user_id in self._leaving

    def online(self) -> list[Id]:
        """The agents online now, those within their grace included, sorted. Not to be changed: it is kept."""
        if self._sorted is None:
            self._sorted = sort_ids([*self._tabs, *self._leaving])
        return self._sorted

    def enter(self, user_id: Id) -> None:
        """One more tab of this user."""
        tabs = self._tabs.get(user_id, 0)
        self._tabs[user_id] = tabs + 1
        if tabs:
            return
        leaving = self._leaving.pop(user_id, None)
        if leaving is not None:
            leaving.cancel()
        else:
            self._sorted = None
            self._tell(user_id, True)

    def leave(self, user_id: Id) -> None:
        """One tab less."""
        if self._stopped:
            return
        tabs = self._tabs[user_id] - 1
        if tabs:
            self._tabs[user_id] = tabs
            return
        del self._tabs[user_id]
        self._leaving[user_id] = self._clock.callLater(self.grace, self._left, user_id)

    def expect(self, user_ids: Iterable[Id]) -> None:
        """These were online before a restart: they are taken to be so still, for long enough to come back."""
        for user_id in user_ids:
            if user_id not in self:
                self._sorted = None
                grace = max(self.grace, RESTART_GRACE)
                self._leaving[user_id] = self._clock.callLater(grace, self._left, user_id)

    def stop(self) -> list[tuple[Id, bool]]:
        """Announce nothing more: who leaves from now on leaves because the server does.

        :returns: what was still to be announced.
        """
        self._stopped = True
        news, self._news = list(self._news.items()), {}
        for call in self._leaving.values():
            call.cancel()
        self._leaving.clear()
        self._sorted = None
        if self._next is not None:
            self._next.cancel()
            self._next = None
        return news

    def _left(self, user_id: Id) -> None:
        del self._leaving[user_id]
        self._sorted = None
        self._tell(user_id, False)

    def _tell(self, user_id: Id, is_online: bool) -> None:
        if self._stopped:
            return
        if self._news.get(user_id) is (not is_online):
            del self._news[user_id]
            return
        self._news[user_id] = is_online
        if self._next is None:
            wait = max(0.0, self._resting_until - self._clock.seconds())
            self._next = self._clock.callLater(wait, self._flush)

    def _flush(self) -> None:
        self._next = None
        batch = list(self._news.items())[:BATCH]
        for user_id, _ in batch:
            del self._news[user_id]
        if not batch:
            return
        started = self._clock.seconds()
        self._announce(batch)
        took = self._clock.seconds() - started
        self._resting_until = started + took * SHARE
        if self._news:
            self._next = self._clock.callLater(took * (SHARE - 1), self._flush)
