"""Delays between attempts: exponential, bounded, with jitter."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["backoff"]

#: Doublings after which any bound in use is reached. Without a limit, 2.0 ** failures overflows after 1,024 failures.
_MAX_DOUBLINGS = 20


def backoff(failures: int, first: float, longest: float, jitter: Callable[[], float] = random.random) -> float:
    """Return the delay before the next attempt, between a half and the whole of `first` doubled `failures` times.

    The jitter spreads the attempts of many processes that lost the same peer. At least a half of the delay remains, so
    a peer that fails at once is not called in a tight loop.

    :param failures: attempts in a row that have failed before the last one.
    :param first: seconds, before jitter.
    :param longest: seconds.
    :param jitter: returns a number from 0 to 1.
    :returns: seconds.
    """
    delay = min(longest, first * 2.0 ** min(failures, _MAX_DOUBLINGS))
    return delay * (1.0 + jitter()) / 2.0
