"""The supervisor of `--workers N`: it opens the ports and the broker, starts the workers, and restarts those that end.

The supervisor serves no browser and reads no push line, so it always has time for its workers. It holds a broker in
memory or SQLite itself (`chatws.workers.broker_server`), and that broker outlives each worker. Several processes can
share PostgreSQL and Redis, so every worker opens its own connection to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from chatws.auth.public_keys import load_key_files
from chatws.auth.secrets import load_secrets
from chatws.config import validate
from chatws.config.reload import diff_config, push_secret, read_renewals, use_renewals
from chatws.config.schema import Config
from chatws.interfaces import Reactor
from chatws.net.listeners import make_listener
from chatws.net.sockets import shown_addresses
from chatws.runtime.connection_counts import CountsFile
from chatws.runtime.file_budget import FileBudget
from chatws.runtime.log_levels import use_levels
from chatws.runtime.parts import make_admission, make_audiences, open_configured_broker
from chatws.runtime.root_service import RootService
from chatws.runtime.shutdown import exit_with_error
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.workers import metrics_collector
from chatws.workers.broker_server import BrokerServer
from chatws.workers.ipc import IpcConnection
from chatws.workers.shared_listener import SharedListener, bind_listener
from chatws.workers.worker_process import WorkerProcess

__all__ = ["Supervisor", "per_worker_config"]

log = Logger()

#: Seconds beyond `drain_timeout` that a worker may take to close its broker and its log. Then it is killed. A slow
#: broker or a busy machine takes seconds. Longer waits delay the shutdown for a worker that hangs.
STOP_TIMEOUT = 20.0


def per_worker_config(config: Config) -> Config:
    """Return the settings of one worker, with its share of the limits of the node."""
    if not config.max_connections:
        return config
    return replace(config, max_connections=config.max_connections // config.workers)


class Supervisor(RootService):
    """Starts the workers, restarts those that end, and passes on signals and settings.

    :param config: the validated settings of the whole node.
    :param reactor_name: twistd's `--reactor`, for the workers.
    :ivar config: the settings that a worker receives when it starts.
    :ivar counts: the connections of all workers.
    """

    def __init__(self, config: Config, reactor: Reactor, reactor_name: str = "") -> None:
        self.config = per_worker_config(config)
        self.workers: list[WorkerProcess] = []
        self.counts = CountsFile(config.workers)
        self._whole = config
        self._reactor = reactor
        self._reactor_name = reactor_name
        self._listeners: list[SharedListener] = []
        self._state = "starting"
        self._broker_server: BrokerServer | None = None
        if validate.broker_is_local(config):
            self._broker_server = BrokerServer(
                open_configured_broker(config, reactor), self._kill_stuck_worker, reactor
            )
        self._secret = push_secret(config)
        self._token_secrets, self._public_keys = load_secrets(config), load_key_files(config)
        self._monitors: IoServer | None = None
        self._all_ended: Deferred[None] | None = None

    # Starting

    async def _listen(self) -> None:
        config = self._whole
        raise_file_limit()
        for name, descriptions, source in (
            ("backends", validate.push_endpoints(config), "--push-listen" if config.push_listen else "--push-port"),
            ("api", validate.api_endpoints(config), validate.api_source(config)),
            ("browsers", validate.browser_endpoints(config), "--listen" if config.listen else "--port"),
        ):
            for description in descriptions:
                self._listeners.append(bind_listener(name, description, source, config.workers))

    async def _start(self) -> None:
        if self._failing:
            return
        if self._broker_server is not None:
            await self._broker_server.start()
        if self._stopping:
            return
        for number in range(self._whole.workers):
            self.workers.append(WorkerProcess(number, self, self._listeners, self._reactor, self._reactor_name))
        await self._monitor()
        if self._stopping:
            return
        for worker in self.workers:
            worker.start()

    async def _monitor(self) -> None:
        endpoints = [
            make_listener(self._reactor, description, validate.metrics_source(self._whole))
            for description in validate.metrics_endpoints(self._whole)
        ]
        if endpoints:
            ready = metrics_collector.readiness(self.workers, lambda: self._state, self._reactor)
            collector = metrics_collector.MetricsCollector(self.workers, self._reactor)
            budget = FileBudget(clock=self._reactor)
            site: Any = metrics_collector.site(
                collector, ready, self._reactor, budget, validate.metrics_secret(self._whole)
            )
            self._monitors = IoServer(site, endpoints, self._reactor)
            await self._monitors.listen()

    def _abort_start(self, reason: str, status: int) -> None:
        exit_with_error(self._reactor, reason, status)

    # Reports of the workers

    def broker_channel(self, worker: WorkerProcess) -> IpcConnection | None:
        """See `WorkerEvents`."""
        return None if self._broker_server is None else self._broker_server.channel(worker)

    def on_ready(self, worker: WorkerProcess) -> None:
        """See `WorkerEvents`."""
        log.info("worker {worker} serves, as process {pid}", worker=worker.number, pid=worker.pid)
        if self._state == "starting" and all(other.is_running for other in self.workers):
            self._state = ""
            log.info(
                "{count} workers listen for browsers on {browsers}, for backends on {backends}",
                count=len(self.workers),
                browsers=shown_addresses([listener for listener in self._listeners if listener.name == "browsers"]),
                backends=shown_addresses([listener for listener in self._listeners if listener.name == "backends"]),
            )
            if self._monitors:
                log.info("metrics are on {addresses}", addresses=shown_addresses(self._monitors.ports))
            self._started()

    def failed(self, worker: WorkerProcess, reason: str, status: int) -> None:
        """See `WorkerEvents`."""
        if self._state == "starting":
            self._fail(reason, status)
        else:
            log.error("worker {worker} cannot start: {reason}", worker=worker.number, reason=reason)

    def on_exit(self, worker: WorkerProcess, outcome: str) -> None:
        """See `WorkerEvents`."""
        if self._all_ended is not None:
            self._check_all_ended()
        elif self._state == "starting":
            self._fail(f"worker {worker.number} {outcome} before it could serve: see the log", 1)
        else:
            pause = worker.start_later()
            log.error(
                "worker {worker} {outcome}; another one starts {when}",
                worker=worker.number,
                outcome=outcome,
                when=f"in {pause:g} s" if pause else "now",
            )

    def _kill_stuck_worker(self, worker: WorkerProcess) -> None:
        log.error("worker {worker} no longer reads events: the supervisor kills it", worker=worker.number)
        worker.kill()

    # Reload

    def reconfigure(self, new: Config) -> tuple[str, ...]:
        """See `chatws.runtime.service.ChatwsService.reconfigure`: for all workers."""
        validate.check(new, self._reactor, running=True)
        change = diff_config(self._whole, self._token_secrets, self._secret, new, self._public_keys)
        make_audiences(change.config)
        make_admission(change.config)
        renewals = read_renewals(self._listeners)
        use_levels(change.config.log_level)
        self._whole = change.config
        self._secret = change.push_secret
        self._token_secrets, self._public_keys = change.token_secrets, change.public_keys
        self.config = per_worker_config(change.config)
        lines = use_renewals(renewals)
        for worker in self.workers:
            worker.reconfigure(self.config)
        return (*change.lines, *lines)

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Stop all workers at the same time, then close the broker and the metrics port."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._state = "stopping"
        for listener in self._listeners:
            listener.close()
        self._all_ended = Deferred()
        for worker in self.workers:
            worker.stop(self.config.drain_timeout + STOP_TIMEOUT)
        self._check_all_ended()
        await self._all_ended
        if self._broker_server is not None:
            await self._broker_server.stop()
        if self._monitors is not None:
            await self._monitors.stop_listening()
        self.counts.close()

    def _check_all_ended(self) -> None:
        assert self._all_ended is not None
        if not self._all_ended.called and all(worker.pid is None for worker in self.workers):
            self._all_ended.callback(None)
