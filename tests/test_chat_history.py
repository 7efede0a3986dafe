from __future__ import annotations

import tracemalloc

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.event_buffer import AGE_STEP
from chatws.brokers.interface import Audience, Event, NewEvent, Retention
from chatws.brokers.memory import MemoryBroker
from chatws.chat.history import LOAD_CHUNK, History
from chatws.errors import Unavailable


def make_event(offset: int, *channels: str, data: bytes = b"{}", time: float = 0.0) -> Event:
    return Event(offset, "new_message", Audience(channels or ("*",)), data, time)


def make_history(bounds: Retention | None = None, clock: Clock | None = None) -> History:
    history = History(bounds or Retention())
    history.reset("epoch")
    return history


def offsets(events: list[Event] | None) -> list[int] | None:
    return None if events is None else [event.offset for event in events]


class SinceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.history = make_history()
        for offset, channels in enumerate(
            [("a",), ("b",), ("a", "b"), ("c",), ("b", "c", "b"), ("a",)],
            start=1,
        ):
            self.history.append(make_event(offset, *channels))

    def test_since_one_channel_returns_its_events_in_order(self) -> None:
        assert offsets(self.history.since(["a"], 0)) == [1, 3, 6]
        assert offsets(self.history.since(["a"], 1)) == [3, 6]

    def test_since_several_channels_returns_each_event_once(self) -> None:
        assert offsets(self.history.since(["c", "b", "a"], 1)) == [2, 3, 4, 5, 6]
        assert offsets(self.history.since(["b"], 0)) == [2, 3, 5]

    def test_since_with_no_missed_event_is_empty(self) -> None:
        assert self.history.since(["a"], 6) == []
        assert self.history.since(["nobody"], 0) == []
        assert self.history.since([], 0) == []

    def test_since_a_future_offset_is_none(self) -> None:
        assert self.history.since(["a"], 7) is None

    def test_since_a_negative_offset_is_none(self) -> None:
        assert self.history.since(["a"], -1) is None

    def test_since_with_a_limit_returns_the_oldest_and_ends_with_a_short_chunk(self) -> None:
        channels = ["a", "b", "c"]
        seen: list[int] = []
        after, chunks = 0, 0
        while True:
            events = self.history.since(channels, after, limit=2)
            assert events is not None
            seen += [event.offset for event in events]
            chunks += 1
            if len(events) < 2:
                break
            after = seen[-1]
        assert (seen, chunks) == ([1, 2, 3, 4, 5, 6], 4)

    def test_transient_events_are_not_stored(self) -> None:
        self.history.append(make_event(0, "a"))
        assert (self.history.last, offsets(self.history.since(["a"], 5))) == (6, [6])

    def test_event_delivered_again_is_ignored(self) -> None:
        self.history.append(make_event(6, "a"))
        assert offsets(self.history.since(["a"], 0)) == [1, 3, 6]

    def test_since_an_offset_before_missing_events_is_none(self) -> None:
        self.history.append(make_event(9, "a"))
        assert self.history.since(["a"], 7) is None
        assert offsets(self.history.since(["a"], 8)) == [9]

    def test_reset_drops_all_events(self) -> None:
        self.history.reset("other")
        assert (self.history.epoch, self.history.last, len(self.history)) == ("other", 0, 0)
        assert self.history.since(["a"], 1) is None
        assert self.history.since(["a"], 0) == []


class TrimmingTests(SynchronousTestCase):
    def test_retention_by_events_is_exact(self) -> None:
        history = make_history(Retention(events=3, seconds=0, size=0))
        for offset in range(1, 11):
            history.append(make_event(offset))
        assert (len(history), history.first, history.last) == (3, 8, 10)
        assert history.since(["*"], 6) is None
        assert offsets(history.since(["*"], 7)) == [8, 9, 10]

    def test_retention_by_size_is_exact(self) -> None:
        history = make_history(Retention(events=0, seconds=0, size=10))
        for offset in range(1, 5):
            history.append(make_event(offset, data=b"123"))
        assert (history.size, history.first) == (9, 2)
        history.append(make_event(5, data=b"12345678"))
        assert (history.size, history.first) == (8, 5)

    def test_event_above_the_size_counts_and_is_not_stored(self) -> None:
        history = make_history(Retention(size=10))
        history.append(make_event(1, data=b"x" * 11))
        assert (history.last, history.size) == (1, 0)
        assert history.since(["*"], 0) is None
        assert history.since(["*"], 1) == []

    def test_expired_events_are_dropped_when_new_ones_arrive(self) -> None:
        clock = Clock()
        history = make_history(Retention(seconds=60.0), clock)
        history.append(make_event(1, time=0.0))
        clock.advance(61)
        assert offsets(history.since(["*"], 0)) == [1], "still complete: nothing has happened since"
        history.append(make_event(2, time=61.0))
        assert history.since(["*"], 0) is None

    def test_append_drops_at_most_one_step_of_expired_events(self) -> None:
        clock = Clock()
        history = make_history(Retention(seconds=60.0), clock)
        for offset in range(1, 3 * AGE_STEP + 1):
            history.append(make_event(offset))
        clock.advance(61)
        for turn in range(1, 4):
            history.append(make_event(history.last + 1, time=61.0))
            assert history.first == turn * AGE_STEP + 1

    def test_trimming_between_two_chunks_is_detected(self) -> None:
        history = make_history(Retention(events=10))
        for offset in range(1, 11):
            history.append(make_event(offset, "a"))
        assert offsets(history.since(["a"], 0, limit=3)) == [1, 2, 3]
        for offset in range(11, 14):
            history.append(make_event(offset, "b"))
        assert offsets(history.since(["a"], 3, limit=3)) == [4, 5, 6], "only events that were read are gone"
        for offset in range(14, 20):
            history.append(make_event(offset, "b"))
        assert history.since(["a"], 6, limit=3) is None

    def test_index_of_dropped_events_is_dropped(self) -> None:
        history = make_history(Retention(events=2 * History.block))
        for offset in range(1, 10 * History.block + 1):
            history.append(make_event(offset, f"conversation:{offset}"))
            if offset % 1000 == 0:
                assert history.since(["nobody"], history.first - 1) == []
        assert sorted(history._blocks) == [8, 9]

    def test_events_are_not_indexed_before_a_recovery(self) -> None:
        history = make_history()
        history.extend([make_event(offset, "a") for offset in range(1, 5 * History.block)])
        assert history._blocks == {}
        after = 3 * History.block + 7
        assert offsets(history.since(["a"], after)) == list(range(after + 1, 5 * History.block))
        assert sorted(history._blocks) == [3, 4]

    def test_built_block_indexes_later_events(self) -> None:
        history = make_history()
        for offset in range(1, 2 * History.block, 100):
            history.extend([make_event(number, "a") for number in range(offset, offset + 100)])
            assert offsets(history.since(["a"], offset)) == list(range(offset + 1, offset + 100))

    def test_events_dropped_before_indexing_are_never_indexed(self) -> None:
        history = make_history(Retention(events=2))
        history.append(make_event(1, "conversation:1"))
        assert offsets(history.since(["conversation:1"], 0)) == [1]
        history.extend([make_event(offset, f"conversation:{offset}") for offset in range(2, 10)])
        assert offsets(history.since(["conversation:7", "conversation:8", "conversation:9"], 7)) == [8, 9]
        assert set(history._blocks[0].channels) == {"conversation:1", "conversation:8", "conversation:9"}

    def test_data_of_dropped_events_is_freed(self) -> None:
        history = make_history(Retention(events=0, seconds=0, size=1_000_000))
        tracemalloc.start()
        try:
            for offset in range(1, 5001):
                history.append(make_event(offset, data=b"%1000d" % offset))
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 1_600_000, "of 5 MB appended"

    def test_index_with_one_event_a_channel_takes_less_than_150_bytes_an_event(self) -> None:
        events = [make_event(offset, f"conversation:{offset}") for offset in range(1, 20_001)]
        history = make_history()
        tracemalloc.start()
        try:
            for event in events:
                history.append(event)
            assert len(history.since(["conversation:1"], 0) or ()) == 1
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held / len(events) < 150


class SlowBroker:
    """A broker whose reads the test completes."""

    epoch = "epoch"

    def __init__(self, stored: list[Event]) -> None:
        self.stored = stored
        self.reads: list[tuple[int, Deferred[list[Event]]]] = []

    def offset_range(self) -> Deferred[tuple[int, int]]:
        return succeed((self.stored[0].offset, self.stored[-1].offset) if self.stored else (1, 0))

    def read(self, after: int, limit: int) -> Deferred[list[Event]]:
        answer: Deferred[list[Event]] = Deferred()
        self.reads.append((after, answer))
        return answer

    def answer(self) -> None:
        after, answer = self.reads.pop(0)
        answer.callback([event for event in self.stored if event.offset > after][:LOAD_CHUNK])


class LoadingTests(SynchronousTestCase):
    def load(self, history: History, broker: object) -> Deferred[None]:
        return Deferred.fromCoroutine(history.load(broker))  # type: ignore[arg-type]

    def test_load_after_a_restart_reads_the_history_in_chunks(self) -> None:
        class NullHandler:
            def deliver(self, events: object) -> None: ...
            def reset(self, epoch: str) -> None: ...

        broker = MemoryBroker(Retention(events=2500), Clock().seconds)
        broker.start(NullHandler())
        new_events = [NewEvent("new_message", Audience((f"conversation:{n % 2}",)), b"{}") for n in range(3000)]
        self.successResultOf(broker.publish(new_events))
        history = make_history()
        self.successResultOf(self.load(history, broker))
        assert (history.epoch, history.first, history.last) == (broker.epoch, 501, 3000)
        assert offsets(history.since(["conversation:0"], 2990)) == [2991, 2993, 2995, 2997, 2999]
        assert history.since(["conversation:0"], 499) is None

    def test_load_of_a_history_trimmed_to_nothing_keeps_its_offset(self) -> None:
        broker = SlowBroker([])
        broker.offset_range = lambda: succeed((8, 7))  # type: ignore[method-assign]
        history = make_history()
        loaded = self.load(history, broker)
        broker.answer()
        self.successResultOf(loaded)
        assert (history.first, history.last, history.since(["*"], 7)) == (8, 7, [])
        assert history.since(["*"], 6) is None

    def test_events_delivered_during_load_are_stored_once_and_in_order(self) -> None:
        broker = SlowBroker([make_event(offset) for offset in range(1, LOAD_CHUNK + 2)])
        history = make_history()
        loaded = self.load(history, broker)
        broker.stored.append(make_event(LOAD_CHUNK + 2))
        history.append(broker.stored[-1])  # the second read returns it too
        broker.answer()
        after, answer = broker.reads.pop()
        assert after == LOAD_CHUNK
        late = make_event(LOAD_CHUNK + 3)
        history.append(late)  # delivered before the result of a read that does not have it yet
        answer.callback(broker.stored[LOAD_CHUNK:])
        self.successResultOf(loaded)
        assert offsets(history.since(["*"], LOAD_CHUNK - 1)) == list(range(LOAD_CHUNK, LOAD_CHUNK + 4))

    def test_reset_during_load_drops_the_old_epoch(self) -> None:
        broker = SlowBroker([make_event(offset) for offset in range(1, 4)])
        history = make_history()
        loaded = self.load(history, broker)
        history.append(make_event(4))
        history.reset("other")
        history.append(make_event(1, "new"))
        broker.answer()
        self.successResultOf(loaded)
        assert (history.epoch, history.last) == ("other", 1)
        assert offsets(history.since(["new", "*"], 0)) == [1]

    def test_load_from_an_unavailable_broker_fails(self) -> None:
        broker = SlowBroker([make_event(1)])
        history = make_history()
        loaded = self.load(history, broker)
        broker.reads.pop()[1].errback(Unavailable("down"))
        self.failureResultOf(loaded, Unavailable)
        history.append(make_event(5))
        assert history.last == 5


CHANNELS = ["*", "user:1", "user:2", "conversation:1", "conversation:2"]


class HistoryAgainstModel(RuleBasedStateMachine):
    """Compare with a model: the list of all events, and the last offset that has been dropped."""

    bounds = Retention(events=12, seconds=30.0, size=60)

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.history = make_history(self.bounds, self.clock)
        self.history.block = 5
        self.all: list[Event] = []
        self.dropped = 0  # the last offset that has been dropped

    @rule(
        batch=st.lists(
            st.tuples(st.lists(st.sampled_from(CHANNELS), min_size=1, max_size=4), st.integers(0, 80)),
            min_size=1,
            max_size=4,
        )
    )
    def extend(self, batch: list[tuple[list[str], int]]) -> None:
        last, now = len(self.all), self.clock.seconds()
        events = [
            make_event(last + number, *channels, data=b"x" * size, time=now)
            for number, (channels, size) in enumerate(batch, start=1)
        ]
        self.all += events
        self.history.extend(events)
        # With fewer events than a step of age trimming every bound is exact.
        while self.dropped < len(self.all):
            kept = self.all[self.dropped :]
            if (
                len(kept) <= self.bounds.events
                and sum(len(event.data) for event in kept) <= self.bounds.size
                and kept[0].time >= self.clock.seconds() - self.bounds.seconds
            ):
                break
            self.dropped += 1

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(epoch=st.uuids())
    def reset(self, epoch: object) -> None:
        self.history.reset(str(epoch))
        self.all = []
        self.dropped = 0

    @rule(channels=st.sets(st.sampled_from(CHANNELS)), back=st.integers(-2, 15), limit=st.none() | st.integers(1, 5))
    def recover(self, channels: set[str], back: int, limit: int | None) -> None:
        after = len(self.all) - back
        events = self.history.since(channels, after, limit)
        if not self.dropped <= after <= len(self.all):
            assert events is None
        else:
            expected = [event for event in self.all[after:] if channels & set(event.audience.channels)]
            assert events == expected[:limit]

    @invariant()
    def holds_what_it_must(self) -> None:
        assert (self.history.first, self.history.last) == (self.dropped + 1, len(self.all))
        kept = self.all[self.dropped :]
        assert self.history.size == sum(len(event.data) for event in kept)
        assert all(number >= (self.dropped + 1) // 5 for number in self.history._blocks)


HistoryAgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestHistoryAgainstModel = HistoryAgainstModel.TestCase
