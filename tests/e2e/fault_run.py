"""Kill real servers repeatedly under load, and count acknowledged and delivered events.

    python -m tests.e2e.fault_run --faults 20

starts `twistd chatws` with an SQLite log, fifty clients that reconnect and recover like the browser library, and a
backend that publishes with acknowledgements through the Python push client. At random moments the process gets
`kill -9` or SIGTERM, in turn, and is started again. At the end every event that was acknowledged has to have been
handled by every client, once and in order; an event that was not acknowledged may have arrived, but not twice.

    python -m tests.e2e.fault_run --nodes 3 --engine redis --faults 20

does that to several nodes that share a log, and to the engine of that log: see tests/e2e/cluster_faults.py.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.e2e import cluster_faults
from tests.e2e.cluster import ENGINES, Cluster
from tests.e2e.conftest import Server
from tests.e2e.load import Page, Publisher, Report, caught_up
from tests.e2e.process import clean_environment

__all__ = ["run"]


async def run(server: Server, faults: int, clients: int, seed: int, show: bool = False) -> Report:
    """Kill one server repeatedly.

    :param server: started, with a SQLite history.
    :param faults: number of kills, by SIGKILL and SIGTERM in turn.
    """
    report = Report(clients)
    chance = random.Random(seed)
    pages = [Page([server.ws_url], number, report) for number in range(clients)]
    tasks = [asyncio.create_task(page.stay()) for page in pages]
    # a rate at which fifty Python clients on one core have time to read
    publisher = Publisher([f"127.0.0.1:{server.push_port}"], report, pause=0.004)
    try:
        await asyncio.gather(*(page.live.wait() for page in pages))
        publisher.start()
        for fault in range(faults):
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            await asyncio.to_thread(server.restart, signal.SIGTERM if fault % 2 else signal.SIGKILL)
            if show:
                print(f"fault {fault + 1} of {faults}, {len(report.acknowledged)} acknowledged", file=sys.stderr)
        await asyncio.to_thread(publisher.end)
        await caught_up(report)
    finally:
        publisher.ending.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--engine", choices=["sqlite", *ENGINES], default="sqlite")
    options = parser.parse_args()
    if (options.engine == "sqlite") != (options.nodes == 1):
        parser.error("several nodes need --engine " + " or ".join(ENGINES))
    with tempfile.TemporaryDirectory() as directory:
        if options.engine == "sqlite":
            report = _one_server(Path(directory), options)
        else:
            with Cluster(Path(directory), ENGINES[options.engine](), options.nodes) as cluster:
                names = cluster_faults.order(options.faults, options.seed)
                account = asyncio.run(cluster_faults.run(cluster, names, options.clients, options.seed, show=True))
            print(account)
            report = account.report
    print(f"{options.clients} clients, {options.nodes} nodes, {options.faults} faults, seed {options.seed}\n{report}")
    sys.exit(1 if report.lost or report.duplicates or report.out_of_order else 0)


def _one_server(directory: Path, options: argparse.Namespace) -> Report:
    server = Server(directory, ("--broker", "sqlite:///log.db", "--drain-timeout", "0.3"), clean_environment())
    server.start()
    try:
        return asyncio.run(run(server, options.faults, options.clients, options.seed, show=True))
    finally:
        if server.process is not None:
            server.stop()


if __name__ == "__main__":
    main()
