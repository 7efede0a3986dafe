"""Resolves host names without blocking the reactor."""

from __future__ import annotations

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from zope.interface import implementer

from chatws.interfaces import Reactor

__all__ = ["resolve"]


@implementer(IResolutionReceiver)
class _Receiver:
    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.done: Deferred[list[str]] = Deferred()

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Do nothing: getaddrinfo runs in a thread and cannot be cancelled."""

    def addressResolved(self, address: IAddress) -> None:
        """See `IResolutionReceiver`."""
        host: str = address.host
        if host not in self.addresses:
            self.addresses.append(host)

    def resolutionComplete(self) -> None:
        """See `IResolutionReceiver`."""
        if not self.done.called:
            self.done.callback(self.addresses)


def resolve(reactor: Reactor, host: str) -> Deferred[list[str]]:
    """Return the IPv4 and IPv6 addresses of `host` in the resolver's order, empty if it is unknown.

    :param reactor: `IReactorPluggableNameResolver`.
    :param host: a name, or an address, which is returned as it is.
    """
    if isIPAddress(host) or isIPv6Address(host):
        return succeed([host])
    receiver = _Receiver()
    reactor.nameResolver.resolveHostName(receiver, host)
    return receiver.done
