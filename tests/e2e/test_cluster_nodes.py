"""`chatws nodes` and `chatws rebalance` against real nodes that share a Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from tests.e2e.conftest import Server
from tests.e2e.process import free_port
from tests.e2e.test_command import chatws
from tests.e2e.test_operations import fetch, value
from tests.e2e.wire import until
from tests.redis import redis
from tests.requirements import needs

__all__ = ["redis"]

pytestmark = needs("redis-server")

Start = Callable[..., Server]


def nodes(server: Server) -> dict[str, Any]:
    """What `chatws nodes` prints, by name."""
    done = chatws("nodes", "--push", f"127.0.0.1:{server.push_port}", "--json")
    assert done.stderr == ""
    return {node["name"]: node for node in json.loads(done.stdout)}


def rebalance(server: Server, *words: str) -> str:
    done = chatws("rebalance", "--push", f"127.0.0.1:{server.push_port}", "--seconds", "0.2", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_nodes_are_listed_compared_and_rebalanced(chatws_server: Start, redis: Any) -> None:
    metrics = free_port()
    settings = ("--broker", redis.url_for(f"nodes {os.getpid()}"), "--drain-timeout", "0.2")
    first = chatws_server(*settings, "--node-name", "web1", "--metrics-port", str(metrics))
    second = chatws_server(*settings, "--node-name", "web2", "--history-events", "5")
    until(lambda: value(metrics, "chatws_cluster_nodes") == 2, "the nodes to know each other")
    assert value(metrics, "chatws_cluster_mismatches", setting="history_events") == 1
    assert value(metrics, "chatws_cluster_mismatches", setting="version") == 0
    first.expect_log("differs from this node: history_events is 5, here 100000")
    pages = [first.agent(number, 456) for number in range(6)]
    until(lambda: set(nodes(second)) == {"web1", "web2"}, "the second node to know the first")
    listed = until(lambda: (found := nodes(first))["web1"]["connections"] == 6 and found, "the connections")
    assert listed["web2"]["differs"] == ["history_events"]
    assert listed["web1"]["address"] == f"127.0.0.1:{first.port}"
    connection_id = first.agent(9).received[0]["data"]["connection_id"]
    assert connection_id.startswith(listed["web1"]["id"])

    # the other node is asked: it passes the command on
    until(lambda: nodes(second)["web1"]["connections"] == 7, "the announcement of the connections")
    assert "web1" in rebalance(second)
    until(lambda: nodes(first)["web1"]["connections"] == 4, "the surplus to be closed")

    rebalance(second, "--drain", "web1")
    until(lambda: fetch(first.port, "/readyz") == (503, "server: draining\n"), "the node to drain")
    until(lambda: nodes(first)["web1"]["connections"] == 0, "the connections to be closed")
    assert all(page.expect_close()[0] == 4012 for page in pages)
    assert fetch(first.port, "/healthz")[0] == 200
    rebalance(first, "--resume", "web1")
    until(lambda: fetch(first.port, "/readyz")[0] == 200, "the node to serve again")
    with first.agent(1, 456):
        pass
