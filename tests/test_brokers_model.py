"""Memory and SQLite against a naive model: everything ever accepted, in a list."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from chatws.brokers.interface import KEY_SECONDS, Audience, Broker, Event, NewEvent, Retention
from chatws.brokers.memory import MemoryBroker
from chatws.brokers.sqlite.broker import SqliteBroker
from chatws.errors import Unavailable

new_events = st.builds(
    NewEvent,
    name=st.sampled_from(["new_message", "typing"]),
    audience=st.builds(
        Audience,
        st.lists(st.sampled_from(["*", "user:1", "conversation:x"]), min_size=1, max_size=2).map(tuple),
        st.none() | st.just(7) | st.just("seven"),
    ),
    data=st.binary(max_size=40),
    key=st.none() | st.sampled_from("abc"),
    transient=st.booleans(),
)
batches = st.lists(new_events, max_size=6)


def now_or_never(deferred: Deferred[list[Event]]) -> list[Event]:
    results: list[list[Event]] = []
    deferred.addCallback(results.append)
    assert len(results) == 1, "it should have fired"
    return results[0]


def facts(event: Event) -> tuple[object, ...]:
    return (event.offset, event.name, event.audience, event.data, event.time)


class BrokerAgainstModel(RuleBasedStateMachine):
    retention = Retention(events=8, seconds=300.0, size=120)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.told: list[tuple[object, ...]] = []
        self.to_be_told: list[tuple[object, ...]] = []
        self.log: list[tuple[object, ...]] = []  # all events ever, by offset - 1
        self.gone = 0  # offsets up to this one have been trimmed
        self.keys: dict[str, tuple[int, float]] = {}
        self.replies: list[list[NewEvent]] = []
        self.open()

    def open(self) -> None:
        self.broker = self.make()
        self.broker.start(self)

    make: Callable[[], Broker]

    # the listener

    def deliver(self, events: Sequence[Event]) -> None:
        assert events
        if self.replies:
            reply = self.replies.pop()
            already = len(self.told)
            publishing = self.broker.publish(reply)
            self.expect(reply)
            assert len(self.told) == already, "not before these events have been dealt with"
            assert not publishing.called
        self.told += map(facts, events)

    def reset(self, epoch: str) -> None:
        raise AssertionError("no engine here starts again by itself")

    # the model

    def expect(self, batch: list[NewEvent]) -> list[tuple[int, float, bool]]:
        now = self.clock.seconds()
        receipts: list[tuple[int, float, bool]] = []
        for new_event in batch:
            known = self.keys.get(new_event.key) if new_event.key is not None else None
            if known is not None and now - known[1] < KEY_SECONDS:
                receipts.append((*known, True))
                continue
            event = (
                0 if new_event.transient else len(self.log) + 1,
                new_event.name,
                new_event.audience,
                new_event.data,
                now,
            )
            if not new_event.transient:
                self.log.append(event)
            if new_event.key is not None:
                self.keys[new_event.key] = (event[0], now)
            self.to_be_told.append(event)
            receipts.append((event[0], now, False))
        return receipts

    def trim(self, last: int) -> None:
        while self.gone < last:
            kept = self.log[self.gone : last]
            if (
                len(kept) <= self.retention.events
                and sum(len(event[3]) for event in kept) <= self.retention.size  # type: ignore[arg-type]
                and kept[0][4] >= self.clock.seconds() - self.retention.seconds  # type: ignore[operator]
            ):
                break
            self.gone += 1

    @rule(batch=batches, reply=batches | st.none())
    def publish(self, batch: list[NewEvent], reply: list[NewEvent] | None) -> None:
        if reply is not None:
            self.replies.append(reply)
        length = len(self.log)
        expected = self.expect(batch)
        receipts = now_or_never(self.broker.publish(batch))
        assert [(event.offset, event.time, event.duplicate) for event in receipts] == expected
        self.replies.clear()
        if len(self.log) > length:
            self.trim(len(self.log))

    @rule(seconds=st.sampled_from([0.5, 100.0, 299.0, 599.0, 600.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(after=st.integers(0, 60), limit=st.integers(0, 10))
    def read(self, after: int, limit: int) -> None:
        events = now_or_never(self.broker.read(after, limit))
        assert list(map(facts, events)) == self.log[max(after, self.gone) :][:limit]
        assert not any(event.duplicate for event in events)

    @invariant()
    def agrees(self) -> None:
        assert self.told == self.to_be_told
        assert now_or_never(self.broker.offset_range()) == (self.gone + 1, len(self.log))  # type: ignore[arg-type]

    def teardown(self) -> None:
        self.broker.stop()


class MemoryAgainstModel(BrokerAgainstModel):
    def make(self) -> Broker:
        return MemoryBroker(self.retention, self.clock.seconds)


class FullDisk:
    """A connection that refuses to commit."""

    def __init__(self, real: sqlite3.Connection) -> None:
        self.real = real

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self.real.execute(statement, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class SqliteAgainstModel(BrokerAgainstModel):
    def make(self) -> Broker:
        if not hasattr(self, "place"):
            self.place = Path(tempfile.mkdtemp())
        return SqliteBroker(str(self.place / "log.db"), self.retention, self.clock.seconds)

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        epoch = self.broker.epoch
        if clean:
            self.broker.stop()
        else:
            self.broker._store._db.close()  # type: ignore[attr-defined]
        self.trim(len(self.log))  # as opening does
        self.open()
        assert self.broker.epoch == epoch

    @rule(batch=st.lists(new_events, min_size=1, max_size=12))
    def publish_to_a_full_disk(self, batch: list[NewEvent]) -> None:
        store = self.broker._store  # type: ignore[attr-defined]
        store._db, real = FullDisk(store._db), store._db
        log, keys, to_be_told = self.log.copy(), self.keys.copy(), self.to_be_told.copy()
        expected = self.expect(batch)
        outcomes: list[object] = []
        self.broker.publish(batch).addBoth(outcomes.append)
        store._db = real
        if self.log == log and self.keys == keys:  # only duplicates and transient events: the disk is not needed
            assert [(event.offset, event.time, event.duplicate) for event in outcomes[0]] == expected  # type: ignore[attr-defined]
            return
        assert outcomes[0].check(Unavailable)  # type: ignore[attr-defined]
        self.log, self.keys, self.to_be_told = log, keys, to_be_told

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.place)


for machine in (MemoryAgainstModel, SqliteAgainstModel):
    machine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
    machine.TestCase.pytestmark = [pytest.mark.long]
TestMemoryAgainstModel = MemoryAgainstModel.TestCase
TestSqliteAgainstModel = SqliteAgainstModel.TestCase
