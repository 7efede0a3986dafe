"""Makes `twistd chatws`, started as a daemon, wait until the server serves, and end with its status when it cannot.

twistd forks before it starts the services. Its first process waits for a pipe, into which the daemon writes as soon as
`startService` has returned. The event history (Redis, PostgreSQL, SQLite) has not answered by then, so that a server
that could not start left status 0. A `StartReport` keeps the pipe until the outcome is known.
"""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IReactorDaemonize

from chatws.runtime.signals import process_signals

__all__ = ["StartReport"]

_STARTED = b"0"


class StartReport:
    """What the daemon tells the process that the operator started.

    Create it before twistd becomes a daemon. In the foreground it does nothing.

    :param options: twistd's. Twisted (24 to 26) keeps the pipe there, under "statusPipe".
    """

    def __init__(self, options: MutableMapping[str, Any]) -> None:
        self._options = options
        self._pipe: int | None = None
        self._outcome: bytes | None = None
        if not options.get("nodaemon") and hasattr(os, "fork"):
            from twisted.scripts._twistd_unix import UnixApplicationRunner

            UnixApplicationRunner.daemonize = _daemonize  # type: ignore[method-assign]

    def take_over(self) -> None:
        """Keep twistd from reporting by itself. Call it in the daemon, from `startService`."""
        self._pipe = self._options.pop("statusPipe", None)
        self._send()

    def started(self) -> None:
        """Report that the server serves."""
        self._set(_STARTED)

    def failed(self, reason: str, status: int) -> None:
        """Report that it cannot start.

        :param reason: one line that says what to do.
        :param status: the exit status.
        """
        self._set(b"%d %s" % (status, reason.encode("utf-8", "replace")))

    def _set(self, outcome: bytes) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._send()

    def _send(self) -> None:
        if self._pipe is None or self._outcome is None:
            return
        with suppress(BrokenPipeError):  # the operator has interrupted the first process
            os.write(self._pipe, self._outcome)
        # after a failure the first process waits until this one has ended, and deleted its pidfile
        if self._outcome == _STARTED:
            os.close(self._pipe)
        self._pipe = None


def _daemonize(runner: object, reactor: Any) -> int:
    """Become a daemon: the place of `UnixApplicationRunner.daemonize`.

    Twisted's own leaves the pipe's writing end open in the first process, which then waits for ever when the daemon
    ends without a word. It also reports in two lines, of which the first is cut after 100 bytes.

    :returns: the writing end, in the daemon.
    """
    if IReactorDaemonize.providedBy(reactor):
        reactor.beforeDaemonize()
    reading, writing = os.pipe()
    if os.fork():
        process_signals.restore()  # this process has nothing to stop or to reload
        os.close(writing)
        os._exit(_wait(reading))
    os.close(reading)
    os.setsid()
    if os.fork():
        os._exit(0)
    with open(os.devnull, "r+b", buffering=0) as null:
        for descriptor in range(3):
            os.dup2(null.fileno(), descriptor)
    if IReactorDaemonize.providedBy(reactor):
        reactor.afterDaemonize()
    return writing


def _wait(pipe: int) -> int:
    """Wait for the outcome in the first process.

    :returns: the exit status.
    """
    outcome = b""
    while part := os.read(pipe, 4096):
        outcome += part
    if outcome == _STARTED:
        return 0
    # twistd itself reports an exception of Python in the same form, with the status 1
    status, _, reason = outcome.decode("utf-8", "replace").partition(" ")
    reason = " ".join(reason.split()) or "the daemon ended while it started: its log says why"
    if sys.__stderr__ is not None:
        sys.__stderr__.write(f"twistd chatws: {reason}\n")
        sys.__stderr__.flush()
    return int(status) if status.isdecimal() else 1
