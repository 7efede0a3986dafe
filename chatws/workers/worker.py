"""A worker: the same server as without a supervisor, on the sockets and the broker connection that it inherits.

On SIGTERM it drains its connections, as a server without a supervisor does. It does the same when the supervisor has
ended, because the broker ended with it. The supervisor handles all other signals
(`chatws.runtime.signals.ignore_in_worker`).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from twisted.application.reactors import installReactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger, globalLogBeginner

from chatws.errors import ConfigError
from chatws.interfaces import Reactor, default_reactor, zope_clock
from chatws.runtime.clock import use_monotonic_clock
from chatws.runtime.connection_counts import ConnectionCounts, SharedCounts
from chatws.runtime.log_levels import use_levels
from chatws.runtime.metrics import Exporter
from chatws.runtime.parts import Listeners
from chatws.runtime.resolver import use_own_threads
from chatws.runtime.service import ChatwsService
from chatws.runtime.shutdown import install_sigterm_handler
from chatws.workers import control_messages
from chatws.workers.ipc import IpcConnection, adopt_socket
from chatws.workers.ipc_broker import IpcBroker
from chatws.workers.log_relay import RelayingObserver
from chatws.workers.shared_listener import adopting_endpoint

__all__ = ["Worker", "main"]

log = Logger()

#: Seconds that the supervisor has to read the last log lines. It reads them within milliseconds. A supervisor that
#: hangs must not keep its workers from ending.
LOG_FLUSH_TIMEOUT = 2.0


class _WorkerServer(ChatwsService):
    """The server of a worker, on the sockets and the broker connection that the supervisor has sent."""

    def __init__(self, worker: Worker, setup: control_messages.Setup, reactor: Reactor) -> None:
        def listeners(name: str) -> list[Any]:
            return [adopting_endpoint(reactor, socket) for socket in setup.sockets if socket.listener == name]

        self._worker = worker
        descriptor = setup.broker_descriptor
        super().__init__(
            setup.config,
            reactor,
            broker=None
            if descriptor is None
            else IpcBroker(lambda channel: adopt_socket(reactor, channel, descriptor)),
            listeners=Listeners(listeners("browsers"), listeners("backends"), listeners("api"), []),
            node=setup.node,
            counts=ConnectionCounts(_shared_counts(setup)),
        )

    def _started(self) -> None:
        self._worker.send(control_messages.Running())

    def _abort_start(self, reason: str, status: int) -> None:
        self._worker.fail(reason, status)


def _shared_counts(setup: control_messages.Setup) -> SharedCounts:
    table = setup.counts
    shared = SharedCounts(table.descriptor, table.rows, setup.number, table.secret)
    os.close(table.descriptor)  # the map keeps a duplicate
    return shared


class Worker:
    """The worker's process: its channel to the supervisor, and its server once the settings have arrived.

    :ivar status: the exit status of the process.
    """

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self.status = 0
        self._server: ChatwsService | None = None
        self._channel_lost: Deferred[None] | None = Deferred()
        self._channel = IpcConnection(self._on_messages, self._on_channel_lost)

    def run(self) -> None:
        """Run the reactor until the server has stopped."""
        adopt_socket(self._reactor, self._channel, control_messages.CONTROL)
        observer: Any = RelayingObserver(self._channel)
        globalLogBeginner.beginLoggingTo([observer])
        install_sigterm_handler(self._reactor)
        self._reactor.run()

    def send(self, message: Any) -> None:
        """Send the supervisor one of the messages of `chatws.workers.control_messages`."""
        self._channel.send(control_messages.encode(message))

    def fail(self, reason: str, status: int) -> None:
        """Report to the supervisor that this worker cannot start, and end the process with `status`."""
        self.status = status
        self.send(control_messages.Failed(reason, status))
        self._channel.close()  # sends the message first; `_on_channel_lost` then stops the reactor

    def _on_channel_lost(self) -> None:
        lost, self._channel_lost = self._channel_lost, None
        if lost is not None:
            lost.callback(None)
        with suppress(ReactorNotRunning):
            self._reactor.stop()

    def _on_messages(self, messages: list[bytes]) -> None:
        for message in messages:
            self._handle(control_messages.from_supervisor.decode(message))

    def _handle(self, message: control_messages.ToWorker) -> None:
        if isinstance(message, control_messages.Setup):
            self._serve(message)
            return
        server = self._server
        assert server is not None, "the first message is the setup"
        if isinstance(message, control_messages.Reconfigure):
            self._reconfigure(server, message)
        elif isinstance(message, control_messages.CheckAlive):
            self.send(control_messages.ReportAlive())
        elif isinstance(message, control_messages.AskMetrics):
            self.send(control_messages.Metrics(message.number, [to_family(metric) for metric in collect(server)]))
        else:
            number = message.number
            checked = server.ready().addCallback(
                lambda problems: self.send(control_messages.ReadinessReport(number, problems))
            )
            checked.addErrback(lambda failure: log.failure("the readiness check failed", failure))

    def _serve(self, setup: control_messages.Setup) -> None:
        try:
            use_levels(setup.config.log_level)
            server = _WorkerServer(self, setup, self._reactor)
        except ConfigError as error:
            self.fail(str(error), error.exit_status)
            return
        except Exception as error:
            log.failure("this worker cannot start")
            self.fail(str(error), 1)
            return
        self._server = server
        self._reactor.addSystemEventTrigger("before", "shutdown", lambda: Deferred.fromCoroutine(self._stop(server)))
        server.startService()

    async def _stop(self, server: ChatwsService) -> None:
        await server.stopService()
        lost = self._channel_lost
        if lost is not None:  # send the last log lines first
            self._channel.close()
            lost.addTimeout(LOG_FLUSH_TIMEOUT, zope_clock(self._reactor)).addErrback(lambda failure: None)
            await lost

    def _reconfigure(self, server: ChatwsService, message: control_messages.Reconfigure) -> None:
        try:
            server.apply(message.config)
        except ConfigError as error:
            log.error(
                "the new configuration is invalid, the worker keeps the previous one: {reason}", reason=str(error)
            )
            return
        for listener, pem in zip(server.tls_listeners, message.certificates, strict=True):
            listener.tls.use(pem)


def collect(server: ChatwsService) -> list[Metric]:
    """Return all metrics of this process."""
    return [*Exporter(server, server.lag).collect(), *ProcessCollector(registry=None).collect()]


def to_family(metric: Metric) -> control_messages.Family:
    """Convert a metric to the message that the supervisor receives."""
    samples = [(sample.name, dict(sample.labels), float(sample.value)) for sample in metric.samples]
    return control_messages.Family(metric.name, metric.documentation, metric.type, samples)


def main() -> None:
    """Run a worker. The arguments are its number, which `ps` shows, and the name of the reactor, if any."""
    if len(sys.argv) > 2:
        installReactor(sys.argv[2])
    reactor = default_reactor()
    use_monotonic_clock(reactor)
    use_own_threads(reactor)
    worker = Worker(reactor)
    worker.run()
    sys.exit(worker.status)
