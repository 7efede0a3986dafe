"""The push API of the demo's own process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from zope.interface import implementer

from chatws.interfaces import Bound, Reactor

__all__ = ["OwnPushEndpoint"]


@implementer(IStreamClientEndpoint)
class OwnPushEndpoint:
    """Connects to the first listener of the push API. Its address is known only once it is bound.

    :param ports: returns the listeners, once they are bound.
    """

    def __init__(self, ports: Callable[[], Sequence[Bound]], reactor: Reactor) -> None:
        self._ports = ports
        self._reactor = reactor

    def connect(self, factory: Any) -> Deferred[Any]:
        """See `IStreamClientEndpoint`."""
        host = self._ports()[0].getHost()
        if hasattr(host, "port"):
            return TCP4ClientEndpoint(self._reactor, "127.0.0.1", host.port).connect(factory)
        endpoint: Any = UNIXClientEndpoint(self._reactor, host.name)  # type: ignore[no-untyped-call]
        connecting: Deferred[Any] = endpoint.connect(factory)
        return connecting
