"""Metrics and health of all workers on one page: every sample with the label `worker`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.samples import Sample
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from chatws.errors import Unavailable
from chatws.health import PATIENCE, Readiness
from chatws.server.pages import Front, Page, PlainSite, Ready
from chatws.workers.child import Child
from chatws.workers.control import Family

__all__ = ["Gathering", "merge", "readiness", "site"]

log = Logger()

#: What the supervisor's own samples have in the place of a worker's number.
SUPERVISOR = "supervisor"


def merge(parts: Iterable[tuple[str, Iterable[Metric | Family]]]) -> list[Metric]:
    """One family of each name, with the samples of all parts, each labelled with its part's name."""
    found: dict[str, Metric] = {}
    for worker, families in parts:
        for family in families:
            metric = found.get(family.name)
            if metric is None:
                metric = found[family.name] = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                name, labels, value = sample[:3]
                metric.samples.append(Sample(name, {**labels, "worker": worker}, value))
    return list(found.values())


class Gathering:
    """Asks every worker for its metrics."""

    def __init__(self, children: Sequence[Child], clock: Any) -> None:
        self._children = children
        self._clock = clock
        self._process = ProcessCollector(registry=None)

    def __call__(self) -> Deferred[list[Metric]]:
        """All metrics. A worker that does not answer in time is left out, but for `chatws_worker_up`. Never fails."""
        asked = [child.metrics().addTimeout(PATIENCE, self._clock) for child in self._children]
        return DeferredList(asked, consumeErrors=True).addCallback(self._merged)

    def _merged(self, answers: list[tuple[bool, Any]]) -> list[Metric]:
        parts = [
            (str(child.number), families)
            for child, (succeeded, families) in zip(self._children, answers, strict=True)
            if succeeded
        ]
        return [*self._own(answers), *merge([*parts, (SUPERVISOR, self._process.collect())])]

    def _own(self, answers: list[tuple[bool, Any]]) -> Iterator[Metric]:
        up = GaugeMetricFamily("chatws_worker_up", "Whether the worker answers.", labels=["worker"])
        restarts = CounterMetricFamily("chatws_worker_restarts", "Processes after the first.", labels=["worker"])
        unread = GaugeMetricFamily(
            "chatws_worker_unread_bytes", "Events that wait for the worker to read.", labels=["worker"]
        )
        for child, (succeeded, _) in zip(self._children, answers, strict=True):
            name = [str(child.number)]
            up.add_metric(name, float(succeeded))
            restarts.add_metric(name, max(0, child.starts - 1))
            if child.log_channel is not None:
                unread.add_metric(name, child.log_channel.unsent)
        yield from (up, restarts, unread)


def readiness(children: Sequence[Child], state: Callable[[], str], clock: Any) -> Readiness:
    """Ready when every worker is."""

    async def ask(child: Child) -> None:
        problems = await child.problems()
        if problems:
            raise Unavailable("; ".join(f"{part}: {problem}" for part, problem in problems.items()))

    parts = {f"worker {child.number}": lambda child=child: ask(child) for child in children}
    return Readiness(parts, state, clock, PATIENCE + 1.0)


class _Found:
    """As prometheus_client's encoders want a registry."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class _MetricsPage(Page):
    def __init__(self, gather: Callable[[], Deferred[list[Metric]]]) -> None:
        super().__init__()
        self._gather = gather

    def render(self, request: Any) -> Any:
        if request.method not in (b"GET", b"HEAD"):
            return super().render(request)
        gone: list[object] = []
        request.notifyFinish().addErrback(gone.append)

        def answer(metrics: list[Metric]) -> None:
            encode, content_type = choose_encoder(request.getHeader("accept") or "")
            body = bytes(encode(_Found(metrics)))
            if not gone:
                request.setHeader(b"content-type", content_type.encode("ascii"))
                request.setHeader(b"cache-control", b"no-store")
                if request.method == b"GET":
                    request.write(body)
                request.finish()

        def failed(failure: Failure) -> None:
            log.failure("/metrics cannot be answered", failure)
            if not gone:
                request.setResponseCode(500)
                request.finish()

        self._gather().addCallback(answer).addErrback(failed)
        return NOT_DONE_YET


def site(gather: Callable[[], Deferred[list[Metric]]], ready: Callable[[], Ready], reactor: Any) -> PlainSite:
    """What is served on the metrics' port: /metrics, /healthz, /readyz."""
    return PlainSite(Front(None, (), ready, {b"/metrics": _MetricsPage(gather)}), 30.0, reactor)
