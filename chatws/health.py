"""Whether the server can do its work: what `/readyz` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, succeed

from chatws.errors import ClientError

__all__ = ["PATIENCE", "Readiness"]

#: Seconds for which an answer holds: whoever can reach the browsers' port can ask, and each asking is a query.
HOLDS = 1.0
#: Seconds after which a part does not answer. Monitors tend to wait for no more than a few.
PATIENCE = 2.0


class Readiness:
    """Asks the parts, all at once, and at most once a second.

    :param parts: by name: what fails, or takes longer than `patience`, when the part does not answer.
    :param state: why the server as a whole is not ready ("starting", "stopping"), or nothing.
    :param patience: seconds that a part may take.
    """

    def __init__(
        self,
        parts: Mapping[str, Callable[[], Awaitable[object]]],
        state: Callable[[], str],
        clock: Any,
        patience: float = PATIENCE,
    ) -> None:
        self._parts = dict(parts)
        self._patience = patience
        self._state = state
        self._clock = clock
        self._known: Mapping[str, str] = {}
        self._known_at = float("-inf")
        self._waiting: list[Deferred[Mapping[str, str]]] = []

    def __call__(self) -> Deferred[Mapping[str, str]]:
        """What does not work, by part; nothing: all does. Never fails."""
        state = self._state()
        if state:
            return succeed({"server": state})
        if not self._waiting and self._clock.seconds() - self._known_at < HOLDS:
            return succeed(self._known)
        answer: Deferred[Mapping[str, str]] = Deferred()
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._ask()
        return answer

    def _ask(self) -> None:
        problems: dict[str, str] = {}
        left = len(self._parts)

        def heard(outcome: object, name: str) -> None:
            nonlocal left
            error = getattr(outcome, "value", None)
            if isinstance(error, ClientError):
                problems[name] = error.message
            elif isinstance(error, BaseException):
                problems[name] = "does not answer"  # no details: everybody can read this
            left -= 1
            if not left:
                self._answer(problems)

        for name, ask in self._parts.items():
            asked = Deferred.fromCoroutine(_whatever(ask))
            asked.addTimeout(self._patience, self._clock).addBoth(heard, name)

    def _answer(self, problems: Mapping[str, str]) -> None:
        self._known, self._known_at = problems, self._clock.seconds()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(problems)


async def _whatever(ask: Callable[[], Awaitable[object]]) -> object:
    return bool(await ask())
