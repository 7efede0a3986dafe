"""Start and stop the demo with the server."""

from __future__ import annotations

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.web.resource import Resource

from chatws.demo.api import root
from chatws.demo.backend import DemoBackend, Push
from chatws.interfaces import Reactor

__all__ = ["DemoService"]


class DemoService(Service):
    """The demo as a Twisted service.

    :ivar backend: the application.
    :param push: the push client; the service closes it.
    :param database_path: an SQLite file; the empty string for a database in memory.
    """

    def __init__(self, push: Push, database_path: str, *, reactor: Reactor) -> None:
        self._push = push
        self.backend = DemoBackend(push, database_path, reactor=reactor)

    def resource(self) -> Resource:
        """Return the resource tree that the WebSocket listener serves beside its own paths."""
        return root(self.backend)

    def startService(self) -> None:
        """Open the database.

        :raises ConfigError: the database cannot be opened.
        """
        self.backend.start()
        super().startService()  # type: ignore[no-untyped-call]

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.backend.stop()
        await self._push.close()
