"""Looks for rows below the watermark, beside the polls and on a connection of its own.

A scan reads past every deleted row that an open transaction keeps in the table, which takes seconds for millions of
them. The polls, which share their session with the lock, do not wait for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.database.pool import QueryAborted, one_line
from chatws.interfaces import Clock
from chatws.outbox.session import DatabaseSession

__all__ = ["FULL_SCAN_INTERVAL", "FullScan"]

#: Seconds between full scans, and the longest share of the time that they may take.
FULL_SCAN_INTERVAL, FULL_SCAN_SHARE = 10.0, 0.02


class FullScan:
    """Scans the table now and then.

    :param open_session: opens a connection; None if only `session` can be used, as with SQLite.
    :param session: that of the polls.
    :param sql: returns the statement that finds the lowest `id` up to a given one.
    :param warn: logs why a scan failed.
    """

    _log = Logger()

    def __init__(
        self,
        open_session: Callable[[], Awaitable[DatabaseSession | None]],
        session: DatabaseSession,
        sql: Callable[[int], str],
        clock: Clock,
        warn: Callable[[str], None],
    ) -> None:
        self._open_session = open_session
        self._session = session
        self._sql = sql
        self._clock = clock
        self._warn = warn
        self._own_session: DatabaseSession | None = None
        self._next = clock.seconds() + FULL_SCAN_INTERVAL
        self._is_running = False
        self._is_closed = False
        self._found: int | None = None

    @property
    def is_due(self) -> bool:
        """Whether to start a scan."""
        return not self._is_running and self._clock.seconds() >= self._next

    def start(self, highest: int) -> None:
        """Begin to look for rows with ids up to `highest`."""
        self._is_running = True
        Deferred.fromCoroutine(self._scan(highest)).addErrback(self._on_failure)

    def take(self) -> int | None:
        """Return the lowest id that the last scan found, once."""
        found, self._found = self._found, None
        return found

    def close(self) -> None:
        """End a scan, and its connection."""
        self._is_closed = True
        if self._own_session is not None:
            self._own_session.close()

    def _on_failure(self, failure: Failure) -> None:
        self._log.failure("the full scan of the outbox has failed", failure)

    async def _scan(self, highest: int) -> None:
        began = self._clock.seconds()
        try:
            if self._own_session is None:
                self._own_session = await self._open_session()
                if self._is_closed:
                    self.close()
                    return
            rows, _ = await (self._own_session or self._session).run_query(self._sql(highest))
            self._found = int(rows[0]["id"]) if rows else None
        except Exception as error:
            if not self._is_closed:
                reason = error.reason if isinstance(error, QueryAborted) else one_line(error)
                self._warn(f"the full scan of the outbox failed: {reason}")
            if self._own_session is not None:
                self._own_session.close()
                self._own_session = None
        finally:
            now = self._clock.seconds()
            self._next = now + max(FULL_SCAN_INTERVAL, (now - began) / FULL_SCAN_SHARE)
            self._is_running = False
