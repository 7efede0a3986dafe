"""What Prometheus is told (https://prometheus.io/docs/instrumenting/exposition_formats/).

The rooms count in plain integers; a collector reads them when it is asked, on the reactor's thread, where nothing can
change under it. (prometheus-client's own resource for Twisted answers from a thread.) So a message costs no more than
an addition, and nothing at all is done for metrics that nobody asks for, but for the clock that measures the lag.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

import chatws
from chatws.brokers.contract import EVERYONE
from chatws.database.contract import Database, QueryFailed, Row, ValueRefused, Values
from chatws.server.pages import Front, Page, PlainSite, Ready

if TYPE_CHECKING:
    from chatws.service import ChatwsService

__all__ = ["Exporter", "Histogram", "Lag", "MeasuredDatabase", "make_site"]

T = TypeVar("T")

#: Seconds between two looks at how late the event loop is.
LAG_INTERVAL = 0.5
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
DATABASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Histogram:
    """Plain counts.

    :param bounds: the buckets' upper ends, ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """(upper end, how many up to it), as Prometheus wants them."""
        found, so_far = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            so_far += count
            found.append((bound, float(so_far)))
        return found


class Lag:
    """How late the event loop comes to what is due: what everybody who waits for it waits in addition."""

    def __init__(self, clock: Any) -> None:
        self.histogram = Histogram(LAG_BUCKETS)
        self._clock = clock
        self._due = 0.0
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin to measure."""
        self._due = self._clock.seconds() + LAG_INTERVAL
        self._looping.start(LAG_INTERVAL, now=False)

    def _look(self) -> None:
        now = self._clock.seconds()
        self.histogram.observe(max(0.0, now - self._due))
        # LoopingCall keeps to its grid, and leaves out what it has missed
        self._due += LAG_INTERVAL
        if self._due <= now:
            self._due += ((now - self._due) // LAG_INTERVAL + 1) * LAG_INTERVAL

    def stop(self) -> None:
        """Measure no more."""
        if self._looping.running:
            self._looping.stop()


class MeasuredDatabase:
    """A database (chatws.database.contract.Database) whose answers are timed.

    :ivar histograms: seconds until the answer, good or bad, by the kind of question.
    :ivar errors: how many had none, by why: `unavailable`, `failed` (the SQL, the schema or a privilege is wrong) or
        `refused` (a value cannot be one of that column's).
    """

    def __init__(self, database: Database, clock: Any) -> None:
        self._database = database
        self._clock = clock
        self.histograms = {name: Histogram(DATABASE_BUCKETS) for name in ("query", "execute", "execute_many")}
        self.errors = {"unavailable": 0, "failed": 0, "refused": 0}

    @property
    def healthy(self) -> bool:
        return self._database.healthy

    def start(self) -> Deferred[None]:
        return self._database.start()

    def stop(self) -> Deferred[None]:
        return self._database.stop()

    async def query(self, sql: str, values: Values) -> list[Row]:
        return await self._measured("query", self._database.query(sql, values))

    async def execute(self, sql: str, values: Values) -> int:
        return await self._measured("execute", self._database.execute(sql, values))

    async def execute_many(self, sql: str, batch: Sequence[Values]) -> int:
        return await self._measured("execute_many", self._database.execute_many(sql, batch))

    async def _measured(self, kind: str, answer: Awaitable[T]) -> T:
        began = self._clock.seconds()
        try:
            return await answer
        except ValueRefused:
            self.errors["refused"] += 1
            raise
        except QueryFailed:
            self.errors["failed"] += 1
            raise
        except Exception:
            self.errors["unavailable"] += 1
            raise
        finally:
            self.histograms[kind].observe(self._clock.seconds() - began)


class Exporter(Collector):
    """Reads everything that there is to be known of one server.

    :param server: after it has been built.
    :param lag: measured while the server runs.
    """

    def __init__(self, server: ChatwsService, lag: Lag) -> None:
        self._server = server
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """All series, at this moment."""
        yield _gauge("chatws_info", "The version that runs.", 1, {"version": chatws.__version__})
        yield from self._connections()
        yield from self._chat()
        yield from self._push()
        yield from self._log()
        yield from self._database()
        lag = HistogramMetricFamily(
            "chatws_event_loop_lag_seconds", f"Lateness of the event loop, looked at every {LAG_INTERVAL} s."
        )
        lag.add_metric([], self._lag.histogram.buckets(), self._lag.histogram.total)
        yield lag

    def _connections(self) -> Iterator[Metric]:
        server = self._server.websockets
        stats = server.stats
        yield _gauge("chatws_connections", "Open WebSockets.", stats.connections_now)
        yield _counter("chatws_connections_opened", "WebSockets accepted.", stats.connections)
        yield _counters("chatws_refused", "Connections turned away.", ["reason"], stats.refused)
        yield _counter("chatws_http_requests", "Ordinary HTTP requests on the browsers' port.", stats.http_requests)
        yield _counter("chatws_received_bytes", "Bytes from browsers, framing included.", stats.bytes_received)
        yield _counter("chatws_sent_bytes", "Bytes to browsers, sent or queued.", stats.bytes_sent)
        yield _counter("chatws_messages_received", "Messages of browsers.", stats.messages_received)
        yield _counter("chatws_writes", "Writes to browsers' connections.", stats.sends)
        yield _counter("chatws_slow_consumers", "Connections closed because they did not read.", stats.slow_consumers)
        yield _counter("chatws_dead_peers", "Connections dropped without an answer to a ping.", stats.dead_peers)
        yield _counter("chatws_protocol_errors", "Connections failed for a breach of RFC 6455.", stats.protocol_errors)
        yield _counter("chatws_faults", "Exceptions out of the chat: faults of ours.", stats.component_errors)
        waiting = [one.unsent for one in server.connections if one._backlog is not None]
        yield _gauge("chatws_send_buffer_bytes", "Bytes that wait for browsers to read.", sum(waiting))
        yield _gauge("chatws_send_buffer_bytes_max", "Of these, the most for one browser.", max(waiting, default=0))

    def _chat(self) -> Iterator[Metric]:
        chat = self._server.chat
        stats = chat.stats
        entered = chat.hub.count(EVERYONE)
        yield _gauge("chatws_connections_authenticated", "Open WebSockets of known users.", entered)
        yield _gauge("chatws_users", "Users online here, those in their grace included.", len(chat.agents.local))
        yield _gauge("chatws_agents", "Agents online on any node.", len(chat.agents.online()))
        # each connection that is in listens to everyone's channel and to its user's besides
        subscriptions = chat.hub.subscriptions - 2 * entered
        yield _gauge("chatws_subscriptions", "Subscriptions to conversations.", subscriptions)
        authenticator = self._server.authenticator
        proving = {method.name: "yes" if method.proves else "no" for method in authenticator.methods}
        yield _counters(
            "chatws_authentications",
            "Attempts to enter; proved=no: the browser's word was taken, as old pages need it.",
            ["method", "result", "proved"],
            {
                (method, result, proving.get(method, "no")): count
                for (method, result), count in authenticator.stats.counts.items()
            },
        )
        names = stats.names
        yield _counters("chatws_events", "Events accepted.", ["event"], {name: names[name][0] for name in names})
        deliveries = {name: names[name][1] for name in names}
        yield _counters("chatws_deliveries", "Events handed to connections.", ["event"], deliveries)
        yield _counter("chatws_own_events_lost", "The server's own news not published.", stats.own_events_lost)
        recoveries = {"complete": stats.recoveries, "failed": stats.recoveries_failed}
        yield _counters("chatws_recoveries", "Recoveries asked for.", ["result"], recoveries)
        yield _gauge("chatws_catching_up", "Browsers that have seen more of the log than this node.", chat.waiting)
        yield _counter("chatws_started_over", "Browsers told to reload, for events were gone.", stats.started_over)
        errors = {"rate_limited": 0, **{code.value: count for code, count in stats.errors.items()}}
        yield _counters("chatws_errors", "Errors answered to browsers.", ["code"], errors)
        closes = {str(int(code)): count for code, count in stats.closes.items()}
        yield _counters("chatws_closes", "Connections closed by the chat.", ["code"], closes)

    def _push(self) -> Iterator[Metric]:
        push = self._server.push
        stats = push.stats
        yield _gauge("chatws_push_connections", "Backends connected.", len(push.connections))
        yield _counter("chatws_push_connections_opened", "Connections of backends.", stats.connections)
        yield _counter("chatws_push_lines", "Lines of backends.", stats.lines)
        yield _counter("chatws_push_received_bytes", "Bytes of backends.", stats.bytes)
        yield _counter("chatws_push_published", "Events of backends, duplicates left out.", stats.published)
        queue = self._server.push_queue
        yield _gauge("chatws_push_held", "Events held until the log can be reached.", queue.held if queue else 0)
        yield _counters("chatws_push_errors", "Negative answers to backends.", ["code"], stats.errors)

    def _log(self) -> Iterator[Metric]:
        history = self._server.chat.history
        yield _gauge("chatws_log_events", "Events kept for recovery.", len(history))
        yield _gauge("chatws_log_bytes", "Bytes of their data.", history.size)
        yield _gauge("chatws_log_first_offset", "Offset of the oldest event kept.", history.first)
        yield _gauge("chatws_log_last_offset", "Offset of the newest event: the log's position.", history.last)

    def _database(self) -> Iterator[Metric]:
        database = self._server.database
        up = _gauges("chatws_database_up", "Whether the last that was heard of the database was good.", [])
        latency = HistogramMetricFamily(
            "chatws_database_seconds", "Time until the database has answered.", labels=["kind"]
        )
        errors: Mapping[str, int] = {}
        if database is not None:
            up.add_metric([], float(database.healthy))
            for kind, histogram in database.histograms.items():
                latency.add_metric([kind], histogram.buckets(), histogram.total)
            errors = database.errors
        yield up
        yield latency
        yield _counters("chatws_database_errors", "Questions that the database did not answer.", ["reason"], errors)


def _gauges(name: str, help: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, labels=labels)


def _gauge(name: str, help: str, value: float, labels: Mapping[str, str] | None = None) -> Metric:
    found = _gauges(name, help, list(labels or ()))
    found.add_metric(list((labels or {}).values()), value)
    return found


def _counter(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)


def _counters(name: str, help: str, labels: Sequence[str], values: Mapping[Any, int]) -> Metric:
    found = CounterMetricFamily(name, help, labels=labels)
    for key, value in values.items():
        found.add_metric(list(key) if isinstance(key, tuple) else [key], value)
    return found


class _MetricsPage(Page):
    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._registry = registry

    def render_GET(self, request: Any) -> bytes:
        encode, content_type = choose_encoder(request.getHeader("accept") or "")
        request.setHeader(b"content-type", content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        return bytes(encode(self._registry))


def make_site(exporter: Collector, ready: Callable[[], Ready], reactor: Any) -> PlainSite:
    """What is served on the metrics' port: /metrics, /healthz, /readyz."""
    registry = CollectorRegistry()
    registry.register(exporter)
    ProcessCollector(registry=registry)
    return PlainSite(Front(None, (), ready, {b"/metrics": _MetricsPage(registry)}), 30.0, reactor)
