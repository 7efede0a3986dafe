"""Metrics for Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/).

The packages count in plain integers. A collector reads them at each scrape on the reactor's thread, where they cannot
change meanwhile. (prometheus-client's own resource for Twisted renders in a thread.) A message thus costs one addition.
Names follow https://prometheus.io/docs/practices/naming/, which a test checks with `promtool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

import chatws
from chatws.auth.chain import AuthenticatorChain
from chatws.auth.token import TokenMethod
from chatws.brokers.interface import AGENTS
from chatws.chat.server import ChatServer
from chatws.interfaces import Reactor
from chatws.outbox.reader import OutboxReader
from chatws.push.http_factory import HttpFactory
from chatws.push.listener import PushFactory
from chatws.runtime.file_budget import BACKEND, HTTP, METRICS, WEBSOCKET, FileBudget
from chatws.runtime.log_writer import dropped_lines
from chatws.runtime.measured_broker import MeasuredBroker
from chatws.runtime.measurements import LAG_INTERVAL, Lag, MeasuredDatabase
from chatws.runtime.node import NodeControl
from chatws.runtime.turns import Turns
from chatws.server.http_resources import GetResource, NoKeepAliveSite, ReadinessReport, monitoring_site
from chatws.server.io_server import IoServer
from chatws.server.ws_server import WsServer
from chatws.webhooks.service import Webhooks

__all__ = ["Exporter", "MeasuredServer", "log_lines_dropped", "make_site"]


class MeasuredServer(Protocol):
    """The components of a server that `Exporter` reads: those of `chatws.runtime.service.ChatwsService`."""

    node_name: str
    node: NodeControl
    authenticator: AuthenticatorChain
    broker: MeasuredBroker
    chat: ChatServer
    database: MeasuredDatabase | None
    outbox: OutboxReader | None
    webhooks: Webhooks | None
    websockets: WsServer
    push: PushFactory
    http_push: HttpFactory
    budget: FileBudget
    turns: Turns
    browsers: IoServer
    backends: IoServer
    api: IoServer | None
    monitors: IoServer | None


class Exporter(Collector):
    """Collects the metrics of one server.

    :param server: already built.
    :param lag: measured while the server runs.
    """

    def __init__(self, server: MeasuredServer, lag: Lag) -> None:
        self._server = server
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """Read all metrics."""
        server = self._server
        labels = {"version": chatws.__version__, "node": server.node_name, "node_id": server.chat.node}
        yield _gauge("chatws_info", "The running version, and the node.", 1, labels)
        yield _gauge("chatws_history_info", "The epoch of the history.", 1, {"epoch": server.broker.epoch})
        yield from self._cluster()
        yield from self._connections()
        yield from self._chat()
        yield from self._push()
        yield from self._history()
        yield from self._broker()
        yield from self._database()
        yield from self._outbox()
        yield from self._webhooks()
        yield log_lines_dropped()
        lag = HistogramMetricFamily(
            "chatws_event_loop_lag_seconds", f"Delay of the event loop, measured every {LAG_INTERVAL} s."
        )
        lag.add_metric([], self._lag.histogram.buckets(), self._lag.histogram.total)
        yield lag
        turns = HistogramMetricFamily(
            "chatws_reactor_turn_seconds", "Turns of the event loop, in each of which everything else waits."
        )
        turns.add_metric([], self._server.turns.histogram.buckets(), self._server.turns.histogram.total)
        yield turns

    def _cluster(self) -> Iterator[Metric]:
        nodes = self._server.node.cluster.nodes()
        yield _gauge("chatws_cluster_nodes", "Nodes that share the broker, this one included.", len(nodes))
        names = nodes[0].info.settings
        mismatches = {name: float(sum(name in node.differs for node in nodes)) for name in names}
        help = "Other nodes with another value of the setting."
        yield _gauges_by("chatws_cluster_mismatches", help, "setting", mismatches)

    def _connections(self) -> Iterator[Metric]:
        server = self._server.websockets
        stats = server.stats
        yield _gauge("chatws_connections", "Open WebSockets.", stats.connections_now)
        yield _counter("chatws_connections_opened", "Accepted WebSockets.", stats.connections)
        yield _counters("chatws_rejected", "Rejected connections.", ["reason"], stats.rejected)
        yield from self._files()
        yield _counter(
            "chatws_http_requests", "HTTP requests without an upgrade on the WebSocket listener.", stats.http_requests
        )
        yield _counter("chatws_received_bytes", "Bytes from clients, including framing.", stats.bytes_received)
        yield _counter("chatws_sent_bytes", "Bytes to clients, sent or queued.", stats.bytes_sent)
        yield _counter("chatws_messages_received", "Messages from clients.", stats.messages_received)
        yield _counter("chatws_socket_writes", "Writes to clients' sockets.", stats.sends)
        yield _counter(
            "chatws_slow_consumers", "Connections closed because the client did not read.", stats.slow_consumers
        )
        yield _counter("chatws_dead_peers", "Connections closed because a ping was not answered.", stats.dead_peers)
        yield _counter(
            "chatws_protocol_errors", "Connections closed because they violated RFC 6455.", stats.protocol_errors
        )
        yield _counter(
            "chatws_internal_errors", "Unhandled exceptions. Each has a traceback in the log.", stats.component_errors
        )
        unsent = [connection.unsent for connection in server.connections if connection._send_queue is not None]
        yield _gauge("chatws_send_buffer_bytes", "Unsent bytes of all clients.", sum(unsent))
        yield _gauge("chatws_send_buffer_bytes_max", "Unsent bytes of the slowest client.", max(unsent, default=0))

    def _files(self) -> Iterator[Metric]:
        server = self._server
        budget = server.budget
        yield _gauges_by(
            "chatws_sockets",
            "Open connections, by kind. http: on the WebSocket listener, without an upgrade.",
            "kind",
            {**dict.fromkeys((WEBSOCKET, HTTP, BACKEND, METRICS), 0), **budget.sockets()},
        )
        yield _gauge("chatws_sockets_limit", "Maximum number of WebSockets and backends.", budget.admission_limit)
        yield _counters(
            "chatws_evicted", "Connections closed before admission: no free file.", ["kind"], budget.evicted
        )
        listeners = [server.browsers, server.backends, *(more for more in (server.api, server.monitors) if more)]
        errors = sum(listener.accept_errors for listener in listeners)
        yield _counter("chatws_accept_errors", "Connections that the system could not accept: no free file.", errors)

    def _chat(self) -> Iterator[Metric]:
        chat = self._server.chat
        stats = chat.stats
        agents = chat.hub.count(AGENTS)
        contacts = 0 if chat.contacts is None else chat.contacts.count
        help = "Open WebSockets with an authenticated user."
        yield _gauge("chatws_connections_authenticated", help, agents + contacts)
        yield _gauge("chatws_contact_connections", "Open WebSockets of contacts.", contacts)
        yield _gauge(
            "chatws_users",
            "Users online on this node, including those within presence_grace.",
            len(chat.presence.agents.local),
        )
        yield _gauge("chatws_agents", "Agents online on any node.", len(chat.presence.online()))
        presence = chat.presence
        help = "Contacts subscribed to their conversations on any node: one for each contact and conversation."
        yield _gauge("chatws_contacts", help, len(presence.contacts))
        help = "Agents with a status other than online, including agents offline whose status is kept."
        yield _gauge("chatws_agent_statuses", help, len(presence.statuses))
        help = "Nodes of an earlier version, which do not know contacts. While there are any, no contact is admitted."
        yield _gauge("chatws_outdated_nodes", help, len(presence.contacts.outdated or ()))
        # each agent also subscribes to the channel of all agents, its own, and those of its groups
        subscriptions = chat.hub.subscriptions - 2 * agents
        if chat.contacts is not None:  # a contact has two channels of its own, and two for each conversation
            subscriptions += (chat.contacts.hub.subscriptions - 2 * contacts) // 2
        yield _gauge("chatws_subscriptions", "Subscriptions to conversations and groups.", subscriptions)
        authenticator = self._server.authenticator
        verified = {method.name: "yes" if method.verifies_identity else "no" for method in authenticator.methods}
        yield _counters(
            "chatws_authentications",
            "Authentications; proved=no: the identity was not verified.",
            ["method", "result", "proved"],
            {
                (method, result, verified.get(method, "no")): count
                for (method, result), count in authenticator.stats.counts.items()
            },
        )
        key_set = next((method.key_set for method in authenticator.methods if isinstance(method, TokenMethod)), None)
        help = "Requests for the public keys of tokens (jwks_url)."
        yield _counters("chatws_jwks_requests", help, ["result"], {} if key_set is None else key_set.counts)
        help = "Public keys of tokens that were found at jwks_url."
        yield _gauge("chatws_jwks_keys", help, 0 if key_set is None else key_set.key_count)
        help = "Repeated authentications of open connections (auth_ttl)."
        yield _counters("chatws_renewals", help, ["result"], chat.renewals)
        names = stats.names
        yield _counters("chatws_events", "Events accepted.", ["event"], {name: names[name][0] for name in names})
        deliveries = {name: names[name][1] for name in names}
        yield _counters("chatws_deliveries", "Events queued for connections.", ["event"], deliveries)
        failures = stats.internal_publish_failures
        yield _counter("chatws_internal_publish_failures", "Server-generated events not published.", failures)
        recoveries = {"complete": stats.recoveries, "failed": stats.recoveries_failed}
        yield _counters("chatws_recoveries", "Requested recoveries.", ["result"], recoveries)
        waiting = "Clients that have seen newer events than this node, and wait for it."
        yield _gauge("chatws_pending_resumes", waiting, chat.pending_resumes)
        searches = "Clients whose recovery waits for a search of the history, or for earlier replays."
        yield _gauge("chatws_pending_recoveries", searches, chat.pending_searches)
        yield _gauge("chatws_replays", "Replays of missed events in progress.", chat.replays)
        yield _counter("chatws_forced_resyncs", "Clients forced to resync: events were lost.", stats.forced_resyncs)
        queued = "Memory of clients' messages that wait for a check."
        yield _gauge("chatws_queued_message_bytes", queued, chat.limits.queued)
        errors = {"rate_limited": 0, **{code.value: count for code, count in stats.errors.items()}}
        yield _counters("chatws_errors", "Error replies to clients.", ["code"], errors)
        closes = {str(int(code)): count for code, count in stats.closes.items()}
        yield _counters("chatws_disconnects", "Connections closed by the server.", ["code"], closes)

    def _push(self) -> Iterator[Metric]:
        push = self._server.push
        stats = push.stats
        yield _gauge("chatws_push_connections", "Connected backends.", len(push.connections))
        yield _counter("chatws_push_connections_opened", "Accepted connections of backends.", stats.connections)
        yield _counter("chatws_push_lines", "Lines from backends.", stats.lines)
        yield _counter("chatws_push_received_bytes", "Bytes from backends.", stats.bytes)
        yield _counter("chatws_push_published", "Events from backends, without duplicates.", stats.published)
        api = self._server.http_push
        yield _gauge("chatws_api_connections", "Open connections of the HTTP API.", len(api.connections))
        yield _counter("chatws_api_connections_opened", "Accepted connections of the HTTP API.", api.stats.connections)
        yield _counter("chatws_api_received_bytes", "Bytes from clients of the HTTP API.", api.stats.bytes)
        responses = {str(status): count for status, count in api.stats.responses.items()}
        yield _counters("chatws_api_responses", "Responses of the HTTP API.", ["status"], responses)
        yield _counters("chatws_push_errors", "Error responses to backends.", ["code"], stats.errors)

    def _history(self) -> Iterator[Metric]:
        history = self._server.chat.history
        yield _gauge("chatws_history_events", "Events stored for recovery.", len(history))
        yield _gauge("chatws_history_bytes", "Bytes of data stored for recovery.", history.size)
        yield _gauge("chatws_history_first_offset", "Offset of the oldest stored event.", history.first)
        yield _gauge("chatws_history_last_offset", "Offset of the newest stored event.", history.last)

    def _broker(self) -> Iterator[Metric]:
        broker = self._server.broker
        yield _gauge("chatws_broker_up", "Whether the broker stores events.", float(not broker.problem))
        latency = HistogramMetricFamily(
            "chatws_broker_request_duration_seconds", "Time until the result or error of a call.", labels=["kind"]
        )
        for kind, histogram in broker.histograms.items():
            latency.add_metric([kind], histogram.buckets(), histogram.total)
        yield latency
        yield _counters("chatws_broker_errors", "Failed calls of the broker.", ["kind"], broker.errors)

    def _database(self) -> Iterator[Metric]:
        database = self._server.database
        up = _gauges("chatws_database_up", "Whether the last query succeeded.", [])
        latency = HistogramMetricFamily(
            "chatws_database_query_duration_seconds", "Time until the result or error of a query.", labels=["kind"]
        )
        errors: Mapping[str, int] = {}
        if database is not None:
            up.add_metric([], float(database.healthy))
            for kind, histogram in database.histograms.items():
                latency.add_metric([kind], histogram.buckets(), histogram.total)
            errors = database.errors
        yield up
        yield latency
        yield _counters("chatws_database_errors", "Failed queries.", ["reason"], errors)

    def _outbox(self) -> Iterator[Metric]:
        outbox = self._server.outbox
        holder = _gauges("chatws_outbox_holder", "Whether this node holds the outbox.", [])
        rows: Mapping[str, int] = {}
        polls = 0
        if outbox is not None:
            stats = outbox.stats
            holder.add_metric([], float(stats.is_holder))
            polls = stats.polls
            rows = {"sent": stats.sent, "rejected": stats.rejected}
        yield holder
        yield _counter("chatws_outbox_polls", "Polls of the outbox by this node.", polls)
        yield _counters("chatws_outbox_rows", "Rows of the outbox that this node processed.", ["result"], rows)

    def _webhooks(self) -> Iterator[Metric]:
        webhooks = self._server.webhooks
        sender = _gauges("chatws_webhook_sender", "Whether this node sends webhooks.", [])
        queue = _gauges("chatws_webhook_queue_events", "Events in the queue of webhooks.", [])
        failing = _gauges("chatws_webhook_failing_since_seconds", "Time of the first of the failures in a row.", [])
        requests: dict[str, int] = {}
        dropped: dict[str, int] = {}
        sent: Mapping[str, int] = {}
        rejected: Mapping[str, int] = {}
        if webhooks is not None:
            stats, batches = webhooks.sender.stats, webhooks.sender.batches
            sender.add_metric([], float(stats.is_sender))
            failing.add_metric([], stats.failing_since)
            requests = {str(status) if status else "none": count for status, count in stats.requests.items()}
            sent, rejected = batches.sent, batches.rejected
            if stats.is_sender:
                queue.add_metric([], stats.queued)
                dropped = dict(zip(("activity", "contact", "agent"), stats.dropped, strict=True))
        yield from (sender, queue, failing)
        help = "Webhook requests of this node. none: no complete answer."
        yield _counters("chatws_webhook_requests", help, ["status"], requests)
        yield _counters("chatws_webhook_events_sent", "Webhook events acknowledged.", ["event"], sent)
        help = "Webhook events dropped because the receiver fails with them."
        yield _counters("chatws_webhook_events_rejected", help, ["event"], rejected)
        yield _counters("chatws_webhook_events_dropped", "Webhook events dropped by the queue.", ["kind"], dropped)


def _gauges(name: str, help: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=labels)


def _gauge(name: str, help: str, value: float, labels: Mapping[str, str] | None = None) -> Metric:
    metric = _gauges(name, help, list(labels or ()))
    metric.add_metric(list((labels or {}).values()), value)
    return metric


def _gauges_by(name: str, help: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = _gauges(name, help, [label])
    for key, value in values.items():
        metric.add_metric([key], value)
    return metric


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)


def _counters(name: str, help: str, labels: Sequence[str], values: Mapping[Any, int]) -> Metric:
    metric = CounterMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        metric.add_metric(list(key) if isinstance(key, tuple) else [key], value)
    return metric


def log_lines_dropped() -> Metric:
    """Return the number of log lines that this process has dropped."""
    return _counter(
        "chatws_log_lines_dropped", "Log lines dropped because the log output was blocked.", dropped_lines()
    )


class _MetricsResource(GetResource):
    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render_GET(self, request: Any) -> bytes:
        encode, content_type = choose_encoder(request.getHeader("accept") or "")
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        return bytes(encode(self._registry))


def make_site(
    exporter: Collector,
    ready: Callable[[], ReadinessReport],
    reactor: Reactor,
    budget: FileBudget,
    secret: bytes | None,
) -> NoKeepAliveSite:
    """Make the site of the metrics listener: /metrics, /healthz, /readyz."""
    registry = CollectorRegistry()
    registry.register(exporter)
    ProcessCollector(registry=registry)
    return monitoring_site(_MetricsResource(registry), ready, reactor, budget, secret)
