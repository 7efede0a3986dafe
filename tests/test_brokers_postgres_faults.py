"""PostgreSQL stopped, killed, cut off, frozen, read-only, emptied, put back: what its broker makes of it."""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
import pytest_twisted
from twisted.internet.defer import DeferredList, gatherResults
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from chatws.brokers.interface import Event
from chatws.brokers.postgres.schema import migrations
from chatws.database.migrations import apply, transaction
from chatws.errors import Unavailable
from tests.e2e.wire import until as poll_until
from tests.log_lines import logged_at
from tests.postgres import ForgetfulFirewall, start_another_server
from tests.postgres_nodes import PATIENCE, Nodes, RecordingHandler, give_up_after, new_event, nodes, reactor, until
from tests.requirements import needs

__all__ = ["nodes"]

pytestmark = [pytest.mark.long, needs("postgresql")]

#: The start of the log line for a database that takes no writes.
READ_ONLY = "the event history cannot be written: cannot execute"


async def published(broker: Any, name: str) -> Event:
    """Publish, with a key and as often as it takes: what a backend does whose line was answered `unavailable`."""
    end = reactor.seconds() + 30
    while True:
        try:
            [event] = await broker.publish([new_event(name, key=name)])
        except Unavailable:
            assert reactor.seconds() < end
        else:
            return event


async def agree(broker: Any, *listeners: RecordingHandler) -> None:
    """All were told of what is stored, in its order, each once."""
    stored = [event.name for event in await broker.read(0, 10_000)]
    for told in listeners:
        await until(lambda told=told: len(told.events) >= len(stored), f"{len(stored)} events")  # type: ignore[misc]
        assert told.names == stored
        assert told.offsets == list(range(1, len(stored) + 1))


def stop(nodes: Nodes) -> Callable[[], None]:
    nodes.server.stop()
    return nodes.server.start


def kill(nodes: Nodes) -> Callable[[], None]:
    nodes.server.kill()
    return nodes.server.start


def freeze(nodes: Nodes) -> Callable[[], None]:
    nodes.server.silence()
    return nodes.server.resume


@pytest.mark.parametrize("fail", [stop, kill, freeze])
@pytest_twisted.ensureDeferred
async def test_acknowledged_events_are_delivered_exactly_once(
    nodes: Nodes, fail: Callable[[Nodes], Callable[[], None]]
) -> None:
    (node, first), (other, second) = await nodes.node(), await nodes.node()
    for number in range(5):
        await gatherResults([broker.publish([new_event(f"before{number}")]) for broker in (node, other)])
    give_up_after(2.0, node, other)
    under_way = [node.publish([new_event(f"during{n}")]) for n in range(3)]
    end_fault = fail(nodes)
    outcomes = await DeferredList(under_way, consumeErrors=True)
    assert all(done or failure.check(Unavailable) for done, failure in outcomes)
    for question in (
        node.publish([new_event("refused")]),
        node.offset_range(),
        other.online(),
        node.read(0, 1),
        node.lease("a", {}, 9),
    ):
        with pytest.raises(Unavailable):
            await question
    end_fault()
    give_up_after(PATIENCE, node, other)
    await published(other, "after")
    await published(node, "after all")
    await agree(node, first, second)
    assert [name for name in first.names if name.startswith("before")] == [
        name for name in second.names if name.startswith("before")
    ]
    assert len([name for name in first.names if name.startswith("before")]) == 10
    acknowledged = {events[0].name for done, events in outcomes if done}
    assert acknowledged <= set(first.names)
    assert first.epochs == second.epochs == []


@pytest_twisted.ensureDeferred
async def test_terminated_backends_fail_at_most_the_appends_under_way(nodes: Nodes) -> None:
    (broker, first), (other, second) = await nodes.node(), await nodes.node()
    await until(lambda: any("LISTEN" in query or "SELECT 1" in query for _, query in nodes.backends()), "LISTEN")
    await published(broker, "before")
    for round_ in range(3):
        publishing = [broker.publish([new_event(f"{round_}.{n}")]) for n in range(3)]
        nodes.server.terminate_backends()
        nodes.run("SELECT chatws.publish('sql', '{}', '\"everyone\"')")
        await DeferredList(publishing, consumeErrors=True)
        await published(other, f"after{round_}")
    await published(broker, "after all")
    await agree(broker, first, second)


@pytest_twisted.ensureDeferred
async def test_a_silent_network_is_detected_and_replaced(nodes: Nodes) -> None:
    firewall = ForgetfulFirewall(reactor, nodes.server.port)
    try:
        url = nodes.url.replace(str(nodes.server.port), str(firewall.port))
        (broker, first), (other, second) = await nodes.node(url, timeout=1.0), await nodes.node()
        await published(broker, "before")
        firewall.closed = True
        firewall.forget()
        with pytest.raises(Unavailable):
            await broker.publish([new_event("refused")])
        await published(other, "meanwhile")
        nodes.run("SELECT chatws.publish('sql', '{}', '\"everyone\"')")
        await until(lambda: second.names == ["before", "meanwhile", "sql"], "the other node's events")
        assert first.names == ["before"]
        firewall.closed = False
        await until(lambda: len(first.events) >= 3, "what was published meanwhile")
        await published(broker, "after")
        await agree(other, first, second)
        await broker.stop()
    finally:
        await firewall.stop()


@pytest_twisted.ensureDeferred
async def test_a_lost_append_response_is_replaced_by_reading(nodes: Nodes) -> None:
    """The append is committed, and its connection dies before the answer is there."""
    broker, told = await nodes.node()
    await broker.publish([new_event("before")])
    blocker = nodes.shop()
    cursor = blocker.cursor()
    cursor.execute("SELECT pg_advisory_xact_lock(1667785076, 1)")
    publishing = broker.publish([new_event("in doubt")])
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()"
    await until(lambda: nodes.run(waiting), "the append to wait")
    # what libpq would be told when a firewall closes the link: only this side hears of it
    for item in [*broker._database._busy]:
        item.close()
    with pytest.raises(Unavailable):
        await publishing
    blocker.commit()
    await until(lambda: told.names == ["before", "in doubt"], "the event in doubt")


@pytest_twisted.ensureDeferred
async def test_a_held_lock_delays_publishers_by_the_timeout_and_readers_not(nodes: Nodes) -> None:
    broker, told = await nodes.node(timeout=1.0)
    await published(broker, "before")
    blocker = nodes.shop()
    blocker.cursor().execute("SELECT pg_advisory_xact_lock(1667785076, 1)")
    with pytest.raises(Unavailable):
        await broker.publish([new_event("refused")])
    give_up_after(PATIENCE, broker)
    assert [event.name for event in await broker.read(0, 10)] == ["before"]
    blocker.rollback()
    await published(broker, "after")
    await until(lambda: "after" in told.names, "the next event")
    await agree(broker, told)


@pytest_twisted.ensureDeferred
async def test_a_read_only_database_is_not_ready_and_is_still_read(nodes: Nodes) -> None:
    output: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_level"] == LogLevel.error:
            output.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        broker, told = await nodes.node()
        await broker.publish([new_event("before")])
        nodes.run(f"ALTER DATABASE {nodes.name} SET default_transaction_read_only = on")
        nodes.server.terminate_backends()
        end = reactor.seconds() + 20
        while not any(READ_ONLY in line for line in output):  # until then, a publish may meet a terminated connection
            assert reactor.seconds() < end, output
            with pytest.raises(Unavailable):
                await broker.publish([new_event("refused")])
        for _ in range(2):
            with pytest.raises(Unavailable):
                await broker.publish([new_event("refused")])
        with pytest.raises(Unavailable):
            await broker.offset_range()
        assert len(await broker.read(0, 10)) == 1
        nodes.server.run(f"ALTER DATABASE {nodes.name} RESET default_transaction_read_only")
        nodes.server.terminate_backends()
        await until_ready(broker)
        await published(broker, "after")
        await agree(broker, told)
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len([line for line in output if READ_ONLY in line]) == 1, output


async def until_ready(broker: Any) -> None:
    end = reactor.seconds() + 20
    while True:
        try:
            await broker.offset_range()
            return
        except Unavailable:
            assert reactor.seconds() < end


@pytest_twisted.ensureDeferred
async def test_a_listen_connection_that_ends_is_replaced(nodes: Nodes) -> None:
    (broker, _), (_, told) = await nodes.node(), await nodes.node()
    listening = "SELECT pid FROM pg_stat_activity WHERE query = 'LISTEN chatws' AND datname = current_database()"
    await until(lambda: len(nodes.run(listening)) == 2, "two to listen")
    before = set(nodes.run(listening))
    nodes.run(f"SELECT pg_terminate_backend(pid) FROM ({listening}) them")
    await until(lambda: len(set(nodes.run(listening)) - before) == 2, "two others to listen")
    await broker.publish([new_event("a")])
    await told.until("a")


@pytest_twisted.ensureDeferred
async def test_missing_notifications_are_logged_and_events_are_polled(
    nodes: Nodes,
) -> None:
    output: list[str] = []

    def observe(event: LogEvent) -> None:
        output.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        # another database of the same server hears nothing, as a pooler in transaction mode does not
        (_, told), (other, _) = await nodes.node(listen_url=nodes.server.url, timeout=1.0), await nodes.node()
        await other.publish([new_event("a")])
        await told.until("a")
        await until(lambda: any("notifications do not arrive" in line for line in output), "the warning")
    finally:
        globalLogPublisher.removeObserver(observe)


# Logs that lost something


@pytest_twisted.ensureDeferred
async def test_a_recreated_history_has_a_new_epoch_reported_once(nodes: Nodes) -> None:
    (broker, first), (_, second) = await nodes.node(), await nodes.node()
    before = broker.epoch
    await gatherResults([broker.publish([new_event()]) for _ in range(5)])
    nodes.run("DROP SCHEMA chatws CASCADE")
    with pytest.raises(Unavailable):
        await broker.publish([new_event("nowhere")])
    with transaction(nodes.url) as cursor:
        apply(cursor, "chatws", migrations())
    event = await published(broker, "first")
    assert event.offset == 1
    await until(lambda: second.names == ["first"], "the first event of the new log")
    assert first.names == ["first"]
    assert len(first.epochs) == len(second.epochs) == 1
    assert first.epochs == second.epochs == [broker.epoch]
    assert broker.epoch != before


BACKUP = """
    CREATE TABLE kept AS SELECT * FROM chatws.events;
"""
RESTORE = """
    DELETE FROM chatws.events;
    INSERT INTO chatws.events SELECT * FROM kept;
"""
#: What a node that knows only the backup appends.
ANOTHER_WAY = """
    SELECT chatws.append_events('[{"e":"another","c":"[\\"*\\"]","d":"{}"},{"e":"another","c":"[\\"*\\"]","d":"{}"}]',
        '', 0, 0, 0, true, false, 0, NULL);
"""


@pytest.mark.parametrize("more", ["", ANOTHER_WAY, 2 * ANOTHER_WAY], ids=["shorter", "as long", "longer"])
@pytest_twisted.ensureDeferred
async def test_a_history_restored_from_a_backup_begins_a_new_epoch(nodes: Nodes, more: str) -> None:
    (broker, first), (other, second) = await nodes.node(), await nodes.node()
    await broker.publish([new_event("kept")])
    nodes.run(BACKUP)
    await broker.publish([new_event("lost"), new_event("lost")])
    await until(lambda: len(second.events) == 3, "three events")
    nodes.run(RESTORE + more)
    event = await published(other, "new")
    assert event.offset == 1
    await until(lambda: first.names == second.names == ["new"], "the new log's event")
    assert len(first.epochs) == len(second.epochs) == 1
    assert broker.epoch == other.epoch
    assert await broker.offset_range() == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_failover_to_an_older_history_begins_a_new_epoch(nodes: Nodes, request: pytest.FixtureRequest) -> None:
    """What an asynchronous standby is, once promoted: the same log without its last events."""
    standby = start_another_server(request)
    there = standby.new_history()
    epoch = nodes.run("SELECT epoch FROM chatws.history")[0][0]
    standby.run(f"UPDATE chatws.history SET epoch = '{epoch}'", there)
    standby.run(f"ALTER DATABASE {there.rpartition('/')[2]} RENAME TO {nodes.name}_standby")
    hosts = f"127.0.0.1:{nodes.server.port},127.0.0.1:{standby.port}"
    nodes.server.run(f"CREATE DATABASE {nodes.name}_standby TEMPLATE {nodes.name}")
    url = f"postgresql://postgres@{hosts}/{nodes.name}_standby?target_session_attrs=read-write"
    broker, told = await nodes.node(url)
    await gatherResults([broker.publish([new_event(f"e{n}")]) for n in range(3)])
    assert told.offsets == [1, 2, 3]
    nodes.server.kill()
    assert (await published(broker, "on the other")).offset == 1
    assert told.names == ["on the other"]
    assert told.epochs == [broker.epoch]
    assert broker.epoch != epoch


@pytest_twisted.ensureDeferred
async def test_reset_history_begins_a_new_epoch(nodes: Nodes) -> None:
    broker, told = await nodes.node()
    await broker.publish([new_event(key="k")])
    epoch = broker.epoch
    with logged_at() as warnings:
        nodes.run("SELECT chatws.reset_history()")
        await until(lambda: told.epochs, "the new epoch")
    [line] = [line for line in warnings if "was reset" in line]
    assert f"epoch {epoch} ends at offset 1, epoch {broker.epoch} begins" in line
    [receipt] = await broker.publish([new_event(key="k")])
    assert (receipt.offset, receipt.duplicate) == (0, True), "its offset meant something in the old log"
    assert (await published(broker, "first")).offset == 1


def test_the_lock_is_released_when_the_client_is_frozen(nodes: Nodes) -> None:
    """A client that is frozen once it has asked holds nothing: the answer fits into the socket's buffers."""
    nodes.run("SELECT chatws.publish('e', '{\"a\":\"' || repeat('x', 900000) || '\"}', '\"everyone\"')")
    asking = psycopg2.connect(nodes.url, async_=True)
    _wait(asking)
    epoch = nodes.run("SELECT epoch FROM chatws.history")[0][0]
    new_events = ",".join(f'{{"e":"e{n}","c":"[\\"*\\"]","d":"{{}}","k":"k{n % 2}"}}' for n in range(1000))
    asking.cursor().execute(
        "SELECT chatws.append_events(%s, %s, 0, 0, 0, true, true, 1, NULL)", (f"[{new_events}]", epoch)
    )
    while asking.poll() == psycopg2.extensions.POLL_WRITE:
        select.select([], [asking.fileno()], [])
    # it reads nothing any more
    poll_until(lambda: nodes.run("SELECT count(*) FROM chatws.events") == [(3,)], "the statement to end")
    answer = nodes.run(f"SELECT chatws.append_events('[]', '{epoch}', 0, 0, 0, true, true, 1, NULL)")
    assert '"epoch"' in answer[0][0]
    asking.close()


def _wait(connection: Any) -> None:
    while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
        if state == psycopg2.extensions.POLL_WRITE:
            select.select([], [connection.fileno()], [])
        else:
            select.select([connection.fileno()], [], [])
