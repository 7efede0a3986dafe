"""Measure the turns of the reactor: the time between two waits for sockets and timers.

While a turn lasts, everything else waits. With `epoll` a turn serves at most `MAX_SOCKETS`. A turn of more than
`LONG_TURN` is logged with the place in the program where it was, once a minute for each place. A thread looks for that
place while the turn lasts, because a stack cannot be read afterwards. A collection of garbage reports itself, because
the thread cannot run meanwhile.

The cost is one Python call and two looks at the clock for each turn, and a look at two numbers every `WATCH_INTERVAL`.

This module depends on Twisted's private attribute `_poller` of `EPollReactor` and `PollReactor`. No public call tells
when a reactor begins and ends to wait. Other reactors are not measured. tests/test_runtime_turns.py checks it.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from types import FrameType
from typing import Any

from twisted.logger import Logger

from chatws.interfaces import Clock
from chatws.runtime.measurements import Histogram
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["LONG_TURN", "Turns"]

log = Logger()

#: Seconds. A turn of 2 ms is the aim (docs/adr/0022-large-work.md), and one of more than 20 ms is an exception.
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
#: Seconds of a turn that is logged: users notice a delay of that length.
LONG_TURN = 0.1
#: Sockets that one turn serves with `epoll`. If thousands of clients connect or send at once, the others are served in
#: the next turns: the kernel reports those first that it has not reported. 64 handshakes take some 5 ms.
MAX_SOCKETS = 64
#: Seconds between two looks at the turn in progress: at least one falls into the second half of a long turn.
WATCH_INTERVAL = LONG_TURN / 2
#: Places in the log within a minute. A server has few functions that can take that long.
MAX_PLACES = 100


class Turns:
    """Measures the turns of a reactor.

    :param reactor: not measured unless it is an epoll or poll reactor, and only once at a time.
    :ivar histogram: seconds of each turn.
    """

    def __init__(self, reactor: Clock) -> None:
        self.histogram = Histogram(BUCKETS)
        self._reactor: Any = reactor
        self._log = ThrottledLog(log, reactor, max_reasons=MAX_PLACES)
        self._poller: Any = None
        self._measured: _MeasuredPoller | None = None
        self._began = 0.0  # of the turn in progress; 0 while the reactor waits
        self._thread_id = 0  # of the reactor
        self._place = ""  # where the turn in progress was, once it has lasted `WATCH_INTERVAL`
        self._collection_began = 0.0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to measure, in the reactor's thread. The turn in progress counts from now on."""
        poller = getattr(self._reactor, "_poller", None)
        if poller is None or isinstance(poller, _MeasuredPoller):
            return
        self._poller = poller
        self._thread_id = threading.get_ident()
        self._began = time.monotonic()
        self._measured = self._reactor._poller = _MeasuredPoller(poller, self._wait)
        gc.callbacks.append(self._on_collection)
        threading.Thread(target=self._watch, name="chatws turns", daemon=True).start()

    def stop(self) -> None:
        """Stop measuring. Idempotent."""
        if self._measured is not None:
            self._reactor._poller, self._measured = self._poller, None
            gc.callbacks.remove(self._on_collection)
            self._stopped.set()

    def _wait(self, *arguments: Any) -> Any:
        """Wait for sockets in place of the poller: one turn ends, and the next one begins.

        :param arguments: the timeout, and with `epoll` the number of sockets to report.
        """
        if len(arguments) == 2:
            arguments = (arguments[0], min(arguments[1], MAX_SOCKETS))
        seconds = time.monotonic() - self._began
        self._began = 0.0
        self.histogram.observe(seconds)
        if seconds > LONG_TURN:
            self._report(seconds)
        try:
            return self._poller.poll(*arguments)
        finally:
            self._place = ""
            self._began = time.monotonic()

    def _report(self, seconds: float) -> None:
        place = self._place or "an unknown place"
        text = "a turn of the event loop took {milliseconds} ms, in {place}"
        self._log.warn(place, text, milliseconds=round(seconds * 1000), place=place)

    def _watch(self) -> None:
        """Look for the place of a turn that lasts. Runs in a thread."""
        while not self._stopped.wait(WATCH_INTERVAL):
            began = self._began
            if began and time.monotonic() - began > WATCH_INTERVAL and not self._place:
                place = _place(sys._current_frames().get(self._thread_id))
                if self._began == began:
                    self._place = place

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._collection_began = now
        elif now - self._collection_began > WATCH_INTERVAL:
            self._place = "the garbage collector"


class _MeasuredPoller:
    """Stands for a poller of the `select` module, and leaves its waiting to `poll`."""

    def __init__(self, poller: Any, poll: Any) -> None:
        self.poll = poll
        self.register = poller.register
        self.modify = poller.modify
        self.unregister = poller.unregister


def _place(frame: FrameType | None) -> str:
    """Return the innermost function of chatws in a stack, or the innermost one if there is none of chatws."""
    innermost = frame
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("chatws."):
        frame = frame.f_back
    frame = frame or innermost
    return "" if frame is None else f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}"
