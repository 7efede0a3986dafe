"""Opening the SQLite file of a history, and what its errors mean for the operator."""

from __future__ import annotations

import errno
import os
import sqlite3

from chatws.brokers.sqlite.space import is_full
from chatws.errors import ConfigError, StartError

__all__ = ["connect", "is_empty", "to_config_error"]


def connect(path: str, *, create: bool) -> sqlite3.Connection:
    """Connect to the file. Commits are explicit, and any thread may use the connection.

    :param create: make the file if it is absent.
    :raises ConfigError: the file cannot be opened.
    """
    try:
        if create:
            _create_private(path)
        return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    except OSError as error:
        error_type = StartError if error.errno == errno.ENOSPC else ConfigError
        raise error_type(f"broker: cannot open {path}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise to_config_error(path, error) from error


def is_empty(path: str) -> bool:
    """Whether the file is absent or has no bytes."""
    return not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


def _create_private(path: str) -> None:
    """Make a new file readable by its owner only, because it will hold messages.

    SQLite gives its helper files the same mode. An existing file is left alone: to open and close it would release
    SQLite's locks on it.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0)
    try:
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        if not os.path.isfile(path):
            raise ConfigError(f"broker: cannot open {path}: not a file") from None


def to_config_error(path: str, error: sqlite3.Error) -> ConfigError:
    """Return the error of a file that could not be opened, in the operator's words."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended code
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StartError(f"broker: {path} is in use by another process")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return ConfigError(
            f"broker: {path} is damaged or no SQLite database ({error}); "
            "move it away to start a new history, after which browsers reload what they show"
        )
    if is_full(error):
        return StartError(f"broker: cannot open {path}: the disk is full; free some space")
    return ConfigError(f"broker: cannot open {path}: {error}")
