"""One server of one process: builds the components from a `Config`, starts and stops them in order.

Start: the ports are bound first, for ports below 1024 and so that a port in use is reported early. Then the broker, the
database and the demo start. Only then are the ports read from.

Stop: the listeners close. The lines that backends have already sent are processed. Clients are disconnected with
`drain_close_code`, evenly over `drain_timeout`. Then the broker, the authentication and the database stop.
"""

from __future__ import annotations

import gc
import time
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from chatws.auth.factory import build_activity, build_authenticator, build_authorizer
from chatws.auth.public_keys import load_key_files
from chatws.auth.secrets import load_secrets
from chatws.auth.token import TokenMethod
from chatws.brokers.interface import Broker
from chatws.chat.drain import disconnect_evenly
from chatws.chat.history import History
from chatws.chat.presence.service import PresenceSettings
from chatws.chat.server import ChatServer
from chatws.chat.session import SessionLimits
from chatws.chat.work_scheduler import WorkScheduler
from chatws.config import validate
from chatws.config.reload import diff_config, push_secret, read_renewals, use_renewals
from chatws.config.schema import Config
from chatws.database.factory import open_database
from chatws.errors import CloseCode
from chatws.interfaces import Reactor
from chatws.net.sockets import shown_addresses
from chatws.outbox.dialects import dialect_of
from chatws.outbox.online import OnlineTable
from chatws.outbox.reader import LEASE, OutboxReader, OutboxSettings
from chatws.outbox.session import OutboxDatabase
from chatws.push.http_factory import HttpFactory
from chatws.push.listener import PushFactory
from chatws.runtime.connection_counts import ConnectionCounts
from chatws.runtime.file_budget import BACKEND, WEBSOCKET, FileBudget, selectable_files
from chatws.runtime.health import ReadinessCheck
from chatws.runtime.log_levels import use_levels
from chatws.runtime.measured_broker import MeasuredBroker
from chatws.runtime.measurements import Lag, MeasuredDatabase
from chatws.runtime.metrics import Exporter, make_site
from chatws.runtime.node import NodeControl, node_name
from chatws.runtime.parts import (
    Listeners,
    admission_settings,
    api_limits,
    configured_listeners,
    history_retention,
    make_admission,
    make_audiences,
    make_contact_filter,
    open_configured_broker,
    session_limits,
)
from chatws.runtime.root_service import RootService
from chatws.runtime.shutdown import exit_with_error
from chatws.runtime.turns import Turns
from chatws.server.fanout import FanOut
from chatws.server.http_server import HttpServer
from chatws.server.io_server import IoServer, raise_file_limit
from chatws.server.timer_wheel import TimerWheel
from chatws.server.ws_server import WsServer
from chatws.webhooks.service import Webhooks

__all__ = ["ChatwsService", "build"]

log = Logger()


def build(config: Config, reactor: Reactor) -> ChatwsService:
    """Build the server that `config` describes. It is not started.

    :raises ConfigError: a setting is invalid, or contradicts another one.
    """
    for warning in validate.check(config, reactor):
        log.warn("{warning}", warning=warning)
    return ChatwsService(config, reactor)


class ChatwsService(RootService):
    """One server.

    :param broker: not yet started; by default the configured one.
    :param listeners: not yet bound; by default the configured ones.
    :param counts: counts connections, over all workers. By default only those of this process.
    :param node: the name of this node, unique among those that share the history; by default a random one.
    :ivar chat: the application.
    :ivar node_name: the name of this node for people.
    :ivar broker: the broker, measured.
    :ivar budget: counts the connections of all listeners.
    :ivar browsers: the WebSocket listeners. Their `ports` are set once they are bound.
    :ivar backends: the push listeners.
    :ivar api: the listeners of the HTTP API, or None.
    :ivar monitors: the metrics listener, or None.
    """

    def __init__(
        self,
        config: Config,
        reactor: Reactor,
        *,
        broker: Broker | None = None,
        listeners: Listeners | None = None,
        node: str = "",
        counts: ConnectionCounts | None = None,
    ) -> None:
        counts = counts or ConnectionCounts()
        self.config = config
        self.node_name = node_name(config)
        self.reactor = reactor
        listeners = listeners or configured_listeners(config, reactor)
        timer_wheel = TimerWheel(reactor)
        bounds = history_retention(config)
        url = validate.database_url(config)
        self.database: MeasuredDatabase | None = None
        if url:
            database = open_database(url, pool=config.database_pool, timeout=config.auth_timeout, reactor=reactor)
            self.database = MeasuredDatabase(database, reactor)
        self.authenticator = build_authenticator(config, self.database, reactor)
        self.activity = build_activity(config, self.database, reactor)
        self.budget = FileBudget((WEBSOCKET, BACKEND), clock=reactor)
        scheduler = WorkScheduler(reactor)
        self.fanout = FanOut(submit=scheduler.submit_live)
        self.broker = MeasuredBroker(broker or open_configured_broker(config, reactor), reactor)
        self.chat = ChatServer(
            self.broker,
            authenticator=self.authenticator,
            authorizer=build_authorizer(config, self.database, reactor),
            activity=self.activity,
            history=History(bounds),
            audiences=make_audiences(config),
            limits=SessionLimits(**session_limits(config)),
            auth_deadline=config.auth_deadline,
            max_connections_per_user=config.max_connections_per_user,
            max_connections_per_contact=config.max_connections_per_contact,
            max_contacts_per_ip=config.max_contacts_per_ip,
            counts=counts,
            contact_filter=make_contact_filter(config) if config.contacts else None,
            presence=PresenceSettings(
                config.presence_grace,
                config.presence_ttl,
                config.contact_grace,
                config.status_keep,
                config.availability,
            ),
            node=node,
            send_all=self.fanout.send_all,
            when_ready=self.fanout.when_ready,
            scheduler=scheduler,
            reactor=reactor,
            schedule=timer_wheel.schedule,
        )
        self.webhooks: Webhooks | None = None
        if config.webhook_url:
            self.webhooks = Webhooks(config, self.chat, self.broker, self.activity, reactor)
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
            timer_wheel=timer_wheel,
            broadcasts=self.fanout.broadcasts,
            node=self.chat.node,
        )
        self._state = "starting"
        parts: dict[str, Any] = {"broker": self.broker.check}
        if self.database:
            parts["database"] = lambda: self.database.query("SELECT 1", {})
        self.ready = ReadinessCheck(parts, lambda: self._state or self.node.state, reactor)
        self.http = http = HttpServer(
            self.websockets,
            resource=self.demo.resource() if self.demo else None,
            ready=self.ready,
            admission=make_admission(config, self.budget, counts),
            max_head_size=config.max_head_size,
            handshake_timeout=config.handshake_timeout,
            restricts_hosts=config.demo,
            reactor=reactor,
        )
        self.browsers = IoServer(http, listeners.websocket, reactor)
        self.push = PushFactory(
            self.chat,
            secret=self._push_secret,
            max_line_size=config.max_line_size,
            budget=self.budget,
            reactor=reactor,
        )
        # an IoServer binds any factory, and reports a port in use in the same words
        self.backends = IoServer(self.push, listeners.push, reactor)  # type: ignore[arg-type]
        self.outbox = self._make_outbox(url) if config.outbox else None
        self.http_push = HttpFactory(
            self.push.handler,
            secret=self._push_secret,
            max_head=config.max_head_size,
            budget=self.budget,
            reactor=reactor,
            **api_limits(config),
        )
        self.api = IoServer(self.http_push, listeners.api, reactor) if listeners.api else None  # type: ignore[arg-type]
        self._secret = push_secret(config)
        self._token_secrets, self._public_keys = load_secrets(config), load_key_files(config)
        self.lag = Lag(reactor)
        self.turns = Turns(reactor)
        self.node = NodeControl(
            config, self.node_name, self.broker, self.chat, http.admission, self.browsers, self.lag, reactor
        )
        self.monitors: IoServer | None = None
        if listeners.metrics:
            site: Any = make_site(
                Exporter(self, self.lag), self.ready, reactor, self.budget, validate.metrics_secret(config)
            )
            self.monitors = IoServer(site, listeners.metrics, reactor)

    def _make_outbox(self, url: str) -> OutboxReader:
        config, dialect = self.config, dialect_of(url)
        online = OnlineTable(dialect, config.table_prefix, self.chat.online, self.chat.statuses, time.time)
        return OutboxReader(
            OutboxDatabase(url, timeout=LEASE, reactor=self.reactor),
            dialect,
            OutboxSettings(config.table_prefix, config.outbox_max_age, config.max_line_size),
            target=self.chat,
            handler=self.push.handler,
            online=online,
            reactor=self.reactor,
        )

    # Starting

    @property
    def _servers(self) -> list[IoServer]:
        """The servers for browsers and backends, in the order in which their ports are opened."""
        return [self.backends, *([self.api] if self.api else []), self.browsers]

    async def _listen(self) -> None:
        for server in self._servers:
            await server.listen()
            for port in server.ports:
                port.stopReading()  # new connections wait in the kernel's backlog until the server has started
        if self.monitors:
            await self.monitors.listen()

    async def _start(self) -> None:
        if self.config.io_uring:
            self.fanout.use_io_uring()
        await self.chat.start()
        if self.database and not self._stopping:
            await self.database.start()
        if self.demo and not self._stopping:
            self.demo.startService()
        await self._bind()
        if self._failing or self._stopping:
            return
        for server in self._servers:
            for port in server.ports:
                port.startReading()
        if self.outbox:
            self.outbox.start()
        if self.webhooks:
            self.webhooks.start()
        self._state = ""
        self.lag.start()
        self.node.cluster.start()
        if self.monitors:
            log.info("metrics are on {addresses}", addresses=shown_addresses(self.monitors.ports))
        if self.api:
            log.info("the HTTP API is on {addresses}", addresses=shown_addresses(self.api.ports))
        _tune_garbage_collector()
        self.turns.start()
        log.info(
            "listening for browsers on {browsers}, for backends on {backends}; up to {files} open files, {reactor}",
            browsers=shown_addresses(self.browsers.ports),
            backends=shown_addresses(self.backends.ports),
            files=min(raise_file_limit(), selectable_files(self.reactor)),
            reactor=type(self.reactor).__name__,
        )
        if self.demo:
            host = self.browsers.ports[0].getHost()
            log.info("the demo: open http://localhost:{port}/ in two windows", port=getattr(host, "port", 0))
        self._started()

    def _abort_start(self, reason: str, status: int) -> None:
        exit_with_error(self.reactor, reason, status)

    def _push_secret(self) -> bytes | None:
        return self._secret

    # Changing

    def reconfigure(self, new: Config) -> tuple[str, ...]:
        """Check `new`, and apply the settings that can change at run time. Connections stay open.

        :returns: a sentence for each setting that has changed, without any secret.
        :raises ConfigError: `new` is invalid. Nothing has changed.
        """
        validate.check(new, self.reactor, running=True)
        renewals = read_renewals(self.tls_listeners)
        lines = self.apply(new)
        return (*lines, *use_renewals(renewals))

    @property
    def tls_listeners(self) -> list[Any]:
        """The listeners with TLS: those for backends first, in the order in which the ports are opened."""
        return [listener for server in self._servers for listener in server.endpoints if listener.tls is not None]

    def apply(self, new: Config) -> tuple[str, ...]:
        """Apply a configuration that `validate.check` has accepted. Otherwise see `reconfigure`."""
        change = diff_config(self.config, self._token_secrets, self._secret, new, self._public_keys)
        config = change.config
        audiences = make_audiences(config)
        make_admission(config)  # raises before anything is changed
        lines = change.lines
        use_levels(config.log_level)
        if self.webhooks and self.webhooks.reload(config):
            lines = (*lines, "the secrets or headers of webhooks have changed")
        self.http.admission.reconfigure(**admission_settings(config))
        self.http.max_head_size = config.max_head_size
        self.http.handshake_timeout = config.handshake_timeout
        self.chat.audiences = audiences
        for name, value in session_limits(config).items():
            setattr(self.chat.limits, name, value)
        self.chat.auth_deadline = config.auth_deadline
        self.chat.subscriptions.max_connections_per_user = config.max_connections_per_user
        self.chat.subscriptions.max_connections_per_contact = config.max_connections_per_contact
        self.chat.subscriptions.max_contacts_per_ip = config.max_contacts_per_ip
        if self.chat.contacts is not None:
            self.chat.contacts.filter = make_contact_filter(config)
        self.push.max_line_size = config.max_line_size
        self.http_push.reconfigure(max_head=config.max_head_size, **api_limits(config))
        self._secret = change.push_secret
        self._token_secrets, self._public_keys = change.token_secrets, change.public_keys
        for method in self.authenticator.methods:
            if isinstance(method, TokenMethod):
                method.change_keys(change.token_secrets, change.public_keys)
        self.node.reconfigure(config)
        self.config = config
        return lines

    # Stopping

    def stopService(self) -> Deferred[None]:
        """Drain, then stop. The Deferred fires when every component has stopped."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._state = "stopping"
        await self.browsers.stop_listening()
        await self.backends.stop_listening()
        if self.api:
            await self.api.stop_listening()
        if self.demo:
            await self.demo.stopService()
        if self.outbox:
            await self.outbox.stop()
        await gatherResults([self.push.drain(), self.http_push.drain()])
        self.node.cluster.stop()
        self.chat.freeze_presence(self.config.drain_timeout)
        await self._drain_clients()
        await self.browsers.stopService()
        if self.webhooks:
            await self.webhooks.stop()
        await self.chat.stop()
        await self.activity.stop()
        await self.authenticator.stop()
        if self.database:
            await self.database.stop()
        self.lag.stop()
        self.turns.stop()
        if self.monitors:
            await self.monitors.stop_listening()

    async def _drain_clients(self) -> None:
        """Disconnect the clients evenly over `drain_timeout`, so that they do not all reconnect at once."""
        code, reason = CloseCode(self.config.drain_close_code), "the server is restarting"
        total = self.chat.connection_count
        if total:
            log.info("disconnecting {count} clients over {seconds:g} s", count=total, seconds=self.config.drain_timeout)
        await disconnect_evenly(
            lambda count: self.chat.disconnect_all(code, reason, count), total, self.config.drain_timeout, self.reactor
        )
        self.http.close_http_connections()  # a WebSocket opened from one would close with another code
        self.chat.disconnect_all(code, reason)  # those opened since the last batch

    # The demo

    def _demo(self) -> Any:
        from chatws.clients.twisted import PushClient
        from chatws.demo.push_endpoint import OwnPushEndpoint
        from chatws.demo.service import DemoService

        endpoint: Any = OwnPushEndpoint(lambda: self.backends.ports, self.reactor)
        client = PushClient(endpoint, reactor=self.reactor, secret=push_secret(self.config))
        return DemoService(client, self.config.demo_database, reactor=self.reactor)


def _tune_garbage_collector() -> None:
    """Keep Python's cyclic garbage collector from traversing all objects while many clients connect.

    By default a full collection runs each time the number of objects has grown by a quarter. With 10,000 connections
    it blocks the server for 100 ms and more, in the middle of a reconnect storm. Reference counts free connections and
    events, so a full collection can wait for 2,000,000 new objects. Younger objects are collected in portions of
    25,000, about 10 ms each. Objects loaded at the start are never freed, and are frozen.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 5, 80)
