"""A hashed timer wheel: many deadlines at the cost of one delayed call.

Ten thousand connections have as many pings and deadlines. Each of a reactor's delayed calls is an object with a
dictionary, in a sorted heap. Here a deadline is two words, in a list with all others that are due in the same quarter
of a second. The reactor sees only the next such list.

After a process or its machine was suspended, many deadlines are past. At the same time data that peers sent meanwhile,
such as pongs, waits to be read. The wheel lets the reactor read it first.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from twisted.logger import Logger

from chatws.interfaces import Clock, TimerHandle, default_reactor

__all__ = ["Timer", "TimerWheel"]

log = Logger()

#: Seconds of delay from which on the process counts as suspended. Turns of a busy reactor are far shorter.
SUSPENDED_SECONDS = 2.0


class Timer:
    """A deadline that can be cancelled."""

    __slots__ = ("_callback", "_wheel")

    def __init__(self, timer_wheel: TimerWheel, callback: Callable[[], object]) -> None:
        self._wheel = timer_wheel
        self._callback: Callable[[], object] | None = callback

    def active(self) -> bool:
        """Return whether the deadline is still to come."""
        return self._callback is not None

    def cancel(self) -> None:
        """Cancel the deadline. Ignored if it is past or cancelled."""
        if self._callback is not None:
            # the timer stays in its list until that is due: only the callback is freed
            self._callback = None
            self._wheel._on_cancelled()


class TimerWheel:
    """Calls functions at their deadlines.

    :param reactor: the global reactor by default.
    :param resolution: seconds. A callback comes up to this much late, and never early.
    """

    def __init__(self, reactor: Clock | None = None, resolution: float = 0.25) -> None:
        if reactor is None:
            reactor = default_reactor()
        self._reactor = reactor
        self._resolution = resolution
        self._slots: dict[int, list[Timer]] = {}
        self._pending = 0
        self._call: TimerHandle | None = None
        self._next_slot = math.inf
        self._is_late = False

    def __len__(self) -> int:
        """Return how many deadlines are to come."""
        return self._pending

    def schedule(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` once, in `seconds` or up to the resolution later. Its exceptions are logged."""
        slot_number = int((self._reactor.seconds() + seconds) / self._resolution) + 1
        timer = Timer(self, callback)
        slot = self._slots.get(slot_number)
        if slot is None:
            slot = self._slots[slot_number] = []
            if slot_number < self._next_slot:
                self._schedule_turn(slot_number)
        slot.append(timer)
        self._pending += 1
        return timer

    def _schedule_turn(self, slot_number: int) -> None:
        if self._call is not None:
            self._call.cancel()
        self._next_slot = slot_number
        delay = slot_number * self._resolution - self._reactor.seconds()
        self._call = self._reactor.callLater(max(delay, 0.0), self._run_due)

    def _run_due(self) -> None:
        self._call = None
        late = self._reactor.seconds() - self._next_slot * self._resolution
        self._is_late = late > SUSPENDED_SECONDS and not self._is_late
        if self._is_late:
            log.warn("the process was suspended for about {seconds:.0f} seconds", seconds=late)
            self._call = self._reactor.callLater(self._resolution, self._run_due)
            return
        self._next_slot = -math.inf  # callbacks schedule no turn: that is done below, once
        now = int(self._reactor.seconds() / self._resolution + 1e-6)
        for slot_number in sorted(number for number in self._slots if number <= now):
            for timer in self._slots.pop(slot_number, ()):
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
            self._schedule_turn(min(self._slots))
        else:
            self._clear()

    def _on_cancelled(self) -> None:
        self._pending -= 1
        if not self._pending:
            self._clear()

    def _clear(self) -> None:
        self._slots.clear()
        self._next_slot = math.inf
        if self._call is not None:
            self._call.cancel()
            self._call = None
