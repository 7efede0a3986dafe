"""What every engine keeps apart from its history: leases of several spaces, and the data of members."""

from __future__ import annotations

import pytest_twisted

from chatws.brokers.interface import AGENT_SPACE, CONTACT_SPACE, MAX_MEMBER_DATA
from tests.contracts.test_broker_contract import (
    World,
    lasting_world,
    postgres_logs,
    redis,
    redis_6,
    relays,
    world,
)

__all__ = ["lasting_world", "postgres_logs", "redis", "redis_6", "relays", "world"]


@pytest_twisted.ensureDeferred
async def test_spaces_have_members_of_their_own(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {7: 1, 8: 1}, 15)
    leased = await broker.lease("a", {7: 1}, 15, CONTACT_SPACE)
    assert leased == ([(7, True)], 1, 1)
    assert await broker.online(CONTACT_SPACE) == [7]
    assert set(await broker.online()) == {7, 8}
    assert await broker.lease("a", {7: None}, 15) == ([(7, False)], 1, 1)
    assert await broker.online(CONTACT_SPACE) == [7]


@pytest_twisted.ensureDeferred
async def test_a_lease_expires_in_its_space_only(world: World) -> None:
    broker, _ = await world.open()
    await broker.lease("a", {7: 1}, 15)
    await broker.lease("a", {"[456,7]": 2}, 60, CONTACT_SPACE)
    world.clock.advance(20)
    assert await broker.lease("b", {}, 60) == ([(7, False)], 0, 0)
    assert await broker.lease("b", {}, 60, CONTACT_SPACE) == ([], 0, 1)
    world.clock.advance(45)
    assert await broker.lease("b", {}, 60, CONTACT_SPACE) == ([("[456,7]", False)], 0, 0)


@pytest_twisted.ensureDeferred
async def test_numbers_of_members_follow_every_change(world: World) -> None:
    broker, _ = await world.open()
    assert (await broker.lease("a", dict.fromkeys(range(20), 1), 15, CONTACT_SPACE))[1:] == (20, 20)
    assert (await broker.lease("b", dict.fromkeys(range(10, 30), 1), 30, CONTACT_SPACE))[1:] == (20, 30)
    assert (await broker.lease("b", {10: None, 11: 2, 99: None, 40: 1}, 30, CONTACT_SPACE))[1:] == (20, 31)
    world.clock.advance(16)
    gone, held, online = await broker.lease("b", {12: None}, 30, CONTACT_SPACE)
    assert set(gone) == {(member, False) for member in (*range(11), 12)}
    assert (held, online) == (19, 19)


@pytest_twisted.ensureDeferred
async def test_nodes_of_earlier_versions_are_those_without_a_lease_of_the_space(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.nodes_without(CONTACT_SPACE) == []
    await broker.lease("new", {}, 60, CONTACT_SPACE)
    await broker.lease("new", {}, 60)
    await broker.lease("earlier", {5: 1}, 15)
    assert await broker.nodes_without(CONTACT_SPACE) == ["earlier"]
    world.clock.advance(16)
    assert await broker.nodes_without(CONTACT_SPACE) == []


@pytest_twisted.ensureDeferred
async def test_data_is_changed_once_and_expires(world: World) -> None:
    broker, _ = await world.open()
    assert await broker.data(AGENT_SPACE) == {}
    assert [await broker.set_data(AGENT_SPACE, 5, "away", 60) for _ in range(2)] == [True, False]
    assert await broker.set_data(AGENT_SPACE, 5, "busy", 60)
    assert await broker.set_data(AGENT_SPACE, "ana", "away", 30)
    assert await broker.data(CONTACT_SPACE) == {}
    now = world.clock.seconds()
    stored = await broker.data(AGENT_SPACE)
    assert {member: data for member, (data, _) in stored.items()} == {5: "busy", "ana": "away"}
    assert {member: round(expires_at - now) for member, (_, expires_at) in stored.items()} == {5: 60, "ana": 30}
    world.clock.advance(31)
    assert [*await broker.data(AGENT_SPACE)] == [5]
    assert await broker.set_data(AGENT_SPACE, "ana", "away", 30), "what has expired is no data"
    assert [await broker.set_data(AGENT_SPACE, 5, None, 0) for _ in range(2)] == [True, False]
    assert [*await broker.data(AGENT_SPACE)] == ["ana"]


@pytest_twisted.ensureDeferred
async def test_storing_the_same_data_extends_its_time(world: World) -> None:
    broker, _ = await world.open()
    await broker.set_data(AGENT_SPACE, 5, "away", 30)
    world.clock.advance(20)
    assert not await broker.set_data(AGENT_SPACE, 5, "away", 30)
    world.clock.advance(20)
    assert [*await broker.data(AGENT_SPACE)] == [5]


@pytest_twisted.ensureDeferred
async def test_data_is_returned_unchanged(world: World) -> None:
    broker, _ = await world.open()
    texts = {7: "", "long": "x" * MAX_MEMBER_DATA, "é:'\"\\ %s": "é:'\"\\ %s\0 {}"}
    for member, text in texts.items():
        assert await broker.set_data("pusher-1", member, text, 60)
    assert {member: stored.data for member, stored in (await broker.data("pusher-1")).items()} == texts


@pytest_twisted.ensureDeferred
async def test_data_and_members_of_every_space_survive_a_restart(lasting_world: World) -> None:
    world = lasting_world
    broker, _ = await world.open()
    await broker.lease("a", {"[456,7]": 1}, 60, CONTACT_SPACE)
    await broker.set_data(AGENT_SPACE, 5, "away", 3600)
    await broker.set_data(AGENT_SPACE, 6, "busy", 3600)
    await broker.set_data(AGENT_SPACE, 6, None, 0)
    broker, _ = await world.reopen()
    assert {member: stored.data for member, stored in (await broker.data(AGENT_SPACE)).items()} == {5: "away"}
    assert await broker.online(CONTACT_SPACE) == ["[456,7]"]
    assert await broker.online() == []
