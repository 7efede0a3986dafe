"""The ordered log behind the chat: one contract (chatws.brokers.contract) and the engines that keep it.

An engine is picked by its URL: `memory`, or `sqlite:///relative/path` and `sqlite:////absolute/path`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from chatws.brokers.contract import Bounds, Broker
from chatws.errors import OperatorError

__all__ = ["open_broker"]


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
    known = "memory, sqlite:///path"
    if not rest:
        raise OperatorError(f"broker: no URL; one of {known}" if not url else f"broker: no such engine; one of {known}")
    raise OperatorError(f"broker: no engine for {scheme[:20]!r} URLs; one of {known}")


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
