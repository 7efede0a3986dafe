"""Resolves host names with getaddrinfo, in threads that neither delay other work nor keep the process alive.

Twisted runs getaddrinfo in the reactor's ten threads. With a name server that does not answer, a few logins occupy them
all for 20 s and more, and the reactor joins them when it stops. A thread inside getaddrinfo cannot be interrupted.
Therefore each look-up here has its own daemon thread, which the interpreter does not join when it exits.

`twisted.names` would need no threads, but resolves differently from the other programs of the machine. It ignores
nsswitch.conf, and `search` and `ndots` of resolv.conf, which `http://app/whoami` needs in Kubernetes.

Interfaces: `IHostnameResolver` and `IReactorPluggableNameResolver.installNameResolver`, both public in Twisted.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from threading import Thread
from typing import Any, TypeAlias

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution
from twisted.logger import Logger
from zope.interface import implementer

from chatws.interfaces import Reactor

__all__ = ["MAX_LOOKUPS", "Resolver", "use_own_threads"]

#: Concurrent look-ups, each with a thread. Names come from the configuration, so there are only a few.
MAX_LOOKUPS = 16
#: Seconds after which callers no longer share a look-up: a new one starts, as the name server may have recovered.
SHARE_TIMEOUT = 30.0

_Key: TypeAlias = tuple[str, int, frozenset[Any], str]
_TYPES = {socket.AF_INET: IPv4Address, socket.AF_INET6: IPv6Address}
_ALL_TYPES = frozenset(_TYPES.values())
_SOCKET_TYPES = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}


@implementer(IHostResolution)
class _Resolution:
    """One caller of a look-up. :ivar name: the host name."""

    def __init__(self, name: str, receiver: Any) -> None:
        self.name = name
        self._receiver = receiver  # IResolutionReceiver; None: cancelled or finished

    def cancel(self) -> None:
        """Receive nothing more."""
        self._receiver = None

    def finish(self, addresses: Sequence[IAddress]) -> None:
        """Give the receiver its addresses; none if the name is unknown."""
        for address in addresses:
            if self._receiver is not None:
                self._receiver.addressResolved(address)
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.resolutionComplete()


class _Lookup:
    """A thread inside getaddrinfo. :ivar waiting: the callers that share its result."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.waiting: list[_Resolution] = []


@implementer(IHostnameResolver)
class Resolver:
    """See the module. Concurrent calls for the same name share one look-up."""

    _log = Logger()

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._current: dict[_Key, _Lookup] = {}
        self._threads = 0
        self._saturated = False

    def resolveHostName(
        self,
        resolutionReceiver: Any,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:  # IHostResolution, for which there is no type
        """See `IHostnameResolver`. Literal addresses resolve at once. Look-ups above `MAX_LOOKUPS` find no address."""
        types = _ALL_TYPES if addressTypes is None else frozenset(addressTypes)
        resolution = _Resolution(hostName, resolutionReceiver)
        resolutionReceiver.resolutionBegan(resolution)
        literal = _literal(hostName, portNumber, transportSemantics)
        if literal is not None:
            resolution.finish([literal] if type(literal) in types else [])
            return resolution
        key = (hostName, portNumber, types, transportSemantics)
        lookup = self._current.get(key)
        if lookup is None or self._reactor.seconds() - lookup.started > SHARE_TIMEOUT:
            if self._threads >= MAX_LOOKUPS:
                self._reject(resolution)
                return resolution
            lookup = self._current[key] = _Lookup(self._reactor.seconds())
            self._threads += 1
            Thread(target=self._resolve, args=(key, lookup), name="getaddrinfo", daemon=True).start()
        lookup.waiting.append(resolution)
        return resolution

    def _reject(self, resolution: _Resolution) -> None:
        if not self._saturated:
            self._saturated = True
            self._log.warn(
                "{count} look-ups of host names wait for the name server; {host} and others fail until one ends",
                count=MAX_LOOKUPS,
                host=resolution.name,
            )
        resolution.finish([])

    def _resolve(self, key: _Key, lookup: _Lookup) -> None:
        """Run getaddrinfo. Called in the look-up's own thread."""
        host, port, types, semantics = key
        family = socket.AF_UNSPEC
        if len(types) == 1:
            family = next(family for family, address_type in _TYPES.items() if address_type in types)
        try:
            results = socket.getaddrinfo(host, port, family, _SOCKET_TYPES[semantics])
            addresses = [
                _TYPES[family](semantics, *address) for family, _, _, _, address in results if family in _TYPES
            ]
        except (OSError, ValueError):  # the name is unknown, or is too long or has characters that names cannot have
            addresses = []
        self._reactor.callFromThread(self._on_result, key, lookup, addresses)

    def _on_result(self, key: _Key, lookup: _Lookup, addresses: Sequence[IAddress]) -> None:
        self._threads -= 1
        self._saturated = False
        if self._current.get(key) is lookup:
            del self._current[key]
        for resolution in lookup.waiting:
            resolution.finish(addresses)


def _literal(host: str, port: int, semantics: Any) -> Any:
    """Parse `host` as an address, or return None. One with a scope (`fe80::1%eth0`) needs a lookup."""
    if isIPAddress(host):
        return IPv4Address(semantics, host, port)
    if "%" not in host and isIPv6Address(host):
        return IPv6Address(semantics, host, port)
    return None


def use_own_threads(reactor: Reactor) -> None:
    """Have `reactor` resolve host names by a `Resolver`, for everything that connects through it."""
    reactor.installNameResolver(Resolver(reactor))
