"""Picks the engine for the setting `broker`.

The URLs are `memory`, `sqlite:///relative/path`, `sqlite:////absolute/path`, `postgresql://host`, and `redis://host`
with its variants (see chatws.brokers.redis.url). An engine is imported when its URL asks for it: SQLite needs no
PostgreSQL driver, and Redis needs two packages that need not be installed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from chatws.brokers.interface import Broker, Retention
from chatws.brokers.webhook_queue import NO_WEBHOOK_QUEUE, WebhookQueueSettings
from chatws.errors import ConfigError
from chatws.interfaces import Reactor
from chatws.runtime.clock import steady_time

__all__ = ["open_broker", "sqlite_path"]

_REDIS = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")


def open_broker(
    url: str,
    retention: Retention,
    *,
    sync_commits: bool = False,
    reactor: Reactor,
    now: Callable[[], float] | None = None,
    timeout: float = 5.0,
    listen_url: str = "",
    poll: float = 0.0,
    webhook_queue: WebhookQueueSettings = NO_WEBHOOK_QUEUE,
) -> Broker:
    """Return the engine for `url`, not started. Nothing is opened or locked before `Broker.start`.

    :param url: the setting `broker`. A relative path starts at the working directory.
    :param retention: limits of what is kept for recovery.
    :param sync_commits: SQLite: an acknowledged event survives a power cut.
    :param reactor: for connections, threads and timers.
    :param now: returns seconds since 1970. By default `steady_time`, and the server's clock for a shared engine.
    :param timeout: seconds within which a shared engine has to respond.
    :param listen_url: PostgreSQL: the URL to LISTEN at, "" for `url`.
    :param poll: PostgreSQL: seconds between two polls for new events, 0 to LISTEN.
    :param webhook_queue: settings of the queue of webhooks.
    :raises ConfigError: the scheme is unknown, or the URL is invalid for its engine. The message shows only the scheme
        of the URL, because the rest may contain a password.
    """
    clock: Callable[[], float] = now or steady_time
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        if rest not in ("", "//"):
            raise ConfigError("broker: memory takes no address")
        if sync_commits:
            raise ConfigError("broker: memory cannot be durable; use sqlite:///path")
        from chatws.brokers.memory import MemoryBroker

        return MemoryBroker(retention, clock, webhook_queue=webhook_queue)
    if scheme == "sqlite":
        path = sqlite_path(rest)
        from chatws.brokers.sqlite.broker import SqliteBroker

        return SqliteBroker(
            path, retention, clock, sync_commits=sync_commits, reactor=reactor, webhook_queue=webhook_queue
        )
    if scheme in ("postgresql", "postgres"):
        if sync_commits:
            raise ConfigError("broker: the durability of PostgreSQL is set by its synchronous_commit")
        return _open_postgres(
            url,
            retention,
            reactor=reactor,
            now=now,
            timeout=timeout,
            listen_url=listen_url,
            poll=poll,
            webhook_queue=webhook_queue,
        )
    if scheme in _REDIS:
        return _open_redis(
            url,
            retention,
            sync_commits=sync_commits,
            reactor=reactor,
            now=now,
            timeout=timeout,
            webhook_queue=webhook_queue,
        )
    known = "memory, sqlite:///path, postgresql://host, redis://host"
    if not rest:
        raise ConfigError(f"broker: no URL; one of {known}" if not url else f"broker: no such engine; one of {known}")
    raise ConfigError(f"broker: no engine for {scheme[:20]!r} URLs; one of {known}")


def _open_postgres(
    url: str,
    retention: Retention,
    *,
    reactor: Reactor,
    now: Callable[[], float] | None,
    timeout: float,
    listen_url: str,
    poll: float,
    webhook_queue: WebhookQueueSettings,
) -> Broker:
    from chatws.brokers.postgres.broker import POOL, PostgresBroker
    from chatws.database.factory import open_postgres

    database = open_postgres(url, pool=POOL, timeout=timeout, reactor=reactor)
    listen_database = open_postgres(listen_url, pool=0, timeout=timeout, reactor=reactor) if listen_url else database
    database.name, listen_database.name = "the event history's database", "the event history's database"
    return PostgresBroker(
        database,
        listen_database,
        retention,
        reactor=reactor,
        now=now,
        timeout=timeout,
        poll=poll,
        webhook_queue=webhook_queue,
    )


def _open_redis(
    url: str,
    retention: Retention,
    *,
    sync_commits: bool,
    reactor: Reactor,
    now: Callable[[], float] | None,
    timeout: float,
    webhook_queue: WebhookQueueSettings,
) -> Broker:
    from chatws.brokers.redis.url import RedisUrl

    location = RedisUrl.parse(url)
    if sync_commits:
        raise ConfigError("broker: the durability of Redis is set by appendfsync in its redis.conf")
    try:
        # txredisapi imports the reactor, so it must not be imported before the reactor is chosen
        from chatws.brokers.redis.broker import RedisBroker
    except ImportError as error:
        if error.name not in ("txredisapi", "hiredis"):
            raise
        raise ConfigError("broker: Redis needs two more packages: pip install chatws[redis]") from None
    return RedisBroker(location, retention, reactor=reactor, now=now, timeout=timeout, webhook_queue=webhook_queue)


def sqlite_path(rest: str) -> str:
    """Return the absolute path in the part of the URL after `sqlite:`."""
    if not rest.startswith("///") or rest in ("///", "////"):
        raise ConfigError("broker: sqlite takes a path: sqlite:///relative/path or sqlite:////absolute/path")
    path = rest[3:]
    if path == ":memory:":
        raise ConfigError("broker: for a history in memory use memory instead of sqlite:///:memory:")
    if "?" in path or "\0" in path:
        raise ConfigError("broker: sqlite takes a path and no parameters: sqlite:///path")
    return os.path.abspath(path)
