"""The service tree: the one place where everything meets.

Starting goes up: the log, the database, the demo, and only then the ports are read from, though they are bound first
(for ports below 1024, and so that a port in use is known before anything else is done). Stopping goes down, and takes
its time so that nobody notices: no new connections; the lines that backends have sent already; the browsers, told to
come back (4012) one after the other; then what lies beneath.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import Logger
from zope.interface import implementer

from chatws import startup
from chatws.auth.build import build_activity, build_authenticator, build_authorizer
from chatws.auth.secrets import load_secrets
from chatws.auth.ticket import TicketMethod
from chatws.chat.audience import AudienceTable, Kind
from chatws.chat.chat_server import ChatServer
from chatws.chat.history import History
from chatws.chat.session import SessionLimits
from chatws.config import Config
from chatws.daemon import Daemon
from chatws.database.engines import open_database
from chatws.errors import CloseCode, OperatorError
from chatws.health import Readiness
from chatws.metrics import Exporter, Lag, MeasuredDatabase, make_site
from chatws.place import Place, log_bounds
from chatws.push.listener import PushFactory
from chatws.push.queue import PushQueue
from chatws.reload import compare, push_secret
from chatws.server.admission import Admission
from chatws.server.fanout import FanOut
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.server.wheel import Wheel
from chatws.server.ws_server import WsServer

__all__ = ["ChatwsService", "build", "listed", "make_admission", "make_audiences"]

log = Logger()

#: Seconds between two batches of browsers sent away.
DRAIN_TICK = 0.05


def build(config: Config, reactor: Any) -> ChatwsService:
    """The server that `config` asks for, not yet started.

    :raises OperatorError: the settings do not go together.
    """
    for warning in startup.check(config, reactor):
        log.warn("{warning}", warning=warning)
    return ChatwsService(config, reactor)


class ChatwsService(Daemon):
    """One server.

    :ivar chat: the application.
    :ivar browsers: who listens for browsers, and :ivar backends: for backends, and :ivar monitors: for
        whoever collects metrics, or None; `ports` of each, once started.
    """

    def __init__(self, config: Config, reactor: Any, place: Place | None = None) -> None:
        self.config = config
        self.reactor = reactor
        self.place = place or Place(config, reactor)
        wheel = Wheel(reactor)
        bounds = log_bounds(config)
        url = startup.database_url(config)
        self.database: MeasuredDatabase | None = None
        if url:
            database = open_database(url, pool=config.database_pool, timeout=config.auth_timeout, reactor=reactor)
            self.database = MeasuredDatabase(database, reactor)
        self.authenticator = build_authenticator(config, self.database, reactor)
        self.activity = build_activity(config, self.database, reactor)
        self.fanout = FanOut()
        self.chat = ChatServer(
            self.place.broker(),
            authenticator=self.authenticator,
            authorizer=build_authorizer(config, self.database, reactor),
            activity=self.activity,
            history=History(bounds, time.time),
            audiences=make_audiences(config),
            limits=SessionLimits(config.max_subscriptions, config.rate, config.rate_burst),
            auth_deadline=config.auth_deadline,
            max_connections_per_user=config.max_connections_per_user,
            presence_grace=config.presence_grace,
            presence_lease=config.presence_lease,
            node=self.place.node,
            send_all=self.fanout.send_all,
            reactor=reactor,
            schedule=wheel.schedule,
        )
        self.demo = self._demo() if config.demo else None
        self.websockets = WsServer(
            self.chat,
            max_message_size=config.max_message_size,
            max_fragments=config.max_fragments,
            ping_interval=config.ping_interval,
            ping_timeout=config.ping_timeout,
            send_buffer=config.send_buffer,
            compression=config.compression,
            reactor=reactor,
            wheel=wheel,
        )
        self._state = "starting"
        parts: dict[str, Any] = {"broker": lambda: self.chat.broker.bounds()}
        if self.database:
            parts["database"] = lambda: self.database.query("SELECT 1", {})
        self.ready = Readiness(parts, lambda: self._state, reactor)
        self.http = http = HttpServer(
            self.websockets,
            resource=self.demo.resource() if self.demo else None,
            ready=self.ready,
            admission=make_admission(config),
            max_head_size=config.max_head_size,
            handshake_timeout=config.handshake_timeout,
            reactor=reactor,
        )
        self.browsers = IoServer(http, self.place.browser_endpoints(), reactor)
        self.push_queue = PushQueue(self.chat, config.push_queue, reactor) if config.push_queue else None
        self.push = PushFactory(
            self.push_queue or self.chat, secret=self._push_secret, max_line_size=config.max_line_size, reactor=reactor
        )
        # an IoServer binds any factory, and says the same of a port in use
        self.backends = IoServer(self.push, self.place.push_endpoints(), reactor)  # type: ignore[arg-type]
        self._secret = push_secret(config)
        self._ticket_secrets = load_secrets(config)
        self.lag = Lag(reactor)
        self.monitors: IoServer | None = None
        endpoints = self.place.metrics_endpoints()
        if endpoints:
            site: Any = make_site(Exporter(self, self.lag), self.ready, reactor)
            self.monitors = IoServer(site, endpoints, reactor)

    # Starting

    async def _listen(self) -> None:
        for server in (self.backends, self.browsers):
            await server.listen()
            for port in server.ports:
                port.stopReading()  # whoever comes waits in the kernel's queue until there is somebody to answer
        if self.monitors:
            await self.monitors.listen()

    async def _start(self) -> None:
        if self.config.io_uring:
            self.fanout.use_io_uring()
        await self.chat.start()
        if self.database:
            await self.database.start()
        if self.demo:
            self.demo.startService()
        await self._bind()
        if self._failing:
            return
        for server in (self.backends, self.browsers):
            for port in server.ports:
                port.startReading()
        self._state = ""
        if self.config.metrics_port:
            self.lag.start()
        if self.monitors:
            log.info("metrics are on {where}", where=listed(self.monitors.ports))
        _spare_the_collector()
        log.info(
            "listening for browsers on {browsers}, for backends on {backends}; up to {files} open files, {reactor}",
            browsers=listed(self.browsers.ports),
            backends=listed(self.backends.ports),
            files=raise_file_limit(),
            reactor=type(self.reactor).__name__,
        )
        if self.demo:
            host = self.browsers.ports[0].getHost()
            log.info("the demo: open http://localhost:{port}/ in two windows", port=getattr(host, "port", "?"))
        self.place.started()

    def _give_up(self, reason: str) -> None:
        self.place.failed(reason)

    def _push_secret(self) -> bytes | None:
        return self._secret

    # Changing

    def reconfigure(self, new: Config) -> tuple[str, ...]:
        """Take from `new` what can be changed while browsers are connected; nobody is dropped for it.

        :returns: a sentence for each setting that has changed, without any secret.
        :raises OperatorError: `new` is no good. Then nothing has changed.
        """
        startup.check(new, self.reactor, running=True)
        return self.take(new)

    def take(self, new: Config) -> tuple[str, ...]:
        """As `reconfigure`, of a configuration that has been checked."""
        change = compare(self.config, self._ticket_secrets, self._secret, new)
        config = change.config
        audiences = make_audiences(config)
        make_admission(config)  # what it would refuse it has to refuse before anything is changed
        self.http.admission.reconfigure(**_doors(config))
        self.http.max_head_size = config.max_head_size
        self.http.handshake_timeout = config.handshake_timeout
        self.chat.audiences = audiences
        limits = self.chat.limits
        limits.max_subscriptions, limits.rate, limits.rate_burst = (
            config.max_subscriptions,
            config.rate,
            config.rate_burst,
        )
        self.chat.auth_deadline = config.auth_deadline
        self.chat.max_connections_per_user = config.max_connections_per_user
        self.push.max_line_size = config.max_line_size
        self._secret = change.push_secret
        self._ticket_secrets = change.ticket_secrets
        for method in self.authenticator.methods:
            if isinstance(method, TicketMethod):
                method.change_secrets(change.ticket_secrets)
        self.config = config
        return change.lines

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Drain, then stop. Fires when all is let go."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._state = "stopping"
        await self.browsers.stop_listening()
        await self.backends.stop_listening()
        if self.demo:
            await self.demo.stopService()
        await self.push.drain()
        if self.push_queue:
            self.push_queue.stop()
        self.chat.hold_presence(self.config.drain_seconds)
        await self._send_away()
        await self.browsers.stopService()
        await self.chat.stop()
        await self.activity.stop()
        await self.authenticator.stop()
        if self.database:
            await self.database.stop()
        self.lag.stop()
        if self.monitors:
            await self.monitors.stop_listening()

    async def _send_away(self) -> None:
        """Close the browsers, evenly over `drain_seconds`, so that they do not all come back at once."""
        total = left = self.chat.connections
        if not total:
            return
        log.info("sending {count} browsers away over {seconds:g} s", count=total, seconds=self.config.drain_seconds)
        ticks = max(1, round(self.config.drain_seconds / DRAIN_TICK))
        for tick in range(ticks - 1, -1, -1):
            left = self.chat.send_away(CloseCode.RESTARTING, "the server is restarting", left - total * tick // ticks)
            if not left:
                break
            await deferLater(self.reactor, DRAIN_TICK)

    # The demo

    def _demo(self) -> Any:
        from chatws.demo.service import DemoService
        from chatws.push.client import PushClient

        endpoint: Any = _OwnPushPort(self)
        client = PushClient(endpoint, reactor=self.reactor, secret=push_secret(self.config))
        return DemoService(client, self.config.demo_database, reactor=self.reactor)


@implementer(IStreamClientEndpoint)
class _OwnPushPort:
    """The endpoint on which this process itself listens for backends: known only once it does."""

    def __init__(self, service: ChatwsService) -> None:
        self._service = service

    def connect(self, factory: Any) -> Deferred[Any]:
        """See `IStreamClientEndpoint`."""
        reactor = self._service.reactor
        host = self._service.backends.ports[0].getHost()
        if hasattr(host, "port"):
            return TCP4ClientEndpoint(reactor, "127.0.0.1", host.port).connect(factory)
        endpoint: Any = UNIXClientEndpoint(reactor, host.name)  # type: ignore[no-untyped-call]
        connecting: Deferred[Any] = endpoint.connect(factory)
        return connecting


def _spare_the_collector() -> None:
    """Keep Python's cyclic collector from going through everything whenever many browsers come.

    By default it does so each time the number of objects has grown by a quarter: with ten thousand connections that
    stops the server for a tenth of a second and more, in the middle of a reconnect storm. Connections and events are
    freed by their reference counts; what the collector finds can wait for two million objects more. What has come
    since is looked at in small portions: 25,000 objects are some ten milliseconds. What was loaded at the start never
    goes, and need not be looked at.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 5, 80)


def make_audiences(config: Config) -> AudienceTable:
    """:raises OperatorError: `[audience]` names what there is not."""
    pairs = (one.partition("=") for one in config.audience)
    try:
        return AudienceTable({name: Kind(kind) for name, _, kind in pairs})
    except ValueError as error:
        raise OperatorError(f"[audience]: {error}; one of {', '.join(Kind)}") from None


def _doors(config: Config) -> dict[str, Any]:
    return {
        "allowed_origins": config.allowed_origin,
        "trusted_proxies": config.trusted_proxy,
        "max_connections": config.max_connections,
        "max_connections_per_ip": config.max_connections_per_ip,
    }


def make_admission(config: Config) -> Admission:
    """Who may come in. Raises what it raises for settings that it cannot take."""
    return Admission(**_doors(config))


def listed(ports: Sequence[Any]) -> str:
    """Where these ports listen, for people."""
    hosts = [port.getHost() for port in ports]
    return ", ".join(f"{host.host}:{host.port}" if hasattr(host, "port") else f"unix:{host.name}" for host in hosts)
