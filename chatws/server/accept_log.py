"""A bounded log of connections that the system cannot accept, with a count.

Without a free file (EMFILE) Twisted closes a file that it keeps in reserve, accepts each waiting connection and closes
it. It logs two lines, and one for each connection. For other reasons (ENFILE, ENOMEM) it logs one line in every turn of
the reactor: the connection keeps waiting, and the process spins.

This module uses one private attribute of Twisted, `twisted.internet.tcp.Port._logger`. `doRead` logs what happens in
`accept` to that logger's observer.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet import tcp
from twisted.logger import LogEvent, Logger

from chatws.interfaces import Clock, ListeningPort, default_reactor
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["ACCEPT_PAUSE", "AcceptLog"]

log = Logger()

#: Seconds without accepting after the system had no memory, or no file for any process. Other processes may free some.
ACCEPT_PAUSE = 1.0


class AcceptLog:
    """Replaces the log observer of listening ports.

    :ivar errors: connections that were closed immediately or could not be accepted.
    """

    def __init__(self, reactor: Clock | None = None) -> None:
        self.errors = 0
        self._reactor = reactor
        self._log: ThrottledLog | None = None

    def watch(self, port: object) -> None:
        """Have `port` log here. Ignored unless it is a `tcp.Port`, as Unix ports are too."""
        if isinstance(port, tcp.Port):
            observer: Any = partial(self._observe, port)
            port._logger = Logger(namespace=port._logger.namespace, observer=observer)

    def _observe(self, port: ListeningPort, event: LogEvent) -> None:
        if "address" in event:
            reason = "EMFILE"
        elif "acceptError" in event:
            reason = event["acceptError"]
        else:
            return  # the lines before and after those
        self.errors += 1
        reactor = self._reactor or default_reactor()
        if self._log is None:
            self._log = ThrottledLog(log, reactor)
        self._log.warn(
            reason,
            "cannot accept connections: {reason} ({count} so far); see the limit of open files",
            reason=reason,
            count=self.errors,
        )
        if reason in ("ENFILE", "ENOBUFS", "ENOMEM") or (reason == "EMFILE" and "acceptError" in event):
            port.stopReading()
            reactor.callLater(ACCEPT_PAUSE, _resume, port)


def _resume(port: ListeningPort) -> None:
    if port.connected:
        port.startReading()
