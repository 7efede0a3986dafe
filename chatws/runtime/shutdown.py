"""Stop the process with the right exit status: after an error, or on SIGTERM."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

from chatws.interfaces import Reactor
from chatws.runtime.log_writer import LogWriter, StreamOutput

__all__ = ["exit_with_error", "install_sigterm_handler"]

log = Logger()


def exit_with_error(reactor: Reactor, message: str, status: int) -> None:
    """Stop a running server that cannot do its work: one line on stderr, and an exit status.

    A daemon has lost its terminal by then, and the line is in the log only.
    """
    log.critical("{message}", message=message)
    terminal = LogWriter(StreamOutput(sys.__stderr__))
    terminal.write(f"twistd chatws: {message}\n")
    terminal.finish()

    def leave() -> None:
        os._exit(status)  # the log is written by now

    # twistd has no way to choose its exit status. Its pidfile is removed and its log closed before atexit
    atexit.register(leave)
    reactor.callWhenRunning(_stop, reactor)


def install_sigterm_handler(reactor: Reactor) -> None:
    """Let SIGTERM stop the reactor with exit status 0. Without this, twistd kills itself with the signal."""

    def stop(number: int, frame: FrameType | None) -> None:
        reactor.callFromThread(_stop, reactor)

    # the reactor sets its own handlers when it begins to run
    reactor.callWhenRunning(signal.signal, signal.SIGTERM, stop)


def _stop(reactor: Reactor) -> None:
    with suppress(ReactorNotRunning):  # a second signal, or a failure while it stops
        reactor.stop()
