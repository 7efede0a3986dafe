"""One line for each noteworthy thing that befalls a connection: which one, whose, from where.

Who enters and leaves in peace is counted and not written down: a shop's 500 agents reconnect together. And what
strangers can bring about as often as they like must not fill a disk: of each kind of line there are `LINES` in
`SECONDS`, and then one that says how many were left out.
"""

from __future__ import annotations

from typing import Any

from twisted.logger import Logger

from chatws.ids import Id
from chatws.server.component import Connection

__all__ = ["LINES", "SECONDS", "Journal", "clean"]

log = Logger()

#: Lines of one kind within `SECONDS`.
LINES = 20
SECONDS = 60.0
#: Characters kept of what others have written.
_LONGEST = 200


def clean(text: object) -> str:
    """Somebody else's text for a log: cut, and without characters that a terminal would obey."""
    cut = str(text)[: _LONGEST + 1]
    shown = "".join(character if character.isprintable() else "?" for character in cut[:_LONGEST])
    return shown + "…" if len(cut) > _LONGEST else shown


class Journal:
    """:param clock: `seconds()`."""

    def __init__(self, clock: Any) -> None:
        self._clock = clock
        # by kind: when its minute began, how many lines it has had, and how many were left out
        self._kinds: dict[str, list[float]] = {}

    def refused(self, connection: Connection, user_id: Id | None, code: str, reason: str) -> None:
        """An `auth` was answered with no."""
        self._write("refused", connection, user_id, f"authentication failed: {reason}", code=code)

    def closed(self, connection: Connection, user_id: Id | None, code: int, reason: str) -> None:
        """The chat closes the connection for something that it or its user has done."""
        self._write(f"closed {code}", connection, user_id, f"closed with {code}: {reason}", code=code)

    def rate_limited(self, connection: Connection, user_id: Id | None) -> None:
        """A message was refused, because there were too many."""
        self._write("rate_limited", connection, user_id, "rate limited", code="rate_limited")

    def ended(self, connection: Connection, user_id: Id | None) -> None:
        """The connection is gone, and not as it should."""
        self._write(
            connection.ended.partition(",")[0],
            connection,
            user_id,
            f"ended abnormally: {connection.ended}",
            code="ended",
        )

    def _write(self, kind: str, connection: Connection, user_id: Id | None, what: str, code: int | str) -> None:
        now = self._clock.seconds()
        tally = self._kinds.setdefault(kind, [now, 0, 0])
        if now - tally[0] >= SECONDS:
            if tally[2]:
                log.info(
                    "{count} more connections were {kind!r} within {seconds:g} s",
                    count=int(tally[2]),
                    kind=kind,
                    seconds=now - tally[0],
                )
            tally[:] = [now, 0, 0]
        if tally[1] >= LINES:
            tally[2] += 1
            return
        tally[1] += 1
        log.info(
            "connection {connection_id}, user {user}, from {address}: {what}",
            connection_id=connection.resource_id,
            user="-" if user_id is None else clean(user_id),
            address=connection.remote_address or "a Unix socket",
            what=clean(what),
            code=code,
        )
