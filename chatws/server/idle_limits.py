"""Notices a proxy that closes connections after a fixed time: its idle limit is below `ping_interval`.

Such connections end without a close frame, all after the same number of seconds. Pages reconnect each time, so nothing
else shows the cause.
"""

from __future__ import annotations

from collections import deque

from twisted.logger import Logger

from chatws.interfaces import Clock

__all__ = ["IdleLimitWatch"]

log = Logger()

#: The latest connections that ended without a close frame. This many give a share that chance does not.
SAMPLE = 50
#: The share of them that must have lasted equally long. The others had traffic, or ended for another reason.
SHARE = 0.8
#: Seconds by which equal durations may differ: proxies check their limits each second.
TOLERANCE = 1.0
#: Seconds. Shorter connections are those of reloaded pages and of health checks.
SHORTEST = 5.0
#: The sample is examined once for this many connections, because thousands may end together.
STEP = 10


class IdleLimitWatch:
    """Watches the durations of connections that ended without a close frame, and warns once.

    :param ping_interval: the setting, for the warning.
    """

    def __init__(self, clock: Clock, ping_interval: float) -> None:
        self._clock = clock
        self._ping_interval = ping_interval
        self._ended: deque[tuple[float, float]] = deque(maxlen=SAMPLE)  # when, and after how many seconds
        self._count = 0
        self._has_warned = False

    def now(self) -> float:
        """Return when a connection begins that begins now."""
        return self._clock.seconds()

    def ended(self, opened_at: float) -> None:
        """Note that a connection has ended without a close frame.

        :param opened_at: what `now` returned when it began.
        """
        now = self._clock.seconds()
        if self._has_warned or now - opened_at < SHORTEST:
            return
        self._ended.append((now, now - opened_at))
        self._count += 1
        if len(self._ended) == SAMPLE and self._count % STEP == 0:
            self._examine()

    def _examine(self) -> None:
        durations = sorted(duration for _, duration in self._ended)
        usual = durations[SAMPLE // 2]
        equal = sum(abs(duration - usual) <= TOLERANCE for duration in durations)
        # Connections that began together, after a restart, may also end together. Those of a proxy's limit end one
        # after the other, at least for as long as each of them lasts.
        spread = self._ended[-1][0] - self._ended[0][0]
        if equal < SHARE * SAMPLE or spread < usual / 2:
            return
        self._has_warned = True
        self._ended.clear()
        log.warn(
            "a proxy closes connections after {seconds:.0f} s: {equal} of the last {sample} connections without a "
            "close frame lasted that long; set the proxy's idle limit to more than twice ping_interval "
            "({ping_interval:g} s): docs/proxies.md",
            seconds=usual,
            equal=equal,
            sample=SAMPLE,
            ping_interval=self._ping_interval,
        )
