"""The queue of webhooks of every broker (chatws.brokers.webhook_queue, `Broker.exchange_webhooks`)."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import CONTACT_SPACE, Broker, Retention
from chatws.brokers.webhook_queue import WebhookQueueSettings, WebhookReply, WebhookRequest
from chatws.errors import Unavailable
from tests.contracts.test_broker_contract import Recorder, postgres_logs, redis, redis_6, relays
from tests.requirements import FIXTURES, needs

__all__ = ["postgres_logs", "redis", "redis_6", "relays"]

Opener = Callable[..., Broker]


@dataclass(frozen=True)
class QueueEngine:
    """How to open a broker with webhooks.

    :ivar open: takes the fixture's value, the directory, and the arguments of `open_broker`.
    :ivar lasts: whether the queue outlives the broker.
    """

    name: str
    open: Opener
    lasts: bool = True
    fixture: str = ""


def opener(url: Callable[[Any, Path], str]) -> Opener:
    return lambda service, place, **options: open_broker(url(service, place), Retention(), **options)


def open_relayed(relays: Any, place: Path, **options: Any) -> Broker:
    opened: Broker = relays.broker(place, lambda: open_broker(f"sqlite:///{place}/log.db", Retention(), **options))
    return opened


ENGINES = [
    QueueEngine("memory", opener(lambda _, place: "memory"), lasts=False),
    QueueEngine("sqlite", opener(lambda _, place: f"sqlite:///{place}/log.db")),
    QueueEngine("relayed", open_relayed, fixture="relays"),
    QueueEngine("postgres", opener(lambda logs, place: str(logs.url(place))), fixture="postgres_logs"),
    QueueEngine("redis", opener(lambda server, place: str(server.url_for(str(place)))), fixture="redis"),
    QueueEngine("redis-6", opener(lambda server, place: str(server.url_for(str(place)))), fixture="redis_6"),
]


class Queue:
    """The queue of one engine, with a clock of its own, and a node that is the sender."""

    def __init__(self, request: pytest.FixtureRequest, place: Path) -> None:
        self.engine: QueueEngine = request.param
        self.place = place
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.name = ""
        self.broker: Broker
        self._service = request.getfixturevalue(self.engine.fixture) if self.engine.fixture else None

    async def open(self, limit: int = 1000, contacts: bool = False) -> None:
        from twisted.internet import reactor

        now = self.clock.seconds
        self.broker = self.engine.open(
            self._service, self.place, reactor=reactor, now=now, webhook_queue=WebhookQueueSettings(limit, contacts)
        )
        await self.broker.start(Recorder())

    async def exchange(self, owner: str = "a", seconds: float = 30.0, **fields: Any) -> WebhookReply:
        fields = {"limit": 100, "numbers": 10, "name": self.name, **fields}
        reply = await self.broker.exchange_webhooks(WebhookRequest(owner, seconds, **fields))
        self.name = reply.name or self.name
        return reply

    async def kinds(self) -> list[tuple[str, bytes]]:
        return [(item.kind, item.data) for item in (await self.exchange()).items]


@pytest_twisted.async_yield_fixture(
    params=[
        pytest.param(
            engine, id=engine.name, marks=[needs(FIXTURES[engine.fixture])] if engine.fixture in FIXTURES else []
        )
        for engine in ENGINES
    ]
)
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queue]:
    queue = Queue(request, tmp_path)
    await queue.open()
    yield queue
    await queue.broker.stop()


@pytest_twisted.ensureDeferred
async def test_lease_appends_each_change_over_all_nodes_once(queue: Queue) -> None:
    broker = queue.broker
    await broker.lease("one", {5: 1, "x\\y": 1}, 30)
    await broker.lease("two", {5: 2}, 30)
    await broker.lease("one", {5: None}, 30)
    await broker.lease("two", {5: None}, 30)
    changes = await queue.kinds()
    assert sorted(changes[:2]) == [("agent_online", b'"x\\\\y"'), ("agent_online", b"5")]
    assert changes[2:] == [("agent_offline", b"5")]


@pytest_twisted.ensureDeferred
async def test_lease_that_ended_is_appended_by_the_call_that_notices(queue: Queue) -> None:
    await queue.broker.lease("dies", {5: 1}, 10)
    queue.clock.advance(11)
    await queue.broker.lease("other", {}, 30)
    await queue.broker.lease("third", {}, 30)
    items = (await queue.exchange()).items
    assert [(item.kind, item.data) for item in items] == [("agent_online", b"5"), ("agent_offline", b"5")]
    assert [item.time_ms for item in items] == [1_800_000_000_000, 1_800_000_011_000]


@pytest_twisted.ensureDeferred
async def test_lease_of_contacts_is_appended_if_they_are_reported(queue: Queue) -> None:
    member, other = '[456,"a\\\\b"]', "[456,7]"
    await queue.broker.lease("one", {member: 1}, 30, CONTACT_SPACE)
    assert await queue.kinds() == []
    await queue.broker.stop()
    await queue.open(contacts=True)
    await queue.broker.lease("one", {other: 1}, 30, CONTACT_SPACE)
    await queue.broker.lease("one", {other: None, member: 2}, 30, CONTACT_SPACE)
    kinds = [(kind, json.loads(data)) for kind, data in await queue.kinds()]
    assert ("contact_online", other) in kinds
    assert ("contact_offline", other) in kinds


@pytest_twisted.ensureDeferred
async def test_acknowledged_events_are_removed_and_others_stay(queue: Queue) -> None:
    await queue.broker.add_webhooks([("agent_status", b"%d" % n) for n in range(5)])
    reply = await queue.exchange(limit=2)
    assert [item.data for item in reply.items] == [b"0", b"1"]
    assert (reply.more, reply.queued) == (True, 5)
    second = await queue.exchange(after=reply.items[-1].position, limit=2)
    assert [item.data for item in second.items] == [b"2", b"3"]
    third = await queue.exchange(acked=second.items[0].position, limit=9)
    assert [item.data for item in third.items] == [b"3", b"4"]
    assert (third.more, third.queued) == (False, 2)
    assert third.last == third.items[-1].position


@pytest_twisted.ensureDeferred
async def test_acknowledgement_for_a_queue_of_another_name_removes_nothing(queue: Queue) -> None:
    await queue.broker.add_webhooks([("agent_status", b"1")])
    reply = await queue.exchange(name="another", acked=10**6, after=10**6)
    assert [item.data for item in reply.items] == [b"1"]


@pytest_twisted.ensureDeferred
async def test_one_node_at_a_time_is_the_sender(queue: Queue) -> None:
    assert (await queue.exchange("a", 10)).is_sender
    assert not (await queue.exchange("b", 10)).is_sender
    queue.clock.advance(11)
    assert (await queue.exchange("b", 10)).is_sender
    assert not (await queue.exchange("a", 10)).is_sender
    await queue.exchange("b", 0)
    assert (await queue.exchange("a", 10)).is_sender


@pytest_twisted.ensureDeferred
async def test_acknowledgement_of_a_former_sender_counts(queue: Queue) -> None:
    await queue.broker.add_webhooks([("agent_status", b"1")])
    reply = await queue.exchange("a", 10)
    queue.clock.advance(11)
    assert (await queue.exchange("b", 10)).queued == 1
    assert not (await queue.exchange("a", 10, acked=reply.items[-1].position)).is_sender
    assert (await queue.exchange("b", 10)).items == []


@pytest_twisted.ensureDeferred
async def test_sequence_numbers_grow_over_nodes_and_a_clock_that_is_set_back(queue: Queue) -> None:
    first = await queue.exchange("a", 1, numbers=10)
    assert first.first_number >= 1_800_000_000 * 1_000_000
    second = await queue.exchange("a", 0.5, numbers=10)
    assert second.first_number >= first.first_number + 10
    queue.clock.advance(1)
    third = await queue.exchange("b", 10, numbers=10)
    assert third.first_number >= second.first_number + 10
    if queue.engine.lasts:
        await queue.broker.stop()
        queue.clock.rightNow -= 120
        await queue.open()
        assert (await queue.exchange("b", 200, numbers=1)).first_number >= third.first_number + 10


@pytest_twisted.ensureDeferred
async def test_queue_survives_a_restart_where_the_broker_stores(queue: Queue) -> None:
    await queue.broker.lease("one", {5: 1}, 300)
    before = await queue.exchange("a")
    await queue.broker.stop()
    await queue.open()
    after = await queue.exchange("a")
    if queue.engine.lasts:
        assert (after.name, list(after.items)) == (before.name, list(before.items))
    else:
        assert (after.name != before.name, list(after.items)) == (True, [])


@pytest_twisted.ensureDeferred
async def test_reset_is_due_until_it_is_acknowledged(queue: Queue) -> None:
    due = (await queue.exchange()).reset
    assert due
    assert (await queue.exchange()).reset == due
    assert (await queue.exchange(reset_done=due)).reset == 0
    await queue.broker.add_webhooks([], reset=True)
    assert (await queue.exchange()).reset > due


@pytest_twisted.ensureDeferred
async def test_full_queue_drops_the_oldest_of_the_lowest_priority_first(queue: Queue) -> None:
    await queue.broker.stop()
    await queue.open(limit=4)
    done = (await queue.exchange()).reset
    await queue.exchange(reset_done=done)
    await queue.broker.lease("one", {5: 1}, 300)
    await queue.broker.add_webhooks([("activity", b"1"), ("contact_online", b"2"), ("contact_offline", b"3")])
    assert (await queue.exchange()).reset == 0
    await queue.broker.add_webhooks([("activity", b"4"), ("agent_status", b"6")])
    reply = await queue.exchange()
    assert [item.data for item in reply.items] == [b"5", b"2", b"3", b"6"]
    assert reply.dropped == (2, 0, 0)
    assert reply.reset
    await queue.broker.lease("one", {5: None, 7: 1, 8: 1}, 300)
    reply = await queue.exchange(reset_done=reply.reset)
    assert [item.kind for item in reply.items].count("agent_offline") == 1
    assert (reply.dropped, reply.queued) == ((2, 2, 1), 4)
    assert reply.reset


@pytest_twisted.ensureDeferred
async def test_only_a_queue_that_ends_with_its_process_waits_after_the_start(queue: Queue) -> None:
    wait = (await queue.exchange(start_delay=40.0)).wait
    assert wait == (0.0 if queue.engine.lasts else 40.0)
    queue.clock.advance(50)
    assert (await queue.exchange(start_delay=40.0)).wait == 0.0


@pytest_twisted.ensureDeferred
async def test_broker_without_webhooks_queues_nothing(queue: Queue) -> None:
    await queue.broker.stop()
    await queue.open(limit=0)
    await queue.broker.lease("one", {5: 1}, 300)
    with pytest.raises(Unavailable):
        await queue.exchange()
    with pytest.raises(Unavailable):
        await queue.broker.add_webhooks([("activity", b"1")])
    await queue.broker.stop()
    await queue.open()
    assert (await queue.exchange()).items == []


@pytest_twisted.ensureDeferred
async def test_lost_history_makes_a_reset_due_under_a_new_name(queue: Queue) -> None:
    before = await queue.exchange()
    await queue.exchange(reset_done=before.reset)
    queue.broker.epoch = "another"
    if queue.engine.name in ("memory", "sqlite", "relayed"):
        await queue.broker.stop()
        if queue.engine.lasts:
            with closing(sqlite3.connect(queue.place / "log.db")) as database, database:
                database.execute("UPDATE history SET epoch = 'another'")
        await queue.open()
    after = await queue.exchange()
    assert after.name != before.name
    assert after.reset > (before.reset if queue.engine.lasts else 0)
