"""Log lines that peers can cause as often as they like: limited by reason, so that they cannot fill a disk."""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger, LogLevel

from chatws.interfaces import Clock

__all__ = ["INTERVAL", "ThrottledLog"]

#: Seconds. One line a minute for each reason is noticed, and at 200 bytes writes at most 300 KB a day.
INTERVAL = 60.0


class _Interval:
    """The lines of one reason since `start`."""

    __slots__ = ("dropped", "lines", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.lines = 0
        self.dropped = 0


class ThrottledLog:
    """Writes at most `lines` lines for each reason within `interval`, and drops the others.

    :param interval: seconds.
    :param max_reasons: drop the lines of further reasons within `interval`; 0 for no limit, if the reasons are a fixed
        set. Needed where a reason has text from outside, which would fill the memory.
    :param summary: a line about dropped lines, written before the next line of that reason with the fields `count`,
        `reason` and `seconds`. Without it, callers that count give the number so far in their own line.
    """

    def __init__(
        self,
        logger: Logger,
        clock: Clock,
        *,
        interval: float = INTERVAL,
        lines: int = 1,
        max_reasons: int = 0,
        summary: str = "",
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._interval = interval
        self._lines = lines
        self._max_reasons = max_reasons
        self._summary = summary
        self._intervals: dict[str, _Interval] = {}

    def info(self, reason: str, format: str, /, **fields: Any) -> None:
        """Write a line of level info, unless the limit of its reason is reached."""
        self._write(LogLevel.info, reason, format, fields)

    def warn(self, reason: str, format: str, /, **fields: Any) -> None:
        """Write a line of level warn, unless the limit of its reason is reached."""
        self._write(LogLevel.warn, reason, format, fields)

    def error(self, reason: str, format: str, /, **fields: Any) -> None:
        """Write a line of level error, unless the limit of its reason is reached."""
        self._write(LogLevel.error, reason, format, fields)

    def _write(self, level: Any, reason: str, format: str, fields: dict[str, Any]) -> None:
        now = self._clock.seconds()
        interval = self._intervals.get(reason)
        if interval is None or now - interval.start >= self._interval:
            if interval is None and not self._has_room(now):
                return
            if interval is not None and interval.dropped and self._summary:
                self._logger.emit(
                    level, self._summary, count=interval.dropped, reason=reason, seconds=now - interval.start
                )
            interval = self._intervals[reason] = _Interval(now)
        if interval.lines < self._lines:
            interval.lines += 1
            self._logger.emit(level, format, **fields)
        else:
            interval.dropped += 1

    def _has_room(self, now: float) -> bool:
        """Whether there may be another reason. Forgets those whose interval is over."""
        if self._max_reasons and len(self._intervals) >= self._max_reasons:
            current = self._intervals.items()
            self._intervals = {
                reason: interval for reason, interval in current if now - interval.start < self._interval
            }
            return len(self._intervals) < self._max_reasons
        return True
