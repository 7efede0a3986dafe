"""The Lua scripts beside this module: each is one step that Redis takes without another in between."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

__all__ = ["APPEND", "BOUNDS", "LEASE", "ONLINE", "READ", "VERIFY", "Keys", "Script"]

_DIRECTORY = Path(__file__).parent
_PRELUDE = (_DIRECTORY / "prelude.lua").read_bytes()


class Script:
    """
    :ivar text: what EVAL takes, and :ivar digest: EVALSHA.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.text: Final = _PRELUDE + (_DIRECTORY / f"{name}.lua").read_bytes()
        self.digest: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()


APPEND, BOUNDS, LEASE, ONLINE, READ, VERIFY = map(Script, ("append", "bounds", "lease", "online", "read", "verify"))


class Keys:
    """The names of everything that a log has in Redis, all in one slot of a cluster by their hash tag.

    :ivar log: of the head and the events. :ivar leases: of nodes, users, and each node's users.
    """

    def __init__(self, prefix: str) -> None:
        tag = f"{{{prefix}}}:".encode()
        self.log = (tag + b"head", tag + b"log")
        self.leases = (tag + b"nodes", tag + b"users", tag + b"node:")
        self.channel = tag + b"events"
        self._key = tag + b"key:"

    def key(self, key: str) -> bytes:
        """Where an idempotency key is remembered."""
        return self._key + key.encode("utf-8", "surrogatepass")
