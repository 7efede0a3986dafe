"""Deletes what is past its retention, every few seconds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.errors import Unavailable
from chatws.interfaces import Clock, TimerHandle

__all__ = ["RetentionTask"]

#: Seconds between two rounds, and rows of each kind that one statement deletes, so that it blocks nobody for long.
INTERVAL, STEP = 5.0, 1000


class RetentionTask:
    """Runs `trim` until nothing is left to delete, again after each interval.

    :param trim: deletes at most so many rows of each kind, and returns the largest number deleted of one kind.
    """

    _log = Logger()

    def __init__(self, trim: Callable[[int], Awaitable[int]], reactor: Clock) -> None:
        self._trim = trim
        self._reactor = reactor
        self._timer: TimerHandle | None = None
        self._round: Deferred[None] | None = None

    def start(self) -> None:
        """Schedule the first round."""
        self._timer = self._reactor.callLater(INTERVAL, self._again)

    async def stop(self) -> None:
        """End the rounds, and wait for the present one. Idempotent."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._round is not None:
            await self._round

    async def trim(self) -> None:
        """Run a round now.

        :raises Unavailable: PostgreSQL is unavailable.
        """
        while await self._trim(STEP) == STEP:
            pass

    def _again(self) -> None:
        self._round = Deferred.fromCoroutine(self._trim_quietly())

    async def _trim_quietly(self) -> None:
        try:
            await self.trim()
        except Unavailable:
            pass  # logged elsewhere. The next round deletes the rest
        except Exception:
            self._log.failure("trimming the history failed")
        if self._timer is not None:
            self._timer = self._reactor.callLater(INTERVAL, self._again)
