"""The file of a log in SQLite: what is in it, and the four things done with it, each at once and on any one thread.

Tables: `log` has one row (epoch, last offset, at_risk); `events` the events by offset; `keys` the idempotency keys;
`online` the users, as JSON, that were online when it was last written.
An application id in the header keeps a mistyped path from being filled with tables (the shop's own database, say).
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from pathlib import Path

import msgspec

from chatws.brokers.contract import KEY_SECONDS, Audience, Bounds, Draft, Event
from chatws.brokers.keys import Batch, Keys, accept
from chatws.brokers.window import AGE_STEP
from chatws.errors import OperatorError
from chatws.ids import Id

__all__ = ["SqliteStore", "boot_id"]

#: "chws" in the header, sqlite.org/pragma.html#pragma_application_id.
APPLICATION_ID = 0x63687773
#: Of the tables below; grows when they change.
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE log (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL,
    last INTEGER NOT NULL,
    at_risk TEXT
);
CREATE TABLE events (
    "offset" INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    name TEXT NOT NULL,
    audience TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE keys (
    key TEXT PRIMARY KEY,
    "offset" INTEGER NOT NULL,
    time REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE online (
    user_id TEXT PRIMARY KEY
) WITHOUT ROWID;
"""

_encode_audience = msgspec.json.Encoder().encode
_decode_audience = msgspec.json.Decoder(Audience).decode
_encode_id = msgspec.json.Encoder().encode
_decode_id = msgspec.json.Decoder(int | str).decode


def boot_id() -> str:
    """A name for the time since this machine was started: while it is the same, what the kernel was given is there.

    Where the kernel does not tell, a new name each time, which is to fear the worst.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return secrets.token_hex(16)


class _Stored(msgspec.Struct, frozen=True, gc=False):
    """What trimming needs to know of a stored event."""

    time: float
    size: int


class SqliteStore:
    """One log's file. Not to be used from two threads at once.

    :ivar epoch: the log's epoch.
    :ivar last: the last offset given out.
    """

    epoch: str
    last: int

    def __init__(self, path: str, bounds: Bounds, *, durable: bool, boot: str) -> None:
        self._path = path
        self._bounds = bounds
        self._durable = durable
        self._boot = boot
        self._closed = True
        self._keys = Keys()
        self._forgotten: list[str] = []  # keys whose rows are to be deleted with the next transaction
        self._first = 1
        self._size = 0
        # The oldest stored events, from _first on, read ahead: trimming need not ask what it is about to drop.
        self._oldest: deque[_Stored] = deque()

    def open(self, now: float) -> None:
        """Open the file, or make it, and lock out every other process until `close` or this process's end.

        :param now: seconds since 1970.
        :raises OperatorError: it cannot be opened, is in use, or is something else.
        """
        try:
            self._create_private()
            self._db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        except OSError as error:
            raise OperatorError(f"broker: cannot open {self._path}: {error.strerror}") from error
        except sqlite3.Error as error:
            raise OperatorError(f"broker: cannot open {self._path}: {error}") from error
        try:
            self._set_up(now)
        except sqlite3.Error as error:
            self._db.close()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended code
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise OperatorError(f"broker: {self._path} is in use by another process") from error
            if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise OperatorError(
                    f"broker: {self._path} is damaged or no SQLite database ({error}); "
                    "move it away to start a new log, after which browsers reload what they show"
                ) from error
            raise OperatorError(f"broker: cannot open {self._path}: {error}") from error
        except BaseException:
            self._db.close()
            raise
        self._closed = False

    def _create_private(self) -> None:
        """Make a new file readable by its owner only: it will hold messages. SQLite gives its helper files the same
        mode. An existing file is left alone (to open and close it would let go of SQLite's locks on it)."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
        try:
            os.close(os.open(self._path, flags, 0o600))
        except FileExistsError:
            if not os.path.isfile(self._path):
                raise OperatorError(f"broker: cannot open {self._path}: not a file") from None

    def _set_up(self, now: float) -> None:
        db = self._db
        # Exclusive locking goes before journal_mode: then the WAL index is in this process's memory, and SQLite never
        # lets go of the file's lock (sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        mine = db.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        if not mine and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise OperatorError(f"broker: {self._path} is a database of something else, not a log of chatws")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if mine and version != SCHEMA_VERSION:
            raise OperatorError(f"broker: {self._path} is of another version of chatws (format {version})")
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise OperatorError(f"broker: {self._path} is where SQLite cannot keep a write-ahead log")
        # What is said here of the file's state must be on the disk before anything that depends on it: FULL.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN EXCLUSIVE")
        if not mine:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO log VALUES (1, ?, 0, NULL)", (secrets.token_urlsafe(8),))
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        row = db.execute("SELECT epoch, last, at_risk FROM log").fetchone()
        if row is None:
            raise OperatorError(f"broker: {self._path} is damaged: it has no epoch; move it away to start a new log")
        self.epoch, self.last, at_risk = row
        if at_risk is not None and at_risk != self._boot:
            # The machine went down under it, and the last events, which browsers may have seen, may not have reached
            # the disk. Their offsets will be given out again, so they must not mean the same.
            self.epoch = secrets.token_urlsafe(8)
            db.execute("DELETE FROM events")
            db.execute("UPDATE log SET epoch = ?", (self.epoch,))
        db.execute("UPDATE log SET at_risk = ?", (None if self._durable else self._boot,))
        db.execute("DELETE FROM keys WHERE time <= ?", (now - KEY_SECONDS,))
        for key, offset, time in db.execute('SELECT key, "offset", time FROM keys ORDER BY time'):
            self._keys.remember(key, offset, time)
        count, self._size, first, last = db.execute(
            'SELECT count(*), coalesce(sum(length(data)), 0), min("offset"), max("offset") FROM events'
        ).fetchone()
        if count and (last != self.last or last - first + 1 != count):
            raise OperatorError(f"broker: {self._path} is damaged: events are missing; move it away to start a new log")
        self._first = first if count else self.last + 1
        self._trim(now, self.last, count)
        db.execute("COMMIT")
        if not self._durable:
            db.execute("PRAGMA synchronous = NORMAL")

    def append(self, drafts: Sequence[Draft], now: float) -> Batch:
        """Store the drafts in one transaction: all of them or, when this raises, none.

        :raises sqlite3.Error: the disk is full, say.
        """
        batch = accept(drafts, self.last, self._keys, now)
        if batch.last == self.last and batch.keys is None:
            return batch  # transient events and duplicates
        db = self._db
        first, size = self._first, self._size
        if db.in_transaction:  # one that could not even be rolled back
            db.execute("ROLLBACK")
        db.execute("BEGIN")
        try:
            self._insert(batch, now)
            db.execute("COMMIT")
        except BaseException:
            self._first, self._size = first, size
            self._oldest.clear()
            if db.in_transaction:  # else SQLite has rolled back by itself
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            raise
        self.last = batch.last
        if batch.keys is not None:
            self._forgotten = []
            for key, event in batch.keys.items():
                self._forgotten += self._keys.remember(key, event.offset, now)
        return batch

    def _insert(self, batch: Batch, now: float) -> None:
        db = self._db
        rows = [
            (event.offset, event.time, event.name, _encode_audience(event.audience).decode(), event.data)
            for event in batch.fresh
            if event.offset
        ]
        if rows:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
            self._size += sum([len(row[4]) for row in rows])
            self._trim(now, batch.last, AGE_STEP)
            db.execute("UPDATE log SET last = ?", (batch.last,))
        if batch.keys is not None:
            known = [(key, event.offset, now) for key, event in batch.keys.items()]
            db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", known)
            if self._forgotten:
                old = now - KEY_SECONDS
                db.executemany("DELETE FROM keys WHERE key = ? AND time <= ?", [(key, old) for key in self._forgotten])

    def _trim(self, now: float, last: int, age_steps: int) -> None:
        """Drop the oldest events as chatws.brokers.window does, within the open transaction.

        :param last: the offset of the newest event, stored already.
        :param age_steps: at most so many for their age alone.
        """
        most = self._bounds.events or inf
        size = self._bounds.size or inf
        oldest_time = now - self._bounds.seconds if self._bounds.seconds else -inf
        first = self._first
        while self._first <= last:
            if not self._oldest:
                self._read_ahead()
            if last + 1 - self._first <= most and self._size <= size:
                if not age_steps or self._oldest[0].time >= oldest_time:
                    break
                age_steps -= 1
            self._size -= self._oldest.popleft().size
            self._first += 1
        if self._first != first:
            self._db.execute('DELETE FROM events WHERE "offset" < ?', (self._first,))

    def _read_ahead(self) -> None:
        rows = self._db.execute(
            'SELECT time, length(data) FROM events WHERE "offset" >= ? ORDER BY "offset" LIMIT 256', (self._first,)
        )
        self._oldest.extend([_Stored(*row) for row in rows])

    def read(self, after: int, limit: int) -> list[Event]:
        """Up to `limit` events with offsets above `after`, in order.

        :raises sqlite3.Error: the file cannot be read.
        """
        rows = self._db.execute(
            'SELECT "offset", name, audience, data, time FROM events WHERE "offset" > ? ORDER BY "offset" LIMIT ?',
            (after, max(limit, 0)),
        )
        return [
            Event(offset, name, _decode_audience(audience), data, time) for offset, name, audience, data, time in rows
        ]

    def bounds(self) -> tuple[int, int]:
        """The smallest offset stored (`last + 1` if none is) and the largest given out."""
        return self._first, self.last

    def note_presence(self, news: Sequence[tuple[Id, bool]]) -> None:
        """Remember who is online (True) and who no longer is, for the process that starts when this one has ended.

        :raises sqlite3.Error: the disk is full, say; then nothing of `news` is kept.
        """
        db = self._db
        db.execute("BEGIN")
        try:
            for user_id, is_online in news:
                statement = (
                    "INSERT OR IGNORE INTO online VALUES (?)" if is_online else "DELETE FROM online WHERE user_id = ?"
                )
                db.execute(statement, (_encode_id(user_id).decode(),))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            raise

    def online(self) -> list[Id]:
        """Whom `note_presence` left online."""
        return [_decode_id(row[0]) for row in self._db.execute("SELECT user_id FROM online")]

    def close(self) -> None:
        """Have everything on the disk, say so in the file, and let go of it. Idempotent.

        :raises sqlite3.Error: the file could not be written; it is let go of nevertheless.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("UPDATE log SET at_risk = NULL")
        finally:
            self._db.close()
