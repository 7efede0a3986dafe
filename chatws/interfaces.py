"""What chatws needs of Twisted's reactor, clock and transports, as Protocols for type checkers.

Twisted describes them as zope interfaces (`IReactorTime`, `IReactorThreads`, `ITransport`), which mypy does not check
without a plug-in. `twisted.internet.task.Clock` and the reactors fulfil these Protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

__all__ = [
    "Bound",
    "Cancellable",
    "Clock",
    "ListeningPort",
    "Reactor",
    "Schedule",
    "TcpTransport",
    "TimerHandle",
    "Transport",
    "default_reactor",
    "zope_clock",
]


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
    """The parts of a reactor that services use.

    They belong to `IReactorCore`, `IReactorThreads`, `IReactorFDSet`, `IReactorSocket`, `IReactorProcess` and
    `IReactorPluggableNameResolver`.
    """

    @property
    def nameResolver(self) -> Any:
        """The resolver of host names (`IHostnameResolver`)."""
        ...

    def installNameResolver(self, resolver: Any) -> Any:
        """Replace the resolver of host names."""
        ...

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

    def addReader(self, reader: Any) -> None:
        """Call `reader.doRead` when its descriptor has data (`IReadDescriptor`)."""
        ...

    def removeReader(self, reader: Any) -> None:
        """Watch `reader` no longer."""
        ...

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Accept connections on a duplicate of a listening socket, and return an `IListeningPort`."""
        ...

    def adoptStreamConnection(self, fileDescriptor: int, addressFamily: int, factory: Any) -> Any:
        """Serve a duplicate of a connected socket."""
        ...

    def spawnProcess(self, processProtocol: Any, executable: str, args: Any, env: Any, *, childFDs: Any) -> Any:
        """Start a process, and return an `IProcessTransport`."""
        ...

    def run(self) -> None:
        """Run the reactor until `stop`."""
        ...

    def stop(self) -> None:
        """Stop the reactor."""
        ...


class Bound(Protocol):
    """Something that listens on an address."""

    def getHost(self) -> Any:
        """Return the address."""
        ...


class ListeningPort(Bound, Protocol):
    """An open port (`IListeningPort` and, for the budget of files, `twisted.internet.tcp.Port`)."""

    numberAccepts: int
    connected: int

    def startReading(self) -> None:
        """Accept connections."""
        ...

    def stopReading(self) -> None:
        """Let new connections wait in the kernel's queue."""
        ...

    def stopListening(self) -> Any:
        """Close the port, and return None or a Deferred."""
        ...


class Transport(Protocol):
    """A connection's transport (`ITransport`, `IPushProducer`, `IConsumer`)."""

    disconnecting: bool

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


class TcpTransport(Transport, Protocol):
    """The transport of a socket. Only `ITCPTransport` has all of these."""

    bufferSize: int

    def setTcpNoDelay(self, enabled: bool) -> None:
        """Send small segments at once."""
        ...

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Let the kernel look for dead peers."""
        ...

    def loseWriteConnection(self) -> None:
        """End the output (FIN) after all queued data, and read on."""
        ...

    def connectionLost(self, reason: Any) -> None:
        """End the connection, as the reactor does after an error of the socket (`IReadDescriptor`)."""
        ...


def default_reactor() -> Reactor:
    """Return the global reactor. The first import of `twisted.internet.reactor` installs it, so that is done here."""
    from twisted.internet import reactor

    installed: Any = reactor
    return installed  # type: ignore[no-any-return]


def zope_clock(clock: Clock) -> IReactorTime:
    """Return `clock` for a function of Twisted. Their annotations name the zope interface, which is no Protocol."""
    return cast("IReactorTime", clock)
