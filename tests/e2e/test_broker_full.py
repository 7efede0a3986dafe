"""An engine that is full: it answers queries and stores nothing. Readiness, metrics and the log tell."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.e2e.cluster import PostgresEngine
from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.test_operations import fetch, value
from tests.e2e.wire import Backend, until
from tests.redis import RedisServer
from tests.requirements import needs

Start = Callable[..., Server]

#: Bytes of the largest file of the limited PostgreSQL: that of a segment of its write-ahead log.
SEGMENT = 16 * 1024 * 1024


class FullRedis(RedisServer):
    """A Redis whose memory can be full."""

    def limit(self) -> None:
        self.run("CONFIG", "SET", "maxmemory", "1")

    def remove_limit(self) -> None:
        self.run("CONFIG", "SET", "maxmemory", "0")


class FullPostgres(PostgresEngine):
    """A PostgreSQL whose files can be kept from growing, as on a full disk."""

    def limit(self) -> None:
        self._limit_files(str(SEGMENT))

    def remove_limit(self) -> None:
        self._limit_files("unlimited")

    def _limit_files(self, size: str) -> None:
        for process in self._processes():
            # as the user of the process, because root may lack CAP_SYS_RESOURCE
            words = ["prlimit", f"--pid={process.pid}", f"--fsize={size}:"]
            subprocess.run(words, check=True, capture_output=True, **self._options)


@contextmanager
def running(engine: Any) -> Iterator[Any]:
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def push(backend: Backend) -> bool:
    """Publish 900 kB that no compression makes smaller, and return whether they were stored."""
    data = {"conversation_id": 456, "noise": random.randbytes(450_000).hex()}
    response = backend.request({"event": "new_message", "data": data, "ack": True})
    assert response["ok"] or response["code"] == "unavailable"
    return bool(response["ok"])


@pytest.mark.parametrize(
    "engine_type",
    [
        pytest.param(FullRedis, marks=needs("redis-server")),
        pytest.param(FullPostgres, marks=[needs("postgresql"), pytest.mark.long]),
    ],
)
def test_a_full_engine_is_not_ready_and_serves_its_browsers(engine_type: Any, chatws_server: Start) -> None:
    metrics = free_port()
    with running(engine_type()) as engine:
        url = engine.new_history() if engine_type is FullPostgres else engine.url
        server = chatws_server("--broker", url, "--metrics-port", str(metrics))
        assert value(metrics, "chatws_broker_up") == 1
        with server.backend() as backend, server.agent(1, 456) as browser:
            assert push(backend)
            browser.expect("new_message")
            engine.limit()
            until(lambda: not push(backend), "the engine to be full")
            assert fetch(server.port, "/readyz") == (503, "broker: the event history cannot be written now\n")
            assert fetch(server.port, "/healthz") == (200, "ok\n")
            assert value(metrics, "chatws_broker_up") == 0
            assert value(metrics, "chatws_broker_errors_total", kind="publish") >= 1
            assert value(metrics, "chatws_broker_request_duration_seconds_count", kind="publish") >= 2
            server.expect_log("the broker does not store events, publishes fail")
            engine.remove_limit()
            until(lambda: fetch(server.port, "/readyz") == (200, "ready\n"), "the node to be ready again")
            server.expect_log_count("the broker stores events again, after", 1)
            assert value(metrics, "chatws_broker_up") == 1
            assert push(backend)
            browser.expect("new_message")
