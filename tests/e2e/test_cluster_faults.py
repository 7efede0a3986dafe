"""Three nodes on one engine, and what was acknowledged arrives whatever happens to them and to it."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import cluster_faults
from tests.e2e.cluster import ENGINES, Cluster
from tests.e2e.conftest import Server
from tests.e2e.load import Page, Report, Story
from tests.e2e.wire import Browser, until
from tests.recovering_client import RecoveringClient
from tests.requirements import needs

pytestmark = pytest.mark.long

#: Longer than the lease, the grace and the time-out below.
AWAY = 2.0
TIMES = ("--presence-ttl", "1", "--presence-grace", "0.5", "--broker-timeout", "0.7")


@pytest.fixture(
    params=[pytest.param("postgresql", marks=needs("postgresql")), pytest.param("redis", marks=needs("redis-server"))]
)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, ENGINES[request.param](), 3, *TIMES) as cluster:
        yield cluster


def test_faults_of_nodes_and_engine_lose_and_repeat_no_event(cluster: Cluster) -> None:
    seed = random.randrange(2**32)
    names = ["kill -9 of a node", "a node frozen", "kill -9 of the engine", "the engine silent"]
    account = asyncio.run(cluster_faults.run(cluster, names, 20, seed, away=AWAY))
    report = account.report
    shown = f"seed {seed}\n{account}\n{report}"
    assert len(report.acknowledged) > 100, shown
    assert (report.lost, report.duplicates, report.out_of_order, report.resyncs, report.given_up) == (0,) * 5, shown
    assert cluster.faults_in_logs() == {}

    # a node that dies takes the agents offline who do not come back, once
    watcher, dying = cluster.nodes[0].agent("watcher"), cluster.nodes[2]
    dying.agent("doomed")
    watcher.expect("agent_status", agent_id="doomed", status="online")
    dying.stop(signal.SIGKILL)
    watcher.expect("agent_status", agent_id="doomed", status="offline")
    dying.start()
    cluster.wait_until_ready()
    watcher.settle()
    told = [item["data"] for item in watcher.received if item.get("event") == "agent_status"]
    assert [item["status"] for item in told if item["agent_id"] == "doomed"] == ["online", "offline"]
    watcher.close()

    # and an engine that has lost its data: everybody is told to reload, and what is pushed then arrives
    libraries = [RecoveringClient(number, (1,)) for number in range(len(cluster.nodes))]
    pages = [visit(node, library) for node, library in zip(cluster.nodes, libraries, strict=True)]
    cluster.engine.lose_data()
    cluster.wait_until_ready()
    for node, library, page in zip(cluster.nodes, libraries, pages, strict=True):
        assert page.expect_close() == (4000, "the event history was reset")
        library.lost()
        with visit(node, library) as back:
            assert library.resyncs == [None, 1]
            line = {"event": "new_message", "data": {"conversation_id": 1, "n": node.port}, "id": f"n{node.port}"}
            with node.backend() as backend:
                # the time-out above is short for a busy machine
                until(lambda backend=backend, line=line: backend.request(line)["ok"], "the node to take an event")
            library.receive(back.expect("new_message", n=node.port))
        assert [data["n"] for _, data, _ in library.handled][-1] == node.port


def visit(node: Server, library: RecoveringClient) -> Browser:
    """The page connects, and is told all that it asks for."""
    page = Browser(node.ws_url)
    for message in library.open():
        page.send(message)
    while not all(channel.live for channel in library.channels.values()):
        library.receive(page.receive())
    return page


def test_the_report_counts_missing_duplicate_and_late_events() -> None:
    report = Report(2, stories={1: Story(0.0, 1.0), 2: Story(0.0, 1.0), 3: Story(0.0)})
    whole, other = Page([""], 1, report), Page([""], 2, report)
    whole.library.handled = [("new_message", {"n": n}, f"E:{n}") for n in (1, 2)]
    other.library.handled = [("new_message", {"n": n}, f"E:{n}") for n in (3, 2, 2)]
    assert (report.lost, report.duplicates, report.out_of_order, report.given_up) == (1, 1, 1, 1)
