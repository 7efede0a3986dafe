"""The outermost of Ratchet's layers: it listens on ports."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.error import CannotListenError
from twisted.logger import (
    FilteringLogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    formatEventAsClassicLogText,
    globalLogBeginner,
)
from twisted.python.failure import Failure

from chatws.errors import ConfigError, StartError
from chatws.interfaces import ListeningPort, Reactor, default_reactor
from chatws.net.sockets import TEMPORARY_BIND_ERRORS, shown_address, shown_path
from chatws.runtime.file_budget import selectable_files
from chatws.runtime.log_writer import LogWriter, StreamOutput
from chatws.server.accept_log import AcceptLog
from chatws.server.http_server import HttpServer

__all__ = ["IoServer", "raise_file_limit"]

log = Logger()

#: Connections that may wait in the kernel to be accepted: many pages reconnect at the same time. Linux limits the
#: number to net.core.somaxconn, 4096 by default.
LISTEN_BACKLOG = 2048
#: Open files to ask for if the system rejects the hard limit: macOS reports an infinite one and allows no more than
#: OPEN_MAX (sys/syslimits.h). Also the result on systems without such a limit.
FALLBACK_FILES = 10_240


def raise_file_limit() -> int:
    """Raise the soft limit of open files (setrlimit(2)) as far as the system allows.

    :returns: the new limit. `FALLBACK_FILES` on a system without one.
    """
    try:
        import resource
    except ImportError:  # Windows
        return FALLBACK_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, FALLBACK_FILES):
        if soft == resource.RLIM_INFINITY or soft == limit or 0 <= limit < soft:
            break
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            return limit
    return soft


def describe_bind_error(error: CannotListenError) -> str:
    """Say in one line why an address cannot be bound, and what to do."""
    number = getattr(error.socketError, "errno", None)
    address = f"port {error.port} on {error.interface or 'every address'}"
    if not isinstance(error.port, int):
        address = f"the socket {shown_path(error.port) if error.port else '?'}"
    if number == errno.EADDRINUSE:
        setting = " with --port" if isinstance(error.port, int) else ""
        return f"{address} is in use: stop the other server or choose another{setting}"
    if number == errno.EACCES:
        return f"{address} may not be opened by this user: choose another, or start as another user"
    reason = os.strerror(number) if number else str(error.socketError)
    return f"cannot listen on {address}: {reason}"


class IoServer(Service):
    """Listens on some endpoints for an `HttpServer`.

    :param app: the factory for the connections.
    :param endpoints: the endpoints to listen on (`IStreamServerEndpoint`).

    :ivar ports: the listening ports (`IListeningPort`), once `listen()` has fired.
    """

    def __init__(self, app: HttpServer, endpoints: Sequence[Any], reactor: Reactor | None = None) -> None:
        self.app = app
        self.endpoints = list(endpoints)
        self.ports: list[ListeningPort] = []
        app.ports = self.ports
        self._reactor = reactor
        self._accept_log = AcceptLog(reactor)
        self._started = self._finished = False
        self._result: Failure | None = None
        self._waiters: list[Deferred[None]] = []

    @property
    def accept_errors(self) -> int:
        """Connections that the system could not accept (no file, no memory) since the start."""
        return self._accept_log.errors

    @classmethod
    def factory(
        cls, app: HttpServer, port: int = 8080, address: str = "127.0.0.1", *, reactor: Reactor | None = None
    ) -> IoServer:
        """Return a server on a TCP port, as Ratchet does.

        :param address: an IPv4 or IPv6 address to listen on.
        """
        if reactor is None:
            reactor = default_reactor()
        endpoint = TCP6ServerEndpoint if ":" in address else TCP4ServerEndpoint
        return cls(app, [endpoint(reactor, port, LISTEN_BACKLOG, address)], reactor)

    def listen(self) -> Deferred[None]:
        """Start to accept connections, once. `startService` calls it too.

        :returns: a new Deferred that fires when all endpoints listen.
        :raises ConfigError: through the Deferred, if an address cannot be bound. Then no endpoint listens.
        """
        listening: Deferred[None] = Deferred()
        self._waiters.append(listening)
        if not self._started:
            self._started, self._finished = True, False
            Deferred.fromCoroutine(self._listen()).addBoth(self._listened)
        elif self._finished:
            self._listened(self._result)
        return listening

    def _listened(self, result: Failure | None) -> None:
        self._finished, self._result = True, result
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if result is None:
                waiter.callback(None)
            else:
                waiter.errback(result)

    async def _listen(self) -> None:
        raise_file_limit()
        reactor = self._reactor or default_reactor()
        if type(reactor).__name__ == "SelectReactor":
            log.warn(
                "the select reactor supports at most {files} open files: choose another with --reactor",
                files=selectable_files(reactor),
            )
        for endpoint in self.endpoints:
            try:
                port = await endpoint.listen(self.app)
                self._accept_log.watch(port)
                # Twisted begins with 100 and never reduces it while more wait; see `FileBudget.limit_accepts`
                port.numberAccepts = 1
                self.ports.append(port)
            except Exception as error:
                await self.stop_listening()
                if isinstance(error, CannotListenError):
                    is_temporary = getattr(error.socketError, "errno", None) in TEMPORARY_BIND_ERRORS
                    raise (StartError if is_temporary else ConfigError)(describe_bind_error(error)) from None
                raise

    def stop_listening(self) -> Deferred[None]:
        """Stop accepting connections. Open connections stay open."""
        results = [port.stopListening() for port in self.ports]
        self.ports.clear()
        return gatherResults([result for result in results if result is not None]).addCallback(lambda _: None)

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self.startService()  # ports below 1024 are root's to open

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if not self._started:
            # a caller that needs the result calls `listen()`
            self.listen().addErrback(lambda failure: log.critical("{reason}", reason=failure.getErrorMessage()))

    def stopService(self) -> Deferred[None]:
        """Stop listening and close all connections. The Deferred fires when all are closed."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.stop_listening()
        self.app.close_http_connections()
        await self.app.app.close_all()
        self._started = False

    def run(self) -> None:
        """Serve until a signal comes, and log to standard error. For scripts without twistd.

        :raises SystemExit: with status 1, after one line on standard error, if it cannot listen.
        """
        reactor: Any = self._reactor or default_reactor()
        writer = LogWriter(StreamOutput(sys.stderr))
        writer.run_in(reactor)

        def write(event: LogEvent) -> None:
            writer.write(formatEventAsClassicLogText(event) or "")

        observer: Any = FilteringLogObserver(
            write,  # type: ignore[arg-type]
            [LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)],  # type: ignore[list-item]
        )
        errors: list[str] = []

        def failed(failure: Failure) -> None:
            errors.append(failure.getErrorMessage())
            if reactor.running:
                reactor.stop()

        def listening(_: None) -> None:
            globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
            log.info(
                "listening on {addresses}, up to {files} open files, {reactor}",
                addresses=", ".join(shown_address(port.getHost()) for port in self.ports),
                files=min(raise_file_limit(), selectable_files(reactor)),
                reactor=type(reactor).__name__,
            )
            reactor.addSystemEventTrigger("before", "shutdown", self.stopService)

        self.listen().addCallbacks(listening, failed)
        if not errors:
            reactor.run()
        if errors:
            print(errors[0], file=sys.stderr)
            sys.exit(1)
