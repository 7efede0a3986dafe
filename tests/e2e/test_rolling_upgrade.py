"""Two nodes behind nginx, restarted one after the other under load: nobody notices."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.cluster import ENGINES, Cluster
from tests.e2e.load import Page, Publisher, Report, caught_up
from tests.requirements import needs

pytestmark = [pytest.mark.long, needs("nginx"), needs("redis-server")]

BROWSERS = 150
DRAIN = 6.0


def test_an_upgrade_node_by_node_loses_nothing_and_brings_no_stampede(tmp_path: Path) -> None:
    arguments = ("--drain-timeout", f"{DRAIN:g}", "--presence-ttl", "30", "--presence-grace", "15")
    with Cluster(tmp_path, ENGINES["redis"](), 2, *arguments) as cluster:
        report, drains = asyncio.run(_upgrade(cluster))
        assert cluster.faults_in_logs() == {}
    assert len(report.acknowledged) > 100, report
    assert (report.lost, report.duplicates, report.out_of_order, report.resyncs, report.given_up) == (0,) * 5, report
    # each was online once, when they first came, and nobody ever offline
    assert max(Counter(report.statuses).values()) == 1, Counter(report.statuses).most_common(3)
    assert {status for _, status in report.statuses} == {"online"}
    for began, ended in drains:
        histogram = Counter(
            int((reconnect - began) * 10) for reconnect in report.reconnects if began <= reconnect < ended
        )
        moved = sum(histogram.values())
        even = moved / (DRAIN * 10)
        print(shown := f"reconnects by 100 ms, {even:.1f} if they were even: {sorted(histogram.items())}")
        assert moved >= BROWSERS / 3, shown
        # all at once would be sixty times as many; the machine may be busy, or stop us all for a second
        assert max(histogram.values()) <= 16 * even, shown
        assert len(histogram) >= DRAIN * 10 / 3, shown


async def _upgrade(cluster: Cluster) -> tuple[Report, list[tuple[float, float]]]:
    """Restart each node under load. Returns when each restart began and when the browsers had all come back."""
    nginx = await cluster.do(cluster.start_nginx)
    report = Report(BROWSERS)
    pages = [Page([nginx.ws_url], number, report) for number in range(BROWSERS)]
    tasks = []
    publishers = [Publisher(cluster.push_addresses(number), report, pause=0.05, attempt=2.0) for number in range(2)]
    drains = []
    try:
        tasks.append(asyncio.create_task(pages[0].stay()))
        await pages[0].live.wait()
        tasks += [asyncio.create_task(page.stay()) for page in pages[1:]]
        await asyncio.gather(*(page.live.wait() for page in pages))
        for publisher in publishers:
            publisher.start()
        for node in cluster.nodes:
            began = time.monotonic()
            await cluster.do(node.restart, signal.SIGTERM)
            await asyncio.gather(*(page.live.wait() for page in pages))
            drains.append((began, time.monotonic()))
        await asyncio.gather(*(asyncio.to_thread(publisher.end) for publisher in publishers))
        await caught_up(report)
    finally:
        for publisher in publishers:
            publisher.ending.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return report, drains
