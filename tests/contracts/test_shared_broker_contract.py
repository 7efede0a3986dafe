"""What every engine does that several nodes may use at once (chatws.brokers.interface), whatever it is.

Engines come from `ENGINES` of test_broker_contract, those with `nodes`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from chatws.brokers.interface import Audience, Broker, Event, NewEvent, Retention
from chatws.errors import Unavailable
from tests.contracts.test_broker_contract import (
    ENGINES,
    Recorder,
    World,
    new_event,
    parameters,
    postgres_logs,
    redis,
    redis_6,
    relays,
)

__all__ = ["postgres_logs", "redis", "redis_6", "relays"]

#: Seconds after which a wait has failed.
DEADLINE = 20.0


@pytest_twisted.async_yield_fixture(params=parameters([engine for engine in ENGINES if engine.nodes]))
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


async def until(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> None:
    """Let the reactor turn until it is true."""
    from twisted.internet import reactor

    end = reactor.seconds() + deadline
    while not condition():
        assert reactor.seconds() < end, f"waited {deadline:g} s in vain for {what}"
        await deferLater(reactor, 0.005)


async def until_notified(recorder: Recorder, last: int) -> None:
    await until(lambda: max(recorder.offsets, default=0) >= last, f"offset {last}")


def facts(events: list[Event]) -> list[tuple[object, ...]]:
    return [(event.offset, event.name, event.audience, event.data, event.time) for event in events]


@pytest_twisted.ensureDeferred
async def test_shared_brokers_have_one_epoch(world: World) -> None:
    broker, _ = await world.open()
    other, _ = await world.open()
    assert broker.shared
    assert other.shared
    assert broker.epoch == other.epoch


@pytest_twisted.ensureDeferred
async def test_nodes_that_begin_at_once_on_a_new_log_agree_on_its_epoch(world: World) -> None:
    opened = await gatherResults([Deferred.fromCoroutine(world.open()) for _ in range(3)])
    assert len({broker.epoch for broker, _ in opened}) == 1


@pytest_twisted.ensureDeferred
async def test_every_node_receives_every_event_once_in_the_same_order(world: World) -> None:
    nodes = [await world.open() for _ in range(3)]
    publishing = [
        broker.publish([new_event(f"n{number}.{step}.a"), new_event(f"n{number}.{step}.b", transient=True)])
        for step in range(30)
        for number, (broker, _) in enumerate(nodes)
    ]
    receipts = await gatherResults(publishing)
    offsets = sorted(event.offset for batch in receipts for event in batch if event.offset)
    assert offsets == list(range(1, 91))
    for _, recorder in nodes:
        await until(lambda recorder=recorder: len(recorder.events) >= 180, "all events")  # type: ignore[misc]
        assert [offset for offset in recorder.offsets if offset] == list(range(1, 91))
        assert len(set(recorder.names)) == len(recorder.names) == 180
    stored = [[facts([event])[0] for event in recorder.events if event.offset] for _, recorder in nodes]
    assert stored[0] == stored[1] == stored[2] == facts(await nodes[0][0].read(0, 1000))
    for _, recorder in nodes:
        for sender in range(3):
            of_one = [name for name in recorder.names if name.startswith(f"n{sender}.")]
            assert of_one == [f"n{sender}.{step}.{letter}" for step in range(30) for letter in "ab"]


@pytest_twisted.ensureDeferred
async def test_an_event_is_delivered_unchanged_on_other_nodes(world: World) -> None:
    broker, _ = await world.open()
    _, other = await world.open()
    new_events = [
        NewEvent("new_message", Audience(("conversation:5",)), b'{"b":1,"a":1.0,"text":"\xc3\xa9\\u0000"}'),
        NewEvent("note", Audience(("user:7", "user:abc", "*"), except_user_id=7), b"{}", transient=True),
        NewEvent("x" * 64, Audience((f"user:{'é' * 128}",), except_user_id="7é"), b"{}" + b" " * 100_000),
    ]
    receipts = await broker.publish(new_events)
    await until(lambda: len(other.events) == 3, "three events")
    assert facts(other.events) == facts(receipts)


@pytest_twisted.ensureDeferred
async def test_a_publish_is_acknowledged_after_all_earlier_events_were_delivered(world: World) -> None:
    node, first = await world.open()
    other, second = await world.open()
    behind: list[str] = []

    def check(events: list[Event], recorder: Recorder) -> None:
        for event in events:
            told = [offset for offset in recorder.offsets if offset]
            if told[: event.offset] != list(range(1, event.offset + 1)):
                behind.append(f"{event.offset}: {told[-3:]}")

    await gatherResults(
        [
            broker.publish([new_event()]).addCallback(check, recorder)
            for _ in range(50)
            for broker, recorder in ((node, first), (other, second))
        ]
    )
    assert behind == []


@pytest_twisted.ensureDeferred
async def test_a_key_counts_once_over_all_nodes(world: World) -> None:
    node, first = await world.open()
    other, second = await world.open()
    receipts = await gatherResults([broker.publish([new_event(key="k")]) for broker in (node, other) * 5])
    assert sorted(event.duplicate for [event] in receipts) == [False] + [True] * 9
    assert {event.offset for [event] in receipts} == {1}
    await until_notified(first, 1)
    await until_notified(second, 1)
    assert first.offsets == second.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_a_node_that_joins_late_receives_new_events_and_reads_older_ones(world: World) -> None:
    broker, _ = await world.open()
    await broker.publish([new_event("a"), new_event("b")])
    other, recorder = await world.open()
    await broker.publish([new_event("c")])
    await until_notified(recorder, 3)
    assert recorder.names == ["c"]
    assert [event.name for event in await other.read(0, 10)] == ["a", "b", "c"]
    assert await other.offset_range() == (1, 3)


@pytest_twisted.ensureDeferred
async def test_a_node_that_stops_is_not_missed(world: World) -> None:
    broker, first = await world.open()
    other, second = await world.open()
    await broker.publish([new_event("a")])
    await until_notified(second, 1)
    await other.stop()
    await broker.publish([new_event("b")])
    assert first.names == ["a", "b"]
    assert second.names == ["a"]
    with pytest.raises(Unavailable):
        await other.publish([new_event()])


@pytest_twisted.ensureDeferred
async def test_large_events_reach_other_nodes_too(world: World) -> None:
    broker, _ = await world.open(Retention(size=0))
    _, other = await world.open(Retention(size=0))
    large = b'"' + b"x" * (1024 * 1024 - 2) + b'"'
    await broker.publish([new_event(f"e{n}", large, transient=n == 2) for n in range(6)])
    await broker.publish([new_event("last")])
    await until(lambda: "last" in other.names, "the last event")
    assert other.names == [f"e{n}" for n in range(6)] + ["last"]
    assert {event.data for event in other.events[:-1]} == {large}


@pytest_twisted.ensureDeferred
async def test_a_batch_beyond_the_retention_is_delivered_completely(world: World) -> None:
    broker, _ = await world.open(Retention(events=3))
    _, other = await world.open(Retention(events=3))
    await broker.publish([new_event() for _ in range(700)])
    await until_notified(other, 700)
    assert other.offsets == sorted(other.offsets)
    await broker.publish([new_event()])
    await until_notified(other, 701)


@pytest_twisted.ensureDeferred
async def test_events_published_by_a_listener_reach_all_nodes(world: World) -> None:
    node, first = await world.open()
    other, second = await world.open()

    def react(broker: Broker, recorder: Recorder) -> None:
        recorder.react = lambda events: [
            broker.publish([new_event(f"{event.name}.re")]) for event in events if event.name.count(".") == 0
        ]

    react(node, first)
    react(other, second)
    await node.publish([new_event("a")])
    await until_notified(first, 3)
    await until_notified(second, 3)
    assert first.names == second.names == ["a", "a.re", "a.re"]


@pytest_twisted.ensureDeferred
async def test_leases_are_those_of_all_nodes(world: World) -> None:
    broker, _ = await world.open()
    other, _ = await world.open()
    assert (await broker.lease("a", {1: 1, 2: 1}, 15)).changed in ([(1, True), (2, True)], [(2, True), (1, True)])
    assert await other.lease("b", {2: 1}, 30) == ([], 1, 2)
    assert set(await other.online()) == {1, 2}
    world.clock.advance(16)
    assert set(await other.online()) == {2}
    assert await other.lease("b", {}, 30) == ([(1, False)], 1, 1)
    assert await broker.lease("a", {}, 15) == ([], 0, 1)
