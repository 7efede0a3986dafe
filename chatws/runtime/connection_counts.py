"""Counts of open connections by user and by address, over all workers of a machine.

Each process counts its own connections exactly. Workers also share a table in memory (`SharedCounts`), in which each
writes a row of its own, so no lock is needed. The table is a count-min sketch
(https://doi.org/10.1016/j.jalgor.2003.12.001): of several cells for a key, the smallest sum counts. It never is too
small, and too large only if other keys have the same cells in all of `DEPTH` hashes.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import struct
import tempfile

__all__ = ["ConnectionCounts", "CountsFile", "SharedCounts"]

#: Hashes of a key, and cells of each. With 50,000 keys, one key in a thousand shares all of its cells with others.
DEPTH, CELLS = 4, 2**18
#: Bytes of a cell.
_CELL = 4
_ROW = DEPTH * CELLS
_unpack = struct.Struct(f"<{DEPTH}I").unpack


class CountsFile:
    """The table's memory: a file without a name. Pages that are not written take no memory.

    :param rows: number of workers.
    :ivar secret: for the hashes: clients cannot choose keys with the same cells.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.secret = secrets.token_bytes(16)
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("chatws-counts")
        else:
            self.descriptor, path = tempfile.mkstemp()
            os.unlink(path)
        os.truncate(self.descriptor, rows * _ROW * _CELL)

    def clear(self, row: int) -> None:
        """Forget the counts of a worker that has ended."""
        os.pwrite(self.descriptor, bytes(_ROW * _CELL), row * _ROW * _CELL)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class SharedCounts:
    """The table in shared memory.

    :param descriptor: that of the `CountsFile`, like `rows` and `secret`.
    :param row: of this worker.
    """

    def __init__(self, descriptor: int, rows: int, row: int, secret: bytes) -> None:
        self._map = mmap.mmap(descriptor, rows * _ROW * _CELL)
        self._cells = memoryview(self._map).cast("I")
        self._own = row * _ROW
        self._others = [number * _ROW for number in range(rows) if number != row]
        self._secret = secret

    def add(self, key: str, change: int) -> None:
        """Change this worker's count of a key."""
        for cell in self._positions(key):
            self._cells[self._own + cell] += change

    def others(self, key: str) -> int:
        """Return the count of the other workers."""
        cells = self._cells
        return min(sum(cells[row + cell] for row in self._others) for cell in self._positions(key))

    def close(self) -> None:
        """Unmap the table."""
        self._cells.release()
        self._map.close()

    def _positions(self, key: str) -> list[int]:
        text = key.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(text, digest_size=4 * DEPTH, key=self._secret).digest()
        return [number * CELLS + value % CELLS for number, value in enumerate(_unpack(digest))]


class ConnectionCounts:
    """Counts of this process, and of the other workers if there are any.

    :param shared: the table of the workers.
    """

    def __init__(self, shared: SharedCounts | None = None) -> None:
        self._shared = shared
        self._own: dict[str, int] = {}

    def total(self, key: str) -> int:
        """Return the open connections of a user or an address."""
        own = self._own.get(key, 0)
        return own if self._shared is None else own + self._shared.others(key)

    def add(self, key: str) -> None:
        """Count a connection."""
        self._own[key] = self._own.get(key, 0) + 1
        if self._shared is not None:
            self._shared.add(key, 1)

    def remove(self, key: str) -> None:
        """Count a connection that `add` has counted as closed."""
        count = self._own[key] - 1
        if count:
            self._own[key] = count
        else:
            del self._own[key]
        if self._shared is not None:
            self._shared.add(key, -1)
