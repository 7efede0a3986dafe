"""What happens when PostgreSQL goes away, comes back, or says nothing. It is a real one, and really does so."""

from __future__ import annotations

import itertools
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from chatws.database import pool as database_pool
from chatws.database.factory import open_database
from chatws.database.postgres_connection import DescriptorReactor, connection_parameters
from chatws.database.postgres_pool import PostgresDatabase
from chatws.errors import Unavailable
from tests.postgres import ForgetfulFirewall, Postgres, postgres  # noqa: F401
from tests.standstill import Standstill

reactor: Any = _reactor
#: Seconds a query may take where a test waits for it to be given up. Elsewhere it is given all it needs.
TIMEOUT = 1.0
PATIENCE = 15.0
ONE = [{"one": 1}]


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """What is logged meanwhile at the level of a warning and above; at the end none of it is an error."""
    events: list[LogEvent] = []

    def observe(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.warn:
            events.append(event)

    globalLogPublisher.addObserver(observe)
    yield events
    globalLogPublisher.removeObserver(observe)
    assert [formatEvent(event) for event in events if event["log_level"] > LogLevel.warn] == []


@pytest.fixture
def opened(log: list[LogEvent]) -> Iterator[Any]:
    """Opens databases; at the end each is stopped, and no delayed call is left."""
    before = set(reactor.getDelayedCalls())
    databases: list[Any] = []

    def start(url: str, *, pool: int = 3, timeout: float = PATIENCE) -> Any:
        database = open_database(url, pool=pool, timeout=timeout, reactor=reactor)
        databases.append(database)
        database.start()
        return database

    yield start
    for database in databases:
        pytest_twisted.blockon(database.stop())
    pytest_twisted.blockon(turns(2))
    assert set(reactor.getDelayedCalls()) <= before
    # raises where the reactor believes that it watches a descriptor which is closed
    reactor.getReaders()
    reactor.getWriters()


def turns(count: int) -> Deferred[None]:
    """Fires `count` turns of the reactor later."""
    done: Deferred[None] = deferLater(reactor, 0)
    return done.addCallback(lambda _: turns(count - 1)) if count > 1 else done


def ask(database: Any, sql: str = "SELECT 1 AS one", **values: object) -> Deferred[Any]:
    return Deferred.fromCoroutine(database.query(sql, values))


async def until(true: Any, seconds: float = 20.0) -> None:
    deadline = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.01)


async def full(database: Any, postgres: Postgres, pool: int = 3) -> None:  # noqa: F811
    """Wait until the whole pool is connected."""
    assert await ask(database) == ONE
    await until(lambda: len(postgres.backends()) == pool)


@pytest_twisted.ensureDeferred
async def test_the_pool_keeps_the_configured_number_of_connections(postgres: Postgres, opened: Any) -> None:  # noqa: F811
    database = opened(postgres.url, pool=4)
    await full(database, postgres, 4)
    await gatherResults([ask(database) for _ in range(50)])
    assert len(postgres.backends()) == 4


@pytest_twisted.ensureDeferred
async def test_it_starts_without_a_database_and_finds_it_later(
    postgres: Postgres,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    postgres.stop()
    database = opened(postgres.url, timeout=TIMEOUT)
    with Standstill() as standstill:
        began = reactor.seconds()
        with pytest.raises(Unavailable):
            await ask(database)
        assert TIMEOUT <= reactor.seconds() - began < 3 * TIMEOUT + standstill.seconds
    assert not database.healthy
    # refused again and again, and said once
    assert [formatEvent(event).split(":")[0] for event in log] == ["the database is unavailable"]
    database.timeout = PATIENCE  # a start may take longer than a query might
    waiting = ask(database)
    postgres.start(wait=False)
    assert await waiting == ONE
    assert database.healthy


@pytest_twisted.ensureDeferred
async def test_terminated_connections_are_replaced_without_a_query(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    database = opened(postgres.url)
    await full(database, postgres)
    old = {pid for pid, _ in postgres.backends()}
    assert postgres.terminate_backends() == 3
    await until(lambda: len({pid for pid, _ in postgres.backends()} - old) == 3)
    assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_a_query_at_the_moment_of_termination_is_answered(postgres: Postgres, opened: Any) -> None:  # noqa: F811
    database = opened(postgres.url)
    await full(database, postgres)
    for _ in range(5):
        # the sockets' ends are not read yet
        postgres.terminate_backends()
        assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_read_query_is_retried_and_a_write_is_not(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    database = opened(postgres.url)
    await full(database, postgres)
    postgres.run("CREATE TABLE n (i int)")
    reading = ask(database, "SELECT 1 AS one FROM pg_sleep(0.3)")
    writing = Deferred.fromCoroutine(database.execute("INSERT INTO n SELECT 1 FROM pg_sleep(0.3)", {}))
    await until(lambda: sum("pg_sleep" in query for _, query in postgres.backends()) == 2)
    assert postgres.terminate_backends() == 3
    assert await reading == ONE
    with pytest.raises(Unavailable):
        await writing
    assert postgres.run("SELECT count(*) FROM n") == [(0,)]


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest_twisted.ensureDeferred
async def test_the_pool_reconnects_after_a_server_restart(
    end: str,
    postgres: Postgres,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    database = opened(postgres.url)
    await full(database, postgres)
    database.timeout = TIMEOUT
    under_way = ask(database, "SELECT pg_sleep(20)")
    await until(lambda: any("pg_sleep" in query for _, query in postgres.backends()))
    getattr(postgres, end)()
    for waiting in [under_way, *(ask(database) for _ in range(20))]:
        with pytest.raises(Unavailable):
            await waiting
    assert not database.healthy
    postgres.start()
    database.timeout = PATIENCE
    assert await ask(database) == ONE
    await full(database, postgres)
    assert 1 <= len(log) <= 4


@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks_while_a_query_is_sent_leaves_no_descriptor_behind(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    database = opened(postgres.url)
    for _ in range(3):
        database.timeout = PATIENCE
        await full(database, postgres)
        database.timeout = TIMEOUT
        postgres.kill()
        # the reactor has not seen yet that the peer has reset them
        for waiting in [ask(database) for _ in range(10)]:
            with pytest.raises(Unavailable):
                await waiting
        reactor.getReaders()
        reactor.getWriters()
        postgres.start()


@pytest.mark.parametrize(
    "script", [[b"N", None], [b"N", b"N", None], [None], [b"N", b"E\0\0\0\5\0"], [b"garbage" * 99]]
)
@pytest_twisted.ensureDeferred
async def test_a_connection_that_breaks_while_it_is_made_leaves_no_descriptor_behind(
    script: list[bytes | None], opened: Any
) -> None:
    attempts: list[Any] = []

    class Unfriendly(Protocol):
        def connectionMade(self) -> None:
            attempts.append(self)
            self.answers = iter(script)

        def dataReceived(self, data: bytes) -> None:
            answer = next(self.answers, None)
            if answer is None:
                self.transport.abortConnection()
            else:
                self.transport.write(answer)

    port = reactor.listenTCP(0, Factory.forProtocol(Unfriendly), interface="127.0.0.1")
    database = opened(f"postgresql://postgres@127.0.0.1:{port.getHost().port}/x", timeout=0.4)
    with pytest.raises(Unavailable):
        await ask(database)
    await until(lambda: len(attempts) > 1)
    await database.stop()
    await port.stopListening()
    for attempt in attempts:
        attempt.transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_a_silent_server_blocks_no_later_query(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    database = opened(postgres.url)
    await full(database, postgres)
    database.timeout = TIMEOUT
    postgres.silence()
    gaps: list[float] = []
    last = reactor.seconds()

    def tick() -> None:
        nonlocal last
        gaps.append(reactor.seconds() - last)
        last = reactor.seconds()

    ticks = LoopingCall(tick)
    with Standstill() as standstill:
        ticks.start(0.02)
        try:
            for _ in range(2):
                began = reactor.seconds()
                for waiting in [ask(database) for _ in range(10)]:
                    with pytest.raises(Unavailable):
                        await waiting
                assert reactor.seconds() - began < 2 * TIMEOUT + standstill.seconds
            assert max(gaps) < 0.7 + standstill.seconds, "the reactor was blocked"
        finally:
            ticks.stop()
            postgres.resume()
    database.timeout = PATIENCE
    assert await ask(database) == ONE
    await full(database, postgres)


@pytest_twisted.ensureDeferred
async def test_one_silent_connection_is_enough_to_replace_the_idle_ones(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    firewall = ForgetfulFirewall(reactor, postgres.port)
    try:
        database = opened(postgres.url.replace(str(postgres.port), str(firewall.port)), timeout=2.0)
        await full(database, postgres)
        firewall.forget()
        with suppress(Unavailable):  # a new connection may just be there in time
            await ask(database)
        for _ in range(5):
            assert await ask(database) == ONE
    finally:
        await firewall.stop()


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_a_network_that_swallows_new_connections_is_left_by_the_next_query_after_it(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    firewall = ForgetfulFirewall(reactor, postgres.port)
    firewall.closed = True
    try:
        # a quarter of it is what an attempt to connect and the pause after it leave to the query
        database = opened(postgres.url.replace(str(postgres.port), str(firewall.port)), timeout=4.0)
        with pytest.raises(Unavailable):
            await ask(database)
        firewall.closed = False
        assert await ask(database) == ONE
    finally:
        await firewall.stop()


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_slow_queries_leave_no_backends_behind(
    postgres: Postgres,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    # PostgreSQL's limit is so far below ours that a busy machine does not turn them round; the last three of the
    # queries are given up by us while they run all the same
    database = opened(f"{postgres.url}?options=-cstatement_timeout%3D1500", timeout=4.0)
    await full(database, postgres)
    old = {pid for pid, _ in postgres.backends()}
    for waiting in [ask(database, "SELECT pg_sleep(30)") for _ in range(9)]:
        with pytest.raises(Unavailable):
            await waiting
    await until(lambda: not any("pg_sleep" in query for _, query in postgres.backends()) or postgres_idle(postgres))
    assert {pid for pid, _ in postgres.backends()} == old, "the connections were good and should have been kept"
    assert [formatEvent(event) for event in log] == ["the database aborted a query: it exceeded statement_timeout"]


def postgres_idle(postgres: Postgres) -> bool:  # noqa: F811
    sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'chatws' AND state <> 'idle'"
    return postgres.run(sql) == [(0,)]


@pytest_twisted.ensureDeferred
async def test_server_with_fewer_connections_than_the_pool_is_used(
    postgres: Postgres,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    postgres.run("DROP ROLE IF EXISTS small; CREATE ROLE small LOGIN CONNECTION LIMIT 2")
    database = opened(postgres.url.replace("postgres:not", "small:not"), pool=4)
    await full(database, postgres, 2)
    for _ in range(3):
        assert await gatherResults([ask(database) for _ in range(10)]) == [ONE] * 10
        await turns(5)
    await until(lambda: len(log) > 0)
    assert database.healthy
    assert [formatEvent(event).split(":")[0] for event in log] == ["cannot open another connection to the database"]


@pytest_twisted.ensureDeferred
async def test_values_that_cannot_be_ids_of_that_column_are_refused_and_cost_no_connection(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    from chatws.database.interface import ValueRefused

    database = opened(postgres.url)
    await full(database, postgres)
    old = {pid for pid, _ in postgres.backends()}
    for value in ("abc", "a\0b", "\ud800", "1.5", "", "9" * 30):
        with pytest.raises(ValueRefused):
            await ask(database, "SELECT 1 AS one WHERE 1::bigint = %(user_id)s", user_id=value)
    # so many at once that a recursion would show
    for waiting in [ask(database, "SELECT %(user_id)s", user_id="\0") for _ in range(3000)]:
        with pytest.raises(ValueRefused):
            await waiting
    assert {pid for pid, _ in postgres.backends()} == old


@pytest_twisted.ensureDeferred
async def test_a_host_name_and_a_unix_socket_are_addresses_too(postgres: Postgres, opened: Any) -> None:  # noqa: F811
    for url in (postgres.url.replace("127.0.0.1", "localhost"), postgres.socket_url):
        assert await ask(opened(url)) == ONE


@pytest_twisted.ensureDeferred
async def test_a_dedicated_connection_receives_notifications(postgres: Postgres, opened: Any) -> None:  # noqa: F811
    database = opened(postgres.url)
    lost: Deferred[Any] = Deferred()
    connection = await database.connect(lost.callback)
    heard: Deferred[Any] = Deferred()
    connection.addNotifyObserver(heard.callback)
    await connection.run_query("LISTEN chatws")
    assert await database.execute("SELECT pg_notify('chatws', %(text)s)", {"text": "hello"}) == 1
    assert (await heard).payload == "hello"
    postgres.terminate_backends()
    assert await lost is connection
    assert connection.is_dead


@pytest_twisted.ensureDeferred
async def test_stop_while_connecting_or_waiting_leaves_no_connection(
    postgres: Postgres,  # noqa: F811
    opened: Any,
) -> None:
    postgres.silence()
    connecting = opened(postgres.url)
    asked = ask(connecting)
    await turns(3)
    await connecting.stop()
    with pytest.raises(Unavailable):
        await asked
    postgres.resume()
    postgres.stop()
    pausing = opened(postgres.url)
    await until(lambda: pausing._pauses)
    await pausing.stop()


@pytest_twisted.ensureDeferred
async def test_the_password_is_in_no_log_line(postgres: Postgres, opened: Any, log: list[LogEvent]) -> None:  # noqa: F811
    postgres.stop()
    database = opened(postgres.url.replace("not-asked-for", "hunter2"), timeout=TIMEOUT)
    with pytest.raises(Unavailable) as caught:
        await ask(database)
    assert log
    assert "hunter2" not in repr(caught.value) + "".join(formatEvent(event) + repr(event) for event in log)


class TestWithoutAServer:
    def test_connection_attempts_are_sequential_with_growing_jittered_pauses(self) -> None:
        clock = Clock()
        database = PostgresDatabase({}, pool=5, timeout=10.0, reactor=clock, jitter=lambda: 0.5)
        attempts: list[float] = []

        async def connect(on_lost: Any = None) -> Any:
            attempts.append(clock.seconds())
            raise OSError("nobody there")

        database.connect = connect  # type: ignore[method-assign]
        database.start()
        for _ in range(20):
            Deferred.fromCoroutine(database.query("SELECT 1", {})).addErrback(lambda _: None)
        for _ in range(200):
            clock.advance(0.05)
        pauses = [later - earlier for earlier, later in itertools.pairwise(attempts)]
        assert pauses[:5] == pytest.approx([0.1, 0.2, 0.3, 0.6, 1.2], abs=0.06)
        assert pauses[5:] == pytest.approx([1.5] * len(pauses[5:]), abs=0.06)
        assert all(pause <= database_pool.LONGEST_PAUSE for pause in pauses)
        database.stop()
        assert clock.getDelayedCalls() == []

    def test_a_server_that_drops_connections_is_not_flooded(self) -> None:
        clock = Clock()
        database = PostgresDatabase({}, pool=5, timeout=10.0, reactor=clock, jitter=lambda: 1.0)
        attempts: list[float] = []

        class Stillborn:
            is_dead = False
            opened_at = 0.0

            def close(self) -> None:
                pass

        async def connect(on_lost: Any = None) -> Any:
            attempts.append(clock.seconds())
            connection = Stillborn()
            connection.opened_at = clock.seconds()
            clock.callLater(0, on_lost, connection)
            return connection

        database.connect = connect  # type: ignore[method-assign]
        database.start()
        for _ in range(1000):
            clock.advance(0.01)
        assert 5 <= len(attempts) < 20
        database.stop()

    def test_a_queue_that_is_full_refuses_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(database_pool, "MAX_WAITING", 50)
        clock = Clock()
        database = PostgresDatabase({}, pool=1, timeout=10.0, reactor=clock)

        async def connect(on_lost: Any = None) -> Any:
            raise OSError("nobody there")

        database.connect = connect  # type: ignore[method-assign]
        database.start()
        failed: list[Any] = []
        for _ in range(database_pool.MAX_WAITING + 3):
            Deferred.fromCoroutine(database.query("SELECT 1", {})).addErrback(failed.append)
        assert len(failed) == 3
        database.stop()
        assert len(failed) == database_pool.MAX_WAITING + 3
        assert clock.getDelayedCalls() == []

    def test_the_url_wins_over_our_own_settings(self) -> None:
        result = connection_parameters("postgresql://u@h/d?keepalives_idle=7&application_name=x", timeout=2.0)
        assert (result["keepalives_idle"], result["application_name"]) == ("7", "x")
        assert result["tcp_user_timeout"] == "2000"
        assert result["options"] == "-c statement_timeout=1600"
        result = connection_parameters("postgresql://h/d?options=-csearch_path%3Dshop", timeout=2.0)
        assert result["options"] == "-csearch_path=shop -c statement_timeout=1600"
        result = connection_parameters("postgresql://h/d?options=-cstatement_timeout%3D5", timeout=2.0)
        assert result["options"] == "-cstatement_timeout=5"
        assert "options" not in connection_parameters("postgresql://h/d?options=", timeout=2.0)


class Descriptor:
    """What libpq shows of a connection: a number, and -1 once it has closed it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()

    def fileno(self) -> int:
        return self.near.fileno()


@pytest.mark.skipif(sys.platform != "linux", reason="epoll is Linux's")
@pytest.mark.parametrize("way", ["Reader", "Writer"])
def test_a_closed_descriptor_is_removed_and_its_number_reusable(way: str) -> None:
    from twisted.internet.epollreactor import EPollReactor

    books = EPollReactor()
    reactor = DescriptorReactor(books)
    first = Descriptor()
    number = first.fileno()
    getattr(reactor, f"add{way}")(first)
    first.near.close()
    getattr(reactor, f"remove{way}")(first)
    second = Descriptor()
    assert second.fileno() == number, "the kernel gives the lowest number"
    reactor.addReader(second)
    assert books._selectables[number] is second
    reactor.removeReader(second)
    # a number that the previous owner left in the books
    books._writes.add(number)
    reactor.removeWriter(second)
    reactor.addReader(second)
    reactor.addWriter(second)
    assert (number in books._reads, number in books._writes) == (True, True)
    reactor.removeReader(second)
    reactor.removeWriter(second)
    assert (number in books._reads, number in books._writes, number in books._selectables) == (False, False, False)
    for item in (first.far, second.near, second.far):
        item.close()
    books._poller.close()
