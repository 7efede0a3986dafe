"""Whether an agent is available, which contacts are told without ids (docs/protocol.md §6).

An agent is available while online with the status `online`.
"""

from __future__ import annotations

from collections.abc import Callable

from chatws.interfaces import Clock, TimerHandle

__all__ = ["Availability"]

#: Seconds between two changes that contacts are told: agents who reload their pages make no noise in every widget.
INTERVAL = 5.0


class Availability:
    """Tells contacts when the availability has changed.

    :param is_available: returns the availability now.
    :param tell: tells all contacts of this node.
    """

    def __init__(self, is_available: Callable[[], bool], tell: Callable[[bool], None], clock: Clock) -> None:
        self._is_available = is_available
        self._tell = tell
        self._clock = clock
        self._told = False
        self._next = 0.0
        self._timer: TimerHandle | None = None

    def current(self) -> bool:
        """Return the availability now."""
        return self._is_available()

    def changed(self) -> None:
        """Tell contacts, now or at the end of the interval, if the availability has changed."""
        if self._timer is not None:
            return
        delay = self._next - self._clock.seconds()
        if delay > 0:
            self._timer = self._clock.callLater(delay, self._check)
        else:
            self._check()

    def _check(self) -> None:
        self._timer = None
        available = self._is_available()
        if available != self._told:
            self._told = available
            self._next = self._clock.seconds() + INTERVAL
            self._tell(available)

    def stop(self) -> None:
        """Tell nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
