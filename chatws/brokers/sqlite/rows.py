"""Rows of the SQLite file of a history: stored events, and the members of spaces."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from chatws.brokers.interface import Audience, Event, MemberData
from chatws.ids import Id

__all__ = ["event_rows", "read_data", "read_events", "read_members", "write_data", "write_members"]

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


def write_members(db: sqlite3.Connection, space: str, changes: Sequence[tuple[Id, bool]]) -> None:
    """Add members that came online (True) to the table `members`, and remove those that went offline (False)."""
    for member, is_online in changes:
        statement = (
            "INSERT OR IGNORE INTO members VALUES (?, ?)"
            if is_online
            else "DELETE FROM members WHERE space = ? AND member = ?"
        )
        db.execute(statement, (space, _encode(member).decode()))


def read_members(db: sqlite3.Connection) -> dict[str, list[Id]]:
    """Return the members of each space in the table `members`."""
    members: dict[str, list[Id]] = {}
    for space, member in db.execute("SELECT space, member FROM members"):
        members.setdefault(space, []).append(_decode_id(member))
    return members


def write_data(db: sqlite3.Connection, space: str, member: Id, data: MemberData | None, now: float) -> None:
    """Store or remove the data of a member, and remove what has expired."""
    db.execute("DELETE FROM member_data WHERE expires_at <= ?", (now,))
    key = (space, _encode(member).decode())
    if data is None:
        db.execute("DELETE FROM member_data WHERE space = ? AND member = ?", key)
    else:
        db.execute("INSERT OR REPLACE INTO member_data VALUES (?, ?, ?, ?)", (*key, *data))


def read_data(db: sqlite3.Connection) -> list[tuple[str, Id, MemberData]]:
    """Return the rows of the table `member_data`."""
    rows = db.execute("SELECT space, member, data, expires_at FROM member_data")
    return [(space, _decode_id(member), MemberData(data, expires_at)) for space, member, data, expires_at in rows]
