"""The members of a space that are online on this node, such as agents. One with several connections is one member.

An agent is online from the first connection until a grace period after the last one, so that a reload or a short loss
of the network changes nothing. Changes are announced in batches. Each change goes to every agent, so when a whole shop
connects at once the work grows with the square of the agents. The time for announcements is therefore limited to a
twentieth of the process's time. An agent that came and left between two batches is not announced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle

__all__ = ["LocalPresence"]

#: Changes in one batch: few enough for the send buffer of any socket to take their frames at once.
BATCH = 500
#: The inverse of the share of time that announcements may take. A twentieth is not noticed beside messages.
SHARE = 20


class LocalPresence:
    """Counts the connections of each agent, and announces changes.

    :param announce: called with (user_id, is_online) pairs.
    :param grace: seconds between the end of the last connection and `offline`.
    :param clock: schedules announcements.
    :ivar version: incremented on every change of the set of agents.
    :ivar announced: number of agents announced as online.
    :ivar stopped: whether `stop` has been called.
    """

    def __init__(self, announce: Callable[[list[tuple[Id, bool]]], None], grace: float, clock: Clock) -> None:
        self.grace = grace
        self._announce = announce
        self._clock = clock
        self._connection_counts: dict[Id, int] = {}
        self._leaving: dict[Id, TimerHandle] = {}  # agents within their grace period
        self._changes: dict[Id, bool] = {}  # to be announced
        self._flush_timer: TimerHandle | None = None
        self._throttled_until = 0.0
        self.stopped = False
        self.version = 0
        self.announced = 0
        self._changed_counts: set[Id] = set()

    def __len__(self) -> int:
        return len(self._connection_counts) + len(self._leaving)

    def __contains__(self, user_id: Id) -> bool:
        return user_id in self._connection_counts or user_id in self._leaving

    def users(self) -> Iterable[Id]:
        """Return the agents online on this node, including those within their grace period, unordered."""
        return (*self._connection_counts, *self._leaving)

    def connection_count(self, user_id: Id) -> int:
        """Return the number of an agent's connections: 0 within the grace period."""
        return self._connection_counts.get(user_id, 0)

    def pop_changed_counts(self) -> set[Id]:
        """Return the agents online whose number of connections has changed since the last call."""
        changed, self._changed_counts = self._changed_counts, set()
        return {user_id for user_id in changed if user_id in self}

    def enter(self, user_id: Id) -> None:
        """Add a connection of an agent."""
        count = self._connection_counts.get(user_id, 0)
        self._connection_counts[user_id] = count + 1
        if count:
            self._changed_counts.add(user_id)
            return
        leaving = self._leaving.pop(user_id, None)
        if leaving is not None:
            leaving.cancel()
            self._changed_counts.add(user_id)
        else:
            self.version += 1
            self._add_change(user_id, True)

    def leave(self, user_id: Id) -> None:
        """Remove a connection of an agent."""
        if self.stopped:
            return
        self._changed_counts.add(user_id)
        count = self._connection_counts[user_id] - 1
        if count:
            self._connection_counts[user_id] = count
            return
        del self._connection_counts[user_id]
        self._leaving[user_id] = self._clock.callLater(self.grace, self._expire, user_id)

    def stop(self) -> list[tuple[Id, bool]]:
        """Announce nothing more: from now on connections close because the server stops.

        :return: the changes that have not been announced.
        """
        self.stopped = True
        changes, self._changes = list(self._changes.items()), {}
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        self.version += 1
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        return changes

    def throttle(self, duration: float) -> None:
        """Delay the next batch in proportion to the time that the last one took.

        :param duration: seconds that this process spent on announcements, of this node or of another one.
        """
        self._throttled_until = max(self._throttled_until, self._clock.seconds() + duration * (SHARE - 1))
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._schedule_flush()

    def _expire(self, user_id: Id) -> None:
        del self._leaving[user_id]
        self.version += 1
        self._add_change(user_id, False)

    def _add_change(self, user_id: Id, is_online: bool) -> None:
        if self.stopped:
            return
        if self._changes.get(user_id) is (not is_online):
            del self._changes[user_id]
            return
        self._changes[user_id] = is_online
        if self._flush_timer is None:
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        delay = max(0.0, self._throttled_until - self._clock.seconds())
        self._flush_timer = self._clock.callLater(delay, self._flush)

    def _flush(self) -> None:
        self._flush_timer = None
        batch = list(self._changes.items())[:BATCH]
        for user_id, is_online in batch:
            del self._changes[user_id]
            self.announced += 1 if is_online else -1
        if not batch:
            return
        self._announce(batch)
        if self._changes:
            self._schedule_flush()
