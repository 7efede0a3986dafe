"""What happens when MariaDB goes away, comes back, or says nothing, and what is MySQL's alone. The server is real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pymysql
import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from chatws.auth.exists_query import ExistsQuery
from chatws.database.factory import open_database
from chatws.database.interface import QueryFailed, ValueRefused
from chatws.database.mysql_connection import MysqlDriver
from chatws.database.mysql_errors import REFUSED_PAUSE, translate_connect_error
from chatws.database.mysql_options import mysql_options
from chatws.database.mysql_pool import MysqlDatabase
from chatws.database.mysql_socket import connect_socket
from chatws.database.pool import ConnectFailed
from chatws.errors import ConfigError, Unavailable
from tests.mysql import PASSWORD, USER, Mysql, mysql  # noqa: F401
from tests.postgres import ForgetfulFirewall
from tests.standstill import Standstill

reactor: Any = _reactor
#: Seconds that a query may take where a test waits for its timeout, and elsewhere.
TIMEOUT, PATIENCE = 1.0, 15.0
ONE = [{"one": 1}]


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """The log events of level warn and above. None of them may be an error."""
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
    """Opens databases. At the end each is stopped, and no delayed call and no thread is left."""
    before, threads = set(reactor.getDelayedCalls()), count_threads()
    databases: list[Any] = []

    def start(url: str, *, pool: int = 3, timeout: float = PATIENCE) -> Any:
        database = open_database(url, pool=pool, timeout=timeout, reactor=reactor)
        databases.append(database)
        database.start()
        return database

    yield start
    for database in databases:
        pytest_twisted.blockon(database.stop())
    pytest_twisted.blockon(deferLater(reactor, 0))
    assert set(reactor.getDelayedCalls()) <= before
    assert count_threads() <= threads
    reactor.getReaders()


def count_threads() -> int:
    """The threads, without those of the reactor, which resolve names."""
    return sum("twisted.internet.reactor" not in thread.name for thread in threading.enumerate())


def ask(database: Any, sql: str = "SELECT 1 AS one", **values: object) -> Deferred[Any]:
    return Deferred.fromCoroutine(database.query(sql, values))


async def until(true: Any, seconds: float = 20.0) -> None:
    deadline = reactor.seconds() + seconds
    while not true():
        assert reactor.seconds() < deadline
        await deferLater(reactor, 0.02)


async def full(database: Any, mysql: Mysql, pool: int = 3) -> None:  # noqa: F811
    """Wait until the whole pool is connected."""
    assert await ask(database) == ONE
    await until(lambda: len(mysql.connections()) == pool)


# --- healing ---


@pytest_twisted.ensureDeferred
async def test_pool_under_load_keeps_its_size(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url, pool=4)
    await full(database, mysql, 4)
    await gatherResults([ask(database) for _ in range(50)])
    assert len(mysql.connections()) == 4


@pytest_twisted.ensureDeferred
async def test_start_without_server_finds_it_later(mysql: Mysql, opened: Any, log: list[LogEvent]) -> None:  # noqa: F811
    mysql.stop()
    database = opened(mysql.url, timeout=TIMEOUT)
    with Standstill() as standstill:
        began = reactor.seconds()
        with pytest.raises(Unavailable):
            await ask(database)
        assert TIMEOUT <= reactor.seconds() - began < 3 * TIMEOUT + standstill.seconds
    assert not database.healthy
    assert [formatEvent(event).split(":")[0] for event in log] == ["the database is unavailable"]
    database.timeout = PATIENCE
    waiting = ask(database)
    mysql.start(wait=False)
    assert await waiting == ONE
    assert database.healthy


@pytest_twisted.ensureDeferred
async def test_killed_idle_connections_are_replaced_before_a_query(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url)
    await full(database, mysql)
    old = {number for number, _ in mysql.connections()}
    assert mysql.kill_connections() == 3
    await until(lambda: len({number for number, _ in mysql.connections()} - old) == 3)
    assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_query_at_the_moment_of_a_kill_succeeds(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url)
    await full(database, mysql)
    for _ in range(5):
        mysql.kill_connections()
        assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_kill_during_queries_repeats_reads_and_not_writes(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url)
    await full(database, mysql)
    mysql.run("CREATE TABLE n (i int)")
    reading = ask(database, "SELECT 1 AS one FROM (SELECT SLEEP(0.5)) AS pause")
    writing = Deferred.fromCoroutine(database.execute("INSERT INTO n SELECT 1 FROM (SELECT SLEEP(0.5)) AS pause", {}))
    await until(lambda: sum("SLEEP" in statement for _, statement in mysql.connections()) == 2)
    mysql.kill_connections()
    assert await reading == ONE
    with pytest.raises(Unavailable):
        await writing
    assert mysql.run("SELECT count(*) FROM n") == [(0,)]


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest_twisted.ensureDeferred
async def test_server_end_and_start_is_outlived(
    end: str,
    mysql: Mysql,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    database = opened(mysql.url)
    await full(database, mysql)
    database.timeout = TIMEOUT
    running = ask(database, "SELECT SLEEP(20)")
    await until(lambda: any("SLEEP" in statement for _, statement in mysql.connections()))
    getattr(mysql, end)()
    for waiting in [running, *(ask(database) for _ in range(20))]:
        with pytest.raises(Unavailable):
            await waiting
    assert not database.healthy
    mysql.start()
    database.timeout = PATIENCE
    assert await ask(database) == ONE
    await full(database, mysql)
    assert 1 <= len(log) <= 4


@pytest_twisted.ensureDeferred
async def test_frozen_server_does_not_block_the_reactor_and_the_next_query_succeeds(
    mysql: Mysql,  # noqa: F811
    opened: Any,
) -> None:
    database = opened(mysql.url)
    await full(database, mysql)
    database.timeout = TIMEOUT
    mysql.silence()
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
            mysql.resume()
    database.timeout = PATIENCE
    assert await ask(database) == ONE
    await full(database, mysql)


@pytest_twisted.ensureDeferred
async def test_silent_connection_replaces_the_idle_ones(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    firewall = ForgetfulFirewall(reactor, mysql.port)
    try:
        database = opened(mysql.url_of("shop", port=firewall.port), timeout=4.0)
        await full(database, mysql)
        firewall.forget()
        with suppress(Unavailable):  # a new connection may just be there in time
            await ask(database)
        for _ in range(5):
            assert await ask(database) == ONE
    finally:
        await database.stop()
        await firewall.stop()


@pytest.fixture
def addresses(mysql: Mysql, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:  # noqa: F811
    """Two addresses of the server, each behind a firewall, and the name `db.shop.test`, which leads to `named`."""

    class Addresses:
        def __init__(self) -> None:
            self.first = ForgetfulFirewall(reactor, mysql.port, "127.0.0.2")
            self.second = ForgetfulFirewall(reactor, mysql.port, "127.0.0.3", self.first.port)
            self.named = ["127.0.0.2"]
            self.url = mysql.url_of("shop", port=self.first.port).replace("127.0.0.1", "db.shop.test")

        def resolve(self, _: Any, host: str) -> Deferred[list[str]]:
            assert host == "db.shop.test"
            return succeed(self.named)

        def fail_over(self) -> None:
            """The first address falls silent, and the name leads to the second."""
            self.first.forget()
            self.first.closed = True
            self.named = ["127.0.0.3"]

    result = Addresses()
    monkeypatch.setattr("chatws.database.pool.resolve", result.resolve)
    yield result
    for firewall in (result.first, result.second):
        pytest_twisted.blockon(Deferred.fromCoroutine(firewall.stop()))


@pytest_twisted.ensureDeferred
async def test_name_that_leads_to_another_address_is_followed(addresses: Any, mysql: Mysql) -> None:  # noqa: F811
    database = open_database(addresses.url, pool=3, timeout=2.0, reactor=reactor)
    try:
        database.start()
        await full(database, mysql)
        addresses.fail_over()
        with suppress(Unavailable):  # the connections to the first address are given up
            await ask(database)
        database.timeout = PATIENCE  # type: ignore[attr-defined]
        for _ in range(5):
            assert await ask(database) == ONE
    finally:
        await database.stop()


@pytest.mark.parametrize("fault", ["silent", "closed"])
@pytest_twisted.ensureDeferred
async def test_second_address_of_a_name_is_used_if_the_first_fails(fault: str, addresses: Any) -> None:
    addresses.named = ["127.0.0.2", "127.0.0.3"]
    if fault == "silent":
        addresses.first.closed = True
    else:
        await addresses.first.stop()
    database = open_database(addresses.url, pool=1, timeout=1.0, reactor=reactor)
    try:
        database.start()
        database.timeout = PATIENCE  # type: ignore[attr-defined]
        assert await ask(database) == ONE
    finally:
        await database.stop()


def test_address_that_takes_no_connection_leaves_time_for_the_next(mysql: Mysql) -> None:  # noqa: F811
    with closing(socket.create_server(("127.0.0.2", mysql.port), backlog=0)) as full_queue:
        waiting = []
        try:
            # the kernel answers no further connection attempt
            for _ in range(4):
                waiting.append(socket.socket())
                waiting[-1].setblocking(False)
                waiting[-1].connect_ex(full_queue.getsockname())
            options = mysql_options(mysql.url)
            with closing(connect_socket(options, ["127.0.0.2", "127.0.0.1"], 2.0, lambda _: None)) as connected:
                assert connected.getpeername() == ("127.0.0.1", mysql.port)
        finally:
            for client in waiting:
                client.close()


@pytest_twisted.ensureDeferred
async def test_read_only_address_is_left_for_the_other_one(addresses: Any, mysql: Mysql) -> None:  # noqa: F811
    mysql.run("CREATE TABLE n (i int)")
    addresses.named = ["127.0.0.2", "127.0.0.3"]
    database = open_database(addresses.url, pool=1, timeout=PATIENCE, reactor=reactor)
    try:
        database.start()
        assert await ask(database) == ONE
        mysql.admin("SET GLOBAL read_only = 1")
        with pytest.raises(Unavailable):
            await database.execute("INSERT INTO n VALUES (1)", {})
        mysql.admin("SET GLOBAL read_only = 0")
        links = len(addresses.first._links)
        assert await database.execute("INSERT INTO n VALUES (1)", {}) == 1
        assert len(addresses.first._links) == links
    finally:
        await database.stop()


@pytest_twisted.ensureDeferred
async def test_slow_queries_are_ended_by_the_server_and_keep_their_connections(
    mysql: Mysql,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    database = opened(mysql.url, timeout=2.0)
    await full(database, mysql)
    database.timeout = 60.0  # the sessions keep their limit
    old = {number for number, _ in mysql.connections()}
    for waiting in [ask(database, "SELECT SLEEP(30)") for _ in range(6)]:
        with pytest.raises(Unavailable):
            await waiting
    assert not any("SLEEP" in statement for _, statement in mysql.connections())
    assert {number for number, _ in mysql.connections()} == old
    (line,) = [formatEvent(event) for event in log]
    assert line.startswith(
        "the database aborted a query: Query execution was interrupted (max_statement_time exceeded)"
    )


@pytest_twisted.ensureDeferred
async def test_lock_held_by_another_session_ends_in_unavailable(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run("CREATE TABLE n (i int PRIMARY KEY); INSERT INTO n VALUES (1)")
    database = opened(mysql.url, timeout=2.0)
    await full(database, mysql)
    database.timeout = PATIENCE
    with closing(mysql.connect()) as other:
        other.begin()
        other.query("UPDATE n SET i = 2")
        with pytest.raises(Unavailable):
            await database.execute("UPDATE n SET i = 3 WHERE i = %(i)s", {"i": 1})
        other.rollback()
    assert await database.execute("UPDATE n SET i = 3 WHERE i = %(i)s", {"i": 1}) == 1


@pytest_twisted.ensureDeferred
async def test_wait_timeout_of_one_second_costs_no_query(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.admin("SET GLOBAL wait_timeout = 1")
    database = opened(mysql.url)
    await full(database, mysql)
    assert await ask(database, "SELECT @@wait_timeout AS seconds") == [{"seconds": 900}]
    # a proxy may end it all the same
    await until(lambda: len(database._idle) == 3)
    for connection in [*database._idle]:
        await connection.run_query("SET SESSION wait_timeout = 1")
    old = {number for number, _ in mysql.connections()}
    await until(lambda: not old & {number for number, _ in mysql.connections()})
    assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_wrong_password_is_logged_once_and_the_right_one_succeeds_later(
    mysql: Mysql,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    mysql.admin("CREATE OR REPLACE USER other IDENTIFIED BY 'hunter2'; GRANT ALL ON shop.* TO other")
    database = opened(mysql.url_of("shop", user="other", password="hunter3"), timeout=TIMEOUT)
    with pytest.raises(Unavailable) as caught:
        await ask(database)
    (line,) = [formatEvent(event) for event in log]
    assert "Access denied for user 'other'" in line
    assert "hunter3" not in repr(caught.value) + line + repr(log)
    database.timeout = PATIENCE
    waiting = ask(database)
    mysql.admin("ALTER USER other IDENTIFIED BY 'hunter3'")
    assert await waiting == ONE


@pytest_twisted.ensureDeferred
async def test_fewer_connections_than_the_pool_still_serve(
    mysql: Mysql,  # noqa: F811
    opened: Any,
    log: list[LogEvent],
) -> None:
    mysql.admin("CREATE OR REPLACE USER small IDENTIFIED BY 'x' WITH MAX_USER_CONNECTIONS 2; GRANT ALL ON *.* TO small")
    database = opened(mysql.url_of("shop", user="small", password="x"), pool=4)
    await full(database, mysql, 2)
    for _ in range(3):
        assert await gatherResults([ask(database) for _ in range(10)]) == [ONE] * 10
    await until(lambda: len(log) > 0)
    assert database.healthy
    assert {formatEvent(event).split(":")[0] for event in log} == {"cannot open another connection to the database"}


@pytest_twisted.ensureDeferred
async def test_full_server_is_used_when_it_has_room_again(mysql: Mysql, opened: Any, log: list[LogEvent]) -> None:  # noqa: F811
    mysql.admin("SET GLOBAL max_connections = 10")
    others: list[Any] = []
    with suppress(pymysql.OperationalError):
        while True:
            others.append(mysql.connect())
    try:
        database = opened(mysql.url, timeout=TIMEOUT)
        with pytest.raises(Unavailable):
            await ask(database)
        assert "Too many connections (1040)" in formatEvent(log[0])
    finally:
        for other in others:
            other.close()
    database.timeout = PATIENCE
    assert await ask(database) == ONE


@pytest.mark.parametrize(
    ("version", "limit", "collation"),
    [
        ("10.11.6-MariaDB-0+deb12u1", "max_statement_time = 4.000", "utf8mb4_nopad_bin"),
        ("5.5.5-10.6.16-MariaDB", "max_statement_time = 4.000", "utf8mb4_nopad_bin"),
        ("8.0.36", "max_execution_time = 4000", "utf8mb4_0900_bin"),
        ("8.4.3-log", "max_execution_time = 4000", "utf8mb4_0900_bin"),
        ("8.0.16", "max_execution_time = 4000", "utf8mb4_bin"),
    ],
)
def test_session_has_the_time_limit_and_the_collation_of_the_server(version: str, limit: str, collation: str) -> None:
    statements: list[str] = []

    class Driver(MysqlDriver):
        def __init__(self) -> None:
            """Connect to nothing."""

        def __del__(self) -> None:
            """Close nothing."""

        def get_server_info(self) -> str:
            return version

        def query(self, sql: str) -> None:
            statements.append(sql)
            if unknown and unknown in sql:
                raise pymysql.OperationalError(1193, "Unknown system variable")

    unknown = ""
    driver = Driver()
    driver.settle(5.0, "")
    assert statements[1:] == [f"SET SESSION {limit}"]
    assert driver.exact_collation == collation
    # a proxy that names another product
    unknown = limit.split()[0]
    driver.settle(5.0, "")
    assert len(statements) == 5
    assert limit not in statements[-1]
    assert "max_" in statements[-1]


@pytest_twisted.ensureDeferred
async def test_read_only_server_discards_the_connection_that_wrote(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run("CREATE TABLE n (i int)")
    database = opened(mysql.url, pool=1)
    await full(database, mysql, 1)
    (before,) = mysql.connections()
    mysql.admin("SET GLOBAL read_only = 1")
    with pytest.raises(Unavailable):
        await database.execute("INSERT INTO n VALUES (1)", {})
    assert await ask(database) == ONE
    mysql.admin("SET GLOBAL read_only = 0")
    assert await database.execute("INSERT INTO n VALUES (1)", {}) == 1
    assert before[0] not in {number for number, _ in mysql.connections()}


@pytest_twisted.ensureDeferred
async def test_connections_are_replaced_when_they_are_old(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url, pool=1)
    await full(database, mysql, 1)
    old = {number for number, _ in mysql.connections()}
    database._idle[0].opened_at -= database.max_age
    assert await ask(database) == ONE
    assert not old & {number for number, _ in mysql.connections()}


@pytest.mark.parametrize(
    "script", [[None], [b"garbage" * 99], [b"J\0\0\0\x0a8.0.1"], [b"\x05\0\0\0\xff\x10\x04xx", None]]
)
@pytest_twisted.ensureDeferred
async def test_connection_that_breaks_during_the_handshake_leaves_nothing(script: list[Any], opened: Any) -> None:
    attempts: list[Any] = []

    class Unfriendly(Protocol):
        def connectionMade(self) -> None:
            attempts.append(self)
            for part in script:
                if part is None:
                    self.transport.abortConnection()
                else:
                    self.transport.write(part)

    port = reactor.listenTCP(0, Factory.forProtocol(Unfriendly), interface="127.0.0.1")
    database = opened(f"mysql://u@127.0.0.1:{port.getHost().port}/x", timeout=0.4)
    with pytest.raises(Unavailable):
        await ask(database)
    await until(lambda: len(attempts) > 1)
    await database.stop()
    await port.stopListening()
    for attempt in attempts:
        attempt.transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_stop_while_connecting_or_querying_is_bounded(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    querying = opened(mysql.url)
    await full(querying, mysql)
    mysql.silence()
    connecting = opened(mysql.url)
    asked = [ask(connecting), *(ask(querying) for _ in range(5))]
    await deferLater(reactor, 0.1)
    with Standstill() as standstill:
        began = reactor.seconds()
        await connecting.stop()
        await querying.stop()
        assert reactor.seconds() - began < PATIENCE / 2 + standstill.seconds
    for item in asked:
        with pytest.raises(Unavailable):
            await item
    mysql.resume()


def test_refused_account_or_host_pauses_for_a_minute() -> None:
    for number in (1129, 1226):
        error = translate_connect_error(pymysql.OperationalError(number, "no"))
        assert (error.pause, REFUSED_PAUSE) == (60.0, 60.0)
    assert translate_connect_error(pymysql.OperationalError(1040, "Too many connections")).pause == 0.0
    clock = Clock()
    database = MysqlDatabase(mysql_options("mysql://u@127.0.0.1/d"), pool=3, timeout=10.0, reactor=clock)
    attempts: list[float] = []

    async def connect(on_lost: Any = None) -> Any:
        attempts.append(clock.seconds())
        raise ConnectFailed("the account has reached its limit", 60.0)

    database.connect = connect  # type: ignore[method-assign]
    database.start()
    for _ in range(150):
        clock.advance(1)
    assert attempts == [0.0, 60.0, 120.0]
    database.stop()
    assert clock.getDelayedCalls() == []


@pytest_twisted.ensureDeferred
async def test_hourly_limit_of_an_account_is_a_pause(mysql: Mysql, opened: Any, log: list[LogEvent]) -> None:  # noqa: F811
    mysql.admin(
        "CREATE OR REPLACE USER hourly IDENTIFIED BY 'x' WITH MAX_CONNECTIONS_PER_HOUR 1; GRANT ALL ON *.* TO hourly"
    )
    database = opened(mysql.url_of("shop", user="hourly", password="x"), pool=1)
    assert await ask(database) == ONE
    with pytest.raises(ConnectFailed) as caught:
        await database.connect()
    assert caught.value.pause == 60.0


# --- connections ---


@pytest_twisted.ensureDeferred
async def test_host_name_socket_and_scheme_are_accepted(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    for url in (
        mysql.url.replace("127.0.0.1", "localhost"),
        mysql.socket_url,
        mysql.url.replace("mysql://", "mariadb://"),
    ):
        assert await ask(opened(url, pool=1)) == ONE


@pytest_twisted.ensureDeferred
async def test_tls_verifies_the_authority_and_the_host_name(
    mysql: Mysql,  # noqa: F811
    opened: Any,
    tmp_path: Any,
    log: list[LogEvent],
) -> None:
    ca = f"ssl_ca={mysql.certificate_authority}"
    encrypted = "SHOW SESSION STATUS LIKE 'Ssl_cipher'"
    (row,) = await ask(opened(f"{mysql.url}?{ca}", pool=1), encrypted)
    assert row["Value"]
    # the certificate is for db.shop.test and 127.0.0.1
    named = mysql.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Unavailable):
        await ask(opened(f"{named}?{ca}", pool=1, timeout=TIMEOUT))
    assert "CERTIFICATE_VERIFY_FAILED" in formatEvent(log[-1])
    (row,) = await ask(opened(f"{named}?{ca}&ssl_mode=verify_ca", pool=1), encrypted)
    assert row["Value"]
    from tests.certificates import Authority

    other = tmp_path / "other.pem"
    other.write_bytes(Authority().root)
    for mode in ("", "&ssl_mode=verify_ca"):
        with pytest.raises(Unavailable):
            await ask(opened(f"{mysql.url}?ssl_ca={other}{mode}", pool=1, timeout=TIMEOUT))
        assert "CERTIFICATE_VERIFY_FAILED" in formatEvent(log[-1])
    (row,) = await ask(opened(f"{mysql.url}?ssl_mode=disabled", pool=1), encrypted)
    assert not row["Value"]


@pytest_twisted.ensureDeferred
async def test_session_has_utf8mb4_autocommit_and_the_time_zone_of_the_url(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run("CREATE TABLE n (i int)")
    database = opened(f"{mysql.url}?time_zone=%2B05:30", pool=1)
    sql = "SELECT @@character_set_client AS c, @@autocommit AS a, @@time_zone AS z, '🦊' AS fox"
    assert await ask(database, sql) == [{"c": "utf8mb4", "a": 1, "z": "+05:30", "fox": "🦊"}]
    # no snapshot is kept
    assert await ask(database, "SELECT i FROM n") == []
    mysql.run("INSERT INTO n VALUES (1)")
    assert await ask(database, "SELECT i FROM n") == [{"i": 1}]


@pytest_twisted.ensureDeferred
async def test_group_concat_is_never_cut_silently(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    database = opened(mysql.url, pool=1)
    (row,) = await ask(database, "SELECT GROUP_CONCAT(REPEAT('x', 100)) AS ids FROM seq_1_to_1000")
    assert len(row["ids"]) > 100_000
    await ask(database, "SET SESSION group_concat_max_len = 1024")
    with pytest.raises(Unavailable):
        await ask(database, "SELECT GROUP_CONCAT(REPEAT('x', 100)) AS ids FROM seq_1_to_1000")
    assert await ask(database) == ONE


@pytest_twisted.ensureDeferred
async def test_privilege_that_lacks_is_a_failed_query(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run("CREATE TABLE n (i int)")
    mysql.admin("CREATE OR REPLACE USER reader IDENTIFIED BY 'x'; GRANT SELECT ON shop.* TO reader")
    database = opened(mysql.url_of("shop", user="reader", password="x"), pool=1)
    with pytest.raises(QueryFailed, match="denied"):
        await database.execute("INSERT INTO n VALUES (1)", {})
    assert database.healthy


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE users SET status = 'x' WHERE id = %(id)s",
        "INSERT INTO users VALUES (%(id)s, 'x') ON DUPLICATE KEY UPDATE status = 'x'",
    ],
)
@pytest_twisted.ensureDeferred
async def test_write_with_an_id_that_begins_with_a_number_changes_no_row(
    sql: str,
    mysql: Mysql,  # noqa: F811
    opened: Any,
) -> None:
    mysql.run("CREATE TABLE users (id int PRIMARY KEY, status text); INSERT INTO users VALUES (5, 'a'), (0, 'a')")
    database = opened(mysql.url, pool=1)
    for text in ("5abc", "abc"):
        with pytest.raises(ValueRefused):
            await database.execute(sql, {"id": text})
    assert mysql.run("SELECT * FROM users ORDER BY id") == [(0, "a"), (5, "a")]


# --- ids ---

#: Texts that MySQL finds the number 5 for, or 0.
NUMBERS = ("5abc", " 5", "5 ", "5.0", "05", "+5", "5e0", "\t5", "5\n", "0x5", "abc", "", "5\0", "\u0665")
#: Texts that some collation takes for 'ana' or 'José'.
TEXTS = ("Ana", "ANA", "ana ", "ána", " ana", "ana\x01", "ana\0", "Jose", "JOSÉ", "José", "jose")


def matches(database: Any, query: str, **values: Any) -> Any:
    return ExistsQuery(database, "query", query, ["user_id", "conversation_id"], reactor).run(values)


@pytest.mark.parametrize("columns", ["1", "user_id", "user_id AS id", "*"])
@pytest.mark.parametrize("kind", ["int", "bigint unsigned", "decimal(20)", "double"])
@pytest_twisted.ensureDeferred
async def test_text_does_not_match_the_number_that_it_begins_with(
    columns: str,
    kind: str,
    mysql: Mysql,  # noqa: F811
    opened: Any,
) -> None:
    mysql.run(f"CREATE TABLE agents (user_id {kind} PRIMARY KEY); INSERT INTO agents VALUES (5), (0)")
    database = opened(mysql.url, pool=1)
    query = f"SELECT {columns} FROM agents WHERE user_id = %(user_id)s"
    assert await matches(database, query, user_id=5)
    assert await matches(database, query, user_id="5")
    for text in NUMBERS:
        assert not await matches(database, query, user_id=text), repr(text)


@pytest.mark.parametrize("columns", ["1", "user_id", "*"])
@pytest.mark.parametrize(
    "kind",
    [
        "varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci",
        "varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci",
        "varchar(40) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        "varchar(40) CHARACTER SET latin1",
        "char(40) CHARACTER SET utf8mb3",
        "varbinary(40)",
    ],
)
@pytest_twisted.ensureDeferred
async def test_text_is_compared_byte_by_byte(
    columns: str,
    kind: str,
    mysql: Mysql,  # noqa: F811
    opened: Any,
) -> None:
    mysql.run(
        f"CREATE TABLE agents (user_id {kind} PRIMARY KEY); INSERT INTO agents VALUES ('ana'), ('José'), ('5abc')"
    )
    database = opened(mysql.url, pool=1)
    query = f"SELECT {columns} FROM agents WHERE user_id = %(user_id)s"
    for text in ("ana", "José", "5abc"):
        assert await matches(database, query, user_id=text), text
    for other in (*(text for text in TEXTS if text != "José"), 5, "5", "5ABC", 0):
        assert not await matches(database, query, user_id=other), repr(other)


@pytest_twisted.ensureDeferred
async def test_ids_beyond_2_to_the_53_are_distinguished(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run("CREATE TABLE people (id bigint unsigned PRIMARY KEY); INSERT INTO people VALUES (9007199254740993)")
    database = opened(mysql.url, pool=1)
    query = "SELECT 1 FROM people WHERE id = %(user_id)s"
    assert await matches(database, query, user_id="9007199254740993")
    for other in ("9007199254740992", "9007199254740994", "9007199254740993.0"):
        assert not await matches(database, query, user_id=other)


@pytest_twisted.ensureDeferred
async def test_uuid_column_has_one_spelling(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    own = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    mysql.run(f"CREATE TABLE people (id uuid PRIMARY KEY); INSERT INTO people VALUES ('{own}')")
    database = opened(mysql.url, pool=1)
    query = "SELECT 1 FROM people WHERE id = %(user_id)s"
    assert await matches(database, query, user_id=own)
    for other in (own.upper(), own.replace("-", ""), f"{{{own}}}", f" {own}"):
        assert not await matches(database, query, user_id=other)


@pytest_twisted.ensureDeferred
async def test_each_of_two_ids_is_compared(mysql: Mysql, opened: Any) -> None:  # noqa: F811
    mysql.run(
        "CREATE TABLE members (conversation_id int, user_id varchar(20));"
        "INSERT INTO members VALUES (456, 'ana'), (0, 'b')"
    )
    database = opened(mysql.url, pool=1)
    for columns in ("1", "conversation_id", "user_id", "*"):
        query = f"SELECT {columns} FROM members WHERE conversation_id = %(conversation_id)s AND user_id = %(user_id)s"
        assert await matches(database, query, conversation_id=456, user_id="ana")
        for conversation, user in (("456x", "ana"), (456, "Ana"), ("0456", "ana"), ("x", "b"), (456, "ana ")):
            assert not await matches(database, query, conversation_id=conversation, user_id=user)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://u:hunter2@h", "no database"),
        ("mysql://u:hunter2@h/", "no database"),
        ("mysql://h/d", "no user"),
        ("mysql://u:hunter2@/d", "the form is"),
        ("mysql:u:hunter2", "the form is"),
        ("mysql://u:hunter2@h:port/d", "the form is"),
        ("mysql://u:hunter2%zz@h/d", "the form is"),
        ("mysql://u:hunter2@x@h/d", "unencoded"),
        ("mysql://u:hunter2#x@h/d", "the form is"),
        ("mysql://u:hunter2@h/d?nonsense=1", "unknown option"),
        ("mysql://u:hunter2@h/d?ssl_mode=hunter2", "ssl_mode"),
        ("mysql://u:hunter2@h/d?ssl_ca=/nowhere/ca.pem", "cannot read ssl_ca"),
        ("mysql://u:hunter2@h/d?ssl_ca=/nowhere/ca.pem&ssl_mode=required", "verifies nothing"),
    ],
)
def test_wrong_url_is_one_line_without_the_password(url: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_database(url, pool=1, timeout=1.0, reactor=reactor)
    assert sentence in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_password_of_the_url_is_decoded(mysql: Mysql) -> None:  # noqa: F811
    options = mysql_options(mysql.url)
    assert (options.user, options.password, options.database, options.port) == (USER, PASSWORD, "shop", mysql.port)


def test_absent_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatws.database.factory.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'chatws\[mysql\]'"):
        open_database("mysql://u@h/d", pool=1, timeout=1.0, reactor=reactor)
