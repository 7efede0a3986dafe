"""The PHP helper's spool, as php/README.md defines it: undelivered lines, each in its own file."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from chatws.cli.output import count
from chatws.clients.protocol import WINDOW_BYTES, WINDOW_LINES, PushResult, is_retryable
from chatws.errors import ConfigError

__all__ = ["Line", "Outcome", "Spool", "parse_line", "send_spool"]

_LOCK = ".lock"
_REFUSED = "refused"
#: Seconds after which a half-written file counts as abandoned: PHP writes one in milliseconds.
_STALE = 3600
_LOCK_POLL = 0.05
#: Bytes of a file. PHP writes one line to each, and the server rejects lines above `max_line_size`, 1 MiB by default.
MAX_FILE = 4 * 1024 * 1024
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


class Line(NamedTuple):
    """A line to send.

    :ivar text: what goes over the wire, with its newline.
    :ivar id: what the answer will carry.
    """

    name: str
    text: bytes
    id: int | str
    event: str


@dataclass
class Outcome:
    """:ivar waiting: lines still in the spool, because of `problem`."""

    sent: int = 0
    refused: int = 0
    waiting: int = 0
    problem: str = ""


class Sender(Protocol):
    """The part of `BlockingPushClient` that is used here."""

    def send_lines(self, lines: list[tuple[bytes, int | str]]) -> tuple[list[PushResult | None], str]: ...


class _Spooled(msgspec.Struct):
    event: str
    id: int | str
    ack: bool


_decode = msgspec.json.Decoder(_Spooled).decode


def parse_line(name: str, text: bytes) -> Line | None:
    """Parse a file's line. Return None if the server would not answer it."""
    text = text.rstrip(b"\r\n")
    try:
        if b"\n" in text:
            return None
        text.decode()
        spooled = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Line(name, text + b"\n", spooled.id, spooled.event) if spooled.ack else None


class Spool:
    """The directory of lines that could not be sent.

    :param warn: called with a sentence for each file that an operator has to look at.
    :raises ConfigError: there is no such directory.
    """

    def __init__(self, directory: str, warn: Callable[[str], None]) -> None:
        self._directory = Path(directory)
        self._warn = warn
        self._unreadable: set[str] = set()
        self._skipped: set[str] = set()
        #: invalid files that the last `read_batch` moved to refused/
        self.invalid = 0
        if not self._directory.is_dir():
            raise ConfigError(f"--spool: there is no directory {directory}")

    def names(self) -> list[str]:
        """List the files that hold lines, the oldest first.

        :raises ConfigError: the directory cannot be read.
        """
        try:
            names = [name for name in os.listdir(self._directory) if name[0] != "." and name.endswith(".json")]
        except OSError as error:
            raise ConfigError(f"--spool: cannot read {self._directory}: {error.strerror}") from None
        return sorted(names, key=os.fsencode)

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Nobody else sends from here meanwhile.

        :raises ConfigError: another process held the lock for so long, or the directory cannot be written to.
        """
        try:
            import fcntl
        except ImportError:
            raise ConfigError("--spool needs flock(2), which this system lacks: run it where PHP runs") from None
        path = self._directory / _LOCK
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise ConfigError(f"--spool: {self._directory} cannot be written to; run this as PHP's user or its group")
        try:
            is_new = not path.exists()
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise ConfigError(f"--spool: cannot open {path}: {error.strerror}") from None
            # sending frees space, and the directory can be locked without any
            is_new, file = False, os.open(self._directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if is_new:
                os.chmod(path, 0o660)  # the umask may have removed bits
            end = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise ConfigError(
                            f"--spool: another process is sending from {self._directory}; try again later"
                        ) from None
                    time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(file)

    def read_batch(self) -> list[Line]:
        """Return the oldest lines, as many as are sent at once. The caller holds the lock."""
        self._sweep()
        self.invalid = 0
        batch: list[Line] = []
        size = 0
        for name in self.names():
            if name in self._skipped:
                continue
            try:
                text = self._read(name)
            except OSError as error:
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    self._warn(f"{self._directory / name} cannot be read: {error.strerror}")
                continue
            line = None if text is None else parse_line(name, text)
            if line is None:
                if self.refuse(name):
                    self._warn(f"{name} holds no line; it is in {self._directory / _REFUSED} now")
                self.invalid += 1
                continue
            size += len(line.text)
            if batch and size > WINDOW_BYTES:
                break
            batch.append(line)
            if len(batch) >= WINDOW_LINES:
                break
        return batch

    def _read(self, name: str) -> bytes | None:
        """Read a file. Return None if it cannot be a line: a FIFO, a directory, a symbolic link, or a large file."""
        path = self._directory / name
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE:
            return None
        # the directory belongs to PHP's user, who may replace the file in between
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            text = file.read(MAX_FILE + 1)
        return text if len(text) <= MAX_FILE else None

    def remove(self, name: str) -> None:
        """Its line has been delivered."""
        (self._directory / name).unlink(missing_ok=True)

    def refuse(self, name: str) -> bool:
        """Put aside a line that will never be taken, for a person. On a full disk it stays, and is skipped.

        :return: whether it was put aside.
        """
        refused = self._directory / _REFUSED
        try:
            refused.mkdir(0o770, exist_ok=True)
            (self._directory / name).rename(refused / name)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._skipped.add(name)
            self._warn(f"{self._directory / name} cannot be moved to {refused}: {error.strerror}; it is skipped")
            return False
        return True

    def _sweep(self) -> None:
        """Remove what processes that were killed have left half-written."""
        for path in self._directory.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    def warn_refused(self, line: Line, result: PushResult) -> None:
        """Tell that a line was refused for good."""
        path = self._directory / _REFUSED / line.name
        self._warn(f"{line.event} was refused, {result.code}: {result.message[:300]}; it is in {path} now")


def send_spool(spool: Spool, push: Sender, seconds: float, progress: Callable[[str], None]) -> Outcome:
    """Send what waits, for as long as that goes well.

    :param seconds: maximum wait for another process that is sending.
    :raises ConfigError: the directory cannot be used.
    :raises PushRejected: the server does not take our secret.
    """
    outcome = Outcome()
    try:
        while names := spool.names():
            progress(f"{count(outcome.sent, 'line')} sent, {len(names)} waiting")
            with spool.locked(seconds):
                # list again: the previous holder of the lock may have sent some
                batch = spool.read_batch()
                outcome.refused += spool.invalid
                results, problem = push.send_lines([(line.text, line.id) for line in batch]) if batch else ([], "")
                for line, result in zip(batch, results, strict=True):
                    if result is None:
                        continue
                    if result.ok:
                        spool.remove(line.name)
                        outcome.sent += 1
                    elif is_retryable(result):
                        problem = problem or f"{result.code}: {result.message}"
                    else:
                        if spool.refuse(line.name):
                            spool.warn_refused(line, result)
                        outcome.refused += 1
            if problem or not batch:
                outcome.problem = problem
                break
    except OSError as error:
        raise ConfigError(f"--spool: {error.strerror}: {error.filename}") from None
    outcome.waiting = len(spool.names())
    return outcome
