"""The listener of the HTTP API for backends (docs/protocol.md §7)."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from chatws.interfaces import Clock
from chatws.net.http_connection import HttpComponent, HttpConnection
from chatws.net.http_messages import HttpStats, RequestHead
from chatws.push.factory import BackendFactory
from chatws.push.handler import CommandHandler
from chatws.push.http_api import HttpApi
from chatws.runtime.file_budget import BACKEND, FileBudget

__all__ = ["HttpFactory"]


class HttpFactory(BackendFactory[HttpConnection]):
    """The factory of HTTP connections. `BackendFactory` has the other parameters.

    :param handler: executes the items.
    :param max_body: bytes of a body, also when inflated.
    :param max_item: bytes of one item.
    :param max_head: bytes of a head.
    :param request_timeout: seconds until a request is complete, and until the client has read the response.
    :param idle_timeout: seconds for which a connection without a request stays open.
    :ivar stats: counters since the start.
    :ivar api: checks and executes the requests.
    """

    log = Logger()
    kind = BACKEND

    def __init__(
        self,
        handler: CommandHandler,
        *,
        secret: Callable[[], bytes | None] | None = None,
        max_body: int = 1024 * 1024,
        max_item: int = 1024 * 1024,
        max_head: int = 32 * 1024,
        request_timeout: float = 30.0,
        idle_timeout: float = 60.0,
        max_connections: int = 0,
        budget: FileBudget | None = None,
        reactor: Clock | None = None,
    ) -> None:
        super().__init__(secret=secret, max_connections=max_connections, budget=budget, reactor=reactor)
        self.stats = HttpStats()
        self.api = HttpApi(handler, self.secret, max_body=max_body, max_item=max_item, clock=self.reactor)
        self.max_head = max_head
        self.request_timeout = request_timeout
        self.idle_timeout = idle_timeout

    def reconfigure(
        self, *, max_body: int, max_item: int, max_head: int, request_timeout: float, idle_timeout: float
    ) -> None:
        """Change the limits. An open connection keeps `max_head`, and its timer that runs."""
        self.api.max_body = max_body
        self.api.max_item = max_item
        self.max_head = max_head
        self.request_timeout = request_timeout
        self.idle_timeout = idle_timeout

    def component(self, head: RequestHead | None) -> HttpComponent:
        """See `HttpListener`."""
        return self.api

    def buildProtocol(self, addr: IAddress | None) -> HttpConnection:
        """See `IProtocolFactory`."""
        return self.add_connection(HttpConnection(self))
