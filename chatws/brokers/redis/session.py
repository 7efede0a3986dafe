"""The two connections of a node to one Redis, from their opening to the first failure with either.

Two, because a connection that listens can ask for little else. They stand and fall together: after a failover one of
them might be with the new master and the other still with the old one.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from chatws.brokers.redis.connection import (
    CommandError,
    ConnectionLost,
    RedisConnection,
    Subscriber,
    one_line,
    open_connection,
)
from chatws.brokers.redis.scripts import Script
from chatws.brokers.redis.sentinel import find_master
from chatws.brokers.redis.url import RedisUrl
from chatws.interfaces import Reactor

__all__ = ["RedisSession", "open_session"]

#: Refusals after which another connection may fare better: this Redis is not the master, or not yet one.
_TURNED_AWAY = frozenset({"CLUSTERDOWN", "LOADING", "MASTERDOWN", "MOVED", "NOAUTH", "READONLY"})


class RedisSession:
    """Two connections to one Redis.

    :ivar ended: fires with the reason when the first of the connections has ended.
    :ivar closed: fires when both have.
    :ivar is_checking: whether a check of the session is under way.
    """

    _log = Logger()

    def __init__(self, commands: RedisConnection, subscriber: Subscriber, address: tuple[str, int] | None) -> None:
        self.commands = commands
        self.subscriber = subscriber
        self.address = address
        self.ended: Deferred[str] = Deferred()
        self.is_open = True
        self.is_checking = False
        self.closed = gatherResults([commands.closed, subscriber.closed])
        for connection in (commands, subscriber):
            connection.closed.addCallback(self._end)

    def _end(self, reason: str) -> str:
        self.drop(reason)
        return reason

    def drop(self, reason: str) -> None:
        """Close both connections. Idempotent."""
        if self.is_open:
            self.is_open = False
            for connection in (self.commands, self.subscriber):
                connection.abort(reason)
            self.ended.callback(reason)

    async def ask(self, *command: bytes | int | str) -> Any:
        """See `RedisConnection.ask`. A refusal that says that this is the wrong Redis ends the session."""
        try:
            return await self.commands.ask(*command)
        except CommandError as refused:
            if refused.code in _TURNED_AWAY:
                self.drop(one_line(refused))
            raise

    async def run(self, script: Script, keys: tuple[bytes, ...], *arguments: bytes | int | str) -> Any:
        """Run a script: by its digest, and by its text where Redis does not know it (any more)."""
        try:
            return await self.ask("EVALSHA", script.digest, len(keys), *keys, *arguments)
        except CommandError as refused:
            if refused.code != "NOSCRIPT":
                raise
            return await self.ask("EVAL", script.text, len(keys), *keys, *arguments)


async def open_session(location: RedisUrl, *, timeout: float, reactor: Reactor) -> RedisSession:
    """Connect to the master, which Sentinel names if the URL has a service.

    :raises ConnectionLost: no master is reachable.
    :raises CommandError: the master rejects this node.
    """
    address: tuple[str, int] | None = location.hosts[0] if location.hosts else None
    if location.service:
        address = await find_master(location, timeout=timeout, reactor=reactor)
    opened: list[RedisConnection] = []
    try:
        for kind in (RedisConnection, Subscriber):
            connection: Any = await open_connection(
                kind,
                location,
                address,
                user=location.user,
                password=location.password,
                db=location.db,
                timeout=timeout,
                reactor=reactor,
            )
            opened.append(connection)
        try:
            role = await opened[0].ask("ROLE")
        except CommandError as refused:
            if refused.code in _TURNED_AWAY:
                raise
            role = [b"master"]  # the role may lack this command. A replica rejects writes anyway
        if role[0] != b"master":
            raise ConnectionLost(f"it is a {role[0].decode()}")
    except BaseException:
        for connection in opened:
            connection.abort("given up")
        raise
    commands, subscriber = opened
    assert isinstance(subscriber, Subscriber)
    return RedisSession(commands, subscriber, address)
