"""Below the Twisted push client: the endpoints that it connects to, and the protocol that it speaks there."""

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

from chatws.push.requests import Answer, parse_answer

__all__ = ["Owner", "PushProtocol", "make_endpoints"]

#: Bytes of an answer above which the other side is taken for no chatws.
MAX_ANSWER = 16 * 1024 * 1024

_HOST_AND_PORT = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:/\[\]=]+)):(\d{1,5})")


def make_endpoints(
    given: IStreamClientEndpoint | str | Sequence[IStreamClientEndpoint | str], reactor: Any
) -> list[Any]:
    """Client endpoints.

    :param given: one endpoint, its description, several descriptions with commas between them, or a list of endpoints
        and descriptions. Besides Twisted's descriptions there is host:port.
    :raises ValueError: a description is none, or the list is empty.
    """
    if isinstance(given, str):
        given = [one.strip() for one in given.split(",")]
    elif not isinstance(given, Sequence):
        given = [given]
    if not given:
        raise ValueError("a push client needs an endpoint")
    return [_make_endpoint(one, reactor) if isinstance(one, str) else one for one in given]


def _make_endpoint(description: str, reactor: Any) -> Any:
    try:
        return clientFromString(reactor, description)  # type: ignore[no-untyped-call]
    except ValueError:  # no kind of endpoint is called so
        match = _HOST_AND_PORT.fullmatch(description)
        if match is None or not 1 <= int(match[3]) <= 65535:
            raise
        return HostnameEndpoint(reactor, (match[1] or match[2]).encode(), int(match[3]))


class Owner(Protocol):
    """What a connection tells."""

    def answer_received(self, answer: Answer) -> None:
        """One more answer."""

    def garbage_received(self, problem: Exception) -> None:
        """Something that is no answer."""

    def set_full(self, full: bool) -> None:
        """The transport has more, or has no more, to send than it likes."""

    def connection_lost(self, reason: Failure) -> None:
        """That was all."""


@implementer(IPushProducer)
class PushProtocol(LineOnlyReceiver):
    """Answers come in, one a line; lines are written to the transport.

    :ivar client: who is told.
    """

    delimiter = b"\n"
    MAX_LENGTH = MAX_ANSWER
    client: Owner | None = None
    transport: Any

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, True)
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)

    def lineReceived(self, line: bytes) -> None:
        assert self.client is not None
        try:
            answer = parse_answer(line)
        except msgspec.DecodeError as error:
            self.client.garbage_received(error)
        else:
            self.client.answer_received(answer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.client is not None:
            self.client.connection_lost(reason)

    def pauseProducing(self) -> None:
        if self.client is not None:
            self.client.set_full(True)

    def resumeProducing(self) -> None:
        if self.client is not None:
            self.client.set_full(False)

    def stopProducing(self) -> None:
        """The transport is gone; `connectionLost` follows."""
