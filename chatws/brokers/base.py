"""What the engines share: the guard against use while the broker is closed, and waiting until it is idle."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from twisted.internet.defer import Deferred, fail

from chatws.errors import Unavailable

__all__ = ["CLOSED", "NO_WEBHOOKS", "BaseBroker", "requires_open"]

B = TypeVar("B", bound="BaseBroker")
P = ParamSpec("P")
T = TypeVar("T")

#: Error text of every call before `start` has fired and after `stop` was called.
CLOSED = "the event history is closed"
#: Error text of a call about webhooks to a broker that was opened without them.
NO_WEBHOOKS = "webhooks are not configured"


class BaseBroker:
    """Base of the engines. It does not open anything itself."""

    def __init__(self) -> None:
        self._open = False
        self._idle_waiters: list[Deferred[None]] = []

    def _wait_until_idle(self) -> Deferred[None]:
        """Return a Deferred that the next `_signal_idle` fires. What was waited for may have begun again by then."""
        idle: Deferred[None] = Deferred()
        self._idle_waiters.append(idle)
        return idle

    def _signal_idle(self) -> None:
        """Fire the Deferreds of `_wait_until_idle`."""
        waiters, self._idle_waiters = self._idle_waiters, []
        for idle in waiters:
            idle.callback(None)


def requires_open(method: Callable[Concatenate[B, P], Deferred[T]]) -> Callable[Concatenate[B, P], Deferred[T]]:
    """Make a method of an engine fail with `Unavailable` while the broker is not open."""

    @wraps(method)
    def guarded(broker: B, /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if not broker._open:
            return fail(Unavailable(CLOSED))
        return method(broker, *args, **kwargs)

    return guarded
