"""Begin a new epoch of a history, for the operator: after a restored backup its offsets would be assigned again."""

from __future__ import annotations

import secrets

from chatws.brokers.factory import sqlite_path
from chatws.brokers.interface import Retention
from chatws.errors import ConfigError, StartError
from chatws.interfaces import Reactor

__all__ = ["reset_history"]

#: An offset that no history reaches (docs/protocol.md: offsets are integers of JavaScript).
_BEYOND = 2**53 - 1


async def reset_history(url: str, *, now: float, timeout: float, reactor: Reactor) -> str:
    """Discard the events and begin a new epoch. Idempotency keys, leases and webhooks stay.

    Running nodes of PostgreSQL and Redis notice it. The server of an SQLite file has to be stopped.

    :param url: the setting `broker`.
    :param now: seconds since 1970.
    :param timeout: seconds for each response of a server.
    :returns: the new epoch.
    :raises ConfigError: there is no such history, it is in use, or its server rejects it.
    :raises StartError: its server is unavailable.
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return _reset_sqlite(sqlite_path(url.partition(":")[2]), now)
    if scheme in ("postgresql", "postgres"):
        return _reset_postgres(url)
    if scheme in ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel"):
        return await _reset_redis(url, timeout, reactor)
    raise ConfigError("broker: a history in memory begins with each start: restart the server")


def _reset_sqlite(path: str, now: float) -> str:
    from chatws.brokers.sqlite.file import is_empty
    from chatws.brokers.sqlite.format import boot_id
    from chatws.brokers.sqlite.store import SqliteStore

    if is_empty(path):
        raise ConfigError(f"broker: there is no history in {path}")
    store = SqliteStore(path, Retention(), sync_commits=True, boot=boot_id())
    store.open(now, discard="the operator has reset it")
    store.close()
    return store.epoch


def _reset_postgres(url: str) -> str:
    from chatws.database.migrations import transaction

    with transaction(url) as cursor:
        cursor.execute("SELECT chatws.reset_history()")
        cursor.execute("SELECT epoch FROM chatws.history")
        [(epoch,)] = cursor.fetchall()
        return str(epoch)


async def _reset_redis(url: str, timeout: float, reactor: Reactor) -> str:
    from chatws.brokers.redis.connection import CommandError, ConnectionLost
    from chatws.brokers.redis.scripts import VERIFY, KeyNames
    from chatws.brokers.redis.session import open_session
    from chatws.brokers.redis.url import RedisUrl

    location = RedisUrl.parse(url)
    names = KeyNames(location.prefix)
    try:
        session = await open_session(location, timeout=timeout, reactor=reactor)
        try:
            epoch = await session.ask("HGET", names.history[0], "epoch")
            if epoch is None:
                raise ConfigError(f"broker: there is no history at {location.name}")
            # no history reaches that offset, so the script begins a new epoch and tells the nodes
            new_epoch = secrets.token_urlsafe(8)
            arguments = (epoch, _BEYOND, "", new_epoch, "", names.channel, "")
            [now_valid, *_] = await session.run(VERIFY, names.history, *arguments)
        finally:
            session.drop("the request is complete")
    except (CommandError, ConnectionLost) as error:
        raise StartError(f"broker: Redis at {location.name} does not reset the history: {error}") from None
    return str(now_valid, "ascii")
