"""What the code under test logs, for tests that expect a line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.logger import LogLevel, formatEvent, globalLogPublisher

__all__ = ["logged_at"]


@contextmanager
def logged_at(level: Any = LogLevel.warn) -> Iterator[list[str]]:
    """The lines that are logged at `level` during the block."""
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("log_level") is level:
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)
