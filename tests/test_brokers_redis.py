"""The log in Redis: what lies there, how it is trimmed, and what happens when it is slow, full, gone, forgetful."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.logger import globalLogPublisher

from chatws.brokers.factory import open_broker
from chatws.brokers.interface import Broker, Event, Retention
from chatws.errors import ConfigError, Unavailable
from tests.contracts.test_broker_contract import Recorder, new_event
from tests.contracts.test_shared_broker_contract import DEADLINE, until, until_notified
from tests.log_lines import logged_at
from tests.postgres import ForgetfulFirewall
from tests.redis import RedisServer, redis
from tests.requirements import needs

__all__ = ["redis"]

pytestmark = needs("redis-server")

#: Seconds that Redis may take to answer where a test waits for it to be given up. Elsewhere it is given all it needs.
TIMEOUT = 1.0
PATIENCE = 15.0


class Nodes:
    """Opens brokers, and stops them when the test ends."""

    def __init__(self) -> None:
        self.brokers: list[Broker] = []

    def make(self, url: str, retention: Retention | None = None, **options: Any) -> Broker:
        from twisted.internet import reactor

        options.setdefault("timeout", PATIENCE)
        broker = open_broker(url, retention or Retention(), reactor=reactor, **options)
        self.brokers.append(broker)
        return broker

    async def open(self, url: str, retention: Retention | None = None, **options: Any) -> tuple[Broker, Recorder]:
        """One that is started. With little time it may find no answer, and the test starts it again."""
        from twisted.internet import reactor

        end = reactor.seconds() + DEADLINE
        while True:
            broker, recorder = self.make(url, retention, **options), Recorder()
            try:
                await broker.start(recorder)
                return broker, recorder
            except ConfigError:
                if options.get("timeout", PATIENCE) >= PATIENCE or reactor.seconds() > end:
                    raise


@pytest_twisted.async_yield_fixture
async def nodes() -> AsyncIterator[Nodes]:
    from twisted.internet import reactor

    before = set(reactor.getDelayedCalls())
    nodes = Nodes()
    yield nodes
    for broker in nodes.brokers:
        await broker.stop()
    left = [batch for batch in reactor.getDelayedCalls() if batch not in before and "redis" in str(batch)]
    assert left == []


@pytest.fixture
def server() -> Iterator[Callable[..., RedisServer]]:
    """Makes servers of the test's own, started."""
    made: list[RedisServer] = []

    def make(*options: str, **more: bool) -> RedisServer:
        engine = RedisServer(*options, **more)
        made.append(engine)
        return engine.start()

    yield make
    for item in made:
        item.close()


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The messages that were logged, as formats."""
    lines: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        lines.append(str(event.get("log_format")))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


async def publish_when_possible(broker: Broker, name: str, key: str | None = None) -> Event:
    """Try until it is taken."""
    from twisted.internet import reactor

    end = reactor.seconds() + DEADLINE
    while True:
        try:
            [event] = await broker.publish([new_event(name, key=key)])
            return event
        except Unavailable:
            assert reactor.seconds() < end, f"waited {DEADLINE:g} s in vain for {name} to be taken"
            await deferLater(reactor, 0.01)


async def unavailable(*attempts: Deferred[Any]) -> None:
    for attempt in attempts:
        with pytest.raises(Unavailable):
            await attempt


# What lies in Redis


@pytest_twisted.ensureDeferred
async def test_all_keys_are_in_one_slot_and_those_of_idempotency_expire(redis: RedisServer, nodes: Nodes) -> None:
    broker, _ = await nodes.open(f"{redis.url}?prefix=shop.1")
    await broker.publish([new_event(key="order 7"), new_event(key="é")])
    await broker.lease("a", {1: 1}, 60)
    names = sorted(redis.run("KEYS", "*shop.1*"))
    assert names == sorted(
        f"{{shop.1}}:2:{name}".encode()
        for name in ("head", "history", "nodes", "users", "node:a", "key:order 7", "key:é")
    )
    assert 590 <= redis.run("TTL", "{shop.1}:2:key:order 7") <= 600


@pytest_twisted.ensureDeferred
async def test_histories_with_other_prefixes_or_databases_are_separate(redis: RedisServer, nodes: Nodes) -> None:
    logs = [await nodes.open(f"{redis.url}{rest}") for rest in ("?prefix=m1", "?prefix=m2", "/3?prefix=m3")]
    for broker, _ in logs:
        await broker.publish([new_event(key="same")])
        await broker.lease("same", {1: 1}, 5)
    assert [recorder.offsets for _, recorder in logs] == [[1], [1], [1]]
    assert redis.run("EXISTS", "{m3}:2:history") == 0


@pytest_twisted.ensureDeferred
async def test_event_times_are_redis_s_clock_by_default(redis: RedisServer, nodes: Nodes) -> None:
    broker, _ = await nodes.open(redis.url_for("clock"))
    before = _time(redis)
    [event] = await broker.publish([new_event()])
    assert before <= event.time <= _time(redis)
    [again] = await broker.read(0, 1)
    assert again.time == event.time


def _time(redis: RedisServer) -> float:
    seconds, microseconds = redis.run("TIME")
    return int(seconds) + int(microseconds) / 1e6


@pytest_twisted.ensureDeferred
async def test_flushed_scripts_are_loaded_again(redis: RedisServer, nodes: Nodes) -> None:
    broker, recorder = await nodes.open(redis.url_for("scripts"))
    for _ in range(2):
        redis.run("SCRIPT", "FLUSH")
        await gatherResults([broker.publish([new_event()]), broker.offset_range(), broker.online()])
    assert recorder.offsets == [1, 2]


@pytest_twisted.ensureDeferred
async def test_foreign_messages_on_the_channel_are_ignored(redis: RedisServer, nodes: Nodes) -> None:
    broker, recorder = await nodes.open(f"{redis.url}?prefix=noise")
    for noise in (b"", b"hello", b'{"a":1}\n', b"\xff\n", b'["e",1]\n', b"[]"):
        redis.run("PUBLISH", "{noise}:events", noise)
    await broker.publish([new_event("heard")])
    other, _ = await nodes.open(f"{redis.url}?prefix=noise")
    await other.publish([new_event("also")])
    await until_notified(recorder, 2)
    assert recorder.names == ["heard", "also"]


@pytest_twisted.ensureDeferred
async def test_a_batch_whose_copy_precedes_the_response_is_delivered_once(redis: RedisServer, nodes: Nodes) -> None:
    broker, recorder = await nodes.open(redis.url_for("copies"))
    consumer = broker._consumer  # type: ignore[attr-defined]
    answered, arrivals = consumer.answered, []

    def later(*arguments: Any) -> None:
        """Let the answer wait until the copy is here."""
        arrivals.append(Deferred.fromCoroutine(until(lambda: len(recorder.events) >= 3, "the copy")))
        arrivals[-1].addCallback(lambda _: answered(*arguments))

    consumer.answered = later
    receipts = await broker.publish(
        [new_event("a", key="k"), new_event("b", key="k"), new_event("t", transient=True), new_event("c")]
    )
    assert [(event.offset, event.duplicate, event.delivered) for event in receipts] == [
        (1, False, 7),
        (1, True, 0),
        (0, False, 7),
        (2, False, 7),
    ]
    assert recorder.names == ["a", "t", "c"]


@pytest_twisted.ensureDeferred
async def test_a_history_of_format_1_is_set_aside_with_a_warning(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    engine.run(
        "HSET", "{chatws}:head", "epoch", "earlier", "seq", 9, "last", 7, "tip", "b9", "size", 2, "oldest", "5.0"
    )
    engine.run("XADD", "{chatws}:log", "7-0", "h", "5.0 2 b9", "e", b"\x94")
    with logged_at() as warnings:
        broker, recorder = await nodes.open(engine.url)
    assert any("history at the Redis key {chatws}:head is of an earlier version" in line for line in warnings)
    assert broker.epoch != "earlier"
    assert [event.offset for event in await broker.publish([new_event()])] == [1]
    assert recorder.offsets == [1]
    assert engine.run("HGET", "{chatws}:head", "last") == b"7"
    assert engine.run("XLEN", "{chatws}:log") == 1
    with logged_at() as warnings:
        await nodes.open(engine.url)
    assert not any("earlier version" in line for line in warnings)


# Trimming


@pytest_twisted.ensureDeferred
async def test_many_expired_events_are_trimmed_in_steps_without_a_publish(redis: RedisServer, nodes: Nodes) -> None:
    url = redis.url_for("portions")
    broker, _ = await nodes.open(url, Retention(events=0, seconds=0, size=0))
    await broker.publish([new_event(data=b"12345") for _ in range(5000)])
    narrow, _ = await nodes.open(url, Retention(events=10))
    await narrow.publish([new_event(data=b"123")])
    result: list[tuple[int, int]] = []

    def look() -> bool:
        narrow.offset_range().addCallback(result.append)
        return bool(result) and result[-1] == (4992, 5001)

    await until(look, "the rest to be trimmed")
    head = redis.run("HGETALL", f"{{{_prefix(url)}}}:2:head")
    facts = dict(zip(head[::2], head[1::2], strict=True))
    assert int(facts[b"size"]) == 9 * 5 + 3


def _prefix(url: str) -> str:
    return url.partition("prefix=")[2]


@pytest_twisted.ensureDeferred
async def test_expired_events_are_trimmed_in_small_steps(redis: RedisServer, nodes: Nodes) -> None:
    clock = Clock()
    clock.advance(1_800_000_000)
    broker, _ = await nodes.open(redis.url_for("old"), Retention(seconds=60.0), now=clock.seconds)
    await broker.publish([new_event() for _ in range(100)])
    clock.advance(61)
    await broker.publish([new_event()])
    assert await broker.offset_range() == (65, 101)
    await broker.publish([new_event()])
    assert await broker.offset_range() == (101, 102)


# A Redis that has lost data


@pytest_twisted.ensureDeferred
async def test_a_restart_without_data_begins_one_new_epoch_for_all(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    opened = [await nodes.open(engine.url) for _ in range(2)]
    epoch = opened[0][0].epoch
    await opened[0][0].publish([new_event("before")])
    await until_notified(opened[1][1], 1)
    with logged_at() as warnings:
        engine.kill()
        engine.start()
        event = await publish_when_possible(opened[0][0], "after")
        assert event.offset == 1
        for _, recorder in opened:
            await until(lambda recorder=recorder: "after" in recorder.names, "the event")  # type: ignore[misc]
    lost = f"Redis has lost the event history: epoch {epoch} ends at offset 1, epoch {opened[0][0].epoch} begins"
    assert len([line for line in warnings if line.startswith(lost)]) == 2
    for broker, recorder in opened:
        assert recorder.names == ["before", "after"]
        assert recorder.epochs == [broker.epoch] != [epoch]
    assert opened[0][0].epoch == opened[1][0].epoch


@pytest_twisted.ensureDeferred
async def test_a_redis_without_a_log_is_logged_by_the_node_that_begins_one(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    with logged_at() as warnings:
        broker, _ = await nodes.open(engine.url)
        await nodes.open(engine.url)
    assert [line for line in warnings if "holds no history" in line] == [
        f"Redis holds no history in this format, a new one begins: epoch {broker.epoch}; if there was one before, "
        "Redis has lost it, and pages reload"
    ]


@pytest_twisted.ensureDeferred
async def test_a_flushed_history_is_noticed_without_a_publish(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    opened = [await nodes.open(engine.url, timeout=TIMEOUT) for _ in range(2)]
    await publish_when_possible(opened[0][0], "before")
    engine.run("FLUSHALL")
    for broker, recorder in opened:
        await until(lambda recorder=recorder: recorder.epochs, "a new epoch")  # type: ignore[misc]
        assert recorder.epochs == [broker.epoch]
    await until(lambda: opened[0][0].epoch == opened[1][0].epoch, "one epoch")
    assert (await publish_when_possible(opened[1][0], "after")).offset == 1


@pytest_twisted.ensureDeferred
async def test_a_log_that_was_flushed_takes_no_event_of_the_old_epoch(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url, timeout=60)  # so that the publish is the first to notice
    await broker.publish([new_event()])
    engine.run("FLUSHALL")
    await unavailable(broker.publish([new_event("refused")]))
    await until(lambda: recorder.epochs, "a new epoch")
    assert (await publish_when_possible(broker, "taken")).offset == 1
    assert recorder.names == ["new_message", "taken"]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_went_back_in_time_begins_a_new_epoch_and_reuses_no_offset(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url, timeout=60)
    await broker.publish([new_event("a"), new_event("b")])
    past = _snapshot(engine)
    await broker.publish([new_event("lost")])
    epoch = broker.epoch
    _restore(engine, past)
    await unavailable(broker.publish([new_event("refused")]))
    await until(lambda: recorder.epochs, "a new epoch")
    assert broker.epoch != epoch
    assert (await publish_when_possible(broker, "taken")).offset == 1
    assert await broker.offset_range() == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_redis_restored_from_a_snapshot_is_detected(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url, timeout=TIMEOUT)
    for name in "ab":
        await publish_when_possible(broker, name, key=name)
    past = _snapshot(engine)
    await publish_when_possible(broker, "lost", key="lost")
    engine.silence()
    await until(lambda: not broker._sessions.is_ready, "the node to notice")  # type: ignore[attr-defined]
    engine.resume()
    # a node that knows nothing of the lost event is quicker, and its events take the lost one's place and more
    _restore(engine, past)
    quicker = nodes.make(engine.url, timeout=60)
    await quicker.start(Recorder())
    for name in "xyz":
        await publish_when_possible(quicker, name)
    await until(lambda: recorder.epochs, "a new epoch")
    await until(lambda: quicker.epoch == broker.epoch, "one epoch")


def _snapshot(server: RedisServer) -> dict[bytes, bytes]:
    return {name: server.run("DUMP", name) for name in server.run("KEYS", "*")}


def _restore(server: RedisServer, past: dict[bytes, bytes]) -> None:
    for name in server.run("KEYS", "*"):
        server.run("DEL", name)
    for name, value in past.items():
        server.run("RESTORE", name, 0, value)


@pytest_twisted.ensureDeferred
async def test_a_key_of_an_epoch_that_is_over_is_still_a_duplicate(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url, timeout=60)
    await broker.publish([new_event("a"), new_event("b", key="k")])
    engine.run("DEL", "{chatws}:2:head")
    await unavailable(broker.publish([new_event("refused")]))
    await until(lambda: recorder.epochs, "a new epoch")
    again = await publish_when_possible(broker, "b", key="k")
    assert (again.offset, again.duplicate) == (0, True)


# Faults


@pytest_twisted.ensureDeferred
async def test_a_restart_that_keeps_its_data_is_no_new_epoch(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server(persistent=True)
    broker, recorder = await nodes.open(engine.url)
    other, heard = await nodes.open(engine.url)
    await broker.publish([new_event("a", key="k")])
    engine.kill()
    await unavailable(broker.publish([new_event("refused")]), broker.offset_range(), broker.read(0, 1), broker.online())
    engine.start()
    again = await publish_when_possible(other, "a", key="k")
    assert (again.offset, again.duplicate) == (1, True)
    await publish_when_possible(other, "b")
    await until_notified(recorder, 2)
    assert recorder.names == heard.names == ["a", "b"]
    assert recorder.epochs == heard.epochs == []


@pytest_twisted.ensureDeferred
async def test_a_node_that_is_cut_off_without_a_word_notices_and_catches_up(redis: RedisServer, nodes: Nodes) -> None:
    from twisted.internet import reactor

    firewall = ForgetfulFirewall(reactor, redis.port)
    url = redis.url_for("cut off")
    far, recorder = await nodes.open(url.replace(str(redis.port), str(firewall.port)), timeout=TIMEOUT)
    near, _ = await nodes.open(url)
    await near.publish([new_event("a")])
    await until_notified(recorder, 1)
    firewall.closed = True
    firewall.forget()
    await unavailable(far.publish([new_event("unheard", key="k")]))
    for number in range(20):
        await near.publish([new_event(f"b{number}"), new_event("passing", transient=True)])
    assert recorder.names == ["a"]
    firewall.closed = False
    await until_notified(recorder, 21)
    assert recorder.offsets == list(range(1, 22))
    assert (await publish_when_possible(far, "unheard", key="k")).offset == 22
    await far.stop()
    await firewall.stop()


@pytest_twisted.ensureDeferred
async def test_an_event_with_a_lost_response_is_delivered_once_and_keeps_its_key(
    redis: RedisServer, nodes: Nodes
) -> None:
    from twisted.internet import reactor

    firewall = ForgetfulFirewall(reactor, redis.port)
    url = redis.url_for("lost answer")
    far, recorder = await nodes.open(url.replace(str(redis.port), str(firewall.port)), timeout=TIMEOUT)
    _, heard = await nodes.open(url, timeout=TIMEOUT)
    firewall.forget_answers()
    await unavailable(far.publish([new_event("stored", key="k")]))
    await until_notified(heard, 1)
    again = await publish_when_possible(far, "stored", key="k")
    assert (again.offset, again.duplicate) == (1, True)
    assert recorder.names == heard.names == ["stored"]
    await far.stop()
    await firewall.stop()


@pytest_twisted.ensureDeferred
async def test_a_frozen_redis_fails_in_time_and_is_used_again(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url, timeout=TIMEOUT)
    engine.silence()
    publishing = [broker.publish([new_event(f"e{n}", key=f"k{n}")]) for n in range(3)]
    await unavailable(*publishing)
    await unavailable(broker.publish([new_event()]), broker.offset_range())
    engine.resume()
    for number in range(3):
        await publish_when_possible(broker, f"e{number}", key=f"k{number}")
    assert recorder.names == ["e0", "e1", "e2"]
    assert recorder.epochs == []


@pytest_twisted.ensureDeferred
async def test_an_idle_node_notices_that_redis_stands_still(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    broker, _ = await nodes.open(engine.url, timeout=TIMEOUT)
    engine.silence()
    await until(lambda: not broker._sessions.is_ready, "the node to notice")  # type: ignore[attr-defined]
    engine.resume()


@pytest_twisted.ensureDeferred
async def test_a_full_redis_rejects_events_until_there_is_room(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url)
    await broker.publish([new_event("a")])
    engine.run("CONFIG", "SET", "maxmemory", "1")
    await unavailable(broker.publish([new_event("refused")]), broker.publish([new_event("typing", transient=True)]))
    assert await broker.offset_range() == (1, 1)
    assert [event.name for event in await broker.read(0, 5)] == ["a"]
    engine.run("CONFIG", "SET", "maxmemory", "0")
    await broker.publish([new_event("b")])
    assert recorder.names == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_a_full_redis_still_trims_expired_events(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    clock = Clock()
    clock.advance(1_800_000_000)
    broker, _ = await nodes.open(engine.url, Retention(seconds=60.0), now=clock.seconds)
    await broker.publish([new_event() for _ in range(5)])
    engine.run("CONFIG", "SET", "maxmemory", "1")
    clock.advance(61)
    await unavailable(broker.publish([new_event("refused")]))
    await until(lambda: engine.run("XLEN", "{chatws}:2:history") == 0, "room")
    assert await broker.offset_range() == (6, 5)


@pytest_twisted.ensureDeferred
async def test_a_redis_that_lacks_replicas_refuses_without_losing_anything(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url)
    engine.run("CONFIG", "SET", "min-replicas-to-write", "1")
    await unavailable(broker.publish([new_event("refused")]))
    engine.run("CONFIG", "SET", "min-replicas-to-write", "0")
    await broker.publish([new_event("a")])
    assert recorder.offsets == [1]


@pytest_twisted.ensureDeferred
async def test_a_master_that_became_a_replica_is_left_until_it_is_one_again(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    broker, recorder = await nodes.open(engine.url)
    await broker.publish([new_event("a")])
    engine.run("REPLICAOF", "127.0.0.1", "1")
    await unavailable(broker.publish([new_event("refused")]))
    await until(lambda: not broker._sessions.is_ready, "the node to leave")  # type: ignore[attr-defined]
    engine.run("REPLICAOF", "NO", "ONE")
    assert (await publish_when_possible(broker, "b")).offset == 2
    assert recorder.names == ["a", "b"]


@pytest_twisted.ensureDeferred
async def test_a_subscriber_that_redis_dropped_misses_nothing(redis: RedisServer, nodes: Nodes) -> None:
    url = redis.url_for("dropped")
    broker, _ = await nodes.open(url)
    other, recorder = await nodes.open(url)
    await broker.publish([new_event("a")])
    await until_notified(recorder, 1)
    redis.run("CLIENT", "KILL", "TYPE", "pubsub")
    await publish_when_possible(broker, "b")
    await publish_when_possible(other, "c")
    await until(lambda: recorder.names[-2:] in (["b", "c"], ["c", "b"]), "both")
    assert recorder.offsets == [1, 2, 3]


# Starting and stopping


@pytest_twisted.ensureDeferred
async def test_an_absent_redis_is_a_configuration_error(nodes: Nodes) -> None:
    broker = nodes.make("redis://:hunter2@127.0.0.1:1", timeout=0.3)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 cannot be used") as caught:
        await broker.start(Recorder())
    assert "hunter2" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_start_waits_a_moment_for_a_redis_that_is_starting_too(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    engine.stop()
    broker = nodes.make(engine.url, timeout=15)
    starting = broker.start(Recorder())
    engine.start(wait=False)
    await starting
    await broker.publish([new_event()])


@pytest_twisted.ensureDeferred
async def test_a_broker_stopped_while_it_starts_leaves_nothing(nodes: Nodes) -> None:
    broker = nodes.make("redis://127.0.0.1:1", timeout=30)
    starting = broker.start(Recorder())
    await broker.stop()
    with pytest.raises(ConfigError):
        await starting


@pytest_twisted.ensureDeferred
async def test_a_broker_stops_while_redis_is_silent(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    broker, _ = await nodes.open(engine.url, timeout=TIMEOUT)
    engine.silence()
    publishing = broker.publish([new_event()])
    stopping = broker.stop()
    await unavailable(publishing)
    await stopping
    engine.resume()


@pytest_twisted.ensureDeferred
async def test_a_redis_password_is_required_and_never_logged(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server()
    engine.run("CONFIG", "SET", "requirepass", "s3cret")
    for userinfo in ("", ":wrong-pass@", "nobody:wrong-pass@"):
        broker = nodes.make(engine.url.replace("//", f"//{userinfo}"))
        with pytest.raises(ConfigError, match=r"NOAUTH|WRONGPASS") as caught:
            await broker.start(Recorder())
        assert "wrong-pass" not in str(caught.value)
    broker, _ = await nodes.open(engine.url.replace("//", "//:s3cret@"))
    await broker.publish([new_event()])


#: As docs/operations.md has it.
ACL = (
    "~{chatws}:* resetchannels &{chatws}:* -@all +@scripting +@connection +@read +@write +@pubsub "
    "+time +role +info +wait"
)


@pytest_twisted.ensureDeferred
async def test_a_user_with_the_documented_rights_can_do_everything(
    server: Callable[..., RedisServer], nodes: Nodes
) -> None:
    engine = server()
    engine.run("ACL", "SETUSER", "chat", "on", ">pw", *ACL.split())
    broker, recorder = await nodes.open(engine.url.replace("//", "//chat:pw@"), Retention(events=2))
    await broker.publish([new_event(key="k"), new_event(), new_event(), new_event(transient=True)])
    await broker.lease("a", {1: 1}, 60)
    assert await broker.online() == [1]
    assert len(await broker.read(0, 10)) == 2
    assert recorder.offsets == [1, 2, 3, 0]
    other = nodes.make(engine.url.replace("//", "//chat:pw@") + "?prefix=forbidden")
    with pytest.raises(ConfigError, match=r"NOPERM|permission"):
        await other.start(Recorder())


@pytest.mark.parametrize(("policy", "warned"), [("allkeys-lru", True), ("volatile-ttl", True), ("noeviction", False)])
@pytest_twisted.ensureDeferred
async def test_a_redis_that_may_evict_the_log_is_warned_of(
    server: Callable[..., RedisServer], nodes: Nodes, logged: list[str], policy: str, warned: bool
) -> None:
    engine = server("--maxmemory", "100mb", "--maxmemory-policy", policy)
    await nodes.open(engine.url)
    assert any("maxmemory-policy" in line for line in logged) == warned


@pytest_twisted.ensureDeferred
async def test_redis_is_reachable_by_a_unix_socket(server: Callable[..., RedisServer], nodes: Nodes) -> None:
    engine = server("--unixsocket", "redis.sock")
    broker, _ = await nodes.open(f"redis+unix://{engine.directory}/redis.sock?db=2&prefix=u")
    await broker.publish([new_event()])
    assert redis_keys(engine, 2) == [b"{u}:2:head", b"{u}:2:history"]


def redis_keys(server: RedisServer, db: int) -> Sequence[bytes]:
    """The keys of a database."""
    result: list[bytes] = server.run("EVAL", f"redis.call('SELECT', {db}) return redis.call('KEYS', '*')", 0)
    return sorted(result)
