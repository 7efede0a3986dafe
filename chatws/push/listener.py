"""The backends' door (docs/protocol.md §3): the factory of their connections, and how they are drained."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_bytes
from typing import Any

from twisted.internet import protocol
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from chatws.push.connection import PushConnection
from chatws.push.executor import Executor, PushStats, PushTarget

__all__ = ["PushConnection", "PushFactory", "PushStats", "PushTarget"]

#: Seconds between two looks at the connections during a drain, and looks without news after which one counts as quiet.
DRAIN_TICK = 0.01
QUIET_TICKS = 3


class PushFactory(protocol.Factory):
    """Listens to backends; to be given to an endpoint's `listen`.

    :param target: what the lines are done to.
    :param secret: gives the secret that the first line must say, or None when none is needed; asked for each
        connection, so that it can be changed without a restart.
    :param max_line_size: bytes of a line without its end.
    :param max_connections: open ones at a time; one more is answered `overloaded` and closed. 0: no limit.
    :param auth_timeout: seconds for which `op auth` is waited for where a secret is needed; 0: for ever.
    :param reactor: the clock.
    :ivar stats: counters since the start.
    :ivar connections: the open ones.
    """

    log = Logger()
    noisy = False

    def __init__(
        self,
        target: PushTarget,
        *,
        secret: Callable[[], bytes | None] | None = None,
        max_line_size: int = 1024 * 1024,
        max_connections: int = 0,
        auth_timeout: float = 10.0,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor
        self._secret = secret
        self.max_line_size = max_line_size
        self.max_connections = max_connections
        self.auth_timeout = auth_timeout
        self.reactor: Any = reactor
        self.stats = PushStats()
        self.executor = Executor(target, self.stats)
        self.connections: set[PushConnection] = set()
        self._ticking: LoopingCall | None = None

    def buildProtocol(self, addr: IAddress | None) -> PushConnection:
        connection = PushConnection(self)
        self.connections.add(connection)
        return connection

    def secret(self) -> bytes | None:
        """What the first line must say, or None. When it cannot be told, nothing that anybody could know."""
        if self._secret is None:
            return None
        try:
            secret = self._secret()
        except Exception:
            self.log.failure("The push secret cannot be told; backends are refused")
            return token_bytes()
        if secret == b"":
            self.log.error("The push secret is empty; backends are refused")
            return token_bytes()
        return secret

    @property
    def is_full(self) -> bool:
        """Whether there are too many connections."""
        return 0 < self.max_connections < len(self.connections)

    def gone(self, connection: PushConnection) -> None:
        """A connection is closed, and every line read from it is done with."""
        self.connections.discard(connection)
        if not self.connections and self._ticking is not None and self._ticking.running:
            self._ticking.stop()

    def drain(self, seconds: float = 2.0) -> Deferred[None]:
        """Take the lines already sent, answer them, close. The listening port has been closed by the caller.

        What stands in the sockets is read until nothing more comes. Never fails. To be called once.

        :param seconds: after which a connection that still sends, or whose lines are still under way, is asked to
            finish; after twice that it is cut off; after three times that, events still under way in the broker are
            waited for no longer.
        :return: fires when all connections are closed, and all they brought is done.
        """
        if not self.connections:
            return succeed(None)
        quiet: dict[PushConnection, tuple[int, int]] = {}
        started = self.reactor.seconds()

        def look() -> None:
            elapsed = self.reactor.seconds() - started
            if elapsed >= 3 * seconds:
                self.log.error("{count} backends' events are still under way", count=len(self.connections))
                ticking.stop()
                return
            for connection in list(self.connections):
                reads, ticks = quiet.get(connection, (-1, 0))
                ticks = ticks + 1 if connection.reads == reads and connection.idle else 0
                quiet[connection] = (connection.reads, ticks)
                if elapsed >= 2 * seconds:
                    connection.abort()
                elif ticks >= QUIET_TICKS or elapsed >= seconds:
                    connection.finish()

        # Each tick comes a turn of the reactor after the last: what could be read in between was read.
        self._ticking = ticking = LoopingCall(look)
        ticking.clock = self.reactor
        drained = ticking.start(DRAIN_TICK)
        drained.addErrback(lambda failure: self.log.failure("Draining failed", failure))
        return drained.addCallback(lambda _: None)
