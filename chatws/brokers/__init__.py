"""The ordered log behind the chat: one contract (chatws.brokers.contract) and the engines that keep it.

An engine is picked by its URL: `memory`; `sqlite:///relative/path` and `sqlite:////absolute/path`; `postgresql://host`;
`redis://host` and its relatives (chatws.brokers.redis.location).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from chatws.brokers.contract import Bounds, Broker
from chatws.errors import OperatorError

__all__ = ["open_broker"]

_REDIS = ("redis", "rediss", "redis+unix", "redis+sentinel", "rediss+sentinel")


def open_broker(
    url: str,
    bounds: Bounds,
    *,
    durable: bool = False,
    reactor: Any,
    now: Callable[[], float] | None = None,
    timeout: float = 5.0,
    listen_url: str = "",
    poll: float = 0.0,
) -> Broker:
    """The engine for `url`, not started yet: nothing is opened or locked before `Broker.start`.

    :param url: the setting `broker`. A relative path is one of the present working directory.
    :param bounds: how much is kept for recovery.
    :param durable: with sqlite, an acknowledged event survives a power cut too.
    :param reactor: for threads, and for its clock: a real reactor's `seconds()` is seconds since 1970.
    :param now: the clock, where it is to be another one. A shared engine uses its own.
    :param timeout: seconds that a shared engine may take to answer.
    :param listen_url: PostgreSQL: where to LISTEN, if elsewhere.
    :param poll: PostgreSQL: seconds between two looks for new events, instead of LISTEN.
    :raises OperatorError: no engine is called that, or the URL does not suit it. The message shows no more of the
        URL than its scheme, for the rest may hold a password.
    """
    clock: Callable[[], float] = now or reactor.seconds
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        if rest not in ("", "//"):
            raise OperatorError("broker: memory takes no address")
        if durable:
            raise OperatorError("broker: memory cannot be durable; use sqlite:///path")
        from chatws.brokers.memory import MemoryBroker

        return MemoryBroker(bounds, clock)
    if scheme == "sqlite":
        path = _sqlite_path(rest)
        from chatws.brokers.sqlite import SqliteBroker

        return SqliteBroker(path, bounds, clock, durable=durable, reactor=reactor)
    if scheme in ("postgresql", "postgres"):
        if durable:
            raise OperatorError("broker: with PostgreSQL it is its synchronous_commit that says how durable events are")
        return _open_postgres(url, bounds, reactor=reactor, now=now, timeout=timeout, listen_url=listen_url, poll=poll)
    if scheme in _REDIS:
        return _open_redis(url, bounds, durable=durable, reactor=reactor, now=now, timeout=timeout)
    known = "memory, sqlite:///path, postgresql://host, redis://host"
    if not rest:
        raise OperatorError(f"broker: no URL; one of {known}" if not url else f"broker: no such engine; one of {known}")
    raise OperatorError(f"broker: no engine for {scheme[:20]!r} URLs; one of {known}")


def _open_postgres(
    url: str,
    bounds: Bounds,
    *,
    reactor: Any,
    now: Callable[[], float] | None,
    timeout: float,
    listen_url: str,
    poll: float,
) -> Broker:
    from chatws.brokers.postgres.broker import POOL, PostgresBroker
    from chatws.database.engines import open_postgres

    database = open_postgres(url, pool=POOL, timeout=timeout, reactor=reactor)
    listen_database = open_postgres(listen_url, pool=0, timeout=timeout, reactor=reactor) if listen_url else database
    database.name, listen_database.name = "the event log's database", "the event log's database"
    return PostgresBroker(database, listen_database, bounds, reactor=reactor, now=now, timeout=timeout, poll=poll)


def _open_redis(
    url: str, bounds: Bounds, *, durable: bool, reactor: Any, now: Callable[[], float] | None, timeout: float
) -> Broker:
    from chatws.brokers.redis.location import Location

    location = Location.parse(url)
    if durable:
        raise OperatorError("broker: with Redis it is Redis that is durable, or not; see appendfsync in its redis.conf")
    try:
        # not before the reactor is chosen: txredisapi imports it
        from chatws.brokers.redis.broker import RedisBroker
    except ImportError as error:
        if error.name not in ("txredisapi", "hiredis"):
            raise
        raise OperatorError("broker: Redis needs two more packages: pip install chatws[redis]") from None
    return RedisBroker(location, bounds, reactor=reactor, now=now, timeout=timeout)


def _sqlite_path(rest: str) -> str:
    """The absolute path in what follows `sqlite:`."""
    if not rest.startswith("///") or rest in ("///", "////"):
        raise OperatorError("broker: sqlite takes a path: sqlite:///relative/path or sqlite:////absolute/path")
    path = rest[3:]
    if path == ":memory:":
        raise OperatorError("broker: for a log in memory use memory instead of sqlite:///:memory:")
    if "?" in path or "\0" in path:
        raise OperatorError("broker: sqlite takes a path and no parameters: sqlite:///path")
    return os.path.abspath(path)
