"""One delayed call at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.base import DelayedCall

__all__ = ["Deadline"]


class Deadline:
    """Something that falls due, unless it is called off or put off.

    :param clock: an IReactorTime.
    """

    __slots__ = ("_call", "_clock")

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        self._call: DelayedCall | None = None

    def set(self, seconds: float, then: Callable[[], object]) -> None:
        """Call `then` in so many seconds, and not what was to be called before."""
        self.cancel()
        self._call = self._clock.callLater(seconds, then)

    def cancel(self) -> None:
        """Call it off. Nothing happens when it is past, or there is none."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
