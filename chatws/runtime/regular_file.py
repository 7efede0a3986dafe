"""Read files without waiting: a FIFO in place of a secret or certificate must not stop a server that reloads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

__all__ = ["read_regular_file"]


def read_regular_file(path: str, max_size: int, check: Callable[[os.stat_result], None] = lambda status: None) -> bytes:
    """Read a whole file.

    :param max_size: bytes.
    :param check: raises an exception for an unsuitable file, before it is read.
    :raises OSError: it cannot be read, is not a regular file, or is larger.
    """

    def open_now(name: str, flags: int) -> int:
        # without O_NONBLOCK, opening a FIFO blocks until a writer comes
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=open_now) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        check(status)
        content = file.read(max_size + 1)
    if len(content) > max_size:
        raise OSError(errno.EFBIG, f"it has more than {max_size} bytes")
    return content
