"""Logs as JSON: one object a line, for whoever collects them (`--log-format json`).

twistd takes an `ILogObserver` that the application carries in the place of its own (twisted.application.app.AppLogger);
`--logger` on its command line goes before that. So the root service hangs one there when it is given its parent. It
writes where twistd would: to standard output, to `--logfile`, to `--syslog`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import TextIOBase
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python import logfile
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["JsonObserver", "fields_of", "format_event", "observer_for", "use_json"]

#: Characters kept of any one text, the traceback excepted.
LONGEST = 2000
#: Fields that Twisted adds to an event, and those that have a place of their own.
_OWN = frozenset(
    {"failure", "format", "isError", "message", "printed", "system", "time", "why", "level", "logger", "traceback"}
)


def format_event(event: LogEvent) -> str:
    """One event as a line of JSON, without its end. Never raises."""
    return json.dumps(fields_of(event), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace").decode()


def fields_of(event: LogEvent) -> dict[str, Any]:
    """One event as plain values.

    `time` (ISO 8601, UTC), `level`, `logger`, `message`; `traceback` of a failure; then its own fields: numbers,
    booleans, null and texts as such, anything else as its `repr`. Never raises.
    """
    when = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    level = event.get("log_level", LogLevel.info)
    failure = event.get("log_failure")
    line: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": getattr(level, "name", str(level)),
        "logger": event.get("log_namespace", "-"),
        "message": _cut(formatEvent(event)),
    }
    if isinstance(failure, Failure):
        try:
            line["traceback"] = failure.getTraceback()
        except Exception:
            line["traceback"] = "(cannot be shown)"
    for name, value in event.items():
        if not name.startswith("log_") and name not in _OWN and name.isidentifier():
            line[name] = _plain(value)
    return line


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if value - value == 0 else str(value)  # JSON knows no NaN and no infinity
    if isinstance(value, str):
        return _cut(str(value))
    try:
        return _cut(repr(value))
    except Exception:
        return "(cannot be shown)"


@implementer(ILogObserver)
class JsonObserver:
    """:param write: takes one line, with its end."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`."""
        self._write(format_event(event) + "\n")


def use_json(application: Any, twistd: Mapping[str, Any] | None) -> None:
    """Have twistd log through `observer_for`, when it looks for an observer in its application."""
    if twistd is not None and hasattr(application, "setComponent"):
        application.setComponent(ILogObserver, observer_for(twistd))


def observer_for(twistd: Mapping[str, Any]) -> JsonObserver:
    """The observer that writes where these options of twistd say.

    :raises OSError: the file cannot be opened.
    """
    if twistd.get("syslog"):
        return JsonObserver(_to_syslog(twistd.get("prefix") or ""))
    name = twistd.get("logfile") or ("" if twistd.get("nodaemon") else "twistd.log")
    if name in ("", "-"):
        return JsonObserver(_to_stream(sys.stdout))
    file = logfile.LogFile.fromFullPath(name, rotateLength=0)  # type: ignore[no-untyped-call]
    if not signal.getsignal(signal.SIGUSR1):
        _reopen_on_sigusr1(file)

    def write(line: str) -> None:
        file.write(line)
        file.flush()

    return JsonObserver(write)


def _to_stream(stream: TextIO | TextIOBase) -> Callable[[str], object]:
    # twistd replaces sys.stdout, whose lines then come here: the stream itself has to be kept
    def write(line: str) -> None:
        stream.write(line)
        stream.flush()

    return write


def _to_syslog(prefix: str) -> Callable[[str], object]:
    import syslog

    syslog.openlog(prefix)
    return lambda line: syslog.syslog(line.rstrip("\n"))


def _reopen_on_sigusr1(file: Any) -> None:
    """For logrotate, which has moved the file."""

    def reopen(number: int, frame: object) -> None:
        from twisted.internet import reactor

        reactor.callFromThread(file.reopen)

    signal.signal(signal.SIGUSR1, reopen)
