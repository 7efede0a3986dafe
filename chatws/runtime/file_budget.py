"""How the files that a process may have open are shared between its own needs and its connections.

Each connection is an open file. A process that has none left can accept nobody, open no database connection and answer
no health check. Therefore every listener of a process counts its connections in one `FileBudget`.

A connection is a *newcomer* until it is admitted: a browser whose request head is incomplete, an ordinary HTTP request
(health checks included), a backend that has not authenticated yet, a connection that is being rejected. Newcomers are
never refused. If files become scarce, the oldest newcomer of the most frequent kind is closed in favour of the latest,
so that idle connections cannot keep out a health check. Admitted connections (WebSockets, backends) are never closed
for others: beyond their limit the next one is rejected.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from twisted.logger import Logger

from chatws.interfaces import Clock, ListeningPort, default_reactor
from chatws.runtime.throttled_log import ThrottledLog

__all__ = ["BACKEND", "HTTP", "METRICS", "WEBSOCKET", "FileBudget", "Newcomer", "open_file_limit", "selectable_files"]

log = Logger()

WEBSOCKET, HTTP, BACKEND, METRICS = "websocket", "http", "backend", "metrics"

#: Files for the process itself: listeners, the log, the database, the history, and 32 authentication requests at once
#: (`chatws.auth.callback.MAX_PARALLEL`).
OWN_FILES = 100
#: Files for newcomers, however many connections are admitted. Half of them can stay: as many as a listener accepts in
#: one turn (`ACCEPTS` and `TWISTED_STEP`). The other half take the next ones, until those evicted are closed.
NEWCOMER_FILES = 140
#: Of a small limit, each of the two gets at most a quarter.
SMALLEST_PART = 4
#: Of the connections that may be admitted, each guaranteed kind can have an eighth, up to this number, whatever the
#: other kinds hold.
GUARANTEED = 100
#: Connections that a listener accepts in one turn of the reactor, so that others are served in between.
ACCEPTS = 50
#: Twisted raises `numberAccepts` by this much after a turn that has used it up.
TWISTED_STEP = 20


def open_file_limit() -> int:
    """How many files this process may have open now (the soft limit, setrlimit(2))."""
    try:
        import resource
    except ImportError:  # not a Unix
        return sys.maxsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if files == resource.RLIM_INFINITY else files


def selectable_files(reactor: object) -> int:
    """How many files this reactor can wait for. select(2) is limited to FD_SETSIZE, which Python sets on Windows."""
    if type(reactor).__name__ != "SelectReactor":
        return sys.maxsize
    return 512 if sys.platform == "win32" else 1024


class Newcomer(Protocol):
    """A connection that is not admitted yet."""

    def evict(self) -> bool:
        """Close it, with an answer where that needs no waiting for the peer.

        :returns: whether that is done in the next turn of the reactor. Otherwise it takes a second at most.
        """
        ...


class FileBudget:
    """Counts the connections of this process.

    :param guaranteed: kinds of which some can always be admitted, whatever the other kinds hold.
    :param limit: gives the number of files; asked once, for the first connection, when the soft limit has been raised.
        By default the soft limit, or less where the reactor can wait for less.
    :param clock: the reactor, for the log lines, one a minute; the global one by default.

    :ivar admitted: connections admitted and not released, by kind.
    :ivar evicted: newcomers closed because files were scarce, by kind, since the start.
    """

    def __init__(
        self, guaranteed: Iterable[str] = (), limit: Callable[[], int] | None = None, clock: Clock | None = None
    ) -> None:
        clock = clock or default_reactor()
        self._log = ThrottledLog(log, clock)
        self._guaranteed = tuple(guaranteed)
        self._files = limit or (lambda: min(open_file_limit(), selectable_files(clock)))
        self._limits: tuple[int, int, int] | None = None
        self._newcomers: dict[str, dict[Newcomer, None]] = {}  # by kind, the oldest first
        self._leaving: dict[Newcomer, str] = {}  # evicted, closed in the next turn
        self._lingering: dict[Newcomer, str] = {}  # evicted, closed later
        self.admitted: Counter[str] = Counter()
        self.evicted: Counter[str] = Counter()

    def _measure(self) -> tuple[int, int, int]:
        if self._limits is None:
            files = self._files()
            newcomers = min(NEWCOMER_FILES, files // SMALLEST_PART)
            admitted = files - min(OWN_FILES, files // SMALLEST_PART) - newcomers
            total = admitted + newcomers // 2
            self._limits = admitted, total, max(1, min(ACCEPTS, newcomers // 2 - TWISTED_STEP))
        return self._limits

    @property
    def admission_limit(self) -> int:
        """Connections that can be admitted, of all kinds together."""
        return self._measure()[0]

    def sockets(self) -> dict[str, int]:
        """Open connections by kind, newcomers included."""
        counts = self.admitted + Counter({kind: len(newcomers) for kind, newcomers in self._newcomers.items()})
        for evicted in (self._leaving, self._lingering):
            counts.update(evicted.values())
        return dict(counts)

    def arrive(self, newcomer: Newcomer, kind: str) -> None:
        """Count a connection that has been accepted. May evict the oldest newcomer of the most frequent kind."""
        total = self._measure()[1]
        self._newcomers.setdefault(kind, {})[newcomer] = None
        while self._holding() > total:
            its_kind, newcomers = max(self._newcomers.items(), key=lambda item: len(item[1]))
            oldest = next(iter(newcomers))
            if oldest is newcomer:
                return
            del newcomers[oldest]
            self.evicted[its_kind] += 1
            self._log.warn(
                its_kind,
                "too few open files: closed the oldest {kind} connection that was not admitted ({count} so far)",
                kind=its_kind,
                count=self.evicted[its_kind],
            )
            self._leaving[oldest] = its_kind
            if not oldest.evict() and self._leaving.pop(oldest, ""):  # it may be closed by now
                self._lingering[oldest] = its_kind

    def _holding(self) -> int:
        return self.admitted.total() + sum(map(len, self._newcomers.values())) + len(self._lingering)

    def depart(self, newcomer: Newcomer) -> None:
        """Forget a newcomer: it is closed, or admitted."""
        for newcomers in self._newcomers.values():
            newcomers.pop(newcomer, None)
        if self._leaving or self._lingering:
            self._leaving.pop(newcomer, None)
            self._lingering.pop(newcomer, None)

    def admit(self, kind: str) -> bool:
        """Count a connection as admitted, unless there is no room for its kind."""
        limit = self._measure()[0]
        admitted = self.admitted.total()
        # each guarantee reserves at most GUARANTEED, so only a nearly full budget counts them exactly
        if admitted + GUARANTEED * len(self._guaranteed) >= limit:
            guarantee = min(GUARANTEED, limit // 8)
            kept = sum(max(0, guarantee - self.admitted[other]) for other in self._guaranteed if other != kind)
            if admitted + kept >= limit:
                return False
        self.admitted[kind] += 1
        return True

    def release(self, kind: str) -> None:
        """Release the file of an admitted connection that is closed."""
        self.admitted[kind] -= 1

    def limit_accepts(self, ports: Sequence[ListeningPort]) -> None:
        """Keep listeners from accepting more in one turn than there is room for.

        :param ports: `twisted.internet.tcp.Port`. Each raises its `numberAccepts` the more connections are waiting.
        """
        accepts = self._measure()[2]
        for port in ports:
            if port.numberAccepts > accepts:
                port.numberAccepts = accepts
