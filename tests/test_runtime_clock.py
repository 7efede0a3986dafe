"""Intervals do not follow the wall clock, on any of Twisted's reactors; setting it is logged."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from twisted.internet.task import Clock

from chatws.runtime.clock import INTERVAL, ClockWatch, steady_time, use_monotonic_clock
from chatws.runtime.root_service import RootService
from tests.log_lines import logged_at

#: Sets the wall clock, as Python sees it, back by an hour and then forward by two, under calls of each kind.
PROGRAM = """
import sys, time
from twisted.python import runtime
from twisted.internet import base
shift = 0.0
real = time.time
time.time = runtime.seconds = base.runtimeSeconds = lambda: real() + shift
base.ReactorBase.seconds = staticmethod(time.time)
from twisted.application.reactors import installReactor
installReactor(sys.argv[1])
from twisted.internet import reactor, task
reactor.callLater(0.05, print, "before")
from chatws.runtime.clock import use_monotonic_clock
use_monotonic_clock(reactor)
far = reactor.callLater(1800, print, "far")
moved = reactor.callLater(1800, print, "moved")

def back():
    global shift
    shift = -3600.0
    reactor.callLater(0.05, print, "later")
    moved.reset(0.1)
    ticks = task.LoopingCall(lambda: print("tick") or (len(seen) == 2 and ticks.stop() or seen.append(1)))
    seen = []
    ticks.start(0.01).addCallback(lambda _: reactor.callLater(0.2, forward))

def forward():
    global shift
    shift = 3600.0
    reactor.callLater(0.05, end)

def end():
    print("end", far.active(), round(far.getTime() - reactor.seconds()) in range(1790, 1801))
    reactor.stop()

reactor.callLater(0.1, back)
reactor.run()
"""


@pytest.mark.parametrize("name", ["epoll", "poll", "select", "asyncio"])
def test_intervals_ignore_a_wall_clock_that_is_set(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    words = done.stdout.split()
    assert sorted(words) == sorted(["before", "tick", "tick", "tick", "later", "moved", "end", "True", "True"])
    assert words[0] == "before"
    assert words[-3:] == ["end", "True", "True"]


def test_a_reactor_that_runs_keeps_its_clock() -> None:
    class RunningClock(Clock):
        running = True

    clock = RunningClock()
    seconds = clock.seconds
    use_monotonic_clock(clock)
    assert clock.seconds == seconds


def test_steady_time_is_seconds_since_1970_and_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert abs(steady_time() - time.time()) < 5
    before = steady_time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= steady_time() < before + 60


@pytest.mark.parametrize(("step", "output"), [(3600.0, "set forward by 3600 s"), (-3600.0, "set back by 3600 s")])
def test_a_clock_that_is_set_is_logged_once(step: float, output: str) -> None:
    clock = Clock()
    wall = [1_800_000_000.0]
    watch = ClockWatch(clock, lambda: wall[0] + clock.seconds())
    watch.start()
    with logged_at() as warnings:
        clock.advance(INTERVAL)
        wall[0] += 0.5  # what NTP corrects
        clock.advance(INTERVAL)
        assert warnings == []
        wall[0] += step
        clock.pump([INTERVAL] * 3)
    assert len(warnings) == 1
    assert output in warnings[0]
    watch.stop()
    watch.stop()
    assert clock.getDelayedCalls() == []


class QuietRoot(RootService):
    async def _listen(self) -> None: ...

    async def _start(self) -> None: ...


def test_the_clock_watch_runs_only_while_its_root_service_does() -> None:
    clock = Clock()
    root = QuietRoot()
    root.clock_watch = ClockWatch(clock)
    assert clock.getDelayedCalls() == []
    root.startService()
    assert len(clock.getDelayedCalls()) == 1
    root.stopService()
    assert clock.getDelayedCalls() == []
