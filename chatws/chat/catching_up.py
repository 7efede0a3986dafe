"""Browsers that have seen more of the log than this node: they come from another one that was quicker.

Letting them in at once would mean to send them what they have had already, or to claim that nothing is missing while
something is. So their `auth` or `subscribe` waits until this node has read that far, usually for milliseconds, and
their other messages wait behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatws.chat.client import Client
from chatws.chat.effects import Effect
from chatws.chat.history import History
from chatws.chat.messages import Position
from chatws.errors import CloseCode

__all__ = ["CatchingUp"]

#: Seconds after which a browser is sent away (4503) to try again, here or elsewhere.
PATIENCE = 5.0


class _Waiting:
    """:ivar offset: how far the log has to have been read for `question` to be asked."""

    __slots__ = ("client", "offset", "question", "timer")

    def __init__(self, offset: int, client: Client, question: Callable[[], list[Effect] | None]) -> None:
        self.offset = offset
        self.client = client
        self.question = question
        self.timer: Any = None


class CatchingUp:
    """
    :param carry_out: called with a client and the effects of what it waited for.
    :param schedule: `(seconds, callable) -> handle with cancel()`.
    :ivar shared: whether other nodes write into the log too; if not, nobody can be ahead, whatever they say.
    """

    def __init__(
        self,
        history: History,
        carry_out: Callable[[Client, list[Effect]], None],
        schedule: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self.shared = False
        self._history = history
        self._carry_out = carry_out
        self._schedule = schedule
        self._waiting: list[_Waiting] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(
        self, client: Client, last_event_id: str | None, question: Callable[[], list[Effect] | None]
    ) -> list[Effect] | None:
        """Ask the question at once, or when the log has been read up to what the client has seen.

        :returns: the question's answer, or None when the answer comes later.
        """
        if last_event_id is None or not self.shared:
            return question()
        position = Position.parse(last_event_id)
        if position.epoch != self._history.epoch or position.offset <= self._history.last:
            return question()
        one = _Waiting(position.offset, client, question)
        one.timer = self._schedule(PATIENCE, lambda: self._give_up(one))
        self._waiting.append(one)
        return None

    def moved(self) -> None:
        """More of the log has been read."""
        last = self._history.last
        ready = [one for one in self._waiting if one.offset <= last]
        if not ready:
            return
        self._waiting = [one for one in self._waiting if one.offset > last]
        for one in ready:
            one.timer.cancel()
        for one in ready:
            effects = one.question() if one.client.connection.is_open else None
            if effects:
                self._carry_out(one.client, effects)

    def forget(self, client: Client) -> None:
        """The client has gone."""
        for one in self._waiting:
            if one.client is client:
                one.timer.cancel()
        self._waiting = [one for one in self._waiting if one.client is not client]

    def _give_up(self, one: _Waiting) -> None:
        self._waiting.remove(one)
        effects = one.client.session.close(CloseCode.UNAVAILABLE, "this node is behind, try again")
        self._carry_out(one.client, effects)
