"""Kills a real server again and again under load, and counts what was acknowledged and what arrived.

    python -m tests.e2e.fault_run --faults 20

starts `twistd chatws` with an SQLite log, fifty clients that reconnect and recover like the browser library, and a
backend that publishes with acknowledgements through the Python push client. At random moments the process gets
`kill -9` or SIGTERM, in turn, and is started again. At the end every event that was acknowledged has to have been
handled by every client, once and in order; an event that was not acknowledged may have arrived, but not twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from chatws.push.blocking import BlockingPushClient
from chatws.push.requests import PushError
from tests.e2e.conftest import Server
from tests.e2e.process import clean_environment
from tests.recovering_client import RecoveringClient

__all__ = ["Report", "run"]

CONVERSATION = 1
#: Seconds that the clients have to catch up at the end.
CATCH_UP = 60.0


@dataclass
class Report:
    """What happened."""

    clients: int
    seed: int
    kills: int = 0
    terminations: int = 0
    acknowledged: list[int] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    reconnects: int = 0
    resyncs: int = 0
    #: by client: the numbers handled, in order
    handled: list[list[int]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Acknowledged events that a client did not handle, over all clients."""
        acknowledged = set(self.acknowledged)
        return sum(len(acknowledged.difference(one)) for one in self.handled)

    @property
    def duplicates(self) -> int:
        """Events that a client handled again, over all clients."""
        return sum(len(one) - len(set(one)) for one in self.handled)

    @property
    def out_of_order(self) -> int:
        """Clients that handled the events in another order than they were published in."""
        return sum(one != sorted(one) for one in self.handled)

    def __str__(self) -> str:
        return (
            f"{self.clients} clients, {self.kills} x kill -9, {self.terminations} x SIGTERM, seed {self.seed}\n"
            f"acknowledged {len(self.acknowledged)}, given up {len(self.unacknowledged)}, "
            f"deliveries {sum(map(len, self.handled))}, reconnects {self.reconnects}\n"
            f"lost {self.lost}, duplicates {self.duplicates}, out of order {self.out_of_order}, resyncs {self.resyncs}"
        )


class Page:
    """One client: the library's bookkeeping on a real socket."""

    def __init__(self, url: str, user_id: int, report: Report) -> None:
        self.url = url
        self.report = report
        self.library = RecoveringClient(user_id, (CONVERSATION,))
        self.live = asyncio.Event()

    async def stay(self) -> None:
        """Connect, and again, until cancelled."""
        while True:
            try:
                async with connect(self.url, open_timeout=5, ping_interval=None) as socket:
                    for message in self.library.open():
                        await socket.send(json.dumps(message))
                    async for text in socket:
                        self.library.receive(json.loads(text))
                        if all(one.live for one in self.library.channels.values()):
                            self.live.set()
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                pass
            self.live.clear()
            self.library.lost()
            self.report.reconnects += 1
            await asyncio.sleep(random.uniform(0.02, 0.2))

    @property
    def numbers(self) -> list[int]:
        return [data["n"] for _, data, _ in self.library.handled]


class Publisher(threading.Thread):
    """A backend of the blocking kind: one event after the other, each acknowledged."""

    def __init__(self, address: str, report: Report) -> None:
        super().__init__(name="publisher")
        self.address = address
        self.report = report
        self.ending = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        number = 0
        try:
            with BlockingPushClient(self.address, timeout=2.0, deadline=30.0) as client:
                # a pace that leaves fifty Python clients on one core the time to read
                while not self.ending.wait(0.004):
                    number += 1
                    data = {"conversation_id": CONVERSATION, "n": number}
                    try:
                        client.publish("new_message", data)
                    except PushError:
                        self.report.unacknowledged.append(number)
                    else:
                        self.report.acknowledged.append(number)
        except BaseException as failure:
            self.failure = failure


async def run(server: Server, faults: int, clients: int, seed: int, show: bool = False) -> Report:
    """
    :param server: started, with an SQLite log.
    :param faults: how often it is killed, by SIGKILL and SIGTERM in turn.
    """
    report = Report(clients, seed)
    chance = random.Random(seed)
    pages = [Page(server.ws_url, number, report) for number in range(clients)]
    tasks = [asyncio.create_task(page.stay()) for page in pages]
    publisher = Publisher(f"127.0.0.1:{server.push_port}", report)
    try:
        await asyncio.gather(*(page.live.wait() for page in pages))
        publisher.start()
        for fault in range(faults):
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            with_kill = fault % 2 == 0
            await asyncio.to_thread(server.restart, signal.SIGKILL if with_kill else signal.SIGTERM)
            report.kills += with_kill
            report.terminations += not with_kill
            if show:
                print(f"fault {fault + 1} of {faults}, {len(report.acknowledged)} acknowledged", file=sys.stderr)
        publisher.ending.set()
        await asyncio.to_thread(publisher.join)
        if publisher.failure is not None:
            raise publisher.failure
        await _caught_up(pages, report)
    finally:
        publisher.ending.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    report.handled = [page.numbers for page in pages]
    report.resyncs = sum(len(page.library.resyncs) for page in pages)
    return report


async def _caught_up(pages: list[Page], report: Report) -> None:
    """Wait until every client has handled the last acknowledged event, or for `CATCH_UP` seconds."""
    last = report.acknowledged[-1]
    deadline = time.monotonic() + CATCH_UP
    while time.monotonic() < deadline and any(last not in page.numbers[-50:] for page in pages):
        await asyncio.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = Server(
            Path(directory), ("--broker", "sqlite:///log.db", "--drain-seconds", "0.3"), clean_environment()
        )
        server.start()
        try:
            report: Any = asyncio.run(run(server, options.faults, options.clients, options.seed, show=True))
        finally:
            if server.process is not None:
                server.stop()
    print(report)
    sys.exit(1 if report.lost or report.duplicates or report.out_of_order else 0)


if __name__ == "__main__":
    main()
