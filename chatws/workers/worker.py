"""A worker: the same server as without a supervisor, on sockets and a log that it has been given.

It ends like one on SIGTERM, browsers sent away one after the other; so it does when its supervisor is gone, and with it
the log. SIGHUP and a terminal's SIGINT are for the supervisor, which is told of them too.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from twisted.application.reactors import installReactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger, globalLogBeginner

from chatws import startup
from chatws.brokers.contract import Broker
from chatws.brokers.relay import RelayBroker
from chatws.channel import Channel, take_over
from chatws.config import Config
from chatws.errors import OperatorError
from chatws.metrics import Exporter
from chatws.place import Place
from chatws.service import ChatwsService
from chatws.workers import control
from chatws.workers.lines import RelayingObserver
from chatws.workers.sockets import adopting_endpoint

__all__ = ["Worker", "main"]

log = Logger()

#: Seconds that the supervisor has to read the last lines of the log.
LAST_WORDS = 2.0


class _WorkersPlace(Place):
    def __init__(self, worker: Worker, setup: control.Setup, reactor: Any) -> None:
        super().__init__(setup.config, reactor)
        self.node = setup.node
        self._worker = worker
        self._setup = setup

    def broker(self) -> Broker:
        descriptor = self._setup.log
        if descriptor is None:
            return super().broker()
        return RelayBroker(lambda channel: take_over(self.reactor, channel, descriptor))

    def _endpoints(self, door: str) -> list[Any]:
        return [adopting_endpoint(self.reactor, one) for one in self._setup.sockets if one.door == door]

    def browser_endpoints(self) -> list[Any]:
        return self._endpoints("browsers")

    def push_endpoints(self) -> list[Any]:
        return self._endpoints("backends")

    def metrics_endpoints(self) -> list[Any]:
        return []

    def started(self) -> None:
        self._worker.send(control.Running())

    def failed(self, reason: str) -> None:
        self._worker.fail(reason)


class Worker:
    """This process.

    :ivar status: its exit status.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.status = 0
        self._server: ChatwsService | None = None
        self._gone: Deferred[None] | None = Deferred()
        self._channel = Channel(self._received, self._lost)

    def run(self) -> None:
        """Serve until the end."""
        take_over(self._reactor, self._channel, control.CONTROL)
        observer: Any = RelayingObserver(self._channel)
        globalLogBeginner.beginLoggingTo([observer])
        startup.end_cleanly_on_sigterm(self._reactor)
        self._reactor.run()

    def send(self, message: Any) -> None:
        """Tell the supervisor."""
        self._channel.send(control.encode(message))

    def fail(self, reason: str) -> None:
        """Tell the supervisor that this worker cannot start, and end."""
        self.status = 1
        self.send(control.Failed(reason))
        self._channel.close()  # when that has been said; and that is the end

    def _lost(self) -> None:
        gone, self._gone = self._gone, None
        if gone is not None:
            gone.callback(None)
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _received(self, messages: list[bytes]) -> None:
        for message in messages:
            self._told(message)

    def _told(self, message: bytes) -> None:
        told = control.from_supervisor.decode(message)
        if isinstance(told, control.Setup):
            self._serve(told)
            return
        server = self._server
        assert server is not None, "the first message is the setup"
        if isinstance(told, control.Reconfigure):
            self._change(server, told.config)
        elif isinstance(told, control.AskMetrics):
            self.send(control.Metrics(told.number, [family_of(one) for one in collect(server)]))
        else:
            number = told.number
            answer = server.ready().addCallback(lambda problems: self.send(control.Readiness(number, problems)))
            answer.addErrback(lambda failure: log.failure("Whether this worker is ready cannot be said", failure))

    def _serve(self, setup: control.Setup) -> None:
        try:
            server = ChatwsService(setup.config, self._reactor, _WorkersPlace(self, setup, self._reactor))
        except Exception as error:
            if not isinstance(error, OperatorError):
                log.failure("this worker cannot start")
            self.fail(str(error))
            return
        self._server = server
        self._reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(self._stop(server)))
        server.startService()

    async def _stop(self, server: ChatwsService) -> None:
        await server.stopService()
        gone = self._gone
        if gone is not None:  # the last lines of the log have to arrive
            self._channel.close()
            gone.addTimeout(LAST_WORDS, self._reactor).addErrback(lambda failure: None)
            await gone

    def _change(self, server: ChatwsService, config: Config) -> None:
        try:
            server.take(config)
        except OperatorError as error:
            log.error("the new configuration cannot be taken, the old one stays: {reason}", reason=str(error))


def collect(server: ChatwsService) -> list[Metric]:
    """All metrics of this process."""
    return [*Exporter(server, server.lag).collect(), *ProcessCollector(registry=None).collect()]


def family_of(metric: Metric) -> control.Family:
    """As it goes to the supervisor."""
    samples = [(one.name, dict(one.labels), float(one.value)) for one in metric.samples]
    return control.Family(metric.name, metric.documentation, metric.type, samples)


def main() -> None:
    """The process: its arguments are the worker's number, for whoever looks at `ps`, and the reactor's name, if any."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if len(sys.argv) > 2:
        installReactor(sys.argv[2])
    from twisted.internet import reactor

    worker = Worker(reactor)
    worker.run()
    sys.exit(worker.status)
