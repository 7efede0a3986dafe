"""Runs what needs the reactor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from chatws.interfaces import Reactor, default_reactor
from chatws.runtime.clock import use_monotonic_clock
from chatws.runtime.resolver import use_own_threads

__all__ = ["run_in_reactor"]


def run_in_reactor(begin: Callable[[Reactor], Coroutine[Any, Any, int]], interrupted: int = 130) -> int:
    """Run a coroutine, which is given the reactor, to its end.

    :param interrupted: the exit status after SIGINT or SIGTERM.
    :return: what it returned; what it raised is raised.
    """
    reactor = default_reactor()
    use_monotonic_clock(reactor)
    use_own_threads(reactor)
    outcome: list[int | Failure] = []

    def done(result: int | Failure) -> None:
        if not outcome:
            outcome.append(result)
            reactor.stop()

    def start() -> None:
        Deferred.fromCoroutine(begin(reactor)).addBoth(done)

    reactor.callWhenRunning(start)
    # a signal: what is still going on is left as it is
    reactor.addSystemEventTrigger("before", "shutdown", lambda: outcome.append(interrupted) if not outcome else None)
    reactor.run()
    result = outcome[0]
    if isinstance(result, Failure):
        error = result.value
        assert error is not None
        raise error
    return result
