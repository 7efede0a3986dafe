"""Many deadlines for the price of one delayed call.

Ten thousand connections have as many pings to send and deadlines to keep. A reactor's delayed call is an object with
a dictionary's worth of state in a heap that is sorted; here a deadline is two words in a list with all the others
that fall due in the same quarter of a second, and the reactor sees only the next such list.

A process that was stopped for a while, or its whole machine, finds many deadlines past when it goes on, and at the same
time what its peers have sent meanwhile, to keep just these. That is read first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

__all__ = ["Timer", "Wheel"]

log = Logger()

#: Seconds behind time from which on the process is taken to have been stopped, and not just busy.
STOPPED = 2.0


class Timer:
    """A deadline that can be called off."""

    __slots__ = ("_callback", "_wheel")

    def __init__(self, wheel: Wheel, callback: Callable[[], object]) -> None:
        self._wheel = wheel
        self._callback: Callable[[], object] | None = callback

    def active(self) -> bool:
        """Whether it is still to come."""
        return self._callback is not None

    def cancel(self) -> None:
        """Call it off. Nothing happens when it is past or called off already."""
        if self._callback is not None:
            # the entry stays in its list until that falls due: only what it held is let go
            self._callback = None
            self._wheel._forget_one()


class Wheel:
    """
    :param reactor: an `IReactorTime`; the global reactor by default.
    :param resolution: seconds. A callback comes up to this much late, and never early.
    """

    def __init__(self, reactor: Any = None, resolution: float = 0.25) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._reactor = reactor
        self._resolution = resolution
        self._slots: dict[int, list[Timer]] = {}
        self._pending = 0
        self._call: Any = None
        self._next_slot = math.inf
        self._is_late = False

    def __len__(self) -> int:
        """How many deadlines are to come."""
        return self._pending

    def schedule(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once, in `seconds` or up to the resolution later. What it raises is logged."""
        number = int((self._reactor.seconds() + seconds) / self._resolution) + 1
        timer = Timer(self, callback)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = []
            if number < self._next_slot:
                self._await(number)
        slot.append(timer)
        self._pending += 1
        return timer

    def _await(self, number: int) -> None:
        if self._call is not None:
            self._call.cancel()
        self._next_slot = number
        wait = number * self._resolution - self._reactor.seconds()
        self._call = self._reactor.callLater(max(wait, 0.0), self._turn)

    def _turn(self) -> None:
        self._call = None
        late = self._reactor.seconds() - self._next_slot * self._resolution
        self._is_late = late > STOPPED and not self._is_late
        if self._is_late:
            log.warn("the process was stopped for some {seconds:.0f} seconds", seconds=late)
            self._call = self._reactor.callLater(self._resolution, self._turn)
            return
        self._next_slot = -math.inf  # what the callbacks schedule is looked at in the end, with all the rest
        now = int(self._reactor.seconds() / self._resolution + 1e-6)
        for number in sorted(one for one in self._slots if one <= now):
            for timer in self._slots.pop(number, ()):
                callback = timer._callback
                if callback is None:
                    continue
                timer._callback = None
                self._pending -= 1
                try:
                    callback()
                except Exception:
                    log.failure("a timer's callback failed")
        if self._pending:
            self._await(min(self._slots))
        else:
            self._stop()

    def _forget_one(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._stop()

    def _stop(self) -> None:
        self._slots.clear()
        self._next_slot = math.inf
        if self._call is not None:
            self._call.cancel()
            self._call = None
