"""Faults in a cluster under load, and their effects on pages and backends.

Every node has a backend that pushes to it, and to the next node if it does not respond. Browsers connect to any node
and move between nodes.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.e2e.cluster import Cluster
from tests.e2e.conftest import Server
from tests.e2e.load import Page, Publisher, Report, caught_up

__all__ = ["FAULTS", "Account", "Fault", "order", "run"]

#: Seconds of a freeze, a stop or a silence: longer than lease and grace period, and than the broker's timeout.
AWAY = 4.0


@dataclass
class Fault:
    """A fault.

    :ivar began: in `time.monotonic`. It counts as in progress until the next one begins.
    """

    name: str
    began: float


@dataclass
class Account:
    """The faults of a run and their effects."""

    report: Report
    faults: list[Fault] = field(default_factory=list)

    def outages(self) -> dict[str, tuple[int, float, float]]:
        """By the fault's name: the count, and two maxima in seconds.

        They are the wait of an event for its acknowledgement, and from there until every page had handled it.
        """
        counts = Counter(fault.name for fault in self.faults)
        pushes: dict[str, float] = {}
        pages: dict[str, float] = {}
        for story in self.report.stories.values():
            if not story.acknowledged:
                continue
            # Of two faults the later one counts, because it began when the earlier one was over.
            name = self._during(story.acknowledged)
            pushes[name] = max(pushes.get(name, 0.0), story.acknowledged - story.sent)
            name = self._during(max(story.last_handled, story.acknowledged))
            pages[name] = max(pages.get(name, 0.0), story.last_handled - story.acknowledged)
        return {name: (count, pushes.get(name, 0.0), pages.get(name, 0.0)) for name, count in counts.items()}

    def _during(self, moment: float) -> str:
        """The name of the last fault that had begun at that time."""
        begun = [fault.name for fault in self.faults if fault.began <= moment]
        return begun[-1] if begun else ""

    def __str__(self) -> str:
        lines = [
            "| fault | times | longest until acknowledged, s | longest from there to the last page, s |",
            "| --- | ---: | ---: | ---: |",
        ]
        for name, (count, push, page) in self.outages().items():
            lines.append(f"| {name} | {count} | {push:.1f} | {page:.1f} |")
        return "\n".join(lines)


def _kill(cluster: Cluster, node: Server, away: float) -> None:
    node.restart(signal.SIGKILL)


def _terminate(cluster: Cluster, node: Server, away: float) -> None:
    node.restart(signal.SIGTERM)


def _freeze(cluster: Cluster, node: Server, away: float) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    time.sleep(away)
    node.process.send_signal(signal.SIGCONT)


def _kill_engine(cluster: Cluster, node: Server, away: float) -> None:
    cluster.engine.kill()
    cluster.engine.start()


def _stop_engine(cluster: Cluster, node: Server, away: float) -> None:
    cluster.engine.stop()
    time.sleep(away)
    cluster.engine.start()


def _silence_engine(cluster: Cluster, node: Server, away: float) -> None:
    cluster.engine.silence()
    time.sleep(away)
    cluster.engine.resume()


#: Faults of a node or of the engine, by name.
FAULTS: dict[str, Callable[[Cluster, Server, float], None]] = {
    "kill -9 of a node": _kill,
    "SIGTERM of a node": _terminate,
    "a node frozen": _freeze,
    "kill -9 of the engine": _kill_engine,
    "the engine stopped": _stop_engine,
    "the engine silent": _silence_engine,
}


def order(faults: int, seed: int) -> list[str]:
    """Names of faults, each kind once before any repeats."""
    chance = random.Random(seed)
    names: list[str] = []
    while len(names) < faults:
        names += chance.sample(list(FAULTS), len(FAULTS))
    return names[:faults]


async def run(
    cluster: Cluster, names: Sequence[str], clients: int, seed: int, *, away: float = AWAY, show: bool = False
) -> Account:
    """Cause faults one after the other.

    :param cluster: started.
    :param names: of `FAULTS`.
    :param seed: of their times and nodes.
    """
    chance = random.Random(seed)
    account = Account(Report(clients))
    report = account.report
    pages = [Page(cluster.choose, number, report, wander=8.0) for number in range(clients)]
    tasks = [asyncio.create_task(page.stay()) for page in pages]
    publishers = [
        Publisher(cluster.push_addresses(number), report, pause=0.04, patience=60.0, attempt=2.5)
        for number in range(len(cluster.nodes))
    ]
    try:
        await asyncio.gather(*(page.live.wait() for page in pages))
        for publisher in publishers:
            publisher.start()
        for number, name in enumerate(names, 1):
            await asyncio.sleep(chance.uniform(0.2, 1.0))
            account.faults.append(Fault(name, time.monotonic()))
            await cluster.do(FAULTS[name], cluster, chance.choice(cluster.nodes), away)
            await cluster.do(cluster.wait_until_ready)
            if show:
                print(f"{number} of {len(names)}: {name}, {len(report.acknowledged)} acknowledged", file=sys.stderr)
        await asyncio.gather(*(asyncio.to_thread(publisher.end) for publisher in publishers))
        await caught_up(report)
    finally:
        for publisher in publishers:
            publisher.ending.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return account
