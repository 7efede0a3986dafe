"""What every broker does, whatever engine is behind it (chatws.brokers.interface).

To add an engine: one more row in `ENGINES`. The tests wait for Deferreds instead of expecting them fired, and turn the
clock that the broker is given.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import AGENTS, KEY_SECONDS, Audience, Broker, Event, NewEvent, Retention
from chatws.errors import Unavailable
from tests.fakes_brokers import SharedBroker, SharedHistory
from tests.ipc_brokers import IpcBrokers, relays
from tests.postgres import PostgresHistories, postgres_logs
from tests.redis import RedisServer, redis, redis_6
from tests.requirements import FIXTURES, needs

__all__ = ["postgres_logs", "redis", "redis_6", "relays"]


@dataclass(frozen=True)
class Engine:
    """How to get a broker.

    :ivar open: a new broker, not started, on the log that belongs to a directory, with retention and a clock; the first
        argument is what `fixture` gave.
    :ivar persistent: whether that log outlives the broker.
    :ivar fixture: the name of a fixture that has to be there: the server behind the engine.
    :ivar nodes: whether several brokers may have the log open at once; test_shared_broker_contract is about those.
    :ivar trim: makes the retention hold now, where the engine trims later.
    """

    name: str
    open: Callable[[Any, Path, Retention, Callable[[], float]], Broker]
    persistent: bool
    fixture: str = ""
    nodes: bool = False
    trim: Callable[[Any], Deferred[None]] = lambda broker: succeed(None)


def open_memory(_: None, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    return open_broker("memory", retention, reactor=None, now=now)


def open_sqlite(_: None, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    return open_broker(f"sqlite:///{place}/log.db", retention, reactor=None, now=now)


def open_durable_sqlite(_: None, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(f"sqlite:///{place}/log.db", retention, sync_commits=True, reactor=reactor, now=now)


def open_fake(_: None, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    return SharedBroker(SharedHistory(now, retention))


def open_redis(server: RedisServer, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(server.url_for(str(place)), retention, reactor=reactor, now=now)


def open_postgres(logs: PostgresHistories, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(logs.url(place), retention, reactor=reactor, now=now)


def on_postgres(name: str, fixture: str) -> Engine:
    return Engine(name, open_postgres, persistent=True, fixture=fixture, nodes=True, trim=lambda broker: broker.trim())


def open_relayed(relays: IpcBrokers, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    return relays.broker(place, lambda: open_memory(None, place, retention, now))


def open_relayed_sqlite(relays: IpcBrokers, place: Path, retention: Retention, now: Callable[[], float]) -> Broker:
    return relays.broker(place, lambda: open_durable_sqlite(None, place, retention, now))


ENGINES = [
    Engine("fake", open_fake, persistent=False),
    Engine("memory", open_memory, persistent=False),
    Engine("sqlite", open_sqlite, persistent=True),
    Engine("sqlite-durable", open_durable_sqlite, persistent=True),
    on_postgres("postgres", "postgres_logs"),
    Engine("redis", open_redis, persistent=True, fixture="redis", nodes=True),
    Engine("redis-6", open_redis, persistent=True, fixture="redis_6", nodes=True),
    Engine("relayed", open_relayed, persistent=False, fixture="relays", nodes=True),
    Engine("relayed-sqlite-durable", open_relayed_sqlite, persistent=True, fixture="relays", nodes=True),
]


@dataclass
class Recorder:
    """A listener that keeps what it is told, and may do something with each batch."""

    events: list[Event] = field(default_factory=list)
    react: Callable[[Sequence[Event]], object] | None = None
    epochs: list[str] = field(default_factory=list)

    def deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            event.delivered = 7
        self.events += events
        if self.react is not None:
            self.react(events)

    def reset(self, epoch: str) -> None:
        self.epochs.append(epoch)

    @property
    def offsets(self) -> list[int]:
        return [event.offset for event in self.events]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


class World:
    """One log, the clock, and whichever broker has it open."""

    def __init__(self, request: pytest.FixtureRequest, place: Path) -> None:
        self.engine: Engine = request.param
        self.service = request.getfixturevalue(self.engine.fixture) if self.engine.fixture else None
        self.place = place
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.brokers: list[Broker] = []

    def make(self, retention: Retention, elsewhere: str = "") -> Broker:
        return self.engine.open(self.service, self.place / elsewhere, retention, self.clock.seconds)

    async def open(self, retention: Retention | None = None) -> tuple[Broker, Recorder]:
        broker = self.make(retention or Retention())
        self.brokers.append(broker)
        recorder = Recorder()
        await broker.start(recorder)
        return broker, recorder

    async def trimmed(self) -> None:
        """The bounds hold, at the latest, now."""
        await self.engine.trim(self.brokers[-1])

    async def reopen(self, retention: Retention | None = None) -> tuple[Broker, Recorder]:
        await self.brokers[-1].stop()
        return await self.open(retention)


def parameters(engines: list[Engine]) -> list[Any]:
    """The engines as a fixture's parameters. A mark skips those whose server is absent."""
    marks = {name: needs(requirement) for name, requirement in FIXTURES.items()}
    return [pytest.param(engine, id=engine.name, marks=marks.get(engine.fixture, ())) for engine in engines]


@pytest_twisted.async_yield_fixture(params=parameters(ENGINES))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A log of each engine."""
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


@pytest_twisted.async_yield_fixture(params=parameters([engine for engine in ENGINES if engine.persistent]))
async def lasting_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A log of each engine that keeps it when the broker is gone."""
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


def new_event(
    name: str = "new_message",
    data: bytes = b"{}",
    key: str | None = None,
    transient: bool = False,
    key_seconds: float = KEY_SECONDS,
) -> NewEvent:
    return NewEvent(name, Audience(("conversation:1",)), data, key, transient, key_seconds)


async def read_all(broker: Broker) -> list[Event]:
    return await broker.read(0, 1_000_000)


# Order and offsets


@pytest_twisted.ensureDeferred
async def test_offsets_are_1_2_3_over_batches(world: World) -> None:
    broker, recorder = await world.open()
    first = await broker.publish([new_event(), new_event()])
    second = await broker.publish([new_event()])
    assert [event.offset for event in first + second] == [1, 2, 3]
    assert recorder.offsets == [1, 2, 3]
    assert await broker.offset_range() == (1, 3)


@pytest_twisted.ensureDeferred
async def test_publishes_that_overlap_keep_their_order(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await gatherResults([broker.publish([new_event(f"e{n}.a"), new_event(f"e{n}.b")]) for n in range(20)])
    assert [event.offset for batch in receipts for event in batch] == list(range(1, 41))
    assert recorder.names == [f"e{n}.{letter}" for n in range(20) for letter in "ab"]
    assert [event.name for event in await read_all(broker)] == recorder.names


@pytest_twisted.ensureDeferred
async def test_an_epoch_is_short_and_safe_in_an_id(world: World) -> None:
    broker, _ = await world.open()
    assert re.fullmatch(r"[0-9A-Za-z_-]{1,32}", broker.epoch)


@pytest_twisted.ensureDeferred
async def test_an_event_is_delivered_unchanged(world: World) -> None:
    broker, recorder = await world.open()
    new_events = [
        NewEvent("new_message", Audience(("conversation:5",)), b'{"b":1,"a":1.0,"text":"\xc3\xa9\\u0000"}'),
        NewEvent("note", Audience(("user:7", "user:abc", AGENTS), except_user_id=7), b"{}"),
        NewEvent("x" * 64, Audience((f"user:{'é' * 128}",), except_user_id="7é"), b"{}" + b" " * 100_000),
    ]
    receipts = await broker.publish(new_events)
    for events in (receipts, recorder.events, await read_all(broker)):
        assert [(event.name, event.audience, event.data) for event in events] == [
            (item.name, item.audience, item.data) for item in new_events
        ]
        assert [event.time for event in events] == [world.clock.seconds()] * 3
        assert not any(event.duplicate for event in events)


@pytest_twisted.ensureDeferred
async def test_publish_of_an_empty_batch_delivers_nothing(world: World) -> None:
    broker, recorder = await world.open()
    assert await broker.publish([]) == []
    assert recorder.events == []


# The listener


@pytest_twisted.ensureDeferred
async def test_the_listener_gets_events_before_the_publisher_gets_its_count(world: World) -> None:
    broker, recorder = await world.open()
    order: list[str] = []
    recorder.react = lambda events: order.append("told")
    publishing = broker.publish([new_event(), new_event(transient=True)])
    publishing.addCallback(lambda events: order.append("fired") or events)
    receipts = await publishing
    assert order == ["told", "fired"]
    assert [event.delivered for event in receipts] == [7, 7]


@pytest_twisted.ensureDeferred
async def test_a_listener_can_read_the_events_it_receives(world: World) -> None:
    broker, recorder = await world.open()
    reads: list[Deferred[list[Event]]] = []
    recorder.react = lambda events: reads.append(broker.read(events[0].offset - 1, 1))
    await broker.publish([new_event("stored")])
    assert [event.name for event in await reads[0]] == ["stored"]


@pytest_twisted.ensureDeferred
async def test_a_listener_that_publishes_receives_that_event_afterwards(world: World) -> None:
    broker, recorder = await world.open()
    seen: list[tuple[str, list[int]]] = []
    nested: list[Deferred[list[Event]]] = []

    def react(events: Sequence[Event]) -> None:
        seen.append(("begin", [event.offset for event in events]))
        if len(nested) < 2:
            nested.append(broker.publish([new_event("typing", transient=True), new_event("nested")]))
        seen.append(("end", [event.offset for event in events]))

    recorder.react = react
    outer = await broker.publish([new_event(), new_event()])
    inner = [await nested[0], await nested[1]]
    assert [[event.offset for event in batch] for batch in [outer, *inner]] == [[1, 2], [0, 3], [0, 4]]
    assert recorder.offsets == [1, 2, 0, 3, 0, 4]
    assert [step for step, _ in seen] == ["begin", "end"] * (len(seen) // 2), "one batch at a time"


@pytest_twisted.ensureDeferred
async def test_event_handler_that_raises_breaks_neither_history_nor_acknowledgement(world: World) -> None:
    broker, recorder = await world.open()
    logged: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if "log_failure" in event:
            logged.append(str(event["log_failure"]))

    def react(events: Sequence[Event]) -> None:
        raise ValueError("a fault in the listener")

    recorder.react = react
    globalLogPublisher.addObserver(observe)
    try:
        assert [event.offset for event in await broker.publish([new_event()])] == [1]
    finally:
        globalLogPublisher.removeObserver(observe)
    assert ["a fault in the listener" in line for line in logged] == [True]
    recorder.react = None
    assert [event.offset for event in await broker.publish([new_event()])] == [2]
    assert recorder.offsets == [1, 2]


# Transient events


@pytest_twisted.ensureDeferred
async def test_transient_events_are_delivered_in_order_and_not_stored(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await broker.publish([new_event("a"), new_event("b", transient=True), new_event("c")])
    await broker.publish([new_event("d", transient=True)])
    assert [event.offset for event in receipts] == [1, 0, 2]
    assert recorder.names == ["a", "b", "c", "d"]
    assert [event.name for event in await read_all(broker)] == ["a", "c"]
    assert await broker.offset_range() == (1, 2)


@pytest_twisted.ensureDeferred
async def test_keys_count_for_transient_events_too(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([new_event(key="k", transient=True)])
    [receipt] = await broker.publish([new_event(key="k", transient=True)])
    assert (receipt.offset, receipt.duplicate) == (0, True)
    assert len(recorder.events) == 1


# Idempotency keys


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_within_a_batch(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await broker.publish([new_event("a"), new_event("b", key="k"), new_event("c", key="k"), new_event("d")])
    assert [(event.offset, event.duplicate) for event in receipts] == [(1, False), (2, False), (2, True), (3, False)]
    assert recorder.names == ["a", "b", "d"]


@pytest_twisted.ensureDeferred
async def test_repeated_key_in_another_batch_returns_the_first_event(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([new_event(), new_event(key="k")])
    accepted = world.clock.seconds()
    world.clock.advance(KEY_SECONDS - 1)
    [receipt] = await broker.publish([new_event("other", data=b'{"other":1}', key="k")])
    assert (receipt.offset, receipt.time, receipt.duplicate, receipt.delivered) == (2, accepted, True, 0)
    assert recorder.offsets == [1, 2]
    assert await broker.offset_range() == (1, 2)


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_over_publishes_that_overlap(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await gatherResults([broker.publish([new_event(key="k")]) for _ in range(5)])
    assert [(event.offset, event.duplicate) for [event] in receipts] == [(1, False)] + [(1, True)] * 4
    assert recorder.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_different_keys_store_different_events(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish(
        [new_event(key="k"), new_event(key="K"), new_event(key="k "), new_event(key=""), new_event(key="é" * 128)]
    )
    assert recorder.offsets == [1, 2, 3, 4, 5]


@pytest_twisted.ensureDeferred
async def test_an_expired_key_can_be_used_again(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([new_event(key="k")])
    world.clock.advance(KEY_SECONDS + 1)
    [again] = await broker.publish([new_event(key="k")])
    assert (again.offset, again.duplicate) == (2, False)
    world.clock.advance(KEY_SECONDS - 1)
    [receipt] = await broker.publish([new_event(key="k")])
    assert (receipt.offset, receipt.duplicate) == (2, True)


@pytest_twisted.ensureDeferred
async def test_key_of_an_event_that_asks_for_more_time_counts_for_longer(world: World) -> None:
    broker, _ = await world.open()
    events = [
        new_event(key="short"),
        new_event(key="long", key_seconds=3600.5),
        new_event(key="both", key_seconds=3600.5, transient=True),
    ]
    await broker.publish(events)
    world.clock.advance(KEY_SECONDS + 1)
    assert [receipt.duplicate for receipt in await broker.publish(events)] == [False, True, True]
    world.clock.advance(3600 - KEY_SECONDS - 2)
    assert [receipt.duplicate for receipt in await broker.publish(events)] == [False, True, True]
    world.clock.advance(3)
    assert [receipt.duplicate for receipt in await broker.publish(events)] == [True, False, False]


@pytest_twisted.ensureDeferred
async def test_duplicate_does_not_extend_the_age_of_its_key(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([new_event(key="k")])
    world.clock.advance(KEY_SECONDS / 2 + 1)
    await broker.publish([new_event(key="k")])
    world.clock.advance(KEY_SECONDS / 2)
    [receipt] = await broker.publish([new_event(key="k")])
    assert not receipt.duplicate


@pytest_twisted.ensureDeferred
async def test_a_key_outlives_its_event(world: World) -> None:
    broker, _ = await world.open(Retention(events=2))
    await broker.publish([new_event(key="k")])
    await broker.publish([new_event() for _ in range(5)])
    await world.trimmed()
    [receipt] = await broker.publish([new_event(key="k")])
    assert (receipt.offset, receipt.duplicate) == (1, True)


# Reading on


@pytest_twisted.ensureDeferred
async def test_reading_in_pages_gives_everything_once(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([new_event(f"e{n}") for n in range(1, 24)])
    seen: list[Event] = []
    while page := await broker.read(seen[-1].offset if seen else 0, 5):
        assert len(page) == min(5, 23 - len(seen))
        seen += page
    assert [event.offset for event in seen] == list(range(1, 24))


@pytest_twisted.ensureDeferred
async def test_reading_from_the_end_or_beyond_returns_no_events(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.read(0, 10) == []
    await broker.publish([new_event()])
    assert await broker.read(1, 10) == []
    assert await broker.read(100, 10) == []
    assert await broker.read(0, 0) == []


@pytest_twisted.ensureDeferred
async def test_new_history_is_empty(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.offset_range() == (1, 0)


# Bounds


@pytest_twisted.ensureDeferred
async def test_retention_by_count_drops_the_oldest(world: World) -> None:
    broker, _ = await world.open(Retention(events=10, seconds=0, size=0))
    for _ in range(8):
        await broker.publish([new_event(), new_event(), new_event()])
    await world.trimmed()
    assert await broker.offset_range() == (15, 24)
    assert [event.offset for event in await broker.read(0, 100)] == list(range(15, 25))
    assert [event.offset for event in await broker.read(3, 2)] == [15, 16]
    assert [event.offset for event in await broker.read(20, 2)] == [21, 22]


@pytest_twisted.ensureDeferred
async def test_retention_by_size_drops_the_oldest(world: World) -> None:
    broker, _ = await world.open(Retention(events=0, seconds=0, size=100))
    for _ in range(15):
        await broker.publish([new_event(data=b"x" * 10)])
    await world.trimmed()
    assert await broker.offset_range() == (6, 15)
    await broker.publish([new_event(data=b"x" * 95)])
    await world.trimmed()
    assert await broker.offset_range() == (16, 16)


@pytest_twisted.ensureDeferred
async def test_expired_events_are_trimmed_by_the_next_publish(world: World) -> None:
    broker, _ = await world.open(Retention(events=0, seconds=60.0, size=0))
    await broker.publish([new_event(), new_event()])
    world.clock.advance(40)
    await broker.publish([new_event()])
    world.clock.advance(40)
    await broker.publish([new_event(transient=True), new_event()])
    await world.trimmed()
    assert await broker.offset_range() == (3, 4)


@pytest_twisted.ensureDeferred
async def test_history_without_limits_keeps_everything(world: World) -> None:
    broker, _ = await world.open(Retention(events=0, seconds=0.0, size=0))
    for _ in range(3):
        await broker.publish([new_event(data=b"x" * 1000) for _ in range(100)])
        world.clock.advance(10_000_000)
    await world.trimmed()
    assert await broker.offset_range() == (1, 300)


@pytest_twisted.ensureDeferred
async def test_a_batch_larger_than_the_history_bound_is_delivered_completely(world: World) -> None:
    broker, recorder = await world.open(Retention(events=3))
    receipts = await broker.publish([new_event() for _ in range(700)])
    assert [event.offset for event in receipts] == list(range(1, 701)) == recorder.offsets
    await world.trimmed()
    assert await broker.offset_range() == (698, 700)


@pytest_twisted.ensureDeferred
async def test_event_larger_than_the_retention_gets_an_offset_and_is_dropped(world: World) -> None:
    broker, recorder = await world.open(Retention(size=10))
    await broker.publish([new_event(data=b"x" * 11)])
    assert recorder.offsets == [1]
    await world.trimmed()
    assert await broker.offset_range() == (2, 1)
    assert await read_all(broker) == []
    assert [event.offset for event in await broker.publish([new_event()])] == [2]


# Restarts


@pytest_twisted.ensureDeferred
async def test_a_restart_keeps_the_history_or_begins_a_new_epoch(world: World) -> None:
    broker, _ = await world.open()
    epoch = broker.epoch
    await broker.publish([new_event("a", key="k"), new_event("b", transient=True), new_event("c")])
    before = await read_all(broker)
    broker, recorder = await world.reopen()
    assert recorder.events == []
    if not world.engine.persistent:
        assert broker.epoch != epoch
        assert await broker.offset_range() == (1, 0)
        return
    assert broker.epoch == epoch
    assert [(event.offset, event.name, event.time) for event in await read_all(broker)] == [
        (event.offset, event.name, event.time) for event in before
    ]
    receipts = await broker.publish([new_event(key="k"), new_event()])
    assert [(event.offset, event.duplicate) for event in receipts] == [(1, True), (3, False)]


@pytest_twisted.ensureDeferred
async def test_lease_returns_the_users_whose_presence_changed(world: World) -> None:
    broker, _ = await world.open()
    leased = await broker.lease("a", {1: 1, 2: 3, "ana": 1}, 15)
    assert set(leased.changed) == {(1, True), (2, True), ("ana", True)}
    assert leased[1:] == (3, 3)
    leased = await broker.lease("b", {2: 1, 3: 1}, 15)
    assert (leased.changed, leased.held, leased.online) == ([(3, True)], 2, 4)
    leased = await broker.lease("a", {2: None, 1: None, 9: None}, 15)
    assert (leased.changed, leased.held, leased.online) == ([(1, False)], 1, 3)
    assert set(await broker.online()) == {2, 3, "ana"}
    leased = await broker.lease("b", {2: None, 3: 0}, 15)
    assert (leased.changed, leased.held, leased.online) == ([(2, False)], 1, 2)


@pytest_twisted.ensureDeferred
async def test_a_repeated_lease_changes_nothing(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1}, 15)
    assert await broker.lease("a", {1: 2}, 15) == ([], 1, 1)
    assert await broker.lease("a", {2: None}, 15) == ([], 1, 1)
    assert await broker.lease("a", {}, 15) == ([], 1, 1)


@pytest_twisted.ensureDeferred
async def test_a_node_without_renewal_loses_its_users_once(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1, 2: 1}, 15)
    await broker.lease("b", {2: 1, 3: 1}, 30)
    world.clock.advance(14)
    assert await broker.lease("b", {}, 30) == ([], 2, 3)
    world.clock.advance(2)
    assert set(await broker.online()) == {2, 3}
    assert await broker.lease("b", {}, 30) == ([(1, False)], 2, 2)
    assert await broker.lease("b", {}, 30) == ([], 2, 2)
    assert await broker.lease("a", {}, 15) == ([], 0, 2), "it can see that it lost them"
    assert await broker.lease("a", {1: 1, 2: 1}, 15) == ([(1, True)], 2, 3)


@pytest_twisted.ensureDeferred
async def test_a_user_who_moves_from_a_dead_node_is_not_reported(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1}, 15)
    world.clock.advance(10)
    assert await broker.lease("b", {1: 1}, 15) == ([], 1, 1)
    world.clock.advance(10)
    assert await broker.lease("b", {}, 15) == ([], 1, 1)


@pytest_twisted.ensureDeferred
async def test_lease_ids_are_returned_unchanged(world: World) -> None:
    broker, _ = await world.open()
    ids = {0: 1, 2**53 - 1: 1, "x" * 128: 1, "é:'\"\\ %s": 1, "007": 1, "#nodes": 1}
    assert set((await broker.lease("a", ids, 15)).changed) == {(item, True) for item in ids}
    assert set(await broker.online()) == set(ids)


@pytest_twisted.ensureDeferred
async def test_leases_after_a_restart_are_complete_or_empty(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1, 2: 1, "ana": 1}, 60)
    await broker.lease("a", {2: None, 3: None}, 60)
    broker, _ = await world.reopen()
    if not world.engine.persistent:
        assert await broker.online() == []
        return
    assert set(await broker.online()) == {1, "ana"}
    assert (await broker.lease("b", {1: 1}, 60)).changed == []
    world.clock.advance(61)
    assert (await broker.lease("b", {}, 60)).changed == [("ana", False)]


@pytest_twisted.ensureDeferred
async def test_a_history_trimmed_to_nothing_continues_its_offsets(lasting_world: World) -> None:
    broker, _ = await lasting_world.open(Retention(size=10))
    await broker.publish([new_event(), new_event(), new_event(data=b"x" * 11)])
    await lasting_world.trimmed()
    assert await broker.offset_range() == (4, 3)
    broker, _ = await lasting_world.reopen()
    assert await broker.offset_range() == (4, 3)
    assert [event.offset for event in await broker.publish([new_event()])] == [4]


@pytest_twisted.ensureDeferred
async def test_smaller_retention_applies_at_the_first_publish_at_the_latest(lasting_world: World) -> None:
    broker, _ = await lasting_world.open()
    await broker.publish([new_event() for _ in range(1000)])
    broker, _ = await lasting_world.reopen(Retention(events=5))
    await broker.publish([new_event()])
    await lasting_world.trimmed()
    assert await broker.offset_range() == (997, 1001)


@pytest_twisted.ensureDeferred
async def test_keys_expire_across_a_restart(lasting_world: World) -> None:
    broker, _ = await lasting_world.open()
    await broker.publish([new_event(key="old"), new_event(key="long", key_seconds=3600)])
    lasting_world.clock.advance(KEY_SECONDS - 10)
    await broker.publish([new_event(key="young")])
    lasting_world.clock.advance(20)
    broker, _ = await lasting_world.reopen()
    receipts = await broker.publish([new_event(key="old"), new_event(key="young"), new_event(key="long")])
    assert [(event.offset, event.duplicate) for event in receipts] == [
        (4, False),
        (3, True),
        (2, True),
    ]


# The end


@pytest_twisted.ensureDeferred
async def test_calls_after_stop_are_unavailable(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([new_event()])
    await broker.stop()
    for attempt in (broker.publish([new_event()]), broker.read(0, 1), broker.offset_range()):
        with pytest.raises(Unavailable):
            await attempt
    assert recorder.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_stop_twice_or_without_a_start_succeeds(world: World) -> None:
    broker, _ = await world.open()
    stops = [broker.stop(), broker.stop()]
    await gatherResults(stops)
    await broker.stop()
    await world.make(Retention(), "elsewhere").stop()


@pytest_twisted.ensureDeferred
async def test_calls_before_start_are_unavailable(world: World) -> None:
    broker = world.make(Retention())
    for attempt in (broker.publish([new_event()]), broker.read(0, 1), broker.offset_range()):
        with pytest.raises(Unavailable):
            await attempt


@pytest_twisted.ensureDeferred
async def test_events_published_before_stop_are_acknowledged_and_stored(world: World) -> None:
    broker, recorder = await world.open()
    publishing = [broker.publish([new_event()]) for _ in range(5)]
    await broker.stop()
    assert [event.offset for [event] in await gatherResults(publishing)] == [1, 2, 3, 4, 5]
    assert recorder.offsets == [1, 2, 3, 4, 5]
    if world.engine.persistent:
        broker, _ = await world.open()
        assert await broker.offset_range() == (1, 5)
