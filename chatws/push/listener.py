"""The push listener (docs/protocol.md §3): creates the connections of backends that send lines."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from chatws.interfaces import Clock
from chatws.push.connection import PushConnection
from chatws.push.factory import BackendFactory
from chatws.push.handler import CommandHandler, PushStats, PushTarget
from chatws.runtime.file_budget import FileBudget

__all__ = ["PushConnection", "PushFactory", "PushStats", "PushTarget"]


class PushFactory(BackendFactory[PushConnection]):
    """The factory of connections with lines. `BackendFactory` has the other parameters.

    :param target: executes the commands.
    :param secret: returns the secret that the first line must have, or None if none is required.
    :param max_line_size: bytes of a line without its end.
    :param auth_timeout: seconds until `op auth`, where a secret is required; 0 means no limit.
    :ivar stats: counters since the start.
    :ivar handler: executes the lines.
    """

    log = Logger()

    def __init__(
        self,
        target: PushTarget,
        *,
        secret: Callable[[], bytes | None] | None = None,
        max_line_size: int = 1024 * 1024,
        max_connections: int = 0,
        auth_timeout: float = 10.0,
        budget: FileBudget | None = None,
        reactor: Clock | None = None,
    ) -> None:
        super().__init__(secret=secret, max_connections=max_connections, budget=budget, reactor=reactor)
        self.max_line_size = max_line_size
        self.auth_timeout = auth_timeout
        self.stats = PushStats()
        self.handler = CommandHandler(target, self.stats)

    def buildProtocol(self, addr: IAddress | None) -> PushConnection:
        """See `IProtocolFactory`."""
        return self.add_connection(PushConnection(self))
