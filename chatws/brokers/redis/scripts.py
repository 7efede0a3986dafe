"""The Lua scripts beside this module: each is one step that Redis takes without another in between."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = [
    "ADD_WEBHOOKS",
    "APPEND",
    "EXCHANGE_WEBHOOKS",
    "LEASE",
    "OFFSET_RANGE",
    "ONLINE",
    "READ",
    "VERIFY",
    "KeyNames",
    "Script",
]

_DIRECTORY = Path(__file__).parent
_PRELUDE = (_DIRECTORY / "prelude.lua").read_bytes()


class Script:
    """
    :ivar text: what EVAL takes, and :ivar digest: EVALSHA.
    """

    def __init__(self, name: str, library: bytes = b"") -> None:
        self.name = name
        self.text: Final = _PRELUDE + library + (_DIRECTORY / f"{name}.lua").read_bytes()
        self.digest: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


APPEND, EXCHANGE_WEBHOOKS, OFFSET_RANGE, ONLINE, READ, VERIFY = map(
    Script, ("append", "exchange_webhooks", "offset_range", "online", "read", "verify")
)
_WEBHOOKS = (_DIRECTORY / "webhooks.lua").read_bytes()
ADD_WEBHOOKS, LEASE = Script("add_webhooks", _WEBHOOKS), Script("lease", _WEBHOOKS)

#: Number of the data format, part of every name. Increase it with every change that earlier nodes could misread.
#: Nodes of different formats share neither history nor channel.
FORMAT = 2


class KeyNames:
    """The names of everything that a history has in Redis, all in one slot of a cluster by their hash tag.

    :ivar history: of the head and the events.
    :ivar webhooks: the beginning of those of the queue of webhooks.
    :ivar leases: of nodes, users, each node's users, and `webhooks`.
    :ivar earlier_head: of the head of a history in format 1, whose names had no number.
    """

    def __init__(self, prefix: str) -> None:
        self.earlier_head = f"{{{prefix}}}:head".encode()
        tag = f"{{{prefix}}}:{FORMAT}:".encode()
        self.history = (tag + b"head", tag + b"history")
        self.webhooks = tag + b"webhooks:"
        self.leases = (tag + b"nodes", tag + b"users", tag + b"node:", self.webhooks)
        self.channel = tag + b"events"
        self._key = tag + b"key:"

    def key(self, key: str) -> bytes:
        """Where an idempotency key is remembered."""
        return self._key + key.encode("utf-8", "surrogatepass")
