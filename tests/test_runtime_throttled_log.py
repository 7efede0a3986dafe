"""Limits of log lines that peers can cause."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel

from chatws.runtime.throttled_log import INTERVAL, ThrottledLog
from tests.log_lines import logged_at


@pytest.mark.parametrize("level", ["info", "warn", "error"])
def test_throttled_log_writes_one_line_a_minute_for_each_reason(level: str) -> None:
    clock = Clock()
    throttled = ThrottledLog(Logger(), clock)
    with logged_at(LogLevel.lookupByName(level)) as lines:
        for number in range(3):
            for reason in ("a", "b"):
                getattr(throttled, level)(reason, "{reason} {number}", reason=reason, number=number)
        clock.advance(INTERVAL - 1)
        getattr(throttled, level)("a", "too early")
        clock.advance(1)
        getattr(throttled, level)("a", "again")
    assert lines == ["a 0", "b 0", "again"]


def test_throttled_log_with_a_summary_counts_the_dropped_lines() -> None:
    clock = Clock()
    throttled = ThrottledLog(Logger(), clock, lines=2, interval=10.0, summary="{count} more {reason} in {seconds:g} s")
    with logged_at(LogLevel.info) as lines:
        for _ in range(5):
            throttled.info("a", "line")
        clock.advance(15)
        throttled.info("a", "next")
        clock.advance(15)
        throttled.info("a", "last")  # nothing was dropped
    assert lines == ["line", "line", "3 more a in 15 s", "next", "last"]


def test_throttled_log_with_too_many_reasons_drops_further_ones_until_the_interval_ends() -> None:
    clock = Clock()
    throttled = ThrottledLog(Logger(), clock, max_reasons=2)
    with logged_at(LogLevel.warn) as lines:
        for reason in "abc":
            throttled.warn(reason, reason)
        clock.advance(INTERVAL)
        throttled.warn("c", "c")
    assert lines == ["a", "b", "c"]
