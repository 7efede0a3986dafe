"""Names of channels and events (https://pusher.com/docs/channels/using_channels/channels/)."""

from __future__ import annotations

import re

__all__ = [
    "CLIENT_PREFIX",
    "MAX_CHANNEL",
    "MAX_EVENT",
    "PRESENCE_PREFIXES",
    "SERVER_TO_USER",
    "is_cache",
    "is_channel_name",
    "is_guarded",
    "is_presence",
    "is_reserved_event",
]

#: Characters of a channel's name. Pusher allows 164, after the name of an app.
MAX_CHANNEL = 200
#: Characters of an event's name.
MAX_EVENT = 200
#: Begins the names of events that clients send.
CLIENT_PREFIX = "client-"
#: Begins the channel of a signed-in user's connections.
SERVER_TO_USER = "#server-to-user-"
PRESENCE_PREFIXES = ("presence-",)
_GUARDED = ("private-", "presence-")
_CACHE = ("cache-", "private-cache-", "private-encrypted-cache-", "presence-cache-")
_NAME = re.compile(rf"[A-Za-z0-9_\-=@,.;]{{1,{MAX_CHANNEL}}}")


def is_channel_name(name: str) -> bool:
    """Return whether a channel may have this name."""
    if name.startswith(SERVER_TO_USER):
        # the id of a user is any text: Pusher restricts only its length
        return len(SERVER_TO_USER) < len(name) <= MAX_CHANNEL and name.isprintable()
    return _NAME.fullmatch(name) is not None


def is_guarded(name: str) -> bool:
    """Return whether a subscription to a channel needs a signature."""
    return name.startswith(_GUARDED)


def is_presence(name: str) -> bool:
    """Return whether a channel has members."""
    return name.startswith(PRESENCE_PREFIXES)


def is_cache(name: str) -> bool:
    """Return whether a channel keeps its last event."""
    return name.startswith(_CACHE)


def is_reserved_event(name: str) -> bool:
    """Return whether only the server itself may send an event with this name."""
    return name.startswith(("pusher:", "pusher_internal:"))
