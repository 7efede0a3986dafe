"""The PHP helper's spool, as php/README.md defines it: lines that could not be delivered, a file each."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from chatws.command.output import count
from chatws.errors import OperatorError
from chatws.push.blocking import WINDOW_BYTES, WINDOW_LINES
from chatws.push.requests import Answer, is_passing

__all__ = ["Line", "Outcome", "Spool", "parse_line", "send_spool"]

_LOCK = ".lock"
_REFUSED = "refused"
#: Seconds after which a half-written file has no writer any more.
_STALE = 3600
_LOCK_POLL = 0.05


class Line(NamedTuple):
    """
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
    """`BlockingPushClient`, as far as it is needed here."""

    def send_lines(self, lines: list[tuple[bytes, int | str]]) -> tuple[list[Answer | None], str]: ...


class _Spooled(msgspec.Struct):
    event: str
    id: int | str
    ack: bool


_decode = msgspec.json.Decoder(_Spooled).decode


def parse_line(name: str, text: bytes) -> Line | None:
    """A file's line, or None when it holds none that would be answered."""
    text = text.rstrip(b"\r\n")
    try:
        if b"\n" in text:
            return None
        text.decode()
        found = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return Line(name, text + b"\n", found.id, found.event) if found.ack else None


class Spool:
    """
    :param warn: is told of each file that needs a person.
    :raises OperatorError: there is no such directory.
    """

    def __init__(self, directory: str, warn: Callable[[str], None]) -> None:
        self._directory = Path(directory)
        self._warn = warn
        self._unreadable: set[str] = set()
        #: files found to hold no line, since the last `take`
        self.put_aside = 0
        if not self._directory.is_dir():
            raise OperatorError(f"--spool: there is no directory {directory}")

    def names(self) -> list[str]:
        """The files that hold lines, the oldest first.

        :raises OperatorError: the directory cannot be read.
        """
        try:
            found = [one for one in os.listdir(self._directory) if one[0] != "." and one.endswith(".json")]
        except OSError as error:
            raise OperatorError(f"--spool: cannot read {self._directory}: {error.strerror}") from None
        return sorted(found, key=os.fsencode)

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Nobody else sends from here meanwhile.

        :raises OperatorError: somebody else did for so long, or the directory cannot be written to.
        """
        path = self._directory / _LOCK
        if not os.access(self._directory, os.W_OK | os.X_OK):
            raise OperatorError(f"--spool: {self._directory} cannot be written to; run this as PHP's user or its group")
        try:
            is_new = not path.exists()
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            raise OperatorError(f"--spool: cannot open {path}: {error.strerror}") from None
        try:
            if is_new:
                os.chmod(path, 0o660)  # whatever the umask
            end = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise OperatorError(
                            f"--spool: another process is sending from {self._directory}; try again later"
                        ) from None
                    time.sleep(_LOCK_POLL)
            yield
        finally:
            os.close(file)

    def take(self) -> list[Line]:
        """The oldest lines, as many as are sent at once. To be called under the lock."""
        self._sweep()
        self.put_aside = 0
        taken: list[Line] = []
        size = 0
        for name in self.names():
            try:
                text = (self._directory / name).read_bytes()
            except OSError as error:
                if name not in self._unreadable:
                    self._unreadable.add(name)
                    self._warn(f"{self._directory / name} cannot be read: {error.strerror}")
                continue
            line = parse_line(name, text)
            if line is None:
                self._warn(f"{name} holds no line; it is in {self._directory / _REFUSED} now")
                self.refuse(name)
                self.put_aside += 1
                continue
            size += len(line.text)
            if taken and size > WINDOW_BYTES:
                break
            taken.append(line)
            if len(taken) >= WINDOW_LINES:
                break
        return taken

    def remove(self, name: str) -> None:
        """Its line has been delivered."""
        (self._directory / name).unlink(missing_ok=True)

    def refuse(self, name: str) -> None:
        """Its line will never be taken: for a person to look at."""
        refused = self._directory / _REFUSED
        refused.mkdir(0o770, exist_ok=True)
        (self._directory / name).rename(refused / name)

    def _sweep(self) -> None:
        """Remove what processes that were killed have left half-written."""
        for path in self._directory.glob(".*.tmp"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    path.unlink()

    def warn_refused(self, line: Line, answer: Answer) -> None:
        """Tell that a line was refused for good."""
        where = self._directory / _REFUSED / line.name
        self._warn(f"{line.event} was refused, {answer.code}: {answer.message[:300]}; it is in {where} now")


def send_spool(spool: Spool, push: Sender, seconds: float, progress: Callable[[str], None]) -> Outcome:
    """Send what waits, for as long as that goes well.

    :param seconds: to wait for whoever else is sending.
    :raises OperatorError: the directory cannot be used.
    :raises PushRefused: the server does not take our secret.
    """
    outcome = Outcome()
    try:
        while names := spool.names():
            progress(f"{count(outcome.sent, 'line')} sent, {len(names)} waiting")
            with spool.locked(seconds):
                # looked up again: whoever had the lock before may have sent some
                taken = spool.take()
                outcome.refused += spool.put_aside
                answers, problem = push.send_lines([(line.text, line.id) for line in taken]) if taken else ([], "")
                for line, answer in zip(taken, answers, strict=True):
                    if answer is None:
                        continue
                    if answer.ok:
                        spool.remove(line.name)
                        outcome.sent += 1
                    elif is_passing(answer):
                        problem = problem or f"{answer.code}: {answer.message}"
                    else:
                        spool.refuse(line.name)
                        spool.warn_refused(line, answer)
                        outcome.refused += 1
            if problem or not taken:
                outcome.problem = problem
                break
    except OSError as error:
        raise OperatorError(f"--spool: {error.strerror}: {error.filename}") from None
    outcome.waiting = len(spool.names())
    return outcome
