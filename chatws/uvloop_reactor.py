"""`twistd --reactor uvloop`: asyncio's reactor on uvloop's loop. Needs `pip install chatws[uvloop]`."""

from __future__ import annotations

__all__ = ["install"]


def install() -> None:
    """Make it the global reactor.

    :raises ImportError: uvloop is not installed.
    """
    import uvloop  # type: ignore[import-not-found, unused-ignore]
    from twisted.internet import asyncioreactor

    asyncioreactor.install(uvloop.new_event_loop())  # type: ignore[no-untyped-call]
