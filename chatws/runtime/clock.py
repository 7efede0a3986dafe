"""The monotonic clock for intervals, and the wall clock for dates.

Twisted's reactor uses `time.time` as `seconds`, and `callLater` depends on it. If the wall clock is set back by an
hour, every ping, timeout and lease is an hour late. If it is set forward, all of them are due at once and every client
is disconnected. `use_monotonic_clock` gives the reactor `time.monotonic`, which `IReactorTime` permits ("a number of
seconds of some sort").

This module depends on Twisted: on the reactor's attribute `seconds`, which is public, and on two undocumented facts.
`callLater`, `timeout` and `runUntilCurrent` of `twisted.internet.base.ReactorBase` read `seconds` from the instance.
`twisted.internet.base.DelayedCall` has the attributes `time` and `seconds`. tests/test_runtime_clock.py checks both for
each of Twisted's reactors.

There are three clocks:

- `reactor.seconds()`: intervals. It does not count the time that the machine is suspended.
- `time.time()`: for comparison with times from other programs, such as a token's `exp` or a heartbeat's
  `last_activity`.
- `steady_time()`: the ages of stored events, keys and leases in this process. Seconds since 1970, without steps while
  the process runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.logger import Logger

from chatws.interfaces import Clock, TimerHandle

__all__ = ["ClockWatch", "WallClock", "steady_time", "use_monotonic_clock"]

#: Seconds by which the two clocks may diverge between two checks. NTP corrects up to 0.128 s without a step (ntpd's
#: default), and a busy machine delays the second of two readings.
TOLERANCE = 2.0
#: Seconds between two checks.
INTERVAL = 10.0

_started = time.time() - time.monotonic()


def steady_time() -> float:
    """Return seconds since 1970: the wall clock at this process's start plus the monotonic time since then."""
    return _started + time.monotonic()


def use_monotonic_clock(reactor: Any) -> None:
    """Let `reactor` measure intervals by `time.monotonic`, also those of calls that are already scheduled.

    A running reactor is not changed: it belongs to another program, which may have stored times of its clock.
    """
    if reactor.running or reactor.seconds is time.monotonic:
        return
    shift = time.monotonic() - reactor.seconds()
    for call in reactor.getDelayedCalls():  # asyncio's reactor schedules one when it is made
        call.time += shift
        call.seconds = time.monotonic
    reactor.seconds = time.monotonic


class WallClock:
    """The wall clock in the form of a reactor's: `seconds` since 1970."""

    seconds = staticmethod(time.time)


class ClockWatch:
    """Warns when the wall clock is set. Only tokens and times from other programs depend on it.

    :param clock: the reactor, on its monotonic clock.
    :param wall: seconds since 1970.
    """

    _log = Logger()

    def __init__(self, clock: Clock, wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._difference = 0.0
        self._next: TimerHandle | None = None

    def start(self) -> None:
        """Start to check the clocks."""
        self._difference = self._wall() - self._clock.seconds()
        self._next = self._clock.callLater(INTERVAL, self._check)

    def stop(self) -> None:
        """Stop checking. Idempotent."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def _check(self) -> None:
        self._next = self._clock.callLater(INTERVAL, self._check)
        difference = self._wall() - self._clock.seconds()
        step, self._difference = difference - self._difference, difference
        if abs(step) > TOLERANCE:
            self._log.warn(
                "the system clock was set {direction} by {seconds:.0f} s: the new time applies to tokens, "
                "connections, leases and the history keep the old one until a restart",
                direction="forward" if step > 0 else "back",
                seconds=abs(step),
            )
