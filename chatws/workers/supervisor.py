"""What runs with `--workers N`: opens the ports and the log, starts the workers, and starts anew those that die.

It serves no browser and reads no backend's line, so that it always has time for them. Where the log is in memory or in
SQLite it is held here (chatws.brokers.exchange), and outlives each worker; a log that processes can share by itself
(PostgreSQL, Redis) every worker opens for its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from chatws import startup
from chatws.auth.secrets import load_secrets
from chatws.brokers.exchange import Exchange
from chatws.channel import Channel
from chatws.config import Config
from chatws.daemon import Daemon
from chatws.endpoints import make_endpoint
from chatws.place import open_log
from chatws.reload import compare, push_secret
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.service import listed, make_admission, make_audiences
from chatws.workers import monitoring
from chatws.workers.child import Child
from chatws.workers.sockets import Door, open_door

__all__ = ["Supervisor", "shared_out"]

log = Logger()

#: Seconds beyond `drain_seconds` that a worker may take to end.
PATIENCE = 20.0


def shared_out(config: Config) -> Config:
    """The settings of one worker: its share of what counts for all."""
    if not config.max_connections:
        return config
    return replace(config, max_connections=config.max_connections // config.workers)


class Supervisor(Daemon):
    """
    :param config: checked.
    :param reactor_name: twistd's `--reactor`, for the workers.
    :ivar config: what a worker that starts now is told.
    """

    def __init__(self, config: Config, reactor: Any, reactor_name: str = "") -> None:
        self.config = shared_out(config)
        self.children: list[Child] = []
        self._whole = config
        self._reactor = reactor
        self._reactor_name = reactor_name
        self._doors: list[Door] = []
        self._state = "starting"
        self._exchange: Exchange | None = None
        if startup.log_is_local(config):
            self._exchange = Exchange(open_log(config, reactor), self._stuck, reactor)
        self._secret = push_secret(config)
        self._ticket_secrets = load_secrets(config)
        self._monitors: IoServer | None = None
        self._all_ended: Deferred[None] | None = None

    # Starting

    async def _listen(self) -> None:
        config = self._whole
        raise_file_limit()
        for name, descriptions, source in (
            ("backends", startup.push_endpoints(config), "--push-listen" if config.push_listen else "--push-port"),
            ("browsers", startup.browser_endpoints(config), "--listen" if config.listen else "--port"),
        ):
            for description in descriptions:
                self._doors.append(open_door(self._reactor, name, description, source, config.workers))

    async def _start(self) -> None:
        if self._failing:
            return
        if self._exchange is not None:
            await self._exchange.start()
        if self._state == "stopping":  # told to meanwhile
            return
        for number in range(self._whole.workers):
            self.children.append(Child(number, self, self._doors, self._reactor, self._reactor_name))
        await self._monitor()
        for child in self.children:
            child.start()

    async def _monitor(self) -> None:
        endpoints = [
            make_endpoint(self._reactor, one, "--metrics-port") for one in startup.metrics_endpoint(self._whole)
        ]
        if endpoints:
            ready = monitoring.readiness(self.children, lambda: self._state, self._reactor)
            site: Any = monitoring.site(monitoring.Gathering(self.children, self._reactor), ready, self._reactor)
            self._monitors = IoServer(site, endpoints, self._reactor)
            await self._monitors.listen()

    def _give_up(self, reason: str) -> None:
        startup.fail(self._reactor, reason)

    # What workers report: child.Owner

    def log_channel(self, child: Child) -> Channel | None:
        """See `Owner`."""
        return None if self._exchange is None else self._exchange.channel(child)

    def serves(self, child: Child) -> None:
        """See `Owner`."""
        log.info("worker {worker} serves, as process {pid}", worker=child.number, pid=child.pid)
        if self._state == "starting" and all(one.is_running for one in self.children):
            self._state = ""
            log.info(
                "{count} workers listen for browsers on {browsers}, for backends on {backends}",
                count=len(self.children),
                browsers=listed([door for door in self._doors if door.name == "browsers"]),
                backends=listed([door for door in self._doors if door.name == "backends"]),
            )
            if self._monitors:
                log.info("metrics are on {where}", where=listed(self._monitors.ports))

    def failed(self, child: Child, reason: str) -> None:
        """See `Owner`."""
        if self._state == "starting":
            self._fail(reason)
        else:
            log.error("worker {worker} cannot start: {reason}", worker=child.number, reason=reason)

    def ended(self, child: Child, how: str) -> None:
        """See `Owner`."""
        if self._all_ended is not None:
            self._look_ended()
        elif self._state == "starting":
            self._fail(f"worker {child.number} {how} before it could serve: see the log")
        else:
            pause = child.start_later()
            log.error(
                "worker {worker} {how}; another one starts {when}",
                worker=child.number,
                how=how,
                when=f"in {pause:g} s" if pause else "now",
            )

    def _stuck(self, child: Child) -> None:
        log.error("worker {worker} reads no events any more, and is killed", worker=child.number)
        child.kill()

    # Changing

    def reconfigure(self, new: Config) -> tuple[str, ...]:
        """See `chatws.service.ChatwsService.reconfigure`: for all workers."""
        startup.check(new, self._reactor, running=True)
        change = compare(self._whole, self._ticket_secrets, self._secret, new)
        make_audiences(change.config)
        make_admission(change.config)
        self._whole = change.config
        self._secret = change.push_secret
        self._ticket_secrets = change.ticket_secrets
        self.config = shared_out(change.config)
        for child in self.children:
            child.reconfigure(self.config)
        return change.lines

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Let all workers end, as each would alone, at the same time; then close the log."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._state = "stopping"
        closing = [door.close() for door in self._doors]
        self._all_ended = Deferred()
        for child in self.children:
            child.stop(self.config.drain_seconds + PATIENCE)
        self._look_ended()
        await gatherResults([*closing, self._all_ended])
        if self._exchange is not None:
            await self._exchange.stop()
        if self._monitors is not None:
            await self._monitors.stop_listening()

    def _look_ended(self) -> None:
        assert self._all_ended is not None
        if not self._all_ended.called and all(child.pid is None for child in self.children):
            self._all_ended.callback(None)
