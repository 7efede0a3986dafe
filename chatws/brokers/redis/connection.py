"""One connection to Redis: txredisapi's protocol, and our own ways of opening, timing and closing it.

txredisapi's factories and pools are left aside: they use the global reactor, reconnect on timers that cannot be ended,
and tell nobody why. It runs on hiredis: its own parser takes a turn of the reactor for each value.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hiredis
import txredisapi
from OpenSSL import SSL
from twisted.internet import ssl
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from chatws.brokers.redis.location import Location
from chatws.errors import OperatorError

__all__ = ["Connection", "Lost", "Refused", "Subscriber", "open_connection"]

_CODE = re.compile(
    r"\b(BUSY|CLUSTERDOWN|CROSSSLOT|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOPERM|NOREPLICAS|NOSCRIPT|OOM|READONLY"
    r"|WRONGPASS|WRONGTYPE)\b"
)


class Lost(Exception):
    """The connection is gone, was not to be had, or did not answer in time. What was asked may have been done."""


class Refused(Exception):
    """Redis answered that it would not.

    :ivar code: one of Redis' codes, `OOM` say, or `ERR`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Redis 6 wraps what went wrong inside a script in a sentence of its own
        found = _CODE.search(message)
        self.code = found[1] if found else "ERR"


class Connection(txredisapi.RedisProtocol):  # type: ignore[misc]
    """A connection that takes and gives bytes. Commands are pipelined.

    :ivar closed: fires with a reason, once.
    """

    _log = Logger()
    timeout: float
    reactor: Any

    def __init__(self) -> None:
        super().__init__(charset=None, convertNumbers=False)
        self.closed: Deferred[str] = Deferred()
        self.is_open = True
        self.outstanding = 0
        self._reason = ""

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        if ITCPTransport.providedBy(self.transport):
            self.transport.setTcpNoDelay(True)
            self.transport.setTcpKeepAlive(True)
        super().connectionMade()

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """See `IProtocol`."""
        try:
            super().dataReceived(data, unpause)
        except (hiredis.HiredisError, txredisapi.InvalidData):
            self.abort("what answers is no Redis")
        except Exception:
            self._log.failure("Fault in what Redis sent")
            self.abort("a fault in what Redis sent")

    def connectionLost(self, why: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.is_open = False
        self._reason = self._reason or one_line(why.value)
        super().connectionLost(why)
        self.closed.callback(self._reason)

    def abort(self, reason: str) -> None:
        """Close it now, for that reason. Idempotent."""
        if self.is_open:
            self._reason = self._reason or reason
            self.transport.abortConnection()

    async def ask(self, *command: bytes | int | str) -> Any:
        """Send a command, and wait for the answer.

        :raises Refused: Redis answered with an error.
        :raises Lost: no answer within the time-out, after which the connection is closed, or it was closed before.
        """
        if not self.is_open:
            raise Lost(self._reason)
        answered: Deferred[Any] = self.execute_command(*command)
        answered.addTimeout(self.timeout, self.reactor)
        self.outstanding += 1
        try:
            return await answered
        except DeferredTimeout:
            self.abort(f"no answer within {self.timeout:g} s")
            raise Lost(self._reason) from None
        except txredisapi.ResponseError as error:
            raise Refused(str(error)) from None
        except txredisapi.RedisError:
            raise Lost(self._reason or "the connection was closed") from None
        finally:
            self.outstanding -= 1


class Subscriber(Connection, txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """A connection that listens to a channel."""

    _on_message: Callable[[bytes], None] | None = None
    _on_pause: Callable[[], None] | None = None

    def messageReceived(self, pattern: object, channel: bytes, message: bytes) -> None:
        """See `txredisapi.SubscriberProtocol`."""
        if self._on_message is not None:
            self._on_message(message)

    def dataReceived(self, data: bytes, unpause: bool = False) -> None:
        """See `IProtocol`."""
        super().dataReceived(data, unpause)
        if self.is_open and self._on_pause is not None:
            self._on_pause()

    async def subscribe_to(
        self, channel: bytes, on_message: Callable[[bytes], None], on_pause: Callable[[], None]
    ) -> None:
        """Returns when everything published from now on will come.

        :param on_message: called with the bytes of each message.
        :param on_pause: called when no other has come with it.
        :raises Refused, Lost: see `ask`.
        """
        self._on_message, self._on_pause = on_message, on_pause
        await self.ask("SUBSCRIBE", channel)


def one_line(error: BaseException | None) -> str:
    """What went wrong, for a log."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _endpoint(location: Location, host: str, port: int, timeout: float, reactor: Any) -> Any:
    if location.path:
        return UNIXClientEndpoint(reactor, location.path, timeout)  # type: ignore[no-untyped-call]
    endpoint: Any
    if isIPAddress(host):
        endpoint = TCP4ClientEndpoint(reactor, host, port, timeout)
    elif isIPv6Address(host):
        endpoint = TCP6ClientEndpoint(reactor, host, port, timeout)  # type: ignore[no-untyped-call]
    else:
        endpoint = HostnameEndpoint(reactor, host, port, timeout)
    if not location.tls:
        return endpoint
    trust = None
    if location.ca:
        try:
            with open(location.ca, "rb") as file:
                blocks = re.findall(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", file.read(), re.DOTALL)
            found = [ssl.Certificate.loadPEM(block) for block in blocks]
            trust = ssl.trustRootFromCertificates(found)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SSL.Error) as error:
            raise OperatorError(f"broker: the certificates of option ca cannot be read: {one_line(error)}") from None
    return wrapClientTLS(ssl.optionsForClientTLS(host, trustRoot=trust), endpoint)


async def open_connection(
    kind: type[Connection],
    location: Location,
    address: tuple[str, int] | None,
    *,
    user: str,
    password: str,
    db: int,
    timeout: float,
    reactor: Any,
) -> Any:
    """Connect, say who we are, and choose the database.

    :param address: of the Redis or the Sentinel; None for a Unix socket.
    :raises Lost: nobody is there, or somebody who does not answer.
    :raises Refused: the password is wrong, say.
    """
    host, port = address or ("", 0)
    factory = Factory.forProtocol(kind)
    factory.noisy = False
    connecting: Deferred[Any] = _endpoint(location, host, port, timeout, reactor).connect(factory)
    connecting.addTimeout(timeout, reactor)
    try:
        connection: Connection = await connecting
    except CancelledError:
        raise
    except (DeferredTimeout, ConnectingCancelledError):
        raise Lost(f"no connection within {timeout:g} s") from None
    except Exception as error:
        raise Lost(one_line(error)) from None
    connection.timeout, connection.reactor = timeout, reactor
    try:
        if password:
            await connection.ask("AUTH", *((user, password) if user else (password,)))
        if db:
            await connection.ask("SELECT", db)
        with suppress(Refused):  # not everybody may
            await connection.ask("CLIENT", "SETNAME", "chatws")
    except BaseException:
        connection.abort("given up")
        raise
    return connection
