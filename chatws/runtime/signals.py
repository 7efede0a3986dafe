"""What signals do to `twistd chatws`, from the first moment on.

By default SIGHUP and SIGUSR1 kill a process, and process 1 of a container ignores SIGTERM. The handlers are therefore
in place before anything else of chatws is imported. Until then (Python and Twisted start) the default holds, unless the
process was started with its signals blocked (`env --block-signal=HUP,INT,TERM,USR1 twistd …`, GNU coreutils): then they
wait, and `ProcessSignals.install` lets them in.

SIGTERM and SIGINT stop the server, SIGHUP reloads the configuration, SIGUSR1 reopens the log file. Windows has only the
first two.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

__all__ = ["ProcessSignals", "block", "ignore_in_worker", "process_signals"]

_RELOAD, _REOPEN = "SIGHUP", "SIGUSR1"
#: Signals for the supervisor that also reach its workers: from a terminal, or from `systemctl kill`.
_NOT_FOR_WORKERS = (_RELOAD, "SIGINT", _REOPEN)


class ProcessSignals:
    """The handlers of this process. `process_signals` is the only instance that is used."""

    def __init__(self) -> None:
        self._reactor: Any = None
        self._reload: Callable[[], object] | None = None
        self._reopen: Callable[[], object] | None = None
        self._had_terminal = False
        self._reload_is_due = False

    def install(self) -> None:
        """Set the handlers and unblock the signals. Until `attach` a signal that stops the server ends the process."""
        self._had_terminal = os.isatty(0)
        self._set(self._on_stop, "SIGTERM", "SIGINT")
        self._set(self._on_reload, _RELOAD)
        self._set(self._on_reopen, _REOPEN)
        _unblock(("SIGTERM", "SIGINT", _RELOAD, _REOPEN))

    def restore(self) -> None:
        """Give the signals their default effect again."""
        self._set(signal.SIG_DFL, "SIGTERM", "SIGINT", _RELOAD, _REOPEN)

    def _set(self, handler: Callable[[int, FrameType | None], None] | signal.Handlers, *names: str) -> None:
        for name in names:
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), handler)

    def attach(self, reactor: Any, reload: Callable[[], object], reopen: Callable[[], object] | None) -> None:
        """Pass signals on to a server that is about to run.

        :param reload: called on SIGHUP, unless it was sent because the terminal has gone. That stops the server.
        :param reopen: called on SIGUSR1; None where there is nothing to reopen.
        """
        self.install()
        self._reactor, self._reload, self._reopen = reactor, reload, reopen
        reactor.callWhenRunning(self._begin)

    def _begin(self) -> None:
        # the reactor has just set a handler of its own, with which twistd kills itself in the end
        signal.signal(signal.SIGTERM, self._on_stop)
        self._had_terminal = os.isatty(0)  # a daemon has left its terminal by now
        if self._reload_is_due:
            self._hung_up()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._reactor is None:
            _die(number)
        elif number == signal.SIGINT:
            self._reactor.sigInt(number, frame)
        else:
            self._reactor.callFromThread(self._stop)

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        if self._reactor is not None:
            self._reactor.callFromThread(self._hung_up)
        elif self._terminal_has_gone():
            _die(number)
        else:
            self._reload_is_due = True

    def _on_reopen(self, number: int, frame: FrameType | None) -> None:
        if self._reactor is not None and self._reopen is not None:
            self._reactor.callFromThread(self._reopen)

    def _terminal_has_gone(self) -> bool:
        return self._had_terminal and not os.isatty(0)

    def _hung_up(self) -> None:
        if self._terminal_has_gone():
            self._stop()
        elif self._reload is not None:
            self._reload()

    def _stop(self) -> None:
        from twisted.internet.error import ReactorNotRunning

        with suppress(ReactorNotRunning):  # a second signal while it stops
            self._reactor.stop()


process_signals = ProcessSignals()


def ignore_in_worker() -> None:
    """In a worker: ignore what is for the supervisor, which started this process with these signals blocked."""
    for name in _NOT_FOR_WORKERS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    _unblock(_NOT_FOR_WORKERS)


@contextmanager
def block() -> Iterator[None]:
    """Start processes with the supervisor's signals blocked, inside this context."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers(_NOT_FOR_WORKERS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _numbers(names: Iterable[str]) -> set[int]:
    return {getattr(signal, name) for name in names if hasattr(signal, name)}


def _unblock(names: Iterable[str]) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers(names))


def _die(number: int) -> NoReturn:
    """End at once, as by a signal that has no handler."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 of a container does not die of it
