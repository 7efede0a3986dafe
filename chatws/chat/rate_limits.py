"""The token buckets of a connection (docs/protocol.md §1). Sans-IO: the caller passes the time."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["RateLimits", "SessionLimits"]

#: Seconds between two checks of whether reading may resume: short for a person, and few timers for a flood.
MIN_PAUSE = 0.05


@dataclass(slots=True)
class SessionLimits:
    """The limits of all sessions, which share one object. A reload of the configuration changes it in place.

    chatws.config.schema gives the meaning and unit of each.

    :ivar queued: bytes of the messages that all sessions queue now.
    """

    max_subscriptions: int = 1000
    message_rate: float = 20.0
    message_burst: int = 100
    subscription_rate: float = 200.0
    subscription_burst: int = 2000
    queue_bytes: int = 67_108_864
    queued: int = field(default=0, init=False)

    @property
    def is_queue_full(self) -> bool:
        """Whether the sessions together queue more than `queue_bytes`."""
        return 0 < self.queue_bytes < self.queued


class RateLimits:
    """The buckets of one connection: messages, subscriptions, and rejected messages.

    The bucket of rejected messages has the rate and burst of messages. A key that is held down sends 30 `typing` a
    second for as long as it is held, and must not end the connection. A flood does.

    :param limits: the limits, read on each call. A rate of 0 means no limit.
    :param now: seconds of a monotonic clock; each method gets the time of the same clock.
    """

    __slots__ = ("_limits", "_message_tokens", "_rejections", "_subscription_tokens", "_updated")

    def __init__(self, limits: SessionLimits, now: float) -> None:
        self._limits = limits
        self._message_tokens: float = limits.message_burst
        self._subscription_tokens: float = limits.subscription_burst
        self._rejections: float = 0.0
        self._updated = now

    def refill(self, now: float) -> None:
        """Add the tokens since the last call to the buckets."""
        elapsed = now - self._updated
        if not elapsed:  # the second call for the same message
            return
        self._updated = now
        limits = self._limits
        earned = elapsed * limits.message_rate
        self._message_tokens = min(float(limits.message_burst), self._message_tokens + earned)
        if self._rejections:
            self._rejections = max(0.0, self._rejections - earned)
        tokens = self._subscription_tokens + elapsed * limits.subscription_rate
        self._subscription_tokens = min(float(limits.subscription_burst), tokens)

    def take_message(self) -> bool:
        """Take a token for a message, and return whether there was one."""
        if self._limits.message_rate:
            if self._message_tokens < 1.0:
                return False
            self._message_tokens -= 1.0
        return True

    def take_subscription(self) -> None:
        """Take a token of the second bucket, which may become negative: see `read_delay`."""
        self._subscription_tokens -= 1.0

    def reject(self) -> bool:
        """Count a rejected message, and return whether the connection may stay open."""
        self._rejections += 1.0
        return self._rejections <= self._limits.message_burst

    def read_delay(self, now: float) -> float:
        """Return the seconds until the second bucket has a token, or 0 if it has one."""
        rate = self._limits.subscription_rate
        if rate:
            self.refill(now)
            if self._subscription_tokens < 1.0:
                return max(MIN_PAUSE, (1.0 - self._subscription_tokens) / rate)
        return 0.0
