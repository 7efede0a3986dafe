from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.event_buffer import AGE_STEP, EventBuffer
from chatws.brokers.idempotency import IdempotencyCache
from chatws.brokers.interface import KEY_SECONDS, Audience, Event, NewEvent, Retention
from chatws.brokers.memory import MemoryBroker


class BatchTests:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def deliver(self, events: Sequence[Event]) -> None:
        self.batches.append([event.offset for event in events])

    def reset(self, epoch: str) -> None: ...


def new_event(key: str | None = None, data: bytes = b"{}") -> NewEvent:
    return NewEvent("new_message", Audience(("*",)), data, key)


def event(offset: int, time: float = 0.0) -> Event:
    return Event(offset, "e", Audience(("*",)), b"12", time)


class Memory(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.listener = BatchTests()
        self.broker = MemoryBroker(Retention(), self.clock.seconds)
        self.successResultOf(self.broker.start(self.listener))

    def test_a_batch_is_delivered_completely_before_publish_returns(self) -> None:
        self.successResultOf(self.broker.publish([new_event(), new_event(), new_event()]))
        self.successResultOf(self.broker.publish([new_event()]))
        assert self.listener.batches == [[1, 2, 3], [4]]

    def test_a_batch_of_duplicates_is_not_delivered(self) -> None:
        self.broker.publish([new_event("k")])
        self.broker.publish([new_event("k"), new_event("k")])
        assert self.listener.batches == [[1]]

    def test_every_memory_broker_has_its_own_epoch(self) -> None:
        epochs = {MemoryBroker(Retention(), self.clock.seconds).epoch for _ in range(100)}
        assert len(epochs) == 100


class TheWindow(SynchronousTestCase):
    def window(self, retention: Retention, count: int) -> EventBuffer:
        window = EventBuffer(retention)
        for offset in range(1, count + 1):
            window.extend([event(offset)], 0.0)
        return window

    def test_any_event_held_is_found_by_its_offset(self) -> None:
        window = self.window(Retention(events=700), 5000)
        assert [window[offset].offset for offset in range(4301, 5001)] == list(range(4301, 5001))
        for offset in (4300, 5001, 0, -1):
            with self.assertRaises(KeyError):
                window[offset]

    def test_the_buffer_s_list_is_bounded_by_its_events(self) -> None:
        window = EventBuffer(Retention(events=1000))
        for offset in range(1, 20_001):
            window.extend([event(offset)], 0.0)
            assert len(window._events) <= 2002

    def test_a_step_over_the_next_offset_is_refused(self) -> None:
        window = self.window(Retention(), 3)
        for offsets in ([3], [5], [0], [4, 6], [3, 4]):
            with self.assertRaises(ValueError):
                window.extend([event(offset) for offset in offsets], 0.0)
        assert (window.last, len(window)) == (3, 3)

    def test_old_events_go_a_step_at_a_time(self) -> None:
        window = self.window(Retention(seconds=10.0), AGE_STEP + 5)
        assert len(window.extend([event(AGE_STEP + 6, 100.0)], 100.0)) == AGE_STEP
        assert len(window.extend([event(AGE_STEP + 7, 100.0)], 100.0)) == 5
        assert window.extend([event(AGE_STEP + 8, 100.0)], 100.0) == []
        assert (window.first, window.last, window.size, len(window)) == (AGE_STEP + 6, AGE_STEP + 8, 6, 3)

    def test_expired_events_are_dropped_faster_than_new_ones_arrive(self) -> None:
        count = 10 * AGE_STEP
        window = self.window(Retention(seconds=10.0), 2 * count)
        dropped = window.extend([event(2 * count + n, 100.0) for n in range(1, count + 1)], 100.0)
        assert [item.offset for item in dropped] == list(range(1, 2 * count + 1))

    def test_the_bounds_on_number_and_size_hold_also_within_a_batch(self) -> None:
        window = EventBuffer(Retention(events=5))
        assert [item.offset for item in window.extend([event(n) for n in range(1, 9)], 0.0)] == [1, 2, 3]
        window = EventBuffer(Retention(size=5))
        assert [item.offset for item in window.extend([event(n) for n in range(1, 9)], 0.0)] == [1, 2, 3, 4, 5, 6]
        assert (window.size, [item.offset for item in window.read(0, 10)]) == (4, [7, 8])


class TheKeys(SynchronousTestCase):
    def test_memory_follows_the_rate_of_publishing(self) -> None:
        keys = IdempotencyCache()
        for n in range(1000):
            keys.remember(f"a{n}", n, 0.0)
        forgotten: list[str] = []
        for n in range(250):
            forgotten += keys.remember(f"b{n}", n, KEY_SECONDS)
        assert sorted(forgotten) == sorted(f"a{n}" for n in range(1000))
        assert len(keys) == 250

    def test_a_reused_key_is_not_expired_with_its_first_use(self) -> None:
        keys = IdempotencyCache()
        for n in range(6):
            keys.remember(f"k{n}", n, 0.0)
        assert keys.remember("k5", 50, KEY_SECONDS) == ["k0", "k1", "k2", "k3"]
        assert keys.remember("other", 51, KEY_SECONDS) == ["k4"]
        assert keys.find("k5", KEY_SECONDS) == (50, KEY_SECONDS)

    def test_a_clock_set_back_makes_keys_last_longer_and_never_shorter(self) -> None:
        keys = IdempotencyCache()
        keys.remember("k", 1, 1000.0)
        assert keys.find("k", 0.0) == (1, 1000.0)
        assert keys.find("k", 1000.0 + KEY_SECONDS) is None
