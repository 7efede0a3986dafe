"""Brokers on one log in PostgreSQL, and an application's connections to the same database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.task import deferLater

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Audience, Event, NewEvent, Retention
from tests.postgres import Postgres, server_of

reactor: Any = _reactor
#: Seconds that a broker gives PostgreSQL where nothing is waited for in vain, and those of a wait that has failed.
PATIENCE = 15.0
DEADLINE = 30.0


class RecordingHandler:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.epochs: list[str] = []

    def deliver(self, events: Sequence[Event]) -> None:
        self.events += events

    def reset(self, epoch: str) -> None:
        self.epochs.append(epoch)
        self.events.clear()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]

    @property
    def offsets(self) -> list[int]:
        return [event.offset for event in self.events if event.offset]

    async def until(self, *names: str) -> list[Event]:
        """Wait until events of these names have been told, in this order, and no others."""
        await until(lambda: len(self.events) >= len(names), f"{names}, have {self.names}")
        assert self.names == list(names)
        return self.events


async def until(condition: Callable[[], object], what: str) -> None:
    """Let the reactor turn until it is true."""
    end = reactor.seconds() + DEADLINE
    while not condition():
        assert reactor.seconds() < end, f"waited {DEADLINE:g} s in vain for {what}"
        await deferLater(reactor, 0.005)


def give_up_after(seconds: float, *brokers: Any) -> None:
    """From now on that is how long they wait for an answer."""
    for broker in brokers:
        broker._timeout = broker._database.timeout = broker._listen_database.timeout = seconds


def new_event(name: str = "e", data: bytes = b"{}", key: str | None = None, transient: bool = False) -> NewEvent:
    return NewEvent(name, Audience(("conversation:1",)), data, key, transient)


class Nodes:
    """
    :ivar server: the cluster, :ivar url: the database with the log.
    """

    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.url = server.new_history()
        self.name = self.url.rpartition("/")[2]
        self._brokers: list[Any] = []
        self._connections: list[Any] = []

    async def node(self, url: str = "", **options: Any) -> tuple[Any, RecordingHandler]:
        """A broker that has been started, for which it had all the time it needed, and its listener."""
        retention = options.pop("retention", Retention())
        options = {"timeout": PATIENCE, **options}
        broker = open_broker(url or self.url, retention, reactor=reactor, **options)
        self._brokers.append(broker)
        told = RecordingHandler()
        give_up_after(PATIENCE, broker)
        await broker.start(told)
        give_up_after(options["timeout"], broker)
        return broker, told

    def shop(self, user: str = "") -> Any:
        """A psycopg2 connection, which begins transactions by itself."""
        url = self.url.replace("postgres:not-asked-for", user) if user else self.url
        connection = psycopg2.connect(url, application_name="shop")
        self._connections.append(connection)
        return connection

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """Statements in a transaction of their own, committed."""
        return self.server.run(sql, self.url)

    def backends(self) -> list[tuple[int, str]]:
        """The process ids and last queries of the brokers' connections."""
        return self.run(
            "SELECT pid, query FROM pg_stat_activity WHERE application_name = 'chatws' AND datname = current_database()"
        )

    async def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for broker in self._brokers:
            await broker.stop()


@pytest_twisted.async_yield_fixture
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    """A new log on the newest PostgreSQL. At the end no delayed call is left."""
    before = set(reactor.getDelayedCalls())
    server = server_of(request.config)
    result = Nodes(server)
    yield result
    server.resume()
    server.start()
    await result.close()
    await deferLater(reactor, 0)
    await deferLater(reactor, 0)
    assert {call for call in reactor.getDelayedCalls() if "Cooperator" not in str(call)} <= before
    # raises where the reactor believes that it watches a descriptor which is closed
    reactor.getReaders()
    reactor.getWriters()
