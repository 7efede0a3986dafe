"""The format of a history file in SQLite: its tables, its number, and the migration from earlier formats.

Tables: `history` has one row (epoch, last offset, unsynced_boot). `events` holds the events by offset, `keys` the
idempotency keys. `members` has the members of each space that were online at the last write, and `member_data` their
data; members are JSON. `unsynced_boot` is the boot in which a process writes without waiting for the disk, and NULL
otherwise.

Two numbers in the file's header say what it is. The application id protects other databases from a mistyped path.
`user_version` is the number of the format: an earlier one is migrated, a later one is rejected.
"""

from __future__ import annotations

import secrets
import sqlite3
from pathlib import Path

from chatws.errors import ConfigError

__all__ = ["BOOT_ID", "FORMAT", "boot_id", "create_tables", "lock_and_identify", "migrate"]

#: "chws" in the header, sqlite.org/pragma.html#pragma_application_id.
_APPLICATION_ID = 0x63687773
#: Number of the tables below. Increase it with every change of them, and add the statements to `_MIGRATIONS`.
FORMAT = 3
#: The kernel's name of the present boot, see random(4).
BOOT_ID = "/proc/sys/kernel/random/boot_id"

_MEMBERS = (
    "CREATE TABLE members (space TEXT, member TEXT, PRIMARY KEY (space, member)) WITHOUT ROWID",
    "CREATE TABLE member_data (space TEXT, member TEXT, data TEXT NOT NULL, expires_at REAL NOT NULL, "
    "PRIMARY KEY (space, member)) WITHOUT ROWID",
)
_SCHEMA = (
    "CREATE TABLE history (id INTEGER PRIMARY KEY CHECK (id = 1), epoch TEXT NOT NULL, last_offset INTEGER NOT NULL, "
    "unsynced_boot TEXT)",
    'CREATE TABLE events ("offset" INTEGER PRIMARY KEY, time REAL NOT NULL, name TEXT NOT NULL, '
    "audience TEXT NOT NULL, data BLOB NOT NULL)",
    'CREATE TABLE keys (key TEXT PRIMARY KEY, "offset" INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID',
    *_MEMBERS,
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
#: By format: the statements that lead to the next one.
_MIGRATIONS = {
    1: (
        "ALTER TABLE log RENAME TO history",
        "ALTER TABLE history RENAME COLUMN one TO id",
        "ALTER TABLE history RENAME COLUMN last TO last_offset",
        "ALTER TABLE history RENAME COLUMN at_risk TO unsynced_boot",
        "PRAGMA user_version = 2",
    ),
    2: (
        *_MEMBERS,
        "INSERT INTO members SELECT 'agents', user_id FROM online",
        "DROP TABLE online",
        "PRAGMA user_version = 3",
    ),
}


def lock_and_identify(db: sqlite3.Connection, path: str) -> int:
    """Lock the file for this process and return the number of its format, 0 if it is empty.

    :param path: of the file, for messages.
    :raises ConfigError: it is another program's database, or of a format that this version does not know.
    :raises sqlite3.Error: it is in use, damaged, or no database.
    """
    # Exclusive locking goes before journal_mode: then the WAL index is in this process's memory, and SQLite never
    # lets go of the file's lock (sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    is_ours = db.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
    if not is_ours:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise ConfigError(f"broker: {path} is a database of something else, not a history of chatws")
        return 0
    number: int = db.execute("PRAGMA user_version").fetchone()[0]
    if number != FORMAT and number not in _MIGRATIONS:
        raise ConfigError(
            f"broker: {path} has format {number}, and this version of chatws reads formats 1 to {FORMAT}: use the "
            "version that wrote the file, or move it away to start a new history, after which browsers reload"
        )
    return number


def create_tables(db: sqlite3.Connection) -> None:
    """Make the tables of a new history, within a transaction of the caller."""
    for statement in _SCHEMA:
        db.execute(statement)
    db.execute("INSERT INTO history VALUES (1, ?, 0, NULL)", (secrets.token_urlsafe(8),))


def migrate(db: sqlite3.Connection, number: int) -> None:
    """Bring a file of an earlier format to the present one, within a transaction of the caller."""
    for earlier in range(number, FORMAT):
        for statement in _MIGRATIONS[earlier]:
            db.execute(statement)


def boot_id(path: str = BOOT_ID) -> str | None:
    """Read the name of the machine's present boot. While it stays the same, the kernel still has every write.

    :param path: of the kernel's file; see random(4).
    :return: None if it cannot be read: a container or a unit may hide it, and not every system has it.
    """
    try:
        return Path(path).read_text("ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
