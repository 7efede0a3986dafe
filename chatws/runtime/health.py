"""The readiness check, for `/readyz`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from twisted.internet.defer import Deferred, succeed

from chatws.errors import ClientError
from chatws.interfaces import Clock, zope_clock

__all__ = ["CHECK_TIMEOUT", "ReadinessCheck"]

#: Seconds for which a result is reused: any client of the WebSocket listener can request it, and each check is a query.
RESULT_TTL = 1.0
#: Seconds after which a component counts as not responding. Monitoring systems rarely wait longer than a few.
CHECK_TIMEOUT = 2.0


class ReadinessCheck:
    """Checks the components, all at the same time, and at most once in `RESULT_TTL` seconds.

    :param parts: the check of each component by name. A check that fails or takes longer than `timeout` is a problem.
    :param state: returns why the whole server is not ready ("starting", "stopping"), or "".
    :param timeout: seconds for each check.
    """

    def __init__(
        self,
        parts: Mapping[str, Callable[[], Awaitable[object]]],
        state: Callable[[], str],
        clock: Clock,
        timeout: float = CHECK_TIMEOUT,
    ) -> None:
        self._parts = dict(parts)
        self._timeout = timeout
        self._state = state
        self._clock = clock
        self._problems: Mapping[str, str] = {}
        self._checked_at = float("-inf")
        self._waiting: list[Deferred[Mapping[str, str]]] = []

    def __call__(self) -> Deferred[Mapping[str, str]]:
        """Return the problems by component, empty if everything works. Never fails."""
        state = self._state()
        if state:
            return succeed({"server": state})
        if not self._waiting and self._clock.seconds() - self._checked_at < RESULT_TTL:
            return succeed(self._problems)
        result: Deferred[Mapping[str, str]] = Deferred()
        self._waiting.append(result)
        if len(self._waiting) == 1:
            self._check()
        return result

    def _check(self) -> None:
        problems: dict[str, str] = {}
        pending = len(self._parts)

        def on_check(result: object, name: str) -> None:
            nonlocal pending
            error = getattr(result, "value", None)
            if isinstance(error, ClientError):
                problems[name] = error.message
            elif isinstance(error, BaseException):
                problems[name] = "does not answer"  # no details: any client can read this
            pending -= 1
            if not pending:
                self._on_result(problems)

        for name, check in self._parts.items():
            deferred = Deferred.fromCoroutine(_run(check))
            deferred.addTimeout(self._timeout, zope_clock(self._clock)).addBoth(on_check, name)

    def _on_result(self, problems: Mapping[str, str]) -> None:
        self._problems, self._checked_at = problems, self._clock.seconds()
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(problems)


async def _run(check: Callable[[], Awaitable[object]]) -> None:
    await check()
