"""A worker's log goes into the supervisor's, line by line, with the worker's number."""

from __future__ import annotations

from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from chatws.channel import Channel
from chatws.logs import fields_of
from chatws.workers.control import Said, encode

__all__ = ["RelayingObserver", "say_again"]

#: Bytes that the supervisor has not read after which lines are dropped: a log must not stop its server.
MOST_UNSENT = 1024 * 1024

_PLACED = frozenset({"time", "level", "logger", "message", "traceback"})


@implementer(ILogObserver)
class RelayingObserver:
    """In the worker: sends every line over the channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._dropped = 0

    def __call__(self, event: LogEvent) -> None:
        """See `ILogObserver`."""
        if self._channel.unsent > MOST_UNSENT:
            self._dropped += 1
            return
        fields = fields_of(event)
        fields["message"] = formatEvent(event)
        if self._dropped:
            fields["message"] += f" (before this, {self._dropped} lines were dropped)"
            self._dropped = 0
        self._channel.send(encode(Said(event.get("log_time", 0.0), fields)))


class _ToldFailure(Failure):
    """What is left of a failure of another process: its traceback, as text."""

    def __init__(self, text: str) -> None:
        super().__init__(RuntimeError("in a worker"))  # type: ignore[no-untyped-call]
        self._text = text

    def getTraceback(self, *arguments: Any, **more: Any) -> str:
        """See `Failure`."""
        return self._text


def say_again(number: int, said: Said) -> None:
    """In the supervisor: put a worker's line into the log."""
    fields = said.fields
    event: dict[str, Any] = {name: value for name, value in fields.items() if name not in _PLACED}
    event |= {
        "worker": number,
        "log_time": said.time,
        "log_level": LogLevel.lookupByName(fields["level"]),
        "log_namespace": fields["logger"],
        "log_format": "worker {worker}: {log_text}",
        "log_text": fields["message"],
    }
    if "traceback" in fields:
        event["log_failure"] = _ToldFailure(fields["traceback"])
    globalLogPublisher(event)
