from __future__ import annotations

import errno
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from chatws.brokers.interface import Audience, Event, NewEvent, Retention
from chatws.brokers.sqlite import space
from chatws.brokers.sqlite.broker import SqliteBroker
from chatws.brokers.sqlite.format import boot_id
from chatws.brokers.sqlite.store import SqliteStore
from chatws.errors import ConfigError, Unavailable
from tests.log_lines import logged_at
from tests.requirements import needs


class Recorder:
    def __init__(self) -> None:
        self.offsets: list[int] = []

    def deliver(self, events: Sequence[Event]) -> None:
        self.offsets += [event.offset for event in events]

    def reset(self, epoch: str) -> None: ...


def new_event(key: str | None = None, data: bytes = b"{}") -> NewEvent:
    return NewEvent("new_message", Audience(("conversation:1",)), data, key)


def outcome(deferred: Deferred[Any]) -> Any:
    """What it has fired with, or the exception."""
    results: list[Any] = []
    deferred.addBoth(lambda result: results.append(getattr(result, "value", result)))
    assert len(results) == 1, "it should have fired"
    return results[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.db"


Open = Callable[..., tuple[SqliteBroker, Recorder]]


@pytest.fixture
def open_log(path: Path) -> Iterator[Open]:
    """Opens the log at `path`; whatever is open at the end is stopped."""
    brokers: list[SqliteBroker] = []

    def open_log(retention: Retention | None = None, **options: Any) -> tuple[SqliteBroker, Recorder]:
        broker, recorder = SqliteBroker(str(path), retention or Retention(), Clock().seconds, **options), Recorder()
        assert outcome(broker.start(recorder)) is None
        brokers.append(broker)
        return broker, recorder

    yield open_log
    for broker in brokers:
        outcome(broker.stop())


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The reasons in what is logged."""
    reasons: list[str] = []

    def observe(event: dict[str, Any]) -> None:
        if "reason" in event:
            reasons.append(event["reason"])

    globalLogPublisher.addObserver(observe)
    yield reasons
    globalLogPublisher.removeObserver(observe)


# The file


def test_the_history_file_is_readable_by_its_owner_only(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([new_event()]))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"log.db": 0o600, "log.db-wal": 0o600}


def test_a_stopped_log_is_one_file(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([new_event()]))
    outcome(broker.stop())
    assert [file.name for file in path.parent.iterdir()] == ["log.db"]


def test_expired_keys_and_trimmed_events_leave_the_file(path: Path, open_log: Open) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Retention(events=5), clock.seconds)
    outcome(broker.start(Recorder()))
    for n in range(20):
        outcome(broker.publish([new_event(key=f"k{n}")]))
    clock.advance(700)
    for n in range(10):
        outcome(broker.publish([new_event(key=f"n{n}")]))
    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        counts = db.execute("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM keys)").fetchone()
    db.close()
    assert counts == (5, 10)


def test_a_reused_key_is_known_after_a_restart(path: Path) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Retention(), clock.seconds)
    outcome(broker.start(Recorder()))
    outcome(broker.publish([new_event(key="k")]))
    clock.advance(700)
    outcome(broker.publish([new_event(key="other")]))  # the old use of k is forgotten, its row is still there
    outcome(broker.publish([new_event(key="k")]))
    outcome(broker.stop())
    broker = SqliteBroker(str(path), Retention(), clock.seconds)
    outcome(broker.start(Recorder()))
    assert [event.duplicate for event in outcome(broker.publish([new_event(key="k")]))] == [True]
    outcome(broker.stop())


# What cannot be opened


def refusal(path: Path) -> str:
    error = outcome(SqliteBroker(str(path), Retention(), Clock().seconds).start(Recorder()))
    assert isinstance(error, ConfigError)
    line = str(error)
    assert line.startswith("broker: ")
    assert str(path) in line
    assert "\n" not in line
    return line


def test_a_missing_directory_is_the_operators_matter(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "nowhere" / "log.db")


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path)


def test_a_text_file_is_rejected_and_kept(path: Path) -> None:
    text = "Dear diary, " * 1000
    path.write_text(text)
    assert "damaged or no SQLite database" in refusal(path)
    assert path.read_text() == text


def test_another_database_file_is_rejected_and_kept(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE users (id INTEGER)")
    db.close()
    before = path.read_bytes()
    assert "something else" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", [0, 4, 99])
def test_a_file_of_an_unknown_format_is_rejected_and_left_alone(path: Path, open_log: Open, number: int) -> None:
    broker, _ = open_log()
    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {number}")
    db.close()
    before = path.read_bytes()
    assert f"{path} has format {number}, and this version of chatws reads formats 1 to 3" in refusal(path)
    assert path.read_bytes() == before


#: The tables of format 1, as chatws made them, with one event and its key.
FORMAT_1 = """
    CREATE TABLE log (
        one INTEGER PRIMARY KEY CHECK (one = 1), epoch TEXT NOT NULL, last INTEGER NOT NULL, at_risk TEXT
    );
    CREATE TABLE events (
        "offset" INTEGER PRIMARY KEY, time REAL NOT NULL, name TEXT NOT NULL, audience TEXT NOT NULL, data BLOB NOT NULL
    );
    CREATE TABLE keys (key TEXT PRIMARY KEY, "offset" INTEGER NOT NULL, time REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE online (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
    INSERT INTO log VALUES (1, 'earlier', 41, NULL);
    INSERT INTO events VALUES (41, 5.0, 'new_message', '[["*"],null]', CAST('{"n":1}' AS BLOB));
    INSERT INTO keys VALUES ('key-1', 41, 5.0);
    INSERT INTO online VALUES ('"ana"');
    PRAGMA application_id = 0x63687773;
    PRAGMA user_version = 1;
"""


@pytest.mark.parametrize(("boot", "is_kept"), [("NULL", True), ("'another boot'", False)], ids=["closed", "power cut"])
def test_a_file_of_format_1_is_migrated_with_a_warning(path: Path, open_log: Open, boot: str, is_kept: bool) -> None:
    with sqlite3.connect(path) as db:
        db.executescript(FORMAT_1 + f"UPDATE log SET at_risk = {boot}")
    db.close()
    SqliteStore(str(path), Retention(), sync_commits=True, boot=None).check()
    with logged_at() as warnings:
        broker, _ = open_log()
    assert f"history in {path} was migrated from format 1 to 3" in warnings[-1 if is_kept else -2]
    assert (broker.epoch == "earlier") is is_kept
    assert [event.offset for event in outcome(broker.read(0, 10))] == ([41] if is_kept else [])
    assert outcome(broker.online()) == ["ana"]
    assert [event.offset for event in outcome(broker.publish([new_event()]))] == [42]
    outcome(broker.stop())
    with logged_at() as warnings:
        again, _ = open_log()
    assert not [line for line in warnings if "migrated" in line]
    assert outcome(again.offset_range())[1] == 42


def test_a_damaged_log_is_the_operators_matter(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([new_event(data=b"x" * 1000) for _ in range(100)]))
    outcome(broker.stop())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    assert "damaged" in refusal(path)


def test_a_log_with_a_hole_is_damaged(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([new_event(), new_event(), new_event()]))
    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        db.execute('DELETE FROM events WHERE "offset" = 2')
    db.close()
    assert "events are missing" in refusal(path)


def test_a_file_that_may_not_be_opened_is_the_operators_matter(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.stop())
    path.chmod(0)
    if os.geteuid() == 0:  # root may everything: be nobody for a moment
        path.parent.chmod(0o755)
        os.seteuid(65534)
        try:
            assert "cannot open" in refusal(path)
        finally:
            os.seteuid(0)
    else:
        assert "cannot open" in refusal(path)


def test_a_second_broker_on_the_file_is_locked_out_until_the_first_stops(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    assert "in use" in refusal(path)
    assert [event.offset for event in outcome(broker.publish([new_event()]))] == [1]
    outcome(broker.stop())
    second, _ = open_log()
    assert outcome(second.offset_range()) == (1, 1)


# Full disks


def no_room(descriptor: int, size: int) -> None:
    """`chatws.brokers.sqlite.space.allocate` on a full disk."""
    if size > os.fstat(descriptor).st_size:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_publish_on_a_full_disk_stores_nothing_and_succeeds_later(
    open_log: Open, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, recorder = open_log(Retention(events=50))
    for n in range(60):
        outcome(broker.publish([new_event(key=f"before{n}")]))
    monkeypatch.setattr(space, "allocate", no_room)
    batch = [new_event(key="small"), new_event(key="large", data=b"x" * 2_000_000)]
    for _ in range(3):
        assert isinstance(outcome(broker.publish(batch)), Unavailable)
    assert logged == ["database or disk is full"], "once, not for every event"
    assert recorder.offsets == list(range(1, 61))
    assert outcome(broker.offset_range()) == (11, 60)
    assert [event.offset for event in outcome(broker.read(0, 100))] == list(range(11, 61))
    monkeypatch.undo()
    receipts = outcome(broker.publish(batch))
    assert [(event.offset, event.duplicate) for event in receipts] == [(61, False), (62, False)]
    assert recorder.offsets == list(range(1, 63))
    assert outcome(broker.offset_range()) == (13, 62)


@contextmanager
def room_for(size: int, path: Path) -> Iterator[None]:
    """Files of this process cannot grow by more than so many bytes beyond the log's write-ahead log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("log.db-wal").stat().st_size + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_leaves_a_usable_history(path: Path, open_log: Open, logged: list[str]) -> None:
    broker, recorder = open_log(Retention(events=2, size=610_000))
    outcome(broker.publish([new_event(key="before")]))
    with room_for(5000, path):
        refused = outcome(broker.publish([new_event(key="refused", data=b"x" * 600_000), new_event(), new_event()]))
    assert isinstance(refused, Unavailable)
    assert len(logged) == 1
    assert outcome(broker.offset_range()) == (1, 1)
    receipts = outcome(broker.publish([new_event(key="refused"), new_event(key="before")]))
    assert [(event.offset, event.duplicate) for event in receipts] == [(2, False), (1, True)]
    assert recorder.offsets == [1, 2]
    outcome(broker.stop())
    reopened, _ = open_log()
    assert outcome(reopened.offset_range()) == (1, 2)


def test_events_that_were_refused_are_not_counted_when_trimming(path: Path) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Retention(seconds=60.0), clock.seconds)
    outcome(broker.start(Recorder()))
    with room_for(5000, path):
        assert isinstance(outcome(broker.publish([new_event(data=b"x" * 600_000)])), Unavailable)
    clock.advance(100)
    outcome(broker.publish([new_event()]))
    assert outcome(broker.offset_range()) == (1, 1)
    outcome(broker.stop())


def test_internal_error_is_not_reported_as_a_disk_error(open_log: Open) -> None:
    broker, recorder = open_log()
    assert isinstance(outcome(broker.publish([new_event(), new_event(key="\ud800")])), UnicodeEncodeError)
    assert [event.offset for event in outcome(broker.publish([new_event()]))] == [1]
    assert recorder.offsets == [1]


# Power cuts


def crash(broker: SqliteBroker) -> None:
    """Let go of the file as the end of a killed process does: without a word in it."""
    broker._store._db.close()


def test_a_killed_process_leaves_the_epoch_as_it_was(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([new_event()]))
    crash(broker)
    again, _ = open_log(boot=lambda: "monday")
    assert again.epoch == broker.epoch
    assert outcome(again.offset_range()) == (1, 1)


def test_a_machine_that_went_down_under_the_log_makes_it_another_one(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([new_event(), new_event(key="k")]))
    crash(broker)
    again, _ = open_log(boot=lambda: "tuesday")
    assert again.epoch != broker.epoch
    assert outcome(again.offset_range()) == (3, 2), "what browsers saw of the old epoch is not served in the new"
    receipts = outcome(again.publish([new_event(key="k"), new_event()]))
    assert [(event.offset, event.duplicate) for event in receipts] == [(2, True), (3, False)]
    outcome(again.stop())
    third, _ = open_log(boot=lambda: "wednesday")
    assert third.epoch == again.epoch


@pytest_twisted.ensureDeferred
async def test_a_boot_id_that_cannot_be_read_costs_no_history_and_forces_full(path: Path) -> None:
    for n in range(1, 3):
        with logged_at() as warnings:
            broker = SqliteBroker(str(path), Retention(), Clock().seconds, reactor=reactor, boot=lambda: None)
            await broker.start(Recorder())
        assert len(warnings) == 1
        assert "--sqlite-synchronous full" in warnings[0]
        assert broker._store._db.execute("PRAGMA synchronous").fetchone() == (2,)
        await broker.publish([new_event()])
        assert await broker.offset_range() == (1, n)
        crash(broker)


@pytest.mark.parametrize(
    ("boot", "reason"), [("tuesday", "the machine restarted before"), (None, "the boot id cannot be read, so")]
)
def test_a_discarded_history_is_logged_with_its_reason(boot: str | None, reason: str, open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([new_event()]))
    crash(broker)
    with logged_at() as warnings:
        again, _ = open_log(boot=lambda: boot)
    assert again.epoch != broker.epoch
    assert f"a new epoch begins, pages reload: {reason}" in warnings[-1]
    with logged_at() as warnings:
        outcome(again.stop())
        open_log(boot=lambda: "wednesday")
    assert warnings == []


def test_boot_id_without_the_kernels_file_is_none(tmp_path: Path) -> None:
    assert boot_id(str(tmp_path / "boot_id")) is None
    (tmp_path / "boot_id").write_text("\n")
    assert boot_id(str(tmp_path / "boot_id")) is None
    (tmp_path / "boot_id").write_text("1f0e\n")
    assert boot_id(str(tmp_path / "boot_id")) == "1f0e"


def test_a_machine_that_was_shut_down_in_order_leaves_the_epoch_as_it_was(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([new_event()]))
    outcome(broker.stop())
    again, _ = open_log(boot=lambda: "tuesday")
    assert again.epoch == broker.epoch
    assert outcome(again.offset_range()) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_durable_log_keeps_its_epoch_through_a_power_cut(path: Path) -> None:
    broker = SqliteBroker(
        str(path), Retention(), Clock().seconds, sync_commits=True, reactor=reactor, boot=lambda: "monday"
    )
    await broker.start(Recorder())
    await broker.publish([new_event()])
    crash(broker)
    again = SqliteBroker(
        str(path), Retention(), Clock().seconds, sync_commits=True, reactor=reactor, boot=lambda: "tuesday"
    )
    await again.start(Recorder())
    assert again.epoch == broker.epoch
    assert await again.offset_range() == (1, 1)
    await again.stop()


# Durable: in a thread


@pytest_twisted.ensureDeferred
async def test_durable_publishes_that_wait_share_a_transaction(path: Path) -> None:
    broker, recorder = (
        SqliteBroker(str(path), Retention(), Clock().seconds, sync_commits=True, reactor=reactor),
        Recorder(),
    )
    await broker.start(recorder)
    commits: list[str] = []
    broker._store._db.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    first = broker.publish([new_event()])
    assert not first.called, "the reactor does not wait for the disk"
    await gatherResults([first] + [broker.publish([new_event(), new_event()]) for _ in range(10)])
    assert recorder.offsets == list(range(1, 22))
    assert len(commits) == 2
    await broker.stop()


@pytest_twisted.ensureDeferred
async def test_a_failed_durable_publish_is_an_error_and_the_next_one_succeeds(
    path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, recorder = (
        SqliteBroker(str(path), Retention(), Clock().seconds, sync_commits=True, reactor=reactor),
        Recorder(),
    )
    await broker.start(recorder)
    monkeypatch.setattr(space, "allocate", no_room)
    publishing = [broker.publish([new_event(data=b"x" * 2_000_000)]) for _ in range(3)]
    for publish_ in publishing:
        with pytest.raises(Unavailable):
            await publish_
    monkeypatch.undo()
    assert [event.offset for event in await broker.publish([new_event()])] == [1]
    assert recorder.offsets == [1]
    assert logged == ["database or disk is full"]
    await broker.stop()


# Real processes

PUBLISHER = """
import sys
from chatws.brokers.sqlite import space
from chatws.brokers.interface import Audience, Retention, NewEvent
from chatws.brokers.sqlite.broker import SqliteBroker

class Nobody:
    def deliver(self, events): pass
    def reset(self, epoch): pass

path, batches = sys.argv[1], int(sys.argv[2])
broker = SqliteBroker(path, Retention(), lambda: 1_800_000_000.0)
failures = []
broker.start(Nobody()).addErrback(failures.append)
if failures:
    sys.exit(failures[0].getErrorMessage())
print("open", broker.epoch, flush=True)

def acknowledge(events):
    for event in events:
        print(event.offset, flush=True)

audience = Audience(("conversation:1",))
number = 0
while batches < 0 or number < batches:
    batch = [NewEvent("new_message", audience, b'{"n":%d}' % (3 * number + k), f"key{3 * number + k}") for k in
    range(3)]
    broker.publish(batch).addCallback(acknowledge)
    number += 1
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def publisher(path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a process that publishes batches of three, and prints each acknowledged offset."""
    processes: list[subprocess.Popen[str]] = []

    def start(batches: int) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(path), str(batches)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait(10)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("acknowledged", [0, 1, 100, 2000])
def test_a_publisher_killed_in_the_middle_leaves_every_acknowledged_event(
    acknowledged: int, publisher: Callable[[int], subprocess.Popen[str]], path: Path, open_log: Open
) -> None:
    process = publisher(-1)
    assert process.stdout is not None
    epoch = process.stdout.readline().split()[1]
    for _ in range(acknowledged):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    assert process.wait(10) == -signal.SIGKILL
    whole_lines = acknowledged + rest.count("\n")  # offsets count from 1, one a line

    broker, _ = open_log(retention=Retention(events=0, seconds=0, size=0))
    assert broker.epoch == epoch
    first, last = outcome(broker.offset_range())
    assert first == 1
    assert last >= whole_lines
    assert last % 3 == 0, "all of a batch or none"
    events = outcome(broker.read(0, last + 1))
    assert [(event.offset, event.data) for event in events] == [(n, b'{"n":%d}' % (n - 1)) for n in range(1, last + 1)]

    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        stored_keys = db.execute('SELECT count(*), max("offset") FROM keys').fetchone()
    db.close()
    assert stored_keys == (last, last or None)


def test_the_keys_of_a_killed_publisher_still_count(
    publisher: Callable[[int], subprocess.Popen[str]], path: Path
) -> None:
    process = publisher(1)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(5)][1:] == ["1", "2", "3", "done"]
    process.kill()
    process.wait(10)
    broker = SqliteBroker(str(path), Retention(), lambda: 1_800_000_100.0)
    outcome(broker.start(Recorder()))
    receipts = outcome(broker.publish([new_event("key1"), new_event("new")]))
    assert [(event.offset, event.duplicate) for event in receipts] == [(2, True), (4, False)]
    outcome(broker.stop())


def test_another_process_is_locked_out_until_this_one_is_killed(
    publisher: Callable[[int], subprocess.Popen[str]], path: Path, open_log: Open
) -> None:
    process = publisher(1)
    assert process.stdout is not None
    while process.stdout.readline() != "done\n":
        pass
    assert "in use by another process" in refusal(path)
    second = publisher(1)
    _, complaint = second.communicate(timeout=20)
    assert second.returncode == 1
    assert complaint == f"broker: {path} is in use by another process\n"
    process.kill()
    process.wait(10)
    broker, _ = open_log()
    assert outcome(broker.offset_range()) == (1, 3)


SYNCS = """
import os, sys
from twisted.internet import defer, reactor, task
from chatws.brokers.sqlite import space
from chatws.brokers.interface import Audience, Retention, NewEvent
from chatws.brokers.sqlite.broker import SqliteBroker

class Nobody:
    def deliver(self, events): pass
    def reset(self, epoch): pass

async def main(reactor):
    sync_commits = sys.argv[2] == "durable"
    broker = SqliteBroker(sys.argv[1], Retention(), reactor.seconds, sync_commits=sync_commits, reactor=reactor)
    await broker.start(Nobody())
    os.write(1, b"begin")
    for _ in range(20):
        await broker.publish([NewEvent("new_message", Audience(("*",)), b"{}")] * 5)
    os.write(1, b"end")
    await broker.stop()

task.react(lambda reactor: defer.ensureDeferred(main(reactor)))
"""


@needs("strace")
@pytest.mark.parametrize(("safety", "syncs"), [("durable", 20), ("usual", 0)])
def test_a_durable_batch_is_synced_once_and_a_usual_one_never(safety: str, syncs: int, path: Path) -> None:
    trace = path.with_name("trace")
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=write,fsync,fdatasync"]
    subprocess.run([*command, sys.executable, "-c", SYNCS, str(path), safety], check=True, timeout=60)
    lines = trace.read_text().splitlines()
    [begin] = [number for number, line in enumerate(lines) if '"begin"' in line]
    [end] = [number for number, line in enumerate(lines) if '"end"' in line]
    assert sum("sync(" in line for line in lines[begin:end]) == syncs
