"""The SQLite file of a history: its operations, which block, and may run on any one thread at a time."""

from __future__ import annotations

import secrets
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import inf
from typing import Any

import msgspec

from chatws.brokers.event_buffer import AGE_STEP
from chatws.brokers.idempotency import AssignedBatch, IdempotencyCache, assign_offsets
from chatws.brokers.interface import KEY_SECONDS, Event, MemberData, NewEvent, Retention
from chatws.brokers.sqlite.file import connect, is_empty, to_config_error
from chatws.brokers.sqlite.format import FORMAT, create_tables, lock_and_identify, migrate
from chatws.brokers.sqlite.rows import event_rows, read_data, read_events, read_members, write_data, write_members
from chatws.brokers.sqlite.space import DiskSpace, is_full
from chatws.brokers.webhook_queue import (
    NO_WEBHOOK_QUEUE,
    NewWebhook,
    SqlWebhookQueue,
    WebhookReply,
    WebhookRequest,
    presence_webhooks,
)
from chatws.errors import ConfigError
from chatws.ids import Id

__all__ = ["SqliteStore"]

#: Bytes of `data` that a page of 4096 bytes holds at least, and the number of other pages that a transaction changes
#: (inner nodes, keys). Both are conservative estimates.
_PAGE_DATA = 2048
_PAGES = 16


class _Stored(msgspec.Struct, frozen=True, gc=False):
    """The part of a stored event that trimming needs."""

    time: float
    size: int


class SqliteStore:
    """The file of one history. Not to be used from two threads at once.

    :param sync_commits: each commit waits for the disk.
    :param boot: id of the machine's current boot. None, if it is unknown, requires `sync_commits`.
    :ivar epoch: the history's epoch.
    :ivar last: the last offset assigned.
    :ivar is_unsettled: the disk was too full to note in the file that this process writes it. The next append does.
    :ivar shortened: number of events that were dropped for newer ones on a full disk.
    :ivar dropped: number of events that were past their retention when the file was opened.
    :ivar is_new: the file was empty or absent.
    :ivar migrated_from: the format that the file had before `open`, 0 if it had the present one.
    :ivar discarded: why `open` discarded the stored events; empty if it kept them.
    :ivar webhook_queue: settings of the queue of webhooks. Set before `open`.
    """

    epoch: str
    last: int
    is_new = False
    migrated_from = 0
    is_unsettled = False
    shortened = 0
    dropped = 0
    discarded = ""
    webhook_queue = NO_WEBHOOK_QUEUE

    def __init__(self, path: str, retention: Retention, *, sync_commits: bool, boot: str | None) -> None:
        if boot is None and not sync_commits:
            raise ValueError("without a boot id every commit must wait for the disk: sync_commits=True")
        self._path = path
        self._retention = retention
        self._sync_commits = sync_commits
        self._boot = boot
        self._closed = True
        self._space: Any = None  # DiskSpace, while it is open
        self._keys = IdempotencyCache()
        self._forgotten: list[str] = []  # keys whose rows are to be deleted with the next transaction
        self._first = 1
        self._size = 0
        # The oldest stored events, from _first on, read ahead for trimming.
        self._oldest: deque[_Stored] = deque()
        self._webhooks: SqlWebhookQueue | None = None

    def open(self, now: float, *, discard: str = "") -> None:
        """Open or create the file, and lock it until `close` or the end of this process.

        This succeeds on a full disk too, if the history exists. Events can be read, and published once there is space.

        :param now: seconds since 1970.
        :param discard: why the events are discarded and an epoch begins; by default they are kept if they are safe.
        :raises ConfigError: the file cannot be opened, is in use, is damaged, or is not a history.
        """
        with self._connected(create=True):
            self._set_up(now, lock_and_identify(self._db, self._path), discard)
            if self.webhook_queue.limit:
                self._transact(lambda: self._open_webhooks(now))
        self._closed = False

    def _open_webhooks(self, now: float) -> None:
        self._webhooks = SqlWebhookQueue(self._db, self.webhook_queue.limit, self.epoch, now)

    def check(self) -> None:
        """Check whether `open` would succeed, without a change to the file. It may be absent or empty.

        :raises ConfigError: as `open`.
        """
        if is_empty(self._path):
            return
        with self._connected(create=False):
            if lock_and_identify(self._db, self._path) == FORMAT:
                self._load()
        self._db.close()

    @contextmanager
    def _connected(self, *, create: bool) -> Iterator[None]:
        """Connect. If the block fails, close again and raise `ConfigError` for an error of SQLite."""
        self._db = connect(self._path, create=create)
        try:
            yield
        except BaseException as error:
            self._db.close()
            if self._space is not None:
                self._space.close()
                self._space = None
            if isinstance(error, sqlite3.Error):
                raise to_config_error(self._path, error) from error
            raise

    def _set_up(self, now: float, number: int, discard: str) -> None:
        """Make the file ready for use.

        :param number: number of the file's format, 0 if the file is empty.
        :param discard: as for `open`.
        """
        db = self._db
        self.is_new, self.migrated_from = not number, number if 0 < number < FORMAT else 0
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise ConfigError(
                f"broker: {self._path}: this file system does not support SQLite's write-ahead log; use a local disk"
            )
        # Debian's SQLite overwrites deleted rows, so a trim writes as much as it removes. The file is private anyway.
        db.execute("PRAGMA secure_delete = OFF")
        # The state of the file must be on the disk before any write that depends on it: FULL.
        db.execute("PRAGMA synchronous = FULL")
        if self.is_new:
            self._transact(lambda: create_tables(db))
        elif self.migrated_from:
            self._transact(lambda: migrate(db, number))
        self._space = DiskSpace(self._path, db)
        lost = self._load() or discard
        try:
            self._settle(now, lost)
        except sqlite3.Error as error:
            if lost or not is_full(error):
                raise
            self.is_unsettled = True
        if not self._sync_commits:
            db.execute("PRAGMA synchronous = NORMAL")

    def _load(self) -> str:
        """Read what the file holds.

        :return: why the events have to be discarded, or nothing.
        """
        db = self._db
        row = db.execute("SELECT epoch, last_offset, unsynced_boot FROM history").fetchone()
        if row is None:
            raise ConfigError(f"broker: {self._path} is damaged: it has no epoch; move it away to start a new history")
        self.epoch, self.last, unsynced_boot = row
        for key, offset, time in db.execute('SELECT key, "offset", time FROM keys ORDER BY time'):
            self._keys.restore(key, offset, time)
        count, self._size, first, last = db.execute(
            'SELECT count(*), coalesce(sum(length(data)), 0), min("offset"), max("offset") FROM events'
        ).fetchone()
        if count and (last != self.last or last - first + 1 != count):
            raise ConfigError(
                f"broker: {self._path} is damaged: events are missing; move it away to start a new history"
            )
        self._first = first if count else self.last + 1
        if unsynced_boot is None or unsynced_boot == self._boot:
            return ""
        # The last events, which clients may have received, may not have reached the disk. Their offsets are assigned
        # again, so they need a new epoch.
        if self._boot is None:
            return "the boot id cannot be read, so a power cut since the last write cannot be excluded"
        return "the machine restarted before the last events were known to be on the disk"

    def _settle(self, now: float, lost: str) -> None:
        """Note in the file that this process writes it, and trim.

        :param lost: why the events have to be discarded, or nothing.
        :raises sqlite3.Error: for example, the disk is full. Nothing has changed then.
        """
        epoch = secrets.token_urlsafe(8) if lost else self.epoch
        before = self.last + 1 if lost else self._first

        def settle() -> None:
            db = self._db
            if lost:
                db.execute("DELETE FROM events")
                db.execute("UPDATE history SET epoch = ?", (epoch,))
                self._first, self._size = before, 0
            db.execute("UPDATE history SET unsynced_boot = ?", (None if self._sync_commits else self._boot,))
            db.execute("DELETE FROM keys WHERE time <= ?", (now - KEY_SECONDS,))
            self._trim(now, self.last, self.last + 1 - before)

        self._transact(settle)
        self.dropped = self._first - before
        self.epoch, self.discarded, self.is_unsettled = epoch, lost, False

    def append(self, new_events: Sequence[NewEvent], now: float) -> AssignedBatch:
        """Store events in one transaction: all of them or, when this raises, none.

        On a full disk it drops the oldest events, if that frees enough space.

        :raises sqlite3.Error: for example, the disk is full.
        """
        batch = assign_offsets(new_events, self.last, self._keys, now)
        if batch.last == self.last and batch.keys is None:
            return batch  # transient events and duplicates
        if self.is_unsettled:
            self._settle(now, "")
        try:
            self._run(lambda: self._insert(batch, now))
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            self._insert_on_full_disk(batch, now, error)
        self._space.committed()
        self.last = batch.last
        if batch.keys is not None:
            self._forgotten = []
            for key, event in batch.keys.items():
                self._forgotten += self._keys.remember(key, event.offset, now, batch.extra.get(key, 0.0))
        return batch

    def _insert_on_full_disk(self, batch: AssignedBatch, now: float, error: sqlite3.Error) -> None:
        """Insert after freeing space (`chatws.brokers.sqlite.space`), with the cheapest measure first."""
        pages = _PAGES + sum(2 + len(event.data) // _PAGE_DATA for event in batch.fresh)
        space = self._space
        checkpointed = released = False
        while True:
            lacks = space.lacks(pages)
            if lacks and space.reserve(pages):
                pass
            elif not checkpointed:
                checkpointed = True
                space.checkpoint()
            elif lacks and not released:
                released = True
                space.release_wal()
                continue
            elif not (lacks and self._drop_oldest(pages)):
                raise error
            try:
                return self._run(lambda: self._insert(batch, now))
            except sqlite3.Error as next_error:
                if not is_full(next_error):
                    raise
                error = next_error

    def _drop_oldest(self, pages: int) -> bool:
        """Drop the oldest events until their data amounts to twice the size of `pages` pages.

        :return: False if all events together are smaller, or SQLite fails. No event is dropped then.
        """
        size = 2 * pages * _PAGE_DATA
        if self._size < size:
            return False

        def drop() -> None:
            goal = self._size - size
            while self._size > goal:
                if not self._oldest:
                    self._read_ahead()
                self._size -= self._oldest.popleft().size
                self._first += 1
            self._db.execute('DELETE FROM events WHERE "offset" < ?', (self._first,))

        before = self._first
        try:
            self._run(drop)
        except sqlite3.Error:
            return False
        self.shortened += self._first - before
        return True

    def _transact(self, work: Callable[[], None]) -> None:
        """Run `work` as a transaction. On a full disk, empty the write-ahead log and try once more."""
        try:
            self._run(work)
        except sqlite3.Error as error:
            if self._space is None or not is_full(error):
                raise
            self._space.checkpoint()
            self._run(work)

    def _run(self, work: Callable[[], None]) -> None:
        """Run `work` as one transaction. If this raises, nothing has changed."""
        db = self._db
        first, size = self._first, self._size
        if db.in_transaction:  # a transaction whose rollback failed
            db.execute("ROLLBACK")
        db.execute("BEGIN EXCLUSIVE")
        try:
            work()
            db.execute("COMMIT")
        except BaseException:
            self._first, self._size = first, size
            self._oldest.clear()
            if db.in_transaction:  # else SQLite has rolled back by itself
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
            raise

    def _insert(self, batch: AssignedBatch, now: float) -> None:
        db = self._db
        rows = event_rows(batch.fresh)
        if rows:
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
            self._size += sum([len(row[4]) for row in rows])
            self._trim(now, batch.last, AGE_STEP)
            db.execute("UPDATE history SET last_offset = ?", (batch.last,))
        if batch.keys is not None:
            extra = batch.extra
            key_rows = [(key, event.offset, now + extra.get(key, 0.0)) for key, event in batch.keys.items()]
            db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?, ?)", key_rows)
            if self._forgotten:
                expired = now - KEY_SECONDS
                db.executemany(
                    "DELETE FROM keys WHERE key = ? AND time <= ?", [(key, expired) for key in self._forgotten]
                )

    def _trim(self, now: float, last: int, age_steps: int) -> None:
        """Drop the oldest events as chatws.brokers.event_buffer does, within the open transaction.

        :param last: the offset of the newest stored event.
        :param age_steps: maximum number of events to drop only because of their age.
        """
        max_events = self._retention.events or inf
        max_size = self._retention.size or inf
        oldest_time = now - self._retention.seconds if self._retention.seconds else -inf
        first = self._first
        while self._first <= last:
            if not self._oldest:
                self._read_ahead()
            if last + 1 - self._first <= max_events and self._size <= max_size:
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
        """Return up to `limit` events with offsets above `after`, in order.

        :raises sqlite3.Error: the file cannot be read.
        """
        return read_events(self._db, after, limit)

    def offset_range(self) -> tuple[int, int]:
        """Return the smallest offset stored (`last + 1` if there is none) and the largest assigned."""
        return self._first, self.last

    def note_members(self, space: str, changes: Sequence[tuple[Id, bool]], now: float) -> None:
        """Store members that came online (True) or went offline: for the next process, and for webhooks.

        :raises sqlite3.Error: for example, the disk is full. Nothing of `changes` is stored then.
        """

        def note() -> None:
            write_members(self._db, space, changes)
            if self._webhooks is not None and self.webhook_queue.limit_for(space):
                self._webhooks.add(presence_webhooks(space, changes), now)

        self._transact(note)

    def note_data(self, space: str, member: Id, data: MemberData | None, now: float) -> None:
        """Store a member's data, or remove it.

        :raises sqlite3.Error: for example, the disk is full.
        """
        self._transact(lambda: write_data(self._db, space, member, data, now))

    def add_webhooks(self, webhooks: Sequence[NewWebhook], now: float, *, reset: bool) -> None:
        """See `Broker.add_webhooks`.

        :raises sqlite3.Error: for example, the disk is full. Nothing is stored then.
        """
        queue = self._webhooks
        assert queue is not None

        def add() -> None:
            queue.add(webhooks, now)
            if reset:
                queue.require_reset()

        self._transact(add)

    def exchange_webhooks(self, request: WebhookRequest, now: float) -> WebhookReply:
        """See `Broker.exchange_webhooks`.

        :raises sqlite3.Error: for example, the disk is full.
        """
        queue = self._webhooks
        assert queue is not None
        replies: list[WebhookReply] = []
        self._transact(lambda: replies.append(queue.exchange(request, now, lasts=True)))
        return replies[-1]

    def _mark_synced(self) -> None:
        self._db.execute("UPDATE history SET unsynced_boot = NULL")

    def members(self) -> dict[str, list[Id]]:
        """Return the members of each space that `note_members` left online."""
        return read_members(self._db)

    def data(self) -> list[tuple[str, Id, MemberData]]:
        """Return what `note_data` has stored: space, member and data."""
        return read_data(self._db)

    def close(self) -> None:
        """Sync the file to the disk, mark it as synced, and close it. Idempotent.

        :raises sqlite3.Error: the file could not be written. It is closed anyway.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            if not self.is_unsettled:
                self._transact(self._mark_synced)
        finally:
            self._db.close()
            self._space.close()
