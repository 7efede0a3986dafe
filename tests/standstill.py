"""Measure how long the machine stood still, to subtract it from measured times."""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import Self

# Answers each line with the seconds for which it could not run, of late sleeps of 20 ms those of more than 100.
_WATCHER = """
import select, sys, time
seconds, last = 0.0, time.monotonic()
print(flush=True)
while True:
    asked, _, _ = select.select([sys.stdin], [], [], 0.02)
    now = time.monotonic()
    seconds += now - last if now - last > 0.1 else 0.0
    last = now
    if asked:
        if not sys.stdin.readline():
            break
        print(seconds, flush=True)
"""


class Standstill:
    """Run a process for the block that wakes every few milliseconds.

    It is a process, because a thread would also wait for Python's global lock.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _WATCHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def seconds(self) -> float:
        """Seconds for which the process could not run, so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it watches
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.communicate()
