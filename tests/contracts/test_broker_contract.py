"""What every broker does, whatever engine is behind it (chatws.brokers.contract).

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

from chatws.brokers import open_broker
from chatws.brokers.contract import EVERYONE, KEY_SECONDS, Audience, Bounds, Broker, Draft, Event
from chatws.errors import Unavailable
from tests.fakes_brokers import SharedBroker, SharedLog
from tests.postgres import PostgresLogs, postgres_logs
from tests.redis import RedisServer, redis, redis_6
from tests.relays import Relays, relays

__all__ = ["postgres_logs", "redis", "redis_6", "relays"]


@dataclass(frozen=True)
class Engine:
    """How to get a broker.

    :ivar open: a new broker, not started, on the log that belongs to a directory, with bounds and a clock; the first
        argument is what `fixture` gave.
    :ivar persistent: whether that log outlives the broker.
    :ivar fixture: the name of a fixture that has to be there: the server behind the engine.
    :ivar nodes: whether several brokers may have the log open at once; test_shared_broker_contract is about those.
    :ivar trim: makes the bounds hold now, where the engine trims later.
    """

    name: str
    open: Callable[[Any, Path, Bounds, Callable[[], float]], Broker]
    persistent: bool
    fixture: str = ""
    nodes: bool = False
    trim: Callable[[Any], Deferred[None]] = lambda broker: succeed(None)


def open_memory(_: None, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    return open_broker("memory", bounds, reactor=None, now=now)


def open_sqlite(_: None, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    return open_broker(f"sqlite:///{place}/log.db", bounds, reactor=None, now=now)


def open_durable_sqlite(_: None, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(f"sqlite:///{place}/log.db", bounds, durable=True, reactor=reactor, now=now)


def open_fake(_: None, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    return SharedBroker(SharedLog(now, bounds))


def open_redis(server: RedisServer, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(server.url_for(str(place)), bounds, reactor=reactor, now=now)


def open_postgres(logs: PostgresLogs, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    from twisted.internet import reactor

    return open_broker(logs.url(place), bounds, reactor=reactor, now=now)


def on_postgres(name: str, fixture: str) -> Engine:
    return Engine(name, open_postgres, persistent=True, fixture=fixture, nodes=True, trim=lambda broker: broker.trim())


def open_relayed(relays: Relays, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    return relays.broker(place, lambda: open_memory(None, place, bounds, now))


def open_relayed_sqlite(relays: Relays, place: Path, bounds: Bounds, now: Callable[[], float]) -> Broker:
    return relays.broker(place, lambda: open_durable_sqlite(None, place, bounds, now))


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

    def make(self, bounds: Bounds, elsewhere: str = "") -> Broker:
        return self.engine.open(self.service, self.place / elsewhere, bounds, self.clock.seconds)

    async def open(self, bounds: Bounds | None = None) -> tuple[Broker, Recorder]:
        broker = self.make(bounds or Bounds())
        self.brokers.append(broker)
        recorder = Recorder()
        await broker.start(recorder)
        return broker, recorder

    async def trimmed(self) -> None:
        """The bounds hold, at the latest, now."""
        await self.engine.trim(self.brokers[-1])

    async def reopen(self, bounds: Bounds | None = None) -> tuple[Broker, Recorder]:
        await self.brokers[-1].stop()
        return await self.open(bounds)


@pytest_twisted.async_yield_fixture(params=ENGINES, ids=[engine.name for engine in ENGINES])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A log of each engine."""
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


PERSISTENT = [engine for engine in ENGINES if engine.persistent]


@pytest_twisted.async_yield_fixture(params=PERSISTENT, ids=[engine.name for engine in PERSISTENT])
async def lasting_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A log of each engine that keeps it when the broker is gone."""
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


def draft(name: str = "new_message", data: bytes = b"{}", key: str | None = None, transient: bool = False) -> Draft:
    return Draft(name, Audience(("conversation:1",)), data, key, transient)


async def read_all(broker: Broker) -> list[Event]:
    return await broker.read(0, 1_000_000)


# Order and offsets


@pytest_twisted.ensureDeferred
async def test_offsets_are_1_2_3_over_batches(world: World) -> None:
    broker, recorder = await world.open()
    first = await broker.publish([draft(), draft()])
    second = await broker.publish([draft()])
    assert [event.offset for event in first + second] == [1, 2, 3]
    assert recorder.offsets == [1, 2, 3]
    assert await broker.bounds() == (1, 3)


@pytest_twisted.ensureDeferred
async def test_publishes_that_overlap_keep_their_order(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await gatherResults([broker.publish([draft(f"e{n}.a"), draft(f"e{n}.b")]) for n in range(20)])
    assert [event.offset for batch in receipts for event in batch] == list(range(1, 41))
    assert recorder.names == [f"e{n}.{letter}" for n in range(20) for letter in "ab"]
    assert [event.name for event in await read_all(broker)] == recorder.names


@pytest_twisted.ensureDeferred
async def test_an_epoch_is_short_and_safe_in_an_id(world: World) -> None:
    broker, _ = await world.open()
    assert re.fullmatch(r"[0-9A-Za-z_-]{1,32}", broker.epoch)


@pytest_twisted.ensureDeferred
async def test_an_event_comes_out_as_it_went_in(world: World) -> None:
    broker, recorder = await world.open()
    drafts = [
        Draft("new_message", Audience(("conversation:5",)), b'{"b":1,"a":1.0,"text":"\xc3\xa9\\u0000"}'),
        Draft("note", Audience(("user:7", "user:abc", EVERYONE), except_user_id=7), b"{}"),
        Draft("x" * 64, Audience((f"user:{'é' * 128}",), except_user_id="7é"), b"{}" + b" " * 100_000),
    ]
    receipts = await broker.publish(drafts)
    for events in (receipts, recorder.events, await read_all(broker)):
        assert [(event.name, event.audience, event.data) for event in events] == [
            (one.name, one.audience, one.data) for one in drafts
        ]
        assert [event.time for event in events] == [world.clock.seconds()] * 3
        assert not any(event.duplicate for event in events)


@pytest_twisted.ensureDeferred
async def test_an_empty_batch_is_nothing(world: World) -> None:
    broker, recorder = await world.open()
    assert await broker.publish([]) == []
    assert recorder.events == []


# The listener


@pytest_twisted.ensureDeferred
async def test_the_listener_is_told_before_the_publisher_and_its_count_comes_back(world: World) -> None:
    broker, recorder = await world.open()
    order: list[str] = []
    recorder.react = lambda events: order.append("told")
    publishing = broker.publish([draft(), draft(transient=True)])
    publishing.addCallback(lambda events: order.append("fired") or events)
    receipts = await publishing
    assert order == ["told", "fired"]
    assert [event.delivered for event in receipts] == [7, 7]


@pytest_twisted.ensureDeferred
async def test_a_listener_can_read_what_it_is_told_of(world: World) -> None:
    broker, recorder = await world.open()
    reads: list[Deferred[list[Event]]] = []
    recorder.react = lambda events: reads.append(broker.read(events[0].offset - 1, 1))
    await broker.publish([draft("stored")])
    assert [event.name for event in await reads[0]] == ["stored"]


@pytest_twisted.ensureDeferred
async def test_a_listener_that_publishes_is_told_of_that_afterwards(world: World) -> None:
    broker, recorder = await world.open()
    seen: list[tuple[str, list[int]]] = []
    nested: list[Deferred[list[Event]]] = []

    def react(events: Sequence[Event]) -> None:
        seen.append(("begin", [event.offset for event in events]))
        if len(nested) < 2:
            nested.append(broker.publish([draft("typing", transient=True), draft("nested")]))
        seen.append(("end", [event.offset for event in events]))

    recorder.react = react
    outer = await broker.publish([draft(), draft()])
    inner = [await nested[0], await nested[1]]
    assert [[event.offset for event in batch] for batch in [outer, *inner]] == [[1, 2], [0, 3], [0, 4]]
    assert recorder.offsets == [1, 2, 0, 3, 0, 4]
    assert [step for step, _ in seen] == ["begin", "end"] * (len(seen) // 2), "one batch at a time"


@pytest_twisted.ensureDeferred
async def test_a_listener_that_raises_breaks_neither_log_nor_acknowledgement(world: World) -> None:
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
        assert [event.offset for event in await broker.publish([draft()])] == [1]
    finally:
        globalLogPublisher.removeObserver(observe)
    assert ["a fault in the listener" in line for line in logged] == [True]
    recorder.react = None
    assert [event.offset for event in await broker.publish([draft()])] == [2]
    assert recorder.offsets == [1, 2]


# Transient events


@pytest_twisted.ensureDeferred
async def test_transient_events_are_told_in_order_and_not_stored(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await broker.publish([draft("a"), draft("b", transient=True), draft("c")])
    await broker.publish([draft("d", transient=True)])
    assert [event.offset for event in receipts] == [1, 0, 2]
    assert recorder.names == ["a", "b", "c", "d"]
    assert [event.name for event in await read_all(broker)] == ["a", "c"]
    assert await broker.bounds() == (1, 2)


@pytest_twisted.ensureDeferred
async def test_keys_count_for_transient_events_too(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([draft(key="k", transient=True)])
    [receipt] = await broker.publish([draft(key="k", transient=True)])
    assert (receipt.offset, receipt.duplicate) == (0, True)
    assert len(recorder.events) == 1


# Idempotency keys


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_within_a_batch(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await broker.publish([draft("a"), draft("b", key="k"), draft("c", key="k"), draft("d")])
    assert [(event.offset, event.duplicate) for event in receipts] == [(1, False), (2, False), (2, True), (3, False)]
    assert recorder.names == ["a", "b", "d"]


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_over_batches_and_the_receipt_is_the_first_ones(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([draft(), draft(key="k")])
    accepted = world.clock.seconds()
    world.clock.advance(KEY_SECONDS - 1)
    [receipt] = await broker.publish([draft("other", data=b'{"other":1}', key="k")])
    assert (receipt.offset, receipt.time, receipt.duplicate, receipt.delivered) == (2, accepted, True, 0)
    assert recorder.offsets == [1, 2]
    assert await broker.bounds() == (1, 2)


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_over_publishes_that_overlap(world: World) -> None:
    broker, recorder = await world.open()
    receipts = await gatherResults([broker.publish([draft(key="k")]) for _ in range(5)])
    assert [(event.offset, event.duplicate) for [event] in receipts] == [(1, False)] + [(1, True)] * 4
    assert recorder.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_other_keys_are_other_events(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([draft(key="k"), draft(key="K"), draft(key="k "), draft(key=""), draft(key="é" * 128)])
    assert recorder.offsets == [1, 2, 3, 4, 5]


@pytest_twisted.ensureDeferred
async def test_an_expired_key_counts_anew(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([draft(key="k")])
    world.clock.advance(KEY_SECONDS + 1)
    [again] = await broker.publish([draft(key="k")])
    assert (again.offset, again.duplicate) == (2, False)
    world.clock.advance(KEY_SECONDS - 1)
    [receipt] = await broker.publish([draft(key="k")])
    assert (receipt.offset, receipt.duplicate) == (2, True)


@pytest_twisted.ensureDeferred
async def test_a_duplicate_does_not_lengthen_its_keys_life(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([draft(key="k")])
    world.clock.advance(KEY_SECONDS / 2 + 1)
    await broker.publish([draft(key="k")])
    world.clock.advance(KEY_SECONDS / 2)
    [receipt] = await broker.publish([draft(key="k")])
    assert not receipt.duplicate


@pytest_twisted.ensureDeferred
async def test_a_key_outlives_its_event(world: World) -> None:
    broker, _ = await world.open(Bounds(events=2))
    await broker.publish([draft(key="k")])
    await broker.publish([draft() for _ in range(5)])
    await world.trimmed()
    [receipt] = await broker.publish([draft(key="k")])
    assert (receipt.offset, receipt.duplicate) == (1, True)


# Reading on


@pytest_twisted.ensureDeferred
async def test_reading_in_pages_gives_everything_once(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([draft(f"e{n}") for n in range(1, 24)])
    seen: list[Event] = []
    while page := await broker.read(seen[-1].offset if seen else 0, 5):
        assert len(page) == min(5, 23 - len(seen))
        seen += page
    assert [event.offset for event in seen] == list(range(1, 24))


@pytest_twisted.ensureDeferred
async def test_reading_from_the_end_or_beyond_gives_nothing(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.read(0, 10) == []
    await broker.publish([draft()])
    assert await broker.read(1, 10) == []
    assert await broker.read(100, 10) == []
    assert await broker.read(0, 0) == []


@pytest_twisted.ensureDeferred
async def test_a_new_log_is_empty(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.bounds() == (1, 0)


# Bounds


@pytest_twisted.ensureDeferred
async def test_the_oldest_go_when_there_are_too_many(world: World) -> None:
    broker, _ = await world.open(Bounds(events=10, seconds=0, size=0))
    for _ in range(8):
        await broker.publish([draft(), draft(), draft()])
    await world.trimmed()
    assert await broker.bounds() == (15, 24)
    assert [event.offset for event in await broker.read(0, 100)] == list(range(15, 25))
    assert [event.offset for event in await broker.read(3, 2)] == [15, 16]
    assert [event.offset for event in await broker.read(20, 2)] == [21, 22]


@pytest_twisted.ensureDeferred
async def test_the_oldest_go_when_their_data_is_too_much(world: World) -> None:
    broker, _ = await world.open(Bounds(events=0, seconds=0, size=100))
    for _ in range(15):
        await broker.publish([draft(data=b"x" * 10)])
    await world.trimmed()
    assert await broker.bounds() == (6, 15)
    await broker.publish([draft(data=b"x" * 95)])
    await world.trimmed()
    assert await broker.bounds() == (16, 16)


@pytest_twisted.ensureDeferred
async def test_the_oldest_go_when_they_are_too_old_and_something_new_comes(world: World) -> None:
    broker, _ = await world.open(Bounds(events=0, seconds=60.0, size=0))
    await broker.publish([draft(), draft()])
    world.clock.advance(40)
    await broker.publish([draft()])
    world.clock.advance(40)
    await broker.publish([draft(transient=True), draft()])
    await world.trimmed()
    assert await broker.bounds() == (3, 4)


@pytest_twisted.ensureDeferred
async def test_a_log_with_no_limits_keeps_everything(world: World) -> None:
    broker, _ = await world.open(Bounds(events=0, seconds=0.0, size=0))
    for _ in range(3):
        await broker.publish([draft(data=b"x" * 1000) for _ in range(100)])
        world.clock.advance(10_000_000)
    await world.trimmed()
    assert await broker.bounds() == (1, 300)


@pytest_twisted.ensureDeferred
async def test_a_batch_larger_than_the_bound_is_accepted_and_told_whole(world: World) -> None:
    broker, recorder = await world.open(Bounds(events=3))
    receipts = await broker.publish([draft() for _ in range(700)])
    assert [event.offset for event in receipts] == list(range(1, 701)) == recorder.offsets
    await world.trimmed()
    assert await broker.bounds() == (698, 700)


@pytest_twisted.ensureDeferred
async def test_an_event_larger_than_the_bound_takes_its_place_and_is_gone(world: World) -> None:
    broker, recorder = await world.open(Bounds(size=10))
    await broker.publish([draft(data=b"x" * 11)])
    assert recorder.offsets == [1]
    await world.trimmed()
    assert await broker.bounds() == (2, 1)
    assert await read_all(broker) == []
    assert [event.offset for event in await broker.publish([draft()])] == [2]


# Restarts


@pytest_twisted.ensureDeferred
async def test_a_restart_keeps_the_log_or_says_that_it_is_another(world: World) -> None:
    broker, _ = await world.open()
    epoch = broker.epoch
    await broker.publish([draft("a", key="k"), draft("b", transient=True), draft("c")])
    before = await read_all(broker)
    broker, recorder = await world.reopen()
    assert recorder.events == []
    if not world.engine.persistent:
        assert broker.epoch != epoch
        assert await broker.bounds() == (1, 0)
        return
    assert broker.epoch == epoch
    assert [(event.offset, event.name, event.time) for event in await read_all(broker)] == [
        (event.offset, event.name, event.time) for event in before
    ]
    receipts = await broker.publish([draft(key="k"), draft()])
    assert [(event.offset, event.duplicate) for event in receipts] == [(1, True), (3, False)]


@pytest_twisted.ensureDeferred
async def test_leases_say_for_whom_it_makes_a_difference(world: World) -> None:
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
async def test_saying_it_again_changes_nothing(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1}, 15)
    assert await broker.lease("a", {1: 2}, 15) == ([], 1, 1)
    assert await broker.lease("a", {2: None}, 15) == ([], 1, 1)
    assert await broker.lease("a", {}, 15) == ([], 1, 1)


@pytest_twisted.ensureDeferred
async def test_a_node_that_says_no_more_loses_its_users_once(world: World) -> None:
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
async def test_one_who_moves_from_a_dead_node_to_another_is_no_news(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {1: 1}, 15)
    world.clock.advance(10)
    assert await broker.lease("b", {1: 1}, 15) == ([], 1, 1)
    world.clock.advance(10)
    assert await broker.lease("b", {}, 15) == ([], 1, 1)


@pytest_twisted.ensureDeferred
async def test_ids_of_leases_come_back_as_they_were(world: World) -> None:
    broker, _ = await world.open()
    ids = {0: 1, 2**53 - 1: 1, "x" * 128: 1, "é:'\"\\ %s": 1, "007": 1, "#nodes": 1}
    assert set((await broker.lease("a", ids, 15)).changed) == {(one, True) for one in ids}
    assert set(await broker.online()) == set(ids)


@pytest_twisted.ensureDeferred
async def test_who_was_online_is_known_after_a_restart_or_nobody_is(world: World) -> None:
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
async def test_a_log_trimmed_to_nothing_goes_on_from_its_last_offset(lasting_world: World) -> None:
    broker, _ = await lasting_world.open(Bounds(size=10))
    await broker.publish([draft(), draft(), draft(data=b"x" * 11)])
    await lasting_world.trimmed()
    assert await broker.bounds() == (4, 3)
    broker, _ = await lasting_world.reopen()
    assert await broker.bounds() == (4, 3)
    assert [event.offset for event in await broker.publish([draft()])] == [4]


@pytest_twisted.ensureDeferred
async def test_narrower_bounds_hold_at_the_latest_with_the_first_publish(lasting_world: World) -> None:
    broker, _ = await lasting_world.open()
    await broker.publish([draft() for _ in range(1000)])
    broker, _ = await lasting_world.reopen(Bounds(events=5))
    await broker.publish([draft()])
    await lasting_world.trimmed()
    assert await broker.bounds() == (997, 1001)


@pytest_twisted.ensureDeferred
async def test_keys_expire_across_a_restart(lasting_world: World) -> None:
    broker, _ = await lasting_world.open()
    await broker.publish([draft(key="old")])
    lasting_world.clock.advance(KEY_SECONDS - 10)
    await broker.publish([draft(key="young")])
    lasting_world.clock.advance(20)
    broker, _ = await lasting_world.reopen()
    receipts = await broker.publish([draft(key="old"), draft(key="young")])
    assert [(event.offset, event.duplicate) for event in receipts] == [(3, False), (2, True)]


# The end


@pytest_twisted.ensureDeferred
async def test_after_stop_nothing_is_to_be_had(world: World) -> None:
    broker, recorder = await world.open()
    await broker.publish([draft()])
    await broker.stop()
    for attempt in (broker.publish([draft()]), broker.read(0, 1), broker.bounds()):
        with pytest.raises(Unavailable):
            await attempt
    assert recorder.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_stopping_twice_or_without_a_start_is_fine(world: World) -> None:
    broker, _ = await world.open()
    stops = [broker.stop(), broker.stop()]
    await gatherResults(stops)
    await broker.stop()
    await world.make(Bounds(), "elsewhere").stop()


@pytest_twisted.ensureDeferred
async def test_before_start_nothing_is_to_be_had(world: World) -> None:
    broker = world.make(Bounds())
    for attempt in (broker.publish([draft()]), broker.read(0, 1), broker.bounds()):
        with pytest.raises(Unavailable):
            await attempt


@pytest_twisted.ensureDeferred
async def test_what_was_published_before_stop_is_acknowledged_and_stored(world: World) -> None:
    broker, recorder = await world.open()
    publishing = [broker.publish([draft()]) for _ in range(5)]
    await broker.stop()
    assert [event.offset for [event] in await gatherResults(publishing)] == [1, 2, 3, 4, 5]
    assert recorder.offsets == [1, 2, 3, 4, 5]
    if world.engine.persistent:
        broker, _ = await world.open()
        assert await broker.bounds() == (1, 5)
