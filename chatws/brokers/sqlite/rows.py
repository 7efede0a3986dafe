"""Rows of the SQLite file of a history: stored events, and users that are online."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from chatws.brokers.interface import Audience, Event
from chatws.ids import Id

__all__ = ["event_rows", "read_events", "read_online", "write_online"]

_encode = msgspec.json.Encoder().encode
_decode_audience = msgspec.json.Decoder(Audience).decode
_decode_id = msgspec.json.Decoder(int | str).decode


def event_rows(events: Iterable[Event]) -> list[tuple[int, float, str, str, bytes]]:
    """Return the rows of the table `events` for a batch, without its transient events, which have the offset 0."""
    return [
        (event.offset, event.time, event.name, _encode(event.audience).decode(), event.data)
        for event in events
        if event.offset
    ]


def read_events(db: sqlite3.Connection, after: int, limit: int) -> list[Event]:
    """Return up to `limit` events with offsets above `after`, in order.

    :raises sqlite3.Error: the file cannot be read.
    """
    rows = db.execute(
        'SELECT "offset", name, audience, data, time FROM events WHERE "offset" > ? ORDER BY "offset" LIMIT ?',
        (after, max(limit, 0)),
    )
    return [Event(offset, name, _decode_audience(audience), data, time) for offset, name, audience, data, time in rows]


def write_online(db: sqlite3.Connection, changes: Sequence[tuple[Id, bool]]) -> None:
    """Add users that came online (True) to the table `online`, and remove those that went offline (False)."""
    for user_id, is_online in changes:
        statement = "INSERT OR IGNORE INTO online VALUES (?)" if is_online else "DELETE FROM online WHERE user_id = ?"
        db.execute(statement, (_encode(user_id).decode(),))


def read_online(db: sqlite3.Connection) -> list[Id]:
    """Return the users of the table `online`."""
    return [_decode_id(row[0]) for row in db.execute("SELECT user_id FROM online")]
