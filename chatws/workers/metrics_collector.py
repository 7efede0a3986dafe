"""The metrics and the readiness of all workers on the metrics port. Every sample has the label `worker`."""

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
from chatws.interfaces import Clock, Reactor, zope_clock
from chatws.runtime.file_budget import FileBudget
from chatws.runtime.health import CHECK_TIMEOUT, ReadinessCheck
from chatws.runtime.metrics import log_lines_dropped
from chatws.server.http_resources import GetResource, NoKeepAliveSite, ReadinessReport, monitoring_site
from chatws.workers.control_messages import Family
from chatws.workers.worker_process import WorkerProcess

__all__ = ["MetricsCollector", "merge", "readiness", "site"]

log = Logger()

#: The label `worker` of the supervisor's own samples.
SUPERVISOR = "supervisor"


def merge(parts: Iterable[tuple[str, Iterable[Metric | Family]]]) -> list[Metric]:
    """Merge metric families by name, and add the label `worker` to every sample.

    :param parts: pairs of a value of the label `worker` and the families of that process.
    """
    merged: dict[str, Metric] = {}
    for worker, families in parts:
        for family in families:
            metric = merged.get(family.name)
            if metric is None:
                metric = merged[family.name] = Metric(family.name, family.documentation, family.type)
            for sample in family.samples:
                name, labels, value = sample[:3]
                metric.samples.append(Sample(name, {**labels, "worker": worker}, value))
    return list(merged.values())


class MetricsCollector:
    """Requests the metrics of every worker, and merges them with those of the supervisor."""

    def __init__(self, workers: Sequence[WorkerProcess], clock: Clock) -> None:
        self._workers = workers
        self._clock = clock
        self._process = ProcessCollector(registry=None)

    def __call__(self) -> Deferred[list[Metric]]:
        """Return all metrics. Never fails.

        Of a worker that does not respond in time, only the metrics that the supervisor knows are included.
        """
        requests = [worker.metrics().addTimeout(CHECK_TIMEOUT, zope_clock(self._clock)) for worker in self._workers]
        return DeferredList(requests, consumeErrors=True).addCallback(self._merged)

    def _merged(self, results: list[tuple[bool, Any]]) -> list[Metric]:
        parts = [
            (str(worker.number), families)
            for worker, (succeeded, families) in zip(self._workers, results, strict=True)
            if succeeded
        ]
        return [*self._worker_metrics(results), *merge([*parts, (SUPERVISOR, self._supervisor_metrics())])]

    def _worker_metrics(self, results: list[tuple[bool, Any]]) -> Iterator[Metric]:
        up = GaugeMetricFamily("chatws_worker_up", "Whether the worker answers.", labels=["worker"])
        restarts = CounterMetricFamily("chatws_worker_restarts", "Processes after the first.", labels=["worker"])
        hung = CounterMetricFamily(
            "chatws_worker_hung", "Processes killed because they did not respond.", labels=["worker"]
        )
        unread = GaugeMetricFamily(
            "chatws_worker_unread_bytes", "Events that wait for the worker to read.", labels=["worker"]
        )
        for worker, (succeeded, _) in zip(self._workers, results, strict=True):
            name = [str(worker.number)]
            up.add_metric(name, float(succeeded))
            restarts.add_metric(name, max(0, worker.starts - 1))
            hung.add_metric(name, worker.hung)
            if worker.broker_channel is not None:
                unread.add_metric(name, worker.broker_channel.unsent)
        yield from (up, restarts, hung, unread)

    def _supervisor_metrics(self) -> Iterator[Metric]:
        yield log_lines_dropped()
        yield from self._process.collect()


def readiness(workers: Sequence[WorkerProcess], state: Callable[[], str], clock: Clock) -> ReadinessCheck:
    """Return the readiness check of the supervisor: it passes when every worker is ready."""

    async def ask(worker: WorkerProcess) -> None:
        problems = await worker.problems()
        if problems:
            raise Unavailable("; ".join(f"{part}: {problem}" for part, problem in problems.items()))

    parts = {f"worker {worker.number}": lambda worker=worker: ask(worker) for worker in workers}
    return ReadinessCheck(parts, state, clock, CHECK_TIMEOUT + 1.0)


class _MergedRegistry:
    """The part of a registry that the encoders of prometheus_client call."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


class _MergedMetricsResource(GetResource):
    def __init__(self, gather: Callable[[], Deferred[list[Metric]]]) -> None:
        super().__init__()
        self._gather = gather

    def render(self, request: Any) -> Any:
        if request.method not in (b"GET", b"HEAD"):
            return super().render(request)
        disconnects: list[object] = []
        request.notifyFinish().addErrback(disconnects.append)

        def respond(metrics: list[Metric]) -> None:
            encode, content_type = choose_encoder(request.getHeader("accept") or "")
            body = bytes(encode(_MergedRegistry(metrics)))
            if not disconnects:
                request.setHeader(b"content-type", content_type.encode("ascii"))
                request.setHeader(b"cache-control", b"no-store")
                if request.method == b"GET":
                    request.write(body)
                request.finish()

        def failed(failure: Failure) -> None:
            log.failure("/metrics failed", failure)
            if not disconnects:
                request.setResponseCode(500)
                request.finish()

        self._gather().addCallback(respond).addErrback(failed)
        return NOT_DONE_YET


def site(
    gather: Callable[[], Deferred[list[Metric]]],
    ready: Callable[[], ReadinessReport],
    reactor: Reactor,
    budget: FileBudget,
    secret: bytes | None,
) -> NoKeepAliveSite:
    """Make the site of the metrics listener: /metrics, /healthz, /readyz."""
    return monitoring_site(_MergedMetricsResource(gather), ready, reactor, budget, secret)
