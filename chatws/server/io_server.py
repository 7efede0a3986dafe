"""The outermost of Ratchet's layers: it listens."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogBeginner,
    textFileLogObserver,
)
from twisted.python.failure import Failure

from chatws.errors import OperatorError
from chatws.server.http_server import HttpServer

__all__ = ["IoServer", "raise_file_limit"]

log = Logger()

#: Connections that the kernel may hold ready for us to accept: many pages reconnect at the same time.
BACKLOG = 2048


def raise_file_limit() -> int:
    """Allow this process as many open files as it may allow itself.

    :returns: how many that is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems have a ceiling below the hard limit
            return soft
    return hard


def describe(error: CannotListenError) -> str:
    """Why an address cannot be bound, in one line."""
    number = getattr(error.socketError, "errno", None)
    where = f"port {error.port} on {error.interface or 'every address'}"
    if not isinstance(error.port, int):
        where = f"the socket {os.fsdecode(error.port) if error.port else '?'}"
    if number == errno.EADDRINUSE:
        way_out = " with --port" if isinstance(error.port, int) else ""
        return f"{where} is in use: stop the other server or choose another{way_out}"
    if number == errno.EACCES:
        return f"{where} may not be opened by this user"
    reason = os.strerror(number) if number else str(error.socketError)
    return f"cannot listen on {where}: {reason}"


class IoServer(Service):
    """Listens on some endpoints for an `HttpServer`.

    :param app: what is given the connections.
    :param endpoints: where to listen (`IStreamServerEndpoint`).

    :ivar ports: where it does (`IListeningPort`), once `listen()` has fired.
    """

    def __init__(self, app: HttpServer, endpoints: Sequence[Any], reactor: Any = None) -> None:
        self.app = app
        self.endpoints = list(endpoints)
        self.ports: list[Any] = []
        app.ports = self.ports
        self._reactor = reactor
        self._begun = self._done = False
        self._outcome: Failure | None = None
        self._asking: list[Deferred[None]] = []

    @classmethod
    def factory(cls, app: HttpServer, port: int = 8080, address: str = "127.0.0.1", *, reactor: Any = None) -> IoServer:
        """Ratchet's way to make one: a TCP port. IPv6 addresses are taken too."""
        from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint

        if reactor is None:
            from twisted.internet import reactor
        endpoint = TCP6ServerEndpoint if ":" in address else TCP4ServerEndpoint
        return cls(app, [endpoint(reactor, port, BACKLOG, address)], reactor)

    def listen(self) -> Deferred[None]:
        """Start to accept connections, unless that has been done; `startService` calls it too.

        :returns: a Deferred of the caller's own that fires when all endpoints listen.
        :raises OperatorError: through the Deferred: an address cannot be bound. Then none is.
        """
        answer: Deferred[None] = Deferred()
        self._asking.append(answer)
        if not self._begun:
            self._begun, self._done = True, False
            Deferred.fromCoroutine(self._listen()).addBoth(self._listened)
        elif self._done:
            self._listened(self._outcome)
        return answer

    def _listened(self, outcome: Failure | None) -> None:
        self._done, self._outcome = True, outcome
        asking, self._asking = self._asking, []
        for one in asking:
            if outcome is None:
                one.callback(None)
            else:
                one.errback(outcome)

    async def _listen(self) -> None:
        raise_file_limit()
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor
        if type(reactor).__name__ == "SelectReactor":
            log.warn("the select reactor takes no more than 1024 open files: choose another with --reactor")
        for endpoint in self.endpoints:
            try:
                self.ports.append(await endpoint.listen(self.app))
            except Exception as error:
                await self.stop_listening()
                if isinstance(error, CannotListenError):
                    raise OperatorError(describe(error)) from None
                raise

    def stop_listening(self) -> Deferred[None]:
        """Accept nobody else; who is connected stays."""
        stopped = [port.stopListening() for port in self.ports]
        self.ports.clear()
        return gatherResults([one for one in stopped if one is not None]).addCallback(lambda _: None)

    def privilegedStartService(self) -> None:
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        self.startService()  # ports below 1024 are root's to open

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]
        if not self._begun:
            # whoever must not go on without asks `listen()`
            self.listen().addErrback(lambda failure: log.critical("{reason}", reason=failure.getErrorMessage()))

    def stopService(self) -> Deferred[None]:
        """Stop listening and close what is left. Fires when all connections are gone."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.stop_listening()
        self.app.close_visitors()
        await self.app.app.close_all()
        self._begun = False

    def run(self) -> None:
        """Serve until a signal comes, from a script. Logs to standard error.

        :raises SystemExit: with status 1, after one line on standard error, when it cannot listen.
        """
        reactor = self._reactor
        if reactor is None:
            from twisted.internet import reactor
        observer: Any = FilteringLogObserver(
            textFileLogObserver(sys.stderr),  # type: ignore[arg-type]
            [LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)],  # type: ignore[list-item]
        )
        problems: list[str] = []

        def failed(failure: Failure) -> None:
            problems.append(failure.getErrorMessage())
            if reactor.running:
                reactor.stop()

        def listening(_: None) -> None:
            globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)
            log.info(
                "listening on {where}, up to {files} open files, {reactor}",
                where=", ".join(str(port.getHost()) for port in self.ports),
                files=raise_file_limit(),
                reactor=type(reactor).__name__,
            )
            reactor.addSystemEventTrigger("before", "shutdown", self.stopService)

        self.listen().addCallbacks(listening, failed)
        if not problems:
            reactor.run()
        if problems:
            print(problems[0], file=sys.stderr)
            sys.exit(1)
