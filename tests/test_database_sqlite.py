"""What is SQLite's alone: the file, its locks, its threads."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from chatws.database.sqlite import SqliteDatabase
from chatws.errors import Unavailable

reactor: Any = _reactor
#: Seconds a query may take where a test waits for it to be given up. Elsewhere it is given all it needs.
TIMEOUT, PATIENCE = 1.0, 15.0


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"].startswith("chatws"):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shop.db"


@pytest.fixture
def database(path: Path) -> Iterator[SqliteDatabase]:
    threads, calls = threading.active_count(), set(reactor.getDelayedCalls())
    database = SqliteDatabase(str(path), pool=2, timeout=PATIENCE, reactor=reactor)
    yield database
    pytest_twisted.blockon(database.stop())
    assert threading.active_count() <= threads
    assert set(reactor.getDelayedCalls()) <= calls


def create(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE n (i INTEGER)")
    return connection


@pytest_twisted.ensureDeferred
async def test_an_absent_file_is_not_created_and_used_once_it_exists(
    path: Path, database: SqliteDatabase, log: list[str]
) -> None:
    await database.start()
    for _ in range(3):
        with pytest.raises(Unavailable):
            await database.query("SELECT i FROM n", {})
    assert not path.exists()
    assert not database.healthy
    create(path).close()
    assert await database.query("SELECT i FROM n", {}) == []
    assert database.healthy
    trouble, back = log
    assert "unable to open database file" in trouble
    assert back.endswith("the database is available again")


@pytest_twisted.ensureDeferred
async def test_a_file_locked_by_another_process_is_unavailable_until_released(
    path: Path, database: SqliteDatabase
) -> None:
    other = create(path)
    database.timeout = TIMEOUT  # that of its connections too
    await database.start()
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Unavailable):
        await database.execute("INSERT INTO n VALUES (%(i)s)", {"i": 1})
    other.execute("COMMIT")
    database.timeout = PATIENCE
    assert await database.execute("INSERT INTO n VALUES (%(i)s)", {"i": 2}) == 1
    assert (2,) in other.execute("SELECT i FROM n").fetchall()
    other.close()


@pytest_twisted.ensureDeferred
async def test_a_file_that_is_no_database_is_unavailable_until_it_is_one(path: Path, database: SqliteDatabase) -> None:
    path.write_text("This is not a database. " * 100)
    await database.start()
    with pytest.raises(Unavailable):
        await database.query("SELECT i FROM n", {})
    path.unlink()
    create(path).close()
    for _ in range(3):  # each thread notices for itself
        with suppress(Unavailable):
            await database.query("SELECT i FROM n", {})
    assert await database.query("SELECT i FROM n", {}) == []


@pytest_twisted.ensureDeferred
async def test_a_query_past_its_timeout_frees_its_thread(path: Path, database: SqliteDatabase) -> None:
    create(path).close()
    await database.start()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    database.timeout = TIMEOUT
    asked = [Deferred.fromCoroutine(database.query(endless, {})) for _ in range(6)]
    for item in asked:
        with pytest.raises(Unavailable):
            await item
    database.timeout = PATIENCE
    assert await database.query("SELECT 1 AS one", {}) == [{"one": 1}]


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_threads_in_the_middle_of_a_query(path: Path) -> None:
    create(path).close()
    threads = threading.active_count()
    database = SqliteDatabase(str(path), pool=2, timeout=60.0, reactor=reactor)
    await database.start()
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    asked = [Deferred.fromCoroutine(database.query(endless, {})) for _ in range(4)]
    await database.stop()
    for item in asked:
        with pytest.raises(Unavailable):
            await item
    assert threading.active_count() <= threads


def test_a_start_before_the_reactor_runs_can_be_stopped_too(path: Path) -> None:
    class NotYet(Clock):
        def callWhenRunning(self, call: Any) -> object:
            return self

        def removeSystemEventTrigger(self, identifier: object) -> None:
            assert identifier is self

    create(path).close()
    clock = NotYet()
    database = SqliteDatabase(str(path), pool=2, timeout=1.0, reactor=clock)
    threads = threading.active_count()
    database.start()
    fired: list[object] = []
    database.stop().addCallback(fired.append)
    assert fired == [None]
    assert threading.active_count() <= threads
    assert clock.getDelayedCalls() == []
