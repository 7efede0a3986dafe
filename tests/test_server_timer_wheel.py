"""One delayed call for many deadlines."""

from __future__ import annotations

import random
import weakref

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.server.timer_wheel import SUSPENDED_SECONDS, TimerWheel


class WheelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1234.567)
        self.timer_wheel = TimerWheel(self.clock)
        self.fired: list[object] = []

    def tearDown(self) -> None:
        assert len(self.timer_wheel) == 0
        assert self.clock.getDelayedCalls() == []

    def test_a_callback_runs_once_neither_early_nor_late(self) -> None:
        start = self.clock.seconds()
        dice = random.Random(3)
        due = [dice.uniform(0, 40) for _ in range(300)] + [0.0, 0.25, 1.0]
        when: dict[int, float] = {}
        for index, seconds in enumerate(due):
            self.timer_wheel.schedule(seconds, lambda index=index: when.setdefault(index, self.clock.seconds() - start))
        for _ in range(5000):
            self.clock.advance(0.01)
        assert len(when) == len(due)
        for index, seconds in enumerate(due):
            assert 0 <= when[index] - seconds + 1e-9 <= 0.27

    def test_however_many_there_are_the_reactor_sees_one_call(self) -> None:
        timers = [self.timer_wheel.schedule(seconds % 50, self.fail) for seconds in range(1000)]
        assert len(self.clock.getDelayedCalls()) == 1
        for timer in timers:
            timer.cancel()

    def test_a_cancelled_timer_does_not_fire_and_frees_its_callback(self) -> None:
        def callback() -> None:
            self.fail("it was cancelled")

        freed = weakref.ref(callback)
        timer = self.timer_wheel.schedule(1, callback)
        other = self.timer_wheel.schedule(1, lambda: self.fired.append("other"))
        del callback
        assert timer.active()
        assert freed() is not None
        timer.cancel()
        timer.cancel()
        assert not timer.active()
        assert freed() is None
        self.clock.advance(2)
        assert self.fired == ["other"]
        assert not other.active()
        other.cancel()

    def test_an_earlier_deadline_overtakes(self) -> None:
        self.timer_wheel.schedule(10, lambda: self.fired.append("late"))
        self.timer_wheel.schedule(1, lambda: self.fired.append("early"))
        self.clock.advance(1.5)
        assert self.fired == ["early"]
        self.clock.advance(9)
        assert self.fired == ["early", "late"]

    def test_callbacks_may_schedule_and_cancel(self) -> None:
        def again() -> None:
            self.fired.append(self.clock.seconds())
            victim.cancel()
            if len(self.fired) < 3:
                self.timer_wheel.schedule(1, again)

        self.timer_wheel.schedule(1, again)
        victim = self.timer_wheel.schedule(1, self.fail)
        for _ in range(10):
            self.clock.advance(0.5)
        assert len(self.fired) == 3

    def test_a_callback_that_cancels_the_last_one_stops_the_wheel(self) -> None:
        self.timer_wheel.schedule(1, lambda: later.cancel())
        later = self.timer_wheel.schedule(30, self.fail)
        self.clock.advance(2)

    def test_a_failing_callback_is_logged_and_others_run(self) -> None:
        def fail() -> None:
            raise LookupError

        self.timer_wheel.schedule(1, fail)
        self.timer_wheel.schedule(1, lambda: self.fired.append("next"))
        self.clock.advance(2)
        assert self.fired == ["next"]
        assert len(self.flushLoggedErrors(LookupError)) == 1

    def test_overdue_callbacks_run_in_order(self) -> None:
        for seconds in (5, 1, 3):
            self.timer_wheel.schedule(seconds, lambda seconds=seconds: self.fired.append(seconds))
        self.clock.advance(3600)
        assert self.fired == [], "the reactor has not read yet what has come meanwhile"
        self.clock.advance(0.25)
        assert self.fired == [1, 3, 5]

    def test_a_timer_scheduled_by_a_callback_does_not_delay_others(self) -> None:
        self.timer_wheel.schedule(
            1, lambda: self.timer_wheel.schedule(20, lambda: self.fired.append("from the callback"))
        )
        self.timer_wheel.schedule(2, lambda: self.fired.append("next"))
        for _ in range(10):
            self.clock.advance(0.25)
        assert self.fired == ["next"]
        for _ in range(76):
            self.clock.advance(0.25)
        assert self.fired == ["next", "from the callback"]

    def test_a_small_delay_is_not_a_suspension(self) -> None:
        for seconds in (0.5, 1, 5):
            self.timer_wheel.schedule(seconds, lambda seconds=seconds: self.fired.append(seconds))
        self.clock.advance(SUSPENDED_SECONDS)
        assert self.fired == [0.5, 1]
        self.clock.advance(5)
        assert self.fired == [0.5, 1, 5]

    def test_a_repeatedly_late_wheel_still_advances(self) -> None:
        self.timer_wheel.schedule(1, lambda: self.fired.append(1))
        self.timer_wheel.schedule(20, lambda: self.fired.append(20))
        for _ in range(4):
            self.clock.advance(10)
        assert self.fired == [1, 20]
