"""Deleting, every few seconds, what the bounds do not keep."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.errors import Unavailable

__all__ = ["Trimming"]

#: Seconds between two rounds, and rows of a kind that one statement deletes.
INTERVAL, STEP = 5.0, 1000


class Trimming:
    """
    :param trim: deletes at most so many rows of each kind, and returns the most that it has deleted of one.
    """

    _log = Logger()

    def __init__(self, trim: Callable[[int], Awaitable[int]], reactor: Any) -> None:
        self._trim = trim
        self._reactor = reactor
        self._timer: Any = None
        self._round: Deferred[None] | None = None

    def start(self) -> None:
        """Begin with the first round after the interval."""
        self._timer = self._reactor.callLater(INTERVAL, self._again)

    async def stop(self) -> None:
        """No more rounds; the present one is waited for. Idempotent."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._round is not None:
            await self._round

    async def trim(self) -> None:
        """A round, now.

        :raises Unavailable: it could not be finished.
        """
        while await self._trim(STEP) == STEP:
            pass

    def _again(self) -> None:
        self._round = Deferred.fromCoroutine(self._trim_quietly())

    async def _trim_quietly(self) -> None:
        try:
            await self.trim()
        except Unavailable:
            pass  # said elsewhere, and what is left over goes with the next round
        except Exception:
            self._log.failure("Fault in trimming the log")
        if self._timer is not None:
            self._timer = self._reactor.callLater(INTERVAL, self._again)
