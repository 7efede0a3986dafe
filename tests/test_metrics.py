"""Counters, the lag of the event loop, a timed database, readiness."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

import chatws
from chatws.brokers.interface import Audience, Event
from chatws.chat.chat_stats import MAX_NAMES, OTHER, ChatStats
from chatws.config.schema import Config
from chatws.database.interface import QueryFailed, ValueRefused
from chatws.errors import Unavailable
from chatws.runtime.health import CHECK_TIMEOUT, RESULT_TTL, ReadinessCheck
from chatws.runtime.measurements import LAG_INTERVAL, Histogram, Lag, MeasuredDatabase
from chatws.runtime.metrics import Exporter
from chatws.runtime.service import ChatwsService
from chatws.workers.metrics_collector import MetricsCollector


def event(name: str, delivered: int = 0) -> Event:
    return Event(0, name, Audience(("*",)), b"{}", 0.0, delivered=delivered)


class StatsTests(SynchronousTestCase):
    def test_events_and_deliveries_are_counted_by_name(self) -> None:
        stats = ChatStats()
        stats.count([event("a", 2), event("b", 1), event("a", 3)])
        self.assertEqual(stats.names, {"a": [2, 5], "b": [1, 1]})
        self.assertEqual((stats.events, stats.deliveries), (3, 6))

    def test_names_beyond_the_limit_are_counted_together(self) -> None:
        stats = ChatStats()
        for number in range(MAX_NAMES + 50):
            stats.count([event(f"name_{number}")])
        stats.count([event("name_0")])
        self.assertEqual(len(stats.names), MAX_NAMES + 1)
        self.assertEqual(stats.names[OTHER][0], 50)
        self.assertEqual(stats.names["name_0"][0], 2)


class HistogramTests(SynchronousTestCase):
    def test_a_value_on_a_bound_is_within_it(self) -> None:
        histogram = Histogram([0.1, 1.0])
        for value in (0.05, 0.1, 0.5, 7.0):
            histogram.observe(value)
        self.assertEqual(histogram.buckets(), [("0.1", 2), ("1.0", 3), ("+Inf", 4)])
        self.assertAlmostEqual(histogram.total, 7.65)


class LagTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lag = Lag(self.clock)
        self.lag.start()
        self.addCleanup(self.lag.stop)

    def test_an_idle_loop_is_not_late(self) -> None:
        self.clock.pump([LAG_INTERVAL] * 4)
        self.assertEqual(self.lag.histogram.buckets()[0][1], 4)

    def test_a_loop_that_was_blocked_is_late_once(self) -> None:
        self.clock.advance(LAG_INTERVAL + 1.2)
        self.clock.advance(LAG_INTERVAL - 0.2)
        self.clock.advance(LAG_INTERVAL)
        self.assertAlmostEqual(self.lag.histogram.total, 1.2)
        self.assertEqual(self.lag.histogram.buckets()[-1][1], 3)


class FakeDatabase:
    healthy = True

    def __init__(self) -> None:
        self.answer: Deferred[Any] = Deferred()

    async def query(self, sql: str, values: Any) -> Any:
        return await self.answer


class MeasuredDatabaseTests(SynchronousTestCase):
    def ask(self, outcome: Any) -> Any:
        clock, database = Clock(), FakeDatabase()
        self.measured = MeasuredDatabase(database, clock)  # type: ignore[arg-type]
        asked = Deferred.fromCoroutine(self.measured.query("SELECT 1", {}))
        clock.advance(0.3)
        if isinstance(outcome, Exception):
            database.answer.errback(outcome)
        else:
            database.answer.callback(outcome)
        return asked

    def test_the_time_to_the_answer_is_measured(self) -> None:
        self.assertEqual(self.successResultOf(self.ask([{"a": 1}])), [{"a": 1}])
        self.assertAlmostEqual(self.measured.histograms["query"].total, 0.3)
        self.assertEqual(sum(self.measured.errors.values()), 0)

    def test_errors_are_counted_by_cause_and_raised(self) -> None:
        for error, reason in (
            (Unavailable("away"), "unavailable"),
            (QueryFailed("no such table"), "failed"),
            (ValueRefused("abc"), "refused"),
        ):
            self.failureResultOf(self.ask(error), type(error))
            self.assertEqual([name for name, count in self.measured.errors.items() if count], [reason])
            self.assertEqual(self.measured.histograms["query"].buckets()[-1][1], 1)


class ExporterTests(SynchronousTestCase):
    def test_a_server_that_has_not_started_has_every_series_and_its_help(self) -> None:
        reactor = MemoryReactorClock()
        service = ChatwsService(Config(port=0, push_port=0, metrics_port=9100), reactor)
        registry = CollectorRegistry()
        registry.register(Exporter(service, service.lag))
        families = {
            family.name: family for family in text_string_to_metric_families(generate_latest(registry).decode())
        }
        self.assertTrue(all(family.documentation for family in families.values()))
        self.assertTrue(all(name.startswith("chatws_") for name in families))
        self.assertEqual(families["chatws_connections"].samples[0].value, 0)
        self.assertEqual(families["chatws_database_up"].samples, [])

    def test_the_document_names_every_series_and_no_other(self) -> None:
        service = ChatwsService(Config(port=0, push_port=0), MemoryReactorClock())
        families = [
            *Exporter(service, service.lag).collect(),
            *[
                item
                for item in self.successResultOf(MetricsCollector([], Clock())())
                if item.name.startswith("chatws_")
            ],
        ]
        exposed = {family.name + ("_total" if family.type == "counter" else "") for family in families}
        document = Path(chatws.__file__).parents[1] / "docs" / "operations.md"
        table = [line for line in document.read_text(encoding="utf-8").splitlines() if line.startswith("| `chatws_")]
        named = {name for line in table for name in re.findall(r"`(chatws_\w+)", line)}
        self.assertEqual(named, exposed)


class ReadinessTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.state = ""
        self.asked = 0
        self.answer: Any = succeed([])

    def ready(self) -> Any:
        return self.readiness()

    def make(self) -> None:
        def ask() -> Any:
            self.asked += 1
            return self.answer

        async def other() -> None:
            return None

        self.readiness = ReadinessCheck({"database": ask, "broker": other}, lambda: self.state, self.clock)

    def test_readiness_is_empty_if_everything_answers(self) -> None:
        self.make()
        self.assertEqual(self.successResultOf(self.ready()), {})

    def test_readiness_names_the_failing_part_without_details(self) -> None:
        self.make()
        self.answer = fail(Unavailable("the database does not respond"))
        self.assertEqual(self.successResultOf(self.ready()), {"database": "the database does not respond"})
        self.clock.advance(RESULT_TTL)
        self.answer = fail(ValueError("password=secret"))
        self.assertEqual(self.successResultOf(self.ready()), {"database": "does not answer"})

    def test_a_part_that_is_silent_does_not_answer(self) -> None:
        self.make()
        self.answer = Deferred()
        waiting = [self.ready(), self.ready()]
        self.assertNoResult(waiting[0])
        self.clock.advance(CHECK_TIMEOUT)
        for item in waiting:
            self.assertEqual(self.successResultOf(item), {"database": "does not answer"})
        self.assertEqual(self.asked, 1)

    def test_many_readiness_requests_cause_one_query_a_second(self) -> None:
        self.make()
        for _ in range(50):
            self.successResultOf(self.ready())
        self.assertEqual(self.asked, 1)
        self.clock.advance(RESULT_TTL)
        self.successResultOf(self.ready())
        self.assertEqual(self.asked, 2)

    def test_a_starting_or_stopping_server_is_not_ready(self) -> None:
        self.make()
        self.state = "stopping"
        self.assertEqual(self.successResultOf(self.ready()), {"server": "stopping"})
        self.assertEqual(self.asked, 0)
