"""What chatws needs of Twisted's reactor, clock and transports, as Protocols for type checkers.

Twisted describes them as zope interfaces (`IReactorTime`, `IReactorThreads`, `ITransport`), which mypy does not check
without a plug-in. `twisted.internet.task.Clock` and the reactors fulfil these Protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Cancellable", "Clock", "Reactor", "Schedule", "TimerHandle", "Transport", "default_reactor"]


class Cancellable(Protocol):
    """A scheduled call that can be cancelled while it is pending: of a reactor, or of the timer wheel."""

    def cancel(self) -> None:
        """Drop the call."""
        ...


class Schedule(Protocol):
    """Schedules a call: `callLater` of a reactor, or `schedule` of the timer wheel."""

    def __call__(self, seconds: float, callback: Callable[[], object], /) -> Cancellable:
        """Call `callback` after `seconds`."""
        ...


class TimerHandle(Protocol):
    """A scheduled call (`IDelayedCall`)."""

    def active(self) -> bool:
        """Whether the call is still to come."""
        ...

    def cancel(self) -> None:
        """Drop the call.

        :raises twisted.internet.error.AlreadyCalled: The call has been made.
        """
        ...


class Clock(Protocol):
    """Monotonic time and delayed calls (`IReactorTime`)."""

    def seconds(self) -> float:
        """Return the time in seconds. Only differences have a meaning."""
        ...

    def callLater(self, delay: float, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:
        """Call `callable` after `delay` seconds and return a `TimerHandle`."""
        ...


class Reactor(Clock, Protocol):
    """The parts of a reactor that services use (`IReactorCore`, `IReactorThreads`)."""

    def addSystemEventTrigger(self, phase: str, eventType: str, callable: Callable[..., object], *args: Any) -> Any:
        """Call `callable` at `startup` or `shutdown`."""
        ...

    def callFromThread(self, callable: Callable[..., object], *args: Any, **kw: Any) -> None:
        """Call `callable` in the reactor's thread."""
        ...

    def callWhenRunning(self, callable: Callable[..., object], *args: Any, **kw: Any) -> Any:
        """Call `callable` once the reactor runs."""
        ...

    def getThreadPool(self) -> Any:
        """Return the reactor's own thread pool."""
        ...

    def stop(self) -> None:
        """Stop the reactor."""
        ...


class Transport(Protocol):
    """A connection's transport (`ITransport`, `IPushProducer`, `IConsumer`)."""

    def write(self, data: bytes) -> None:
        """Queue `data` to be sent."""
        ...

    def loseConnection(self) -> None:
        """Close after all queued data has been sent."""
        ...

    def abortConnection(self) -> None:
        """Close now and drop what is queued."""
        ...

    def pauseProducing(self) -> None:
        """Stop reading."""
        ...

    def resumeProducing(self) -> None:
        """Read again."""
        ...

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Tell `producer` when the transport's buffer is full and when it has room."""
        ...

    def unregisterProducer(self) -> None:
        """Forget the producer."""
        ...

    def getPeer(self) -> Any:
        """Return the address of the other side."""
        ...

    def getHost(self) -> Any:
        """Return this side's address."""
        ...


def default_reactor() -> Reactor:
    """Return the global reactor. The first import of `twisted.internet.reactor` installs it, so that is done here."""
    from twisted.internet import reactor

    installed: Any = reactor
    return installed  # type: ignore[no-any-return]
