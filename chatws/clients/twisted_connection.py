"""The endpoints of the Twisted push client, and the protocol of its connection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IPushProducer, IStreamClientEndpoint, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.clients.protocol import MAX_RESPONSE_BYTES, PushResult, parse_result
from chatws.interfaces import Reactor, TcpTransport

__all__ = ["ConnectionEvents", "PushProtocol", "make_endpoints"]

_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:/\[\]=]+)):(\d{1,5})")


def make_endpoints(
    endpoints: IStreamClientEndpoint | str | Sequence[IStreamClientEndpoint | str], reactor: Reactor
) -> list[Any]:
    """Return client endpoints.

    :param endpoints: an endpoint, its description, several descriptions separated by commas, or a list of endpoints
        and descriptions. A description is one of Twisted's or host:port.
    :raises ValueError: a description is invalid, or the list is empty.
    """
    if isinstance(endpoints, str):
        endpoints = [description.strip() for description in endpoints.split(",")]
    elif not isinstance(endpoints, Sequence):
        endpoints = [endpoints]
    if not endpoints:
        raise ValueError("the list of endpoints is empty")
    return [_make_endpoint(endpoint, reactor) if isinstance(endpoint, str) else endpoint for endpoint in endpoints]


def _make_endpoint(description: str, reactor: Reactor) -> Any:
    try:
        return clientFromString(reactor, description)  # type: ignore[no-untyped-call]
    except ValueError:  # not the name of an endpoint type
        match = _HOST_AND_PORT.fullmatch(description)
        if match is None or not 1 <= int(match[3]) <= 65535:
            raise
        return HostnameEndpoint(reactor, (match[1] or match[2]).encode(), int(match[3]))


class ConnectionEvents(Protocol):
    """The events of a connection."""

    def result_received(self, result: PushResult) -> None:
        """Handle the next response."""

    def invalid_response(self, error: Exception) -> None:
        """Handle a line that is not a response."""

    def set_blocked(self, is_blocked: bool) -> None:
        """Stop or resume sending: the transport's buffer is full, or has room again."""

    def connection_lost(self, reason: Failure) -> None:
        """Handle the end of the connection."""


@implementer(IPushProducer)
class PushProtocol(LineOnlyReceiver):
    """Parses responses, one per line. The client writes its lines to the transport.

    :ivar client: gets the events.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_RESPONSE_BYTES
    client: ConnectionEvents | None = None
    transport: TcpTransport  # type: ignore[assignment]  # a zope interface in Twisted

    def connectionMade(self) -> None:
        """Register as the transport's producer, to notice a full buffer."""
        self.transport.registerProducer(self, True)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def lineReceived(self, line: bytes) -> None:
        """Parse a response."""
        assert self.client is not None
        try:
            result = parse_result(line)
        except msgspec.DecodeError as error:
            self.client.invalid_response(error)
        else:
            self.client.result_received(result)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        if self.client is not None:
            self.client.connection_lost(reason)

    def pauseProducing(self) -> None:
        """Stop sending: the transport's buffer is full."""
        if self.client is not None:
            self.client.set_blocked(True)

    def resumeProducing(self) -> None:
        """Resume sending."""
        if self.client is not None:
            self.client.set_blocked(False)

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""
