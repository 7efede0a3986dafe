"""The turns of the reactor are measured, and a long one is logged with its place: real reactors, each in a process."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from chatws.runtime.turns import BUCKETS, LONG_TURN, MAX_SOCKETS, Turns

ROOT = Path(__file__).parents[1]

#: Has three kinds of long turns, one of them twice, and prints the histogram and the log.
PROGRAM = """
import gc, json, sys, time
from twisted.application.reactors import installReactor
installReactor(sys.argv[1])
from twisted.internet import reactor
from twisted.logger import formatEvent, globalLogPublisher
from chatws.chat.work_scheduler import WorkScheduler
from chatws.runtime.turns import LONG_TURN, Turns
lines = []
globalLogPublisher.addObserver(lambda event: lines.append(formatEvent(event)))
turns = Turns(reactor)
original = getattr(reactor, "_poller", None)
scheduler = WorkScheduler(reactor)

def work():
    end = time.monotonic() + 3 * LONG_TURN
    while time.monotonic() < end:
        pass
    return False

def collect():
    callback = lambda phase, info: time.sleep(LONG_TURN) if phase == "start" else None
    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)

def end():
    turns.stop()
    assert getattr(reactor, "_poller", None) is original
    print(json.dumps([turns.histogram.buckets(), turns.histogram.total, lines]))
    reactor.stop()

calls = [
    turns.start,
    lambda: scheduler.submit("user", work),
    lambda: None,
    lambda: scheduler.submit("user", work),
    lambda: None,
    collect,
    lambda: time.sleep(2 * LONG_TURN),
    lambda: None,
    end,
]

def run():
    calls.pop(0)()
    if calls:
        reactor.callLater(0.05, run)  # in another turn

reactor.callWhenRunning(run)
reactor.run()
"""


class SlowPoller:
    """A poller on which nothing ever happens."""

    def __init__(self) -> None:
        self.register = self.modify = self.unregister = lambda *arguments: None

    def poll(self, timeout: float) -> list[float]:
        time.sleep(timeout)
        return [timeout]


def run(name: str) -> tuple[list[tuple[str, float]], float, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    buckets, total, lines = json.loads(done.stdout.splitlines()[-1])
    return buckets, total, [line for line in lines if "turn" in line]


@pytest.mark.parametrize("name", ["epoll", "poll"])
def test_long_turn_is_counted_and_logged_with_its_place(name: str) -> None:
    buckets, total, lines = run(name)
    count = buckets[-1][1]
    long = count - dict(buckets)[str(LONG_TURN)]
    assert long >= 4
    assert total > 9 * LONG_TURN
    places = [line.partition(" ms, in ")[2] for line in lines]
    # the step of a job is not of chatws here, so its caller is named. It is logged once a minute
    assert places.count("chatws.chat.work_scheduler.WorkScheduler._run_step") == 1
    assert "the garbage collector" in places
    assert len(places) == len(set(places))


def test_other_reactor_is_not_measured_and_works() -> None:
    buckets, _, lines = run("select")
    assert buckets[-1][1] == 0
    assert lines == []


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the system has no epoll")
def test_turn_serves_a_bounded_number_of_sockets_and_the_next_ones_the_others() -> None:
    reactor = Clock()
    reactor._poller = poller = select.epoll()  # type: ignore[attr-defined]
    turns = Turns(reactor)
    turns.start()
    pairs = [socket.socketpair() for _ in range(3 * MAX_SOCKETS)]
    try:
        for ours, theirs in pairs:
            poller.register(ours, select.EPOLLIN)
            theirs.send(b"x")
        served: list[int] = []
        for _ in range(3):
            ready = reactor._poller.poll(0, len(pairs))  # type: ignore[attr-defined]
            assert len(ready) == MAX_SOCKETS
            served += [descriptor for descriptor, _ in ready]
        assert {*served} == {ours.fileno() for ours, _ in pairs}, "each once, although none has been read"
    finally:
        turns.stop()
        poller.close()
        for pair in pairs:
            for end in pair:
                end.close()


def test_time_between_two_turns_does_not_count() -> None:
    reactor = Clock()
    reactor._poller = SlowPoller()  # type: ignore[attr-defined]
    turns = Turns(reactor)
    turns.start()
    for _ in range(3):
        reactor._poller.poll(0.2)  # type: ignore[attr-defined]
    turns.stop()
    assert turns.histogram.buckets()[-1] == ("+Inf", 3.0)
    assert turns.histogram.total < 0.2


def test_a_second_measurement_of_the_same_reactor_leaves_it_alone() -> None:
    reactor = Clock()
    reactor._poller = poller = SlowPoller()  # type: ignore[attr-defined]
    first, second = Turns(reactor), Turns(reactor)
    first.start()
    second.start()
    assert reactor._poller.poll(0.01) == [0.01]  # type: ignore[attr-defined]
    second.stop()
    first.stop()
    first.stop()
    assert reactor._poller is poller  # type: ignore[attr-defined]
    assert first.histogram.buckets()[-1] == ("+Inf", 1.0)
    assert second.histogram.buckets()[-1] == ("+Inf", 0.0)


def test_buckets_show_the_aim_and_what_is_logged() -> None:
    assert {0.002, LONG_TURN} <= set(BUCKETS)
