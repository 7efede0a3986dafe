from __future__ import annotations

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

from chatws.brokers.contract import Audience, Bounds, Draft, Event
from chatws.brokers.sqlite import SqliteBroker
from chatws.errors import OperatorError, Unavailable
from tests.requirements import needs


class Recorder:
    def __init__(self) -> None:
        self.offsets: list[int] = []

    def deliver(self, events: Sequence[Event]) -> None:
        self.offsets += [event.offset for event in events]

    def reset(self, epoch: str) -> None: ...


def draft(key: str | None = None, data: bytes = b"{}") -> Draft:
    return Draft("new_message", Audience(("conversation:1",)), data, key)


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

    def open_log(bounds: Bounds | None = None, **options: Any) -> tuple[SqliteBroker, Recorder]:
        broker, recorder = SqliteBroker(str(path), bounds or Bounds(), Clock().seconds, **options), Recorder()
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


def test_only_its_owner_can_read_the_log(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([draft()]))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"log.db": 0o600, "log.db-wal": 0o600}


def test_a_stopped_log_is_one_file(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([draft()]))
    outcome(broker.stop())
    assert [file.name for file in path.parent.iterdir()] == ["log.db"]


def test_expired_keys_and_trimmed_events_leave_the_file(path: Path, open_log: Open) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Bounds(events=5), clock.seconds)
    outcome(broker.start(Recorder()))
    for n in range(20):
        outcome(broker.publish([draft(key=f"k{n}")]))
    clock.advance(700)
    for n in range(10):
        outcome(broker.publish([draft(key=f"n{n}")]))
    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        counts = db.execute("SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM keys)").fetchone()
    db.close()
    assert counts == (5, 10)


def test_a_key_given_anew_is_known_after_a_restart_although_its_old_use_has_expired(path: Path) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Bounds(), clock.seconds)
    outcome(broker.start(Recorder()))
    outcome(broker.publish([draft(key="k")]))
    clock.advance(700)
    outcome(broker.publish([draft(key="other")]))  # the old use of k is forgotten, its row is still there
    outcome(broker.publish([draft(key="k")]))
    outcome(broker.stop())
    broker = SqliteBroker(str(path), Bounds(), clock.seconds)
    outcome(broker.start(Recorder()))
    assert [event.duplicate for event in outcome(broker.publish([draft(key="k")]))] == [True]
    outcome(broker.stop())


# What cannot be opened


def refusal(path: Path) -> str:
    error = outcome(SqliteBroker(str(path), Bounds(), Clock().seconds).start(Recorder()))
    assert isinstance(error, OperatorError)
    line = str(error)
    assert line.startswith("broker: ")
    assert str(path) in line
    assert "\n" not in line
    return line


def test_a_missing_directory_is_the_operators_matter(tmp_path: Path) -> None:
    assert "No such file or directory" in refusal(tmp_path / "nowhere" / "log.db")


def test_a_directory_is_no_log(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path)


def test_a_text_is_no_log_and_is_left_alone(path: Path) -> None:
    text = "Dear diary, " * 1000
    path.write_text(text)
    assert "damaged or no SQLite database" in refusal(path)
    assert path.read_text() == text


def test_the_shops_own_database_is_no_log_and_is_left_alone(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE users (id INTEGER)")
    db.close()
    before = path.read_bytes()
    assert "something else" in refusal(path)
    assert path.read_bytes() == before


def test_a_log_of_another_version_is_left_alone(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.stop())
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    assert "another version" in refusal(path)


def test_a_damaged_log_is_the_operators_matter(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([draft(data=b"x" * 1000) for _ in range(100)]))
    outcome(broker.stop())
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    assert "damaged" in refusal(path)


def test_a_log_with_a_hole_is_damaged(path: Path, open_log: Open) -> None:
    broker, _ = open_log()
    outcome(broker.publish([draft(), draft(), draft()]))
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
    assert [event.offset for event in outcome(broker.publish([draft()]))] == [1]
    outcome(broker.stop())
    second, _ = open_log()
    assert outcome(second.bounds()) == (1, 1)


# Full disks


def test_a_full_disk_takes_nothing_of_a_batch_and_all_of_it_later(
    path: Path, open_log: Open, logged: list[str]
) -> None:
    broker, recorder = open_log(Bounds(events=50))
    for n in range(60):
        outcome(broker.publish([draft(key=f"before{n}")]))
    db = broker._store._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    batch = [draft(key="small"), draft(key="large", data=b"x" * 1_000_000)]
    for _ in range(3):
        assert isinstance(outcome(broker.publish(batch)), Unavailable)
    assert logged == ["database or disk is full"], "once, not for every event"
    assert recorder.offsets == list(range(1, 61))
    assert outcome(broker.bounds()) == (11, 60)
    assert [event.offset for event in outcome(broker.read(0, 100))] == list(range(11, 61))
    db.execute("PRAGMA max_page_count = 1000000")
    receipts = outcome(broker.publish(batch))
    assert [(event.offset, event.duplicate) for event in receipts] == [(61, False), (62, False)]
    assert recorder.offsets == list(range(1, 63))
    assert outcome(broker.bounds()) == (13, 62)


@contextmanager
def room_for(size: int, path: Path) -> Iterator[None]:
    """Files of this process cannot grow by more than so many bytes beyond the log's write-ahead log."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("log.db-wal").stat().st_size + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_the_kernel_refuses_leaves_a_log_that_goes_on(
    path: Path, open_log: Open, logged: list[str]
) -> None:
    broker, recorder = open_log(Bounds(events=2, size=21_000))
    outcome(broker.publish([draft(key="before")]))
    with room_for(5000, path):
        refused = outcome(broker.publish([draft(key="refused", data=b"x" * 20_000), draft(), draft()]))
    assert isinstance(refused, Unavailable)
    assert len(logged) == 1
    assert outcome(broker.bounds()) == (1, 1)
    receipts = outcome(broker.publish([draft(key="refused"), draft(key="before")]))
    assert [(event.offset, event.duplicate) for event in receipts] == [(2, False), (1, True)]
    assert recorder.offsets == [1, 2]
    outcome(broker.stop())
    reopened, _ = open_log()
    assert outcome(reopened.bounds()) == (1, 2)


def test_events_that_were_refused_are_not_counted_when_trimming(path: Path) -> None:
    clock = Clock()
    broker = SqliteBroker(str(path), Bounds(seconds=60.0), clock.seconds)
    outcome(broker.start(Recorder()))
    with room_for(5000, path):
        assert isinstance(outcome(broker.publish([draft(data=b"x" * 20_000)])), Unavailable)
    clock.advance(100)
    outcome(broker.publish([draft()]))
    assert outcome(broker.bounds()) == (1, 1)
    outcome(broker.stop())


def test_a_fault_of_ours_is_not_called_the_disks(open_log: Open) -> None:
    broker, recorder = open_log()
    assert isinstance(outcome(broker.publish([draft(), draft(key="\ud800")])), UnicodeEncodeError)
    assert [event.offset for event in outcome(broker.publish([draft()]))] == [1]
    assert recorder.offsets == [1]


# Power cuts


def crash(broker: SqliteBroker) -> None:
    """Let go of the file as the end of a killed process does: without a word in it."""
    broker._store._db.close()


def test_a_killed_process_leaves_the_epoch_as_it_was(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([draft()]))
    crash(broker)
    again, _ = open_log(boot=lambda: "monday")
    assert again.epoch == broker.epoch
    assert outcome(again.bounds()) == (1, 1)


def test_a_machine_that_went_down_under_the_log_makes_it_another_one(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([draft(), draft(key="k")]))
    crash(broker)
    again, _ = open_log(boot=lambda: "tuesday")
    assert again.epoch != broker.epoch
    assert outcome(again.bounds()) == (3, 2), "what browsers saw of the old epoch is not served in the new"
    receipts = outcome(again.publish([draft(key="k"), draft()]))
    assert [(event.offset, event.duplicate) for event in receipts] == [(2, True), (3, False)]
    outcome(again.stop())
    third, _ = open_log(boot=lambda: "wednesday")
    assert third.epoch == again.epoch


def test_a_machine_that_was_shut_down_in_order_leaves_the_epoch_as_it_was(open_log: Open) -> None:
    broker, _ = open_log(boot=lambda: "monday")
    outcome(broker.publish([draft()]))
    outcome(broker.stop())
    again, _ = open_log(boot=lambda: "tuesday")
    assert again.epoch == broker.epoch
    assert outcome(again.bounds()) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_durable_log_keeps_its_epoch_through_a_power_cut(path: Path) -> None:
    broker = SqliteBroker(str(path), Bounds(), Clock().seconds, durable=True, reactor=reactor, boot=lambda: "monday")
    await broker.start(Recorder())
    await broker.publish([draft()])
    crash(broker)
    again = SqliteBroker(str(path), Bounds(), Clock().seconds, durable=True, reactor=reactor, boot=lambda: "tuesday")
    await again.start(Recorder())
    assert again.epoch == broker.epoch
    assert await again.bounds() == (1, 1)
    await again.stop()


# Durable: in a thread


@pytest_twisted.ensureDeferred
async def test_durable_publishes_that_wait_share_a_transaction(path: Path) -> None:
    broker, recorder = SqliteBroker(str(path), Bounds(), Clock().seconds, durable=True, reactor=reactor), Recorder()
    await broker.start(recorder)
    commits: list[str] = []
    broker._store._db.set_trace_callback(lambda statement: commits.append(statement) if statement == "COMMIT" else None)
    first = broker.publish([draft()])
    assert not first.called, "the reactor does not wait for the disk"
    await gatherResults([first] + [broker.publish([draft(), draft()]) for _ in range(10)])
    assert recorder.offsets == list(range(1, 22))
    assert len(commits) == 2
    await broker.stop()


@pytest_twisted.ensureDeferred
async def test_a_durable_publish_that_fails_says_so_and_the_next_one_works(path: Path, logged: list[str]) -> None:
    broker, recorder = SqliteBroker(str(path), Bounds(), Clock().seconds, durable=True, reactor=reactor), Recorder()
    await broker.start(recorder)
    db = broker._store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    publishing = [broker.publish([draft(data=b"x" * 100_000)]) for _ in range(3)]
    for one in publishing:
        with pytest.raises(Unavailable):
            await one
    db.execute("PRAGMA max_page_count = 1000000")
    assert [event.offset for event in await broker.publish([draft()])] == [1]
    assert recorder.offsets == [1]
    assert logged == ["database or disk is full"]
    await broker.stop()


# Real processes

PUBLISHER = """
import sys
from chatws.brokers.contract import Audience, Bounds, Draft
from chatws.brokers.sqlite import SqliteBroker

class Nobody:
    def deliver(self, events): pass
    def reset(self, epoch): pass

path, batches = sys.argv[1], int(sys.argv[2])
broker = SqliteBroker(path, Bounds(), lambda: 1_800_000_000.0)
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
    batch = [Draft("new_message", audience, b'{"n":%d}' % (3 * number + k), f"key{3 * number + k}") for k in range(3)]
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

    broker, _ = open_log(bounds=Bounds(events=0, seconds=0, size=0))
    assert broker.epoch == epoch
    first, last = outcome(broker.bounds())
    assert first == 1
    assert last >= whole_lines
    assert last % 3 == 0, "all of a batch or none"
    events = outcome(broker.read(0, last + 1))
    assert [(event.offset, event.data) for event in events] == [(n, b'{"n":%d}' % (n - 1)) for n in range(1, last + 1)]

    stored_keys = broker._store._db.execute('SELECT count(*), max("offset") FROM keys').fetchone()
    assert stored_keys == (last, last or None)


def test_the_keys_of_a_killed_publisher_still_count(
    publisher: Callable[[int], subprocess.Popen[str]], path: Path
) -> None:
    process = publisher(1)
    assert process.stdout is not None
    assert [process.stdout.readline().strip() for _ in range(5)][1:] == ["1", "2", "3", "done"]
    process.kill()
    process.wait(10)
    broker = SqliteBroker(str(path), Bounds(), lambda: 1_800_000_100.0)
    outcome(broker.start(Recorder()))
    receipts = outcome(broker.publish([draft("key1"), draft("new")]))
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
    assert outcome(broker.bounds()) == (1, 3)


SYNCS = """
import os, sys
from twisted.internet import defer, reactor, task
from chatws.brokers.contract import Audience, Bounds, Draft
from chatws.brokers.sqlite import SqliteBroker

class Nobody:
    def deliver(self, events): pass
    def reset(self, epoch): pass

async def main(reactor):
    broker = SqliteBroker(sys.argv[1], Bounds(), reactor.seconds, durable=sys.argv[2] == "durable", reactor=reactor)
    await broker.start(Nobody())
    os.write(1, b"begin")
    for _ in range(20):
        await broker.publish([Draft("new_message", Audience(("*",)), b"{}")] * 5)
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
