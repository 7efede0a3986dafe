"""Which agents are online on this node: several tabs of one user are one agent.

An agent is online with the first tab, and offline a grace period after the last, so that a reload or a short loss of
the network is no news. News goes out in batches: at once while it is quiet, and seldom enough to take a twentieth of
the time when a whole shop arrives at the same moment (each arrival is news for everybody, so the work would grow with
the square of the agents). An agent that came and went between two batches is in neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.base import DelayedCall

from chatws.ids import Id

__all__ = ["Presence"]

#: Announcements in one batch: small enough for any socket's buffer to take at once.
BATCH = 500
#: The part of the time that announcing may take: one twentieth.
SHARE = 20


class Presence:
    """:param announce: called with (user_id, is_online) pairs, each time with what is new.
    :param grace: seconds between the last tab's end and `offline`.
    :param clock: an IReactorTime.
    :ivar version: another number after every change of who is here.
    :ivar announced: how many of those here have been announced as online.
    :ivar stopped: whether nothing is announced any more.
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
        self.stopped = False
        self.version = 0
        self.announced = 0
        self._recounted: set[Id] = set()

    def __len__(self) -> int:
        return len(self._tabs) + len(self._leaving)

    def __contains__(self, user_id: Id) -> bool:
        return user_id in self._tabs or user_id in self._leaving

    def users(self) -> Iterable[Id]:
        """The agents here now, those within their grace included, in no order."""
        return (*self._tabs, *self._leaving)

    def tabs(self, user_id: Id) -> int:
        """How many tabs the agent has here: 0 within the grace after the last."""
        return self._tabs.get(user_id, 0)

    def take_recounted(self) -> set[Id]:
        """The agents whose number of tabs has changed since the last call, and who are still here."""
        found, self._recounted = self._recounted, set()
        return {user_id for user_id in found if user_id in self}

    def enter(self, user_id: Id) -> None:
        """One more tab of this user."""
        tabs = self._tabs.get(user_id, 0)
        self._tabs[user_id] = tabs + 1
        if tabs:
            self._recounted.add(user_id)
            return
        leaving = self._leaving.pop(user_id, None)
        if leaving is not None:
            leaving.cancel()
            self._recounted.add(user_id)
        else:
            self.version += 1
            self._tell(user_id, True)

    def leave(self, user_id: Id) -> None:
        """One tab less."""
        if self.stopped:
            return
        self._recounted.add(user_id)
        tabs = self._tabs[user_id] - 1
        if tabs:
            self._tabs[user_id] = tabs
            return
        del self._tabs[user_id]
        self._leaving[user_id] = self._clock.callLater(self.grace, self._left, user_id)

    def stop(self) -> list[tuple[Id, bool]]:
        """Announce nothing more: who leaves from now on leaves because the server does.

        :returns: what was still to be announced.
        """
        self.stopped = True
        news, self._news = list(self._news.items()), {}
        for call in self._leaving.values():
            call.cancel()
        self._leaving.clear()
        self.version += 1
        if self._next is not None:
            self._next.cancel()
            self._next = None
        return news

    def rest(self, took: float) -> None:
        """Announcements, of this node or another, have taken so many seconds of this process's time."""
        self._resting_until = max(self._resting_until, self._clock.seconds() + took * (SHARE - 1))
        if self._next is not None:
            self._next.cancel()
            self._flush_later()

    def _left(self, user_id: Id) -> None:
        del self._leaving[user_id]
        self.version += 1
        self._tell(user_id, False)

    def _tell(self, user_id: Id, is_online: bool) -> None:
        if self.stopped:
            return
        if self._news.get(user_id) is (not is_online):
            del self._news[user_id]
            return
        self._news[user_id] = is_online
        if self._next is None:
            self._flush_later()

    def _flush_later(self) -> None:
        self._next = self._clock.callLater(max(0.0, self._resting_until - self._clock.seconds()), self._flush)

    def _flush(self) -> None:
        self._next = None
        batch = list(self._news.items())[:BATCH]
        for user_id, is_online in batch:
            del self._news[user_id]
            self.announced += 1 if is_online else -1
        if not batch:
            return
        self._announce(batch)
        if self._news:
            self._flush_later()
