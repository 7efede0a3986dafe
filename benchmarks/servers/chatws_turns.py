"""twistd chatws that prints, after SIGUSR2, the processor time of its longest turn since the last SIGUSR2.

    python chatws_turns.py [OPTION …]     as for twistd chatws

Processor time and not elapsed time, so that other programs of the machine do not count.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from twisted.scripts.twistd import run

from chatws.runtime.turns import Turns


class Longest:
    """:ivar seconds: processor time of the longest turn."""

    seconds = 0.0
    began = 0.0


measured_wait = Turns._wait


def wait(self: Turns, *arguments: Any) -> Any:
    """Stand for `Turns._wait`."""
    Longest.seconds = max(Longest.seconds, time.thread_time() - Longest.began)
    try:
        return measured_wait(self, *arguments)
    finally:
        Longest.began = time.thread_time()


def report(*_: object) -> None:
    """Print the longest turn, and begin again."""
    os.write(1, b"%.2f\n" % (Longest.seconds * 1000))  # `sys.stdout` is the log
    Longest.seconds = 0.0


if __name__ == "__main__":
    Turns._wait = wait  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR2, report)
    sys.argv = ["twistd", "-n", "--pidfile=", "--logfile=/dev/null", "chatws", *sys.argv[1:]]
    run()  # type: ignore[no-untyped-call]
