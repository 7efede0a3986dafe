"""Close connections evenly over a time, so that their clients do not all reconnect at once."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.task import deferLater

from chatws.interfaces import Clock, zope_clock

__all__ = ["disconnect_evenly"]

#: Seconds between two batches: short enough to spread the connections evenly.
TICK = 0.05


async def disconnect_evenly(disconnect: Callable[[int], int], count: int, seconds: float, clock: Clock) -> None:
    """Close `count` connections over `seconds`. Connections that end by themselves meanwhile do not count.

    :param disconnect: closes up to that many connections, and returns how many are left.
    """
    ticks = max(1, round(seconds / TICK))
    closed = 0
    for tick in range(1, ticks + 1):
        due = count * tick // ticks - closed
        closed += due
        if not disconnect(due):
            break
        await deferLater(zope_clock(clock), TICK)
