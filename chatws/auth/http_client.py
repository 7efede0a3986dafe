"""HTTP requests to the URLs of the operator: bounded in time and size, without redirects."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from chatws.interfaces import Reactor
from chatws.net.web_client import QuietEndpoints

__all__ = ["MAX_RESPONSE_BYTES", "HttpClient", "InvalidResponse"]

#: Bytes in the body of a response. 5,000 conversations of 12 digits, or 100 public keys, fit.
MAX_RESPONSE_BYTES = 65_536
#: Bytes of a whole response on the wire: the head, which twisted.web does not limit, and the framing of chunks.
MAX_WIRE_BYTES = 4 * MAX_RESPONSE_BYTES


class InvalidResponse(Exception):
    """The response is not one that was asked for."""


class HttpClient:
    """Sends GET requests.

    :param timeout: seconds for a connection attempt. Addresses take turns.
    :param parallel: idle connections that are kept.
    """

    def __init__(self, reactor: Reactor, timeout: float, parallel: int) -> None:
        self._pool = HTTPConnectionPool(reactor, persistent=True)  # type: ignore[no-untyped-call]
        self._pool.maxPersistentPerHost = parallel
        self._pool.cachedConnectionTimeout = 30  # seconds; web servers close idle connections after 60 s or more
        endpoints = QuietEndpoints(reactor, timeout, MAX_WIRE_BYTES)
        self._agent: Any = Agent.usingEndpointFactory(reactor, endpoints, self._pool)  # type: ignore[no-untyped-call]

    async def get(self, url: bytes, headers: Headers) -> tuple[int, bytes]:
        """Return the status and, if that is 200, the body.

        :raises Exception: (of many types) there is no response, or it is too large.
        """
        response = await self._agent.request(b"GET", url, headers, None)
        body = _BodyReader(MAX_RESPONSE_BYTES if response.code == 200 else 0)
        response.deliverBody(body)
        return response.code, await body.done if response.code == 200 else b""

    def stop(self) -> Deferred[None]:
        """Close the idle connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()  # type: ignore[no-untyped-call]
        return closed


class _BodyReader(Protocol):
    """Collect the body of a response, and close the connection if it exceeds `limit` bytes.

    :param limit: bytes; 0 closes without reading.
    :ivar done: fires with the body.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self.done: Deferred[bytes] = Deferred(lambda _: self._close())

    def connectionMade(self) -> None:
        if not self._limit:
            self._close()

    def dataReceived(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._limit:
            self._parts.append(data)
            return
        self._parts.clear()
        self._close()
        if not self.done.called and self._limit:
            self.done.errback(InvalidResponse(f"the response has more than {self._limit} bytes"))

    def connectionLost(self, reason: Any = None) -> None:
        if self.done.called or not self._limit:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(reason)

    def _close(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()
