"""The Lua scripts beside this module: each is one step that Redis takes without another in between."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from chatws.brokers.interface import AGENT_SPACE

__all__ = [
    "ADD_WEBHOOKS",
    "APPEND",
    "DATA",
    "EXCHANGE_WEBHOOKS",
    "LEASE",
    "NODES_WITHOUT",
    "OFFSET_RANGE",
    "ONLINE",
    "READ",
    "SET_DATA",
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


APPEND, DATA, EXCHANGE_WEBHOOKS, NODES_WITHOUT, OFFSET_RANGE, ONLINE, READ, SET_DATA, VERIFY = map(
    Script,
    ("append", "data", "exchange_webhooks", "nodes_without", "offset_range", "online", "read", "set_data", "verify"),
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
    :ivar earlier_head: of the head of a history in format 1, whose names had no number.
    """

    def __init__(self, prefix: str) -> None:
        self.earlier_head = f"{{{prefix}}}:head".encode()
        tag = f"{{{prefix}}}:{FORMAT}:".encode()
        self.history = (tag + b"head", tag + b"history")
        self._tag = tag
        self.webhooks = tag + b"webhooks:"
        self.channel = tag + b"events"
        self._key = tag + b"key:"

    def key(self, key: str) -> bytes:
        """Where an idempotency key is remembered."""
        return self._key + key.encode("utf-8", "surrogatepass")

    def leases(self, space: str) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the names of a space's nodes, members and each node's members (the beginning), and `webhooks`.

        The names of the agents' space are those of versions that knew no other one.
        """
        tag = self._tag if space == AGENT_SPACE else self._space(space)
        return (tag + b"nodes", tag + b"users", tag + b"node:", self.webhooks)

    def data(self, space: str) -> tuple[bytes, bytes]:
        """Return the names of the members' data and of its expiry."""
        tag = self._space(space)
        return (tag + b"data", tag + b"expiry")

    def _space(self, space: str) -> bytes:
        return self._tag + b"space:" + space.encode() + b":"
