"""Host names to addresses without blocking the reactor."""

from __future__ import annotations

from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

__all__ = ["resolve"]


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing to do: it cannot be cancelled anyway, getaddrinfo runs in a thread."""

    def addressResolved(self, address: IAddress) -> None:
        host: str = address.host
        if host not in self.addresses:
            self.addresses.append(host)

    def resolutionComplete(self) -> None:
        if not self.done.called:
            self.done.callback(self.addresses)


def resolve(reactor: Any, host: str) -> Deferred[list[str]]:
    """The addresses of `host`, IPv4 and IPv6, in the resolver's order; none when it is not known.

    :param host: a name, or an address, which is its own.
    """
    if isIPAddress(host) or isIPv6Address(host):
        return succeed([host])
    receiver = _Receiver()
    reactor.nameResolver.resolveHostName(receiver, host)
    return receiver.done
