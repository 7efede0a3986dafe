"""Load for runs with faults: pages that reconnect and recover, backends that retry, and a record of both."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from chatws.clients.blocking import BlockingPushClient
from chatws.clients.protocol import PushError
from tests.recovering_client import RecoveringClient

__all__ = ["CONVERSATION", "Page", "Publisher", "Report", "Story", "caught_up"]

CONVERSATION = 1
#: Seconds for the clients to catch up at the end.
CATCH_UP = 60.0


@dataclass
class Story:
    """Times of one event (`time.monotonic`): first sent, acknowledged, first and last handled."""

    sent: float
    acknowledged: float = 0.0
    handled_by: int = 0
    last_handled: float = 0.0


@dataclass
class Report:
    """The record of a run.

    :ivar stories: of every sent event, by number.
    :ivar reconnects: times of all connections but the first ones.
    :ivar statuses: (user_id, status) of every `agent_status` that the first client got.
    """

    clients: int
    stories: dict[int, Story] = field(default_factory=dict)
    reconnects: list[float] = field(default_factory=list)
    statuses: list[tuple[Any, str]] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    numbers: Iterable[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def acknowledged(self) -> list[int]:
        """The numbers of the events that were acknowledged."""
        return [number for number, story in list(self.stories.items()) if story.acknowledged]

    @property
    def given_up(self) -> int:
        """Events that were never acknowledged."""
        return sum(not story.acknowledged for story in self.stories.values())

    @property
    def lost(self) -> int:
        """Acknowledged events that a client did not handle, over all clients."""
        acknowledged = set(self.acknowledged)
        return sum(len(acknowledged.difference(page.numbers)) for page in self.pages)

    @property
    def duplicates(self) -> int:
        """Events that a client handled twice, over all clients."""
        return sum(len(page.numbers) - len(set(page.numbers)) for page in self.pages)

    @property
    def out_of_order(self) -> int:
        """Clients that handled events in another order than that of the history, or than another client."""
        return sum(offsets != sorted(offsets) for offsets in (page.offsets for page in self.pages))

    @property
    def resyncs(self) -> int:
        """Number of resyncs."""
        return sum(len(page.library.resyncs) for page in self.pages)

    @property
    def deliveries(self) -> int:
        """Events handled, over all clients."""
        return sum(len(page.numbers) for page in self.pages)

    def __str__(self) -> str:
        return (
            f"acknowledged {len(self.acknowledged)}, given up {self.given_up}, "
            f"deliveries {self.deliveries}, reconnects {len(self.reconnects)}\n"
            f"lost {self.lost}, duplicates {self.duplicates}, out of order {self.out_of_order}, resyncs {self.resyncs}"
        )


class Page:
    """One client: the library's bookkeeping on a real socket.

    :param urls: URLs of the nodes. It connects to a random one each time.
    :param wander: seconds after which, on average, it moves to another node by itself. 0: never.
    :ivar live: set while it is connected and has caught up.
    """

    def __init__(
        self, urls: Sequence[str] | Callable[[], str], user_id: int, report: Report, *, wander: float = 0.0
    ) -> None:
        self.choose: Callable[[], str] = urls if callable(urls) else lambda: random.choice(urls)
        self.report = report
        self.library = RecoveringClient(user_id, (CONVERSATION,))
        self.live = asyncio.Event()
        self.socket: ClientConnection | None = None
        self.wander = wander
        self._known = 0
        report.pages.append(self)

    async def stay(self) -> None:
        """Connect repeatedly until cancelled."""
        first = True
        while True:
            try:
                async with asyncio.timeout(random.expovariate(1 / self.wander) if self.wander else None):
                    await self._visit(first)
            except (OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                pass
            first = False
            self.live.clear()
            self.library.lost()
            await asyncio.sleep(random.uniform(0.02, 0.2))

    async def _visit(self, first: bool) -> None:
        # the library detects a silent connection by its heartbeat, this client by pings of the protocol
        async with connect(
            self.choose(), open_timeout=5, close_timeout=1, ping_interval=2, ping_timeout=4, compression=None
        ) as self.socket:
            if not first:
                self.report.reconnects.append(time.monotonic())
            for message in self.library.open():
                await self.socket.send(json.dumps(message))
            async for text in self.socket:
                self._receive(json.loads(text))

    def _receive(self, message: dict[str, Any]) -> None:
        self.library.receive(message)
        if message.get("event") == "agent_status" and self is self.report.pages[0]:
            self.report.statuses.append((message["data"]["agent_id"], message["data"]["status"]))
        if len(self.library.handled) > self._known:
            self._known = len(self.library.handled)
            story = self.report.stories.get(self.library.handled[-1][1].get("n"))
            if story is not None:
                story.handled_by += 1
                story.last_handled = time.monotonic()
        if not self.live.is_set() and all(channel.live for channel in self.library.channels.values()):
            self.live.set()

    @property
    def numbers(self) -> list[int]:
        """Of the events handled, in order."""
        return [data["n"] for _, data, _ in self.library.handled]

    @property
    def offsets(self) -> list[int]:
        """Of the events handled, in order."""
        return [int(position.rpartition(":")[2]) for _, _, position in self.library.handled]


class Publisher(threading.Thread):
    """A blocking backend. It sends one event after the other until it is acknowledged, by one node or
    else by another, always with the same key.

    :param addresses: of the nodes' push ports. The first is used first.
    :param pause: seconds between two events.
    :param patience: seconds after which it discards an event.
    :param attempt: seconds after which the next node is tried.
    """

    def __init__(
        self, addresses: Sequence[str], report: Report, *, pause: float, patience: float = 30.0, attempt: float = 30.0
    ) -> None:
        super().__init__(name=f"publisher to {addresses[0]}")
        self.addresses = addresses
        self.report = report
        self.pause = pause
        self.patience = patience
        self.attempt = attempt
        self.ending = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        clients = [BlockingPushClient(address, timeout=2.0, deadline=self.attempt) for address in self.addresses]
        try:
            while not self.ending.wait(self.pause):
                number = next(iter(self.report.numbers))
                story = self.report.stories[number] = Story(time.monotonic())
                for client in itertools.cycle(clients):
                    try:
                        client.publish("new_message", {"conversation_id": CONVERSATION, "n": number}, key=f"k{number}")
                    except PushError:
                        if time.monotonic() - story.sent > self.patience:
                            break
                    else:
                        story.acknowledged = time.monotonic()
                        break
        except BaseException as failure:
            self.failure = failure
        finally:
            for client in clients:
                client.close()

    def end(self) -> None:
        """Let it finish its event, and raise its error."""
        self.ending.set()
        self.join()
        if self.failure is not None:
            raise self.failure


async def caught_up(report: Report) -> None:
    """Wait until every client has handled every acknowledged event, or for `CATCH_UP` seconds."""
    acknowledged = set(report.acknowledged)
    deadline = time.monotonic() + CATCH_UP
    while time.monotonic() < deadline and any(acknowledged.difference(page.numbers) for page in report.pages):
        await asyncio.sleep(0.1)
