"""Relay the log of each worker to the supervisor, which writes it with the worker's number."""

from __future__ import annotations

from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.runtime.log_levels import is_logged
from chatws.runtime.log_writer import count_dropped
from chatws.runtime.logging import fields_of
from chatws.workers.control_messages import LogRecord, encode
from chatws.workers.ipc import IpcConnection

__all__ = ["RelayingObserver", "relog"]

#: Unread bytes above which a worker drops log lines, because a log must neither block the server nor fill its memory.
#: 1 MiB is thousands of lines, more than a supervisor falls behind normally.
MAX_UNSENT = 1024 * 1024

#: Fields that `relog` maps to fields of Twisted's log events.
_MAPPED_FIELDS = frozenset({"time", "level", "logger", "message", "traceback"})


@implementer(ILogObserver)
class RelayingObserver:
    """Sends every log event of a worker to the supervisor. It drops events while the supervisor does not read."""

    def __init__(self, channel: IpcConnection) -> None:
        self._channel = channel
        self._dropped = 0

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`."""
        if not is_logged(event):
            return
        if self._channel.unsent > MAX_UNSENT:
            self._dropped += 1
            count_dropped(1)
            return
        fields = fields_of(event)
        fields["message"] = formatEvent(event)
        if self._dropped:
            fields["message"] += f" (before this, {self._dropped} lines were dropped)"
            self._dropped = 0
        self._channel.send(encode(LogRecord(event.get("log_time", 0.0), fields)))


class _RemoteFailure(Failure):
    """A failure in another process: only the text of its traceback is known."""

    def __init__(self, text: str) -> None:
        super().__init__(RuntimeError("in a worker"))  # type: ignore[no-untyped-call]
        self._text = text

    def getTraceback(self, *arguments: Any, **more: Any) -> str:
        """See `Failure`."""
        return self._text


def relog(number: int, record: LogRecord) -> None:
    """Write a worker's log line to the supervisor's log.

    :param number: the worker's number.
    """
    fields = record.fields
    event: dict[str, Any] = {name: value for name, value in fields.items() if name not in _MAPPED_FIELDS}
    event |= {
        "worker": number,
        "log_time": record.time,
        "log_level": LogLevel.lookupByName(fields["level"]),
        "log_namespace": fields["logger"],
        "log_format": "worker {worker}: {log_text}",
        "log_text": fields["message"],
    }
    if "traceback" in fields:
        event["log_failure"] = _RemoteFailure(fields["traceback"])
    globalLogPublisher(event)
