"""What the server's HTTP clients share: endpoints for twisted.web's Agent, and error texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure
from twisted.web.client import BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from chatws.interfaces import Reactor

__all__ = ["QuietEndpoints", "ResponseTooLarge", "describe_error"]


class ResponseTooLarge(Exception):
    """A response has more bytes than are read."""


@implementer(IAgentEndpointFactory)
class QuietEndpoints:
    """Twisted's default endpoints, without their log lines ("Starting factory …") and with limited responses.

    :param timeout: seconds for a connection attempt.
    :param max_response: bytes of one response on the wire: the head, which twisted.web does not limit, and the body.
    :param policy: how certificates are checked; by default as browsers do.
    :ivar opened: number of connections that were attempted.
    """

    def __init__(self, reactor: Reactor, timeout: float, max_response: int, policy: Any = None) -> None:
        self.opened = 0
        self._reactor = reactor
        self._timeout = timeout
        self._max_response = max_response
        self._policy = BrowserLikePolicyForHTTPS() if policy is None else policy  # type: ignore[no-untyped-call]

    def endpointForURI(self, uri: Any) -> Any:
        """See `IAgentEndpointFactory`."""
        endpoints: list[Any] = [HostnameEndpoint(self._reactor, uri.host, uri.port, self._timeout)]
        if uri.host == b"localhost":
            # RFC 6761 §6.3: both loopback addresses, also where /etc/hosts has one of them
            endpoints.append(TCP6ClientEndpoint(self._reactor, "::1", uri.port, self._timeout))  # type: ignore[no-untyped-call]
        if uri.scheme == b"https":
            creator = self._policy.creatorForNetloc(uri.host, uri.port)
            endpoints = [wrapClientTLS(creator, endpoint) for endpoint in endpoints]
        return _QuietEndpoint(endpoints, self)


@implementer(IStreamClientEndpoint)
class _QuietEndpoint:
    def __init__(self, candidates: Sequence[Any], endpoints: QuietEndpoints) -> None:
        self._candidates = candidates
        self._endpoints = endpoints

    def connect(self, factory: Any) -> Any:
        """See `IStreamClientEndpoint`."""
        factory.noisy = False
        self._endpoints.opened += 1
        first, *others = self._candidates
        connected: Deferred[Any] = first.connect(factory)
        for other in others:
            connected.addErrback(_connect_instead, other, factory)
        return connected.addCallback(_limit_responses, self._endpoints._max_response)


def _connect_instead(failure: Failure, endpoint: Any, factory: Any) -> Deferred[Any]:
    failure.trap(ConnectError)  # type: ignore[no-untyped-call]
    connected: Deferred[Any] = endpoint.connect(factory)
    return connected


def _limit_responses(protocol: Any, limit: int) -> Any:
    """Make an HTTP client protocol close its connection after `limit` bytes of one response."""
    received = 0
    request, receive, lose = protocol.request, protocol.dataReceived, protocol.connectionLost

    def start_request(message: Any) -> Any:
        nonlocal received
        received = 0
        return request(message)

    def data_received(data: bytes) -> None:
        nonlocal received
        received += len(data)
        if received <= limit:
            receive(data)
        else:
            protocol.transport.abortConnection()

    def connection_lost(reason: Failure) -> None:
        if received > limit:
            reason = Failure(ResponseTooLarge(f"the response has more than {limit} bytes"))  # type: ignore[no-untyped-call]
        lose(reason)

    protocol.request, protocol.dataReceived, protocol.connectionLost = start_request, data_received, connection_lost
    return protocol


def describe_error(error: Exception) -> str:
    """Return the reason of a failed request."""
    reasons = getattr(error, "reasons", None)  # twisted.web wraps the reasons of a failed connection
    if reasons and isinstance(reasons[0], Failure):
        return f"{type(error).__name__}: {reasons[0].getErrorMessage()}"
    return str(error) or type(error).__name__
