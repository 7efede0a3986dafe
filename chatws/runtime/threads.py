"""Pools of threads, one for each kind of work, so that none waits for another's."""

from __future__ import annotations

from functools import partial
from threading import Thread

from twisted.python.threadpool import ThreadPool

__all__ = ["daemon_pool"]


def daemon_pool(name: str, size: int = 1) -> ThreadPool:
    """Start a pool of up to `size` threads. They do not hold up a process that ends without stopping it.

    The reactor's own pool is joined when the reactor stops, and shared by whatever else runs in it.
    """
    pool = ThreadPool(0, size, name)
    # an attribute of Twisted's class, made to be replaced
    pool.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
    pool.start()
    return pool
