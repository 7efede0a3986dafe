"""A timer with at most one pending call."""

from __future__ import annotations

from collections.abc import Callable

from chatws.interfaces import Clock, TimerHandle

__all__ = ["ResettableTimer"]


class ResettableTimer:
    """A delayed call that can be replaced or cancelled."""

    __slots__ = ("_call", "_clock")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._call: TimerHandle | None = None

    def set(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call `callback` after `seconds`, in place of the pending call."""
        self.cancel()
        self._call = self._clock.callLater(seconds, callback)

    def cancel(self) -> None:
        """Cancel the pending call. Idempotent."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
