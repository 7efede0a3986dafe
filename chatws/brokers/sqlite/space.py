"""Reserve disk space for a history in SQLite, so that checkpoints and trims succeed on a full disk.

A commit appends pages to the write-ahead log (WAL). A checkpoint copies them into the database file, and SQLite then
writes the WAL from its beginning again. On a full disk that ends in a deadlock. The WAL cannot grow, and the checkpoint
that would empty it cannot extend the file. So `max_page_count` permits a page only if its disk space is allocated
already. Then every checkpoint succeeds, and the WAL keeps its size for transactions that reuse the pages of trimmed
events.

This requires a file system that can write allocated blocks on a full disk (tmpfs, ext4, XFS). On copy-on-write file
systems (btrfs, ZFS) publishing fails until there is space, and then continues.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress

__all__ = ["DiskSpace", "is_full"]

#: Pages to allocate at a time: 1 MiB, and smaller steps for a disk that is almost full.
CHUNKS = (256, 64, 16)
#: Bytes that are allocated for the write-ahead log first. A trim and a batch of ordinary events need less.
WAL_RESERVE = 256 * 1024
#: SQLite's default of `max_page_count`, for a file system without allocation.
NO_LIMIT = 0xFFFFFFFE

#: Errors of a full disk, an exhausted quota and a file size limit.
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: sqlite3.Error) -> bool:
    """Return whether an error means that the disk is full, or a quota or the file size limit is reached."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or code == sqlite3.SQLITE_IOERR_WRITE


def allocate(descriptor: int, size: int) -> None:
    """Allocate disk space for the first `size` bytes of a file (posix_fallocate(3)).

    :raises OSError: the disk is full, or the file system does not support it.
    """
    if not hasattr(os, "posix_fallocate"):  # Windows, macOS
        raise OSError(errno.EOPNOTSUPP, "no posix_fallocate")
    os.posix_fallocate(descriptor, 0, size)


class DiskSpace:
    """The space of one open database.

    :param path: path of the file. It stays open until `close`, because closing it earlier would release SQLite's locks
        (https://www.sqlite.org/howtocorrupt.html, section 2.2).
    :param db: a connection in WAL mode with exclusive locking.
    """

    def __init__(self, path: str, db: sqlite3.Connection) -> None:
        self._path = path
        self._db = db
        self._page_size = self._number("PRAGMA page_size")
        self._descriptor = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
        self._reserved = 0
        self._supported = True
        self.reserve()

    def close(self) -> None:
        """Close the file. Call this after the SQLite connection is closed."""
        os.close(self._descriptor)

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(pragma).fetchone()[0])

    def lacks(self, pages: int) -> bool:
        """Return whether fewer than `pages` pages are free in the file."""
        unused = self._number("PRAGMA max_page_count") - self._number("PRAGMA page_count")
        return self._number("PRAGMA freelist_count") + unused < pages

    def reserve(self, pages: int = 0) -> bool:
        """Allocate and permit at least `pages` more pages than are in use.

        :return: whether the disk has the space. If not, the file may not grow.
        """
        if not self._supported:
            return False
        used = self._number("PRAGMA page_count")
        for chunk in CHUNKS if self._reserve_wal() else ():
            limit = used + max(chunk, pages)
            try:
                allocate(self._descriptor, limit * self._page_size)
            except OSError as error:
                if error.errno in _NO_SPACE:
                    continue
                self._supported = False
                limit = NO_LIMIT
            self._permit(limit)
            return self._supported
        # space that the file has beyond its pages is allocated already
        self._permit(max(used, os.fstat(self._descriptor).st_size // self._page_size))
        return False

    def _reserve_wal(self) -> bool:
        """Allocate `WAL_RESERVE`. Without it SQLite cannot use free space in the database file either.

        :return: False if the disk is full.
        """
        try:
            # closing it releases no lock: with exclusive locking SQLite has none on this file
            descriptor = os.open(f"{self._path}-wal", os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
            try:
                allocate(descriptor, WAL_RESERVE)
            finally:
                os.close(descriptor)
        except OSError as error:
            return error.errno not in _NO_SPACE
        return True

    def _permit(self, limit: int) -> None:
        self._db.execute(f"PRAGMA max_page_count = {limit}")
        self._reserved = limit * self._page_size if self._supported else 0

    def committed(self) -> None:
        """Reserve again after a commit. Its checkpoint may have truncated the file."""
        if os.fstat(self._descriptor).st_size < self._reserved:
            self.reserve()

    def checkpoint(self) -> None:
        """Empty the write-ahead log; it keeps its size."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        self.committed()

    def release_wal(self) -> None:
        """Empty the write-ahead log and return its space to the disk, except `WAL_RESERVE`."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._reserve_wal()
        self.committed()
