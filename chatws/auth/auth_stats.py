"""Counters of authentication results, and a log of users that are accepted without verification."""

from __future__ import annotations

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from chatws.chat.interfaces import Identity
from chatws.errors import AuthenticationFailed
from chatws.ids import Id
from chatws.interfaces import Clock, TimerHandle

__all__ = ["AuthStats"]


class AuthStats:
    """Authentication counters, which `chatws.runtime.metrics` exports.

    The log names each user that was accepted without verification once: before an operator removes `trust` from a
    chain, it shows the pages that still need a change.

    :ivar counts: attempts by (method, result). The method is that of `Identity.method`, or `none` if no method could
        handle the credentials; the result is `accepted`, `refused` (authentication failed) or `unavailable`.
    """

    #: Users that the log names, per process: bounds the memory of `_logged`.
    MAX_LOGGED = 10_000
    #: Users in one log line, which keeps lines below 2 KB.
    MAX_PER_LINE = 100
    #: Seconds between two log lines: a thousand connections in a burst make ten lines.
    LOG_INTERVAL = 1.0
    _log = Logger()

    def __init__(self, clock: Clock) -> None:
        self.counts: dict[tuple[str, str], int] = {}
        self._clock = clock
        self._logged: set[Id] = set()
        self._unlogged: dict[str, list[Id]] = {}
        self._timer: TimerHandle | None = None

    def failed(self, method: str, error: BaseException) -> None:
        """Count an attempt that ended with an exception, unless its connection closed meanwhile."""
        if isinstance(error, CancelledError):
            return
        self._count(method, "refused" if isinstance(error, AuthenticationFailed) else "unavailable")

    def accepted(self, identity: Identity, *, is_verified: bool) -> None:
        """Count an accepted attempt, and log the user if nothing verified the identity."""
        self._count(identity.method, "accepted")
        if is_verified or identity.user_id in self._logged or len(self._logged) >= self.MAX_LOGGED:
            return
        self._logged.add(identity.user_id)
        self._unlogged.setdefault(identity.method, []).append(identity.user_id)
        if self._timer is None:
            self._flush_and_schedule()

    def stop(self) -> None:
        """Write the pending log lines."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()

    def _flush_and_schedule(self) -> None:
        self._timer = self._clock.callLater(self.LOG_INTERVAL, self._flush_and_schedule) if self._unlogged else None
        self._flush()

    def _flush(self) -> None:
        unlogged, self._unlogged = self._unlogged, {}
        for method, user_ids in unlogged.items():
            for start in range(0, len(user_ids), self.MAX_PER_LINE):
                users = ", ".join(repr(user_id) for user_id in user_ids[start : start + self.MAX_PER_LINE])
                self._log.info("accepted without verification by --auth {method}: {users}", users=users, method=method)
        if unlogged and len(self._logged) >= self.MAX_LOGGED:
            self._log.info(
                "{count} users were accepted without verification; further ones are not logged", count=self.MAX_LOGGED
            )

    def _count(self, method: str, result: str) -> None:
        self.counts[method, result] = self.counts.get((method, result), 0) + 1
