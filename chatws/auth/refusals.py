"""Denied permissions, remembered for a second for users who have many of them.

A conversation may be forbidden only because its row is not committed yet. Therefore a denial is normally not cached. A
user who asks for forbidden conversations again and again would cost a query each time.
"""

from __future__ import annotations

from collections import deque

from chatws.ids import Id
from chatws.interfaces import Clock

__all__ = ["REFUSAL_TTL", "TOLERATED_REFUSALS", "Refusals"]

#: Seconds for which a denial is remembered.
REFUSAL_TTL = 1.0
#: Denials of a user within `REFUSAL_TTL` that are not remembered: a list in which some rows are not committed yet.
TOLERATED_REFUSALS = 20


class Refusals:
    """Remember denials. Each one came from a query, so the database bounds how many there are."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_user: dict[Id, dict[Id, float]] = {}
        self._in_order: deque[tuple[float, Id, Id]] = deque()

    def add(self, user_id: Id, conversation_id: Id) -> None:
        """Note that a query has denied the user this conversation."""
        self._drop_expired()
        expires = self._clock.seconds() + REFUSAL_TTL
        self._by_user.setdefault(user_id, {})[conversation_id] = expires
        self._in_order.append((expires, user_id, conversation_id))

    def __contains__(self, key: tuple[Id, Id]) -> bool:
        self._drop_expired()
        user_id, conversation_id = key
        refused = self._by_user.get(user_id)
        return refused is not None and len(refused) > TOLERATED_REFUSALS and conversation_id in refused

    def forget(self, user_id: Id) -> None:
        """Drop the denials of a user."""
        self._by_user.pop(user_id, None)

    def _drop_expired(self) -> None:
        now = self._clock.seconds()
        while self._in_order and self._in_order[0][0] <= now:
            expires, user_id, conversation_id = self._in_order.popleft()
            refused = self._by_user.get(user_id)
            if refused is not None and refused.get(conversation_id) == expires:
                del refused[conversation_id]
                if not refused:
                    del self._by_user[user_id]
