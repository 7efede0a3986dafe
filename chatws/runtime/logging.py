"""The log: as text, or as JSON, one object a line (`--log-format json`).

twistd takes an `ILogObserver` that the application carries in the place of its own (twisted.application.app.AppLogger);
`--logger` on its command line goes before that. So the root service hangs one there when it is given its parent. It
writes where twistd would (to standard output, to `--logfile`, to `--syslog`), through a `LogWriter`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, formatEvent, formatEventAsClassicLogText
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.errors import ConfigError
from chatws.runtime.log_levels import is_logged
from chatws.runtime.log_writer import FileOutput, LogWriter, StreamOutput, SyslogOutput
from chatws.runtime.twistd_options import log_path

__all__ = ["JsonObserver", "SyslogObserver", "TextObserver", "fields_of", "format_event", "open_log"]

#: Characters kept of any one text, the traceback excepted.
LONGEST = 2000
#: Fields that Twisted adds to an event, and those that have a place of their own.
_OWN = frozenset(
    {"failure", "format", "isError", "message", "printed", "system", "time", "why", "level", "logger", "traceback"}
)


def format_event(event: LogEvent, ensure_ascii: bool = False, node: str = "") -> str:
    """One event as a line of JSON, without its end. Never raises."""
    text = json.dumps(fields_of(event, node), ensure_ascii=ensure_ascii, allow_nan=False)
    return text.encode("utf-8", "replace").decode()


def fields_of(event: LogEvent, node: str = "") -> dict[str, Any]:
    """One event as plain values.

    `time` (ISO 8601, UTC), `level`, `logger`, `node` if it is given, `message` and the `traceback` of a failure come
    first. Its own fields follow: numbers, booleans, null and texts as such, anything else as its `repr`. Never raises.
    """
    when = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    level = event.get("log_level", LogLevel.info)
    failure = event.get("log_failure")
    line: dict[str, Any] = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": getattr(level, "name", str(level)),
        "logger": event.get("log_namespace", "-"),
        **({"node": node} if node else {}),
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


class _Observer:
    """Writes the events that the levels of the log allow (chatws.runtime.log_levels).

    :param writer: takes the lines.
    :param node: the name of the node, which is in each line.
    """

    def __init__(self, writer: LogWriter, node: str = "") -> None:
        self.writer = writer
        self.node = node

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`."""
        if is_logged(event):
            self.write(event, event.get("log_level", LogLevel.info))

    def write(self, event: LogEvent, level: LogLevel) -> None:
        """Write the event's lines."""
        raise NotImplementedError

    def named(self, event: LogEvent) -> LogEvent:
        """Return the event with the node in its system, which the text has in brackets."""
        if not self.node:
            return event
        level = getattr(event.get("log_level"), "name", "-")
        system = event.get("log_system") or f"{event.get('log_namespace', '-')}#{level}"
        return {**event, "log_system": f"{self.node} {system}"}


@implementer(ILogObserver)
class TextObserver(_Observer):
    """Writes events as twistd does."""

    def write(self, event: LogEvent, level: LogLevel) -> None:
        """See `_Observer`."""
        text = formatEventAsClassicLogText(self.named(event))
        if text is not None:
            self.writer.write(text, level)


@implementer(ILogObserver)
class JsonObserver(_Observer):
    """Writes events as JSON: in UTF-8 (RFC 8259 §8.1), or in ASCII to an output with another encoding."""

    def write(self, event: LogEvent, level: LogLevel) -> None:
        """See `_Observer`."""
        line = format_event(event, self.writer.output.encoding != "utf-8", self.node)
        self.writer.write(line + "\n", level)


@implementer(ILogObserver)
class SyslogObserver(_Observer):
    """Writes events as text without their time, which syslog adds. Each of their lines is a message of its own."""

    def write(self, event: LogEvent, level: LogLevel) -> None:
        """See `_Observer`."""
        first, *more = eventAsText(self.named(event), includeTimestamp=False).splitlines() or [""]
        for line in (first, *(f"\t{continuation}" for continuation in more)):
            self.writer.write(line + "\n", level)


def open_log(
    twistd: Mapping[str, Any], log_format: str, node: str = ""
) -> TextObserver | JsonObserver | SyslogObserver:
    """Make the observer that writes where these options of twistd say.

    :param twistd: its options, checked (`chatws.runtime.twistd_options`).
    :param node: the name of the node.
    :raises ConfigError: the file cannot be opened.
    """
    if twistd.get("syslog"):
        writer = LogWriter(SyslogOutput(twistd.get("prefix") or ""))
        return JsonObserver(writer, node) if log_format == "json" else SyslogObserver(writer, node)
    path = log_path(twistd)
    if path:
        try:
            writer = LogWriter(FileOutput(path))
        except OSError as error:
            raise ConfigError(f"--logfile: cannot open {path}: {error.strerror}") from None
    else:
        writer = LogWriter(StreamOutput(sys.stdout))
    return (JsonObserver if log_format == "json" else TextObserver)(writer, node)
