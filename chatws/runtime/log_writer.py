"""Log lines are written by a thread of their own, so that a log output that blocks does not block the server.

Every log output can block: a pipe that nobody reads (docker's log driver), a terminal that was stopped with Ctrl-S,
syslog, a file on a network disk. The reactor only puts a line into a queue. If the queue is full, lines are dropped and
counted. When the output takes lines again, one line says how many were dropped.
"""

from __future__ import annotations

import atexit
import codecs
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

from twisted.logger import Logger, LogLevel

from chatws.interfaces import Reactor

__all__ = [
    "FileOutput",
    "LogLine",
    "LogOutput",
    "LogWriter",
    "StreamOutput",
    "SyslogOutput",
    "count_dropped",
    "dropped_lines",
]

log = Logger()

#: Bytes of lines that wait to be written: some 10,000 lines, which a start or a reload never comes to.
MAX_HELD = 1024 * 1024
#: Bytes given to the output at a time.
BATCH = 65536
#: Seconds that the end of the process waits for the output to take the last lines.
FINISH_TIMEOUT = 2.0

_dropped = 0
_counting = threading.Lock()


def dropped_lines() -> int:
    """Log lines that this process has dropped since its start."""
    return _dropped


def count_dropped(count: int) -> None:
    """Count log lines that were dropped elsewhere."""
    global _dropped
    with _counting:
        _dropped += count


class LogLine(NamedTuple):
    """A line of the log, encoded, with its end."""

    data: bytes
    level: LogLevel = LogLevel.info


class LogOutput(Protocol):
    """Where lines go. All methods but `encoding` are called by the writer's thread, and may block.

    :ivar encoding: of the lines; what it cannot express is written as an escape.
    """

    encoding: str

    def write(self, lines: Sequence[LogLine]) -> None:
        """Write lines.

        :raises OSError: the lines, or some of them, could not be written.
        """
        ...

    def reopen(self) -> None:
        """Open the file again, which has been moved away; nothing for other outputs.

        :raises OSError: the file cannot be opened; the old one is still used.
        """
        ...


class LogWriter:
    """Writes lines to an output.

    :param limit: bytes of lines that may wait.
    """

    def __init__(self, output: LogOutput, limit: int = MAX_HELD) -> None:
        self.output = output
        self._limit = limit
        self._changed = threading.Condition()
        self._queue: deque[LogLine | None] = deque()  # None: the file is to be opened again
        self._size = 0
        self._is_writing = False
        self._dropped = 0
        self._reason = ""
        self._thread: threading.Thread | None = None
        self._finish_until: float | None = None
        atexit.register(self.finish)

    def run_in(self, reactor: Reactor) -> None:
        """Write from when the reactor runs (a daemon forks before that, and loses its threads) until it has stopped."""
        reactor.callWhenRunning(self.start)
        reactor.addSystemEventTrigger("after", "shutdown", self.finish)

    def start(self) -> None:
        """Start the thread. Lines that came before are written now."""
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="log", daemon=True)
                thread.start()
                self._thread = thread

    def write(self, text: str, level: LogLevel = LogLevel.info) -> None:
        """Queue one line, given with its end. Never raises, and never waits unless `finish` has been called."""
        data = text.encode(self.output.encoding, "backslashreplace")
        with self._changed:
            held = self._size + len(data)
            # once lines are dropped, they are until the queue is half empty: one long gap instead of many short ones
            if self._queue and held > (self._limit // 2 if self._dropped else self._limit):
                self._dropped += 1
                count_dropped(1)
                return
            self._queue.append(LogLine(data, level))
            self._size = held
            self._changed.notify_all()
        if self._finish_until is not None:
            self._wait()

    def reopen(self) -> None:
        """Have the output opened again behind the lines that wait."""
        with self._changed:
            self._queue.append(None)
            self._changed.notify_all()

    def finish(self) -> None:
        """Wait until all lines are written, and so after each later line: for `FINISH_TIMEOUT` in all."""
        with suppress(RuntimeError):  # from Python 3.12 on, no thread starts while the interpreter ends
            self.start()
        if self._finish_until is None:
            self._finish_until = time.monotonic() + FINISH_TIMEOUT
        self._wait()

    def _wait(self) -> None:
        assert self._finish_until is not None
        if threading.current_thread() is self._thread:
            return
        if self._thread is None:
            self._write_rest()
            return
        with self._changed:
            while self._queue or self._is_writing:
                left = self._finish_until - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _write_rest(self) -> None:
        """Write the lines that wait, in the calling thread."""
        while self._queue:
            with self._changed:
                batch = self._take()
            if batch:
                self._write(batch)
            else:
                self._reopen()

    # In the thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                while not self._queue:
                    self._changed.wait()
                self._is_writing = True
                batch = self._take()
            if batch:
                self._write(batch)
            else:
                self._reopen()

    def _take(self) -> list[LogLine]:
        """Take the next lines from the queue, or none if the output is to be opened again."""
        batch: list[LogLine] = []
        size = 0
        while self._queue and size < BATCH:
            line = self._queue[0]
            if line is None and batch:
                break
            self._queue.popleft()
            if line is None:
                break
            batch.append(line)
            size += len(line.data)
        self._size -= size
        return batch

    def _write(self, batch: list[LogLine]) -> None:
        try:
            self.output.write(batch)
        except Exception as error:
            # no log line: it would come here
            count_dropped(len(batch))
            with self._changed:
                self._dropped += len(batch)
                self._reason = getattr(error, "strerror", None) or str(error)
            return
        with self._changed:
            dropped, reason = self._dropped, self._reason
            if not dropped or self._size > self._limit // 2:
                return
            self._dropped, self._reason = 0, ""
        log.warn(
            "{count} log lines were dropped: the log output {reason}",
            count=dropped,
            reason=f"failed ({reason})" if reason else "was blocked",
        )

    def _reopen(self) -> None:
        try:
            self.output.reopen()
        except OSError as error:
            log.error(
                "cannot reopen the log {path}: {reason}; the log goes on in the old file",
                path=error.filename,
                reason=error.strerror,
            )


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process that has this pipe or terminal made it non-blocking
            select.select([], [descriptor], [])


class StreamOutput:
    """A standard stream, in its own encoding.

    It is written to by its descriptor. A thread that waits for a blocked output must not hold the stream's lock, which
    the interpreter needs at its end.

    :param stream: None where the process was started without it; then lines are dropped.
    """

    def __init__(self, stream: Any) -> None:
        self.encoding = codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name
        self._stream = stream
        self._descriptor: int | None = None
        with suppress(AttributeError, OSError):  # no stream, or one in memory
            # Windows' console takes text, not bytes in the stream's encoding
            if sys.platform != "win32" or not stream.isatty():
                self._descriptor = stream.fileno()

    def write(self, lines: Sequence[LogLine]) -> None:
        """See `LogOutput`."""
        data = b"".join(line.data for line in lines)
        if self._descriptor is not None:
            _write_all(self._descriptor, data)
        elif self._stream is not None:
            self._stream.write(data.decode(self.encoding))
            self._stream.flush()

    def reopen(self) -> None:
        """See `LogOutput`."""


class FileOutput:
    """A file, in UTF-8, or a named pipe.

    :raises OSError: it cannot be opened.
    """

    encoding = "utf-8"

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            is_pipe = stat.S_ISFIFO(os.stat(self._path).st_mode)
        except FileNotFoundError:
            is_pipe = False
        # opened for reading too, a pipe without a reader neither blocks nor fails (fifo(7); macOS does the same)
        access = os.O_RDWR if is_pipe else os.O_WRONLY | os.O_CREAT
        return os.open(self._path, access | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)

    def write(self, lines: Sequence[LogLine]) -> None:
        """See `LogOutput`."""
        _write_all(self._descriptor, b"".join(line.data for line in lines))

    def reopen(self) -> None:
        """See `LogOutput`."""
        old, self._descriptor = self._descriptor, self._open()
        os.close(old)


class SyslogOutput:
    """The system's log (syslog(3)), each line with a priority of its level."""

    encoding = "utf-8"

    def __init__(self, prefix: str) -> None:
        import syslog

        syslog.openlog(prefix)
        self._syslog = syslog.syslog
        self._priorities = {
            LogLevel.debug: syslog.LOG_DEBUG,
            LogLevel.info: syslog.LOG_INFO,
            LogLevel.warn: syslog.LOG_WARNING,
            LogLevel.error: syslog.LOG_ERR,
            LogLevel.critical: syslog.LOG_CRIT,
        }

    def write(self, lines: Sequence[LogLine]) -> None:
        """See `LogOutput`."""
        for line in lines:
            self._syslog(self._priorities[line.level], line.data.decode().rstrip("\n").replace("\0", "?"))

    def reopen(self) -> None:
        """See `LogOutput`."""
