"""The part that the listeners for backends share: the secret, the limits on connections, and the drain at shutdown."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_bytes
from typing import Generic, Protocol, TypeVar

from twisted.internet import protocol
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chatws.interfaces import Clock, ListeningPort, default_reactor, zope_clock
from chatws.runtime.file_budget import FileBudget
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["BackendConnection", "BackendFactory"]

#: Seconds between two checks of the connections during a drain.
DRAIN_INTERVAL = 0.01
#: Checks without new data after which a connection has no more data in the socket. Three checks are at least two
#: iterations of the reactor, each of which reads what has arrived.
QUIET_CHECKS = 3


class BackendConnection(Protocol):
    """A connection as the drain sees it."""

    @property
    def reads(self) -> int:
        """The number of reads so far."""
        ...

    @property
    def idle(self) -> bool:
        """Whether everything that was read is processed."""
        ...

    def finish(self) -> None:
        """Stop reading, process and answer what was read, and then close. Idempotent."""
        ...

    def abort(self) -> None:
        """Close now. Idempotent."""
        ...


C = TypeVar("C", bound=BackendConnection)


class BackendFactory(protocol.Factory, Generic[C]):
    """A factory of backends' connections, for an endpoint's `listen`.

    :param secret: returns the secret of backends, or None if none is required. It is called for each check, so the
        secret can change without a restart.
    :param max_connections: open connections; further ones are rejected as `overloaded`. 0 means no limit.
    :param budget: counts the open files of the process; by default a budget of its own.
    :param reactor: the clock; by default the global reactor.
    :ivar connections: the open connections, and closed ones whose input is not yet processed.
    :ivar ports: the listening ports, set by `IoServer`.
    :ivar is_draining: whether the server stops.
    """

    log = Logger()
    noisy = False

    def __init__(
        self,
        *,
        secret: Callable[[], bytes | None] | None,
        max_connections: int,
        budget: FileBudget | None,
        reactor: Clock | None,
    ) -> None:
        reactor = reactor or default_reactor()
        self._secret = secret
        self.max_connections = max_connections
        self.reactor: Clock = reactor
        self.budget = budget or FileBudget(clock=reactor)
        self.throttled_log = ThrottledLog(self.log, reactor)
        self.ports: list[ListeningPort] = []
        self.connections: set[C] = set()
        self.is_draining = False
        self._drain_check: LoopingCall | None = None

    def secret(self) -> bytes | None:
        """Return the secret that backends must have, or None. If it is unavailable, return a random one."""
        if self._secret is None:
            return None
        try:
            secret = self._secret()
        except Exception:
            self.log.failure("cannot read the push secret; rejecting backends")
            return token_bytes()
        if secret == b"":
            self.log.error("the push secret is empty; rejecting backends")
            return token_bytes()
        return secret

    @property
    def is_full(self) -> bool:
        """Whether there are too many connections."""
        return 0 < self.max_connections < len(self.connections)

    def add_connection(self, connection: C) -> C:
        """Register a new connection, and return it."""
        self.budget.limit_accepts(self.ports)
        self.connections.add(connection)
        return connection

    def connection_done(self, connection: C) -> None:
        """Forget a connection that is closed, with all its input processed."""
        self.connections.discard(connection)
        if not self.connections and self._drain_check is not None and self._drain_check.running:
            self._drain_check.stop()

    def drain(self, seconds: float = 2.0) -> Deferred[None]:
        """Process and answer what backends have already sent, then close the connections.

        The caller has closed the listening port. The connections are read until no more data arrives. Never fails.
        Call it once.

        :param seconds: of each of three stages. First, connections are read until they are quiet. Then they are no
            longer read, and their input is finished. Then they are aborted, and the broker is waited for.
        :return: fires when all connections are closed and their input processed, or after the last stage.
        """
        self.is_draining = True
        if not self.connections:
            return succeed(None)
        # reads, and checks without a new one
        quiet: dict[C, tuple[int, int]] = {}
        stage = 0
        stage_end = self.reactor.seconds() + seconds

        def check() -> None:
            nonlocal stage, stage_end
            if self.reactor.seconds() >= stage_end:
                # relative to now: a reactor that was blocked for long must not skip a stage
                stage, stage_end = stage + 1, self.reactor.seconds() + seconds
            if stage > 2:
                self.log.error("events of {count} backends are still pending", count=len(self.connections))
                looping.stop()
                return
            for connection in list(self.connections):
                reads, checks = quiet.get(connection, (-1, 0))
                checks = checks + 1 if connection.reads == reads and connection.idle else 0
                quiet[connection] = (connection.reads, checks)
                if stage == 2:
                    connection.abort()
                elif stage == 1 or checks >= QUIET_CHECKS:
                    connection.finish()

        # Each check runs an iteration of the reactor after the last, which has read what arrived in between.
        self._drain_check = looping = LoopingCall(check)
        looping.clock = zope_clock(self.reactor)
        drained = looping.start(DRAIN_INTERVAL)
        drained.addErrback(lambda failure: self.log.failure("drain failed", failure))
        return drained.addCallback(lambda _: None)
