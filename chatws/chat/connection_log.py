"""Log lines about single connections: the connection's id, its user and address, and the reason.

Normal connects and disconnects appear in metrics only: a shop's 500 agents reconnect together. Clients can cause the
lines below as often as they like, so each kind is limited to `LINES` in `SECONDS`. A last line gives the number that
was left out.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.logger import Logger

from chatws.ids import Id
from chatws.interfaces import Clock
from chatws.runtime.log_levels import is_debugged
from chatws.runtime.throttled_log import ThrottledLog
from chatws.server.component import Connection

__all__ = ["LINES", "SECONDS", "ConnectionLog", "sanitize"]

log = Logger()

#: Lines of one kind within `SECONDS`: enough to see a pattern. At 200 bytes a line, one kind writes at most 6 MB a day.
LINES = 20
SECONDS = 60.0
#: Characters kept of a text that a peer chose: two lines of a terminal.
_MAX_LENGTH = 200
_FORMAT = "connection {connection_id}, user {user}, from {address}: {reason}"


def sanitize(text: object) -> str:
    """Return a peer's text in a form that is safe to log: cut, and without control characters."""
    cut = str(text)[: _MAX_LENGTH + 1]
    printable = "".join(character if character.isprintable() else "?" for character in cut[:_MAX_LENGTH])
    return printable + "…" if len(cut) > _MAX_LENGTH else printable


class ConnectionLog:
    """Writes the lines.

    :param clock: measures `SECONDS`.
    :param connection_id: returns the id that the page and `chatws agents` show.
    """

    def __init__(self, clock: Clock, connection_id: Callable[[Connection], str]) -> None:
        self.connection_id = connection_id
        summary = "{count} more connections were {reason!r} within {seconds:g} s"
        self._log = ThrottledLog(log, clock, interval=SECONDS, lines=LINES, summary=summary)

    def auth_failed(self, connection: Connection, user_id: Id | None, code: str, reason: str) -> None:
        """Log that an `auth` was rejected."""
        self._write("refused", connection, user_id, f"authentication failed: {reason}", code=code)

    def closed(self, connection: Connection, user_id: Id | None, code: int, reason: str) -> None:
        """Log that the chat closes a connection because of something that the client or its user did."""
        self._write(f"closed {code}", connection, user_id, f"closed with {code}: {reason}", close_code=code)

    def rate_limited(self, connection: Connection, user_id: Id | None) -> None:
        """Log that a message was rejected with `rate_limited`."""
        self._write("rate_limited", connection, user_id, "rate limited", code="rate_limited")

    def ended_abnormally(self, connection: Connection, user_id: Id | None) -> None:
        """Log that a connection ended with a `disconnect_reason`."""
        reason = connection.disconnect_reason
        self._write(reason.partition(",")[0], connection, user_id, f"ended abnormally: {reason}")

    def _write(self, kind: str, connection: Connection, user_id: Id | None, text: str, **more: int | str) -> None:
        self._log.info(kind, _FORMAT, **self._log_fields(connection, user_id, text), **more)

    def debug(self, connection: Connection, user_id: Id | None, text: str) -> None:
        """Log a step of a connection that is no error, for `--log-level chatws.chat.connection_log=debug`."""
        if is_debugged(__name__):
            log.debug(_FORMAT, **self._log_fields(connection, user_id, text))

    def _log_fields(self, connection: Connection, user_id: Id | None, text: str) -> dict[str, str]:
        return {
            "connection_id": self.connection_id(connection),
            "user": "-" if user_id is None else sanitize(user_id),
            "address": connection.remote_address or "a Unix socket",
            "reason": sanitize(text),
        }
