"""One connection to Redis: the protocol of txredisapi, with our own connect, timeout and close.

The factories and pools of txredisapi are not used. They require the global reactor, reconnect on timers that cannot be
cancelled, and do not report the reason of a failure. hiredis parses the replies, because the parser of txredisapi takes
a turn of the reactor for each value.
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

from chatws.brokers.redis.url import RedisUrl
from chatws.errors import ConfigError
from chatws.interfaces import Reactor, zope_clock

__all__ = ["CommandError", "ConnectionLost", "RedisConnection", "Subscriber", "open_connection"]

#: Error codes that matter to the broker or to its operator.
_CODE = re.compile(
    r"\b(BUSY|CLUSTERDOWN|CROSSSLOT|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOPERM|NOREPLICAS|NOSCRIPT|OOM|READONLY"
    r"|WRONGPASS|WRONGTYPE)\b"
)


class ConnectionLost(Exception):
    """The connection is lost, could not be opened, or timed out. Redis may have executed a command that was sent."""


class CommandError(Exception):
    """Redis replied with an error.

    :ivar code: the error code of Redis, such as `OOM`. `ERR` if the code is not one of `_CODE`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        # Redis 6 wraps the error of a script in its own message, so the code is not the first word
        match = _CODE.search(message)
        self.code = match[1] if match else "ERR"


class RedisConnection(txredisapi.RedisProtocol):  # type: ignore[misc]
    """A connection to Redis. Values are bytes, and commands are pipelined.

    :ivar timeout: seconds that Redis may take to reply.
    :ivar closed: fires once with the reason, when the connection is closed.
    :ivar is_open: whether commands can be sent.
    :ivar outstanding: number of commands without a reply.
    """

    _log = Logger()
    timeout: float
    reactor: Reactor

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
            self.abort("the server at this address is not Redis")
        except Exception:
            self._log.failure("Error while a reply of Redis was processed")
            self.abort("a reply of Redis could not be processed")

    def connectionLost(self, why: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        self.is_open = False
        self._reason = self._reason or one_line(why.value)
        super().connectionLost(why)
        self.closed.callback(self._reason)

    def abort(self, reason: str) -> None:
        """Close the connection now. Idempotent.

        :param reason: the text of `ConnectionLost` for pending commands.
        """
        if self.is_open:
            self._reason = self._reason or reason
            self.transport.abortConnection()

    async def ask(self, *command: bytes | int | str) -> Any:
        """Send a command, and wait for the reply.

        :raises CommandError: Redis replied with an error.
        :raises ConnectionLost: the connection was closed, or is closed now because the reply took too long.
        """
        if not self.is_open:
            raise ConnectionLost(self._reason)
        reply: Deferred[Any] = self.execute_command(*command)
        reply.addTimeout(self.timeout, zope_clock(self.reactor))
        self.outstanding += 1
        try:
            return await reply
        except DeferredTimeout:
            self.abort(f"no reply within {self.timeout:g} s")
            raise ConnectionLost(self._reason) from None
        except txredisapi.ResponseError as error:
            raise CommandError(str(error)) from None
        except txredisapi.RedisError:
            raise ConnectionLost(self._reason or "the connection was closed") from None
        finally:
            self.outstanding -= 1


class Subscriber(RedisConnection, txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """A connection that is subscribed to a channel."""

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
        """Subscribe to a channel. Every message published after the return is received.

        :param on_message: called with the bytes of each message.
        :param on_pause: called after the last message of each read.
        :raises CommandError, ConnectionLost: see `ask`.
        """
        self._on_message, self._on_pause = on_message, on_pause
        await self.ask("SUBSCRIBE", channel)


def one_line(error: BaseException | None) -> str:
    """Return the first line of an error, at most 300 characters, for a log line."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:300]


def _endpoint(location: RedisUrl, host: str, port: int, timeout: float, reactor: Reactor) -> Any:
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
            if not blocks:
                raise ValueError(f"{location.ca} has no certificate in PEM")
            certificates = [ssl.Certificate.loadPEM(block) for block in blocks]
            trust = ssl.trustRootFromCertificates(certificates)  # type: ignore[no-untyped-call]
        except (OSError, ValueError, SSL.Error) as error:
            raise ConfigError(f"broker: the certificates of option ca cannot be read: {one_line(error)}") from None
    return wrapClientTLS(ssl.optionsForClientTLS(host, trustRoot=trust), endpoint)


async def open_connection(
    kind: type[RedisConnection],
    location: RedisUrl,
    address: tuple[str, int] | None,
    *,
    user: str,
    password: str,
    db: int,
    timeout: float,
    reactor: Reactor,
) -> Any:
    """Connect, authenticate, and select the database.

    :param address: the address of the Redis or the Sentinel; None for a Unix socket.
    :param timeout: seconds to connect, and seconds for each reply.
    :raises ConfigError: the file of the option `ca` is invalid.
    :raises ConnectionLost: the address is unreachable, or does not respond.
    :raises CommandError: for example, the password is wrong.
    """
    host, port = address or ("", 0)
    factory = Factory.forProtocol(kind)
    factory.noisy = False
    connecting: Deferred[Any] = _endpoint(location, host, port, timeout, reactor).connect(factory)
    connecting.addTimeout(timeout, zope_clock(reactor))
    try:
        connection: RedisConnection = await connecting
    except CancelledError:
        raise
    except (DeferredTimeout, ConnectingCancelledError):
        raise ConnectionLost(f"no connection within {timeout:g} s") from None
    except Exception as error:
        raise ConnectionLost(one_line(error)) from None
    connection.timeout, connection.reactor = timeout, reactor
    try:
        if password:
            await connection.ask("AUTH", *((user, password) if user else (password,)))
        if db:
            await connection.ask("SELECT", db)
        with suppress(CommandError):  # an ACL may forbid it, and only CLIENT LIST shows the name
            await connection.ask("CLIENT", "SETNAME", "chatws")
    except BaseException:
        connection.abort("the connection could not be set up")
        raise
    return connection
