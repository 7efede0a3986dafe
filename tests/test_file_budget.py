"""How the files of a process are shared between its connections."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from chatws.runtime import file_budget
from chatws.runtime.file_budget import BACKEND, HTTP, METRICS, WEBSOCKET, FileBudget


class FakeNewcomer:
    """One that is closed as `slow` says when it is evicted: at once, in the next turn, or later."""

    def __init__(self, budget: FileBudget, closes: str = "next turn") -> None:
        self.budget = budget
        self.closes = closes
        self.evicted = 0

    def evict(self) -> bool:
        self.evicted += 1
        if self.closes == "at once":
            self.budget.depart(self)
        return self.closes != "later"


class FileBudgetTests(SynchronousTestCase):
    def budget(self, files: int, *guaranteed: str) -> FileBudget:
        self.clock = Clock()
        return FileBudget(guaranteed, lambda: files, self.clock)

    def arrive(self, budget: FileBudget, count: int, closes: str = "next turn") -> list[FakeNewcomer]:
        connections = [FakeNewcomer(budget, closes) for _ in range(count)]
        for connection in connections:
            budget.arrive(connection, HTTP)
        return connections

    def test_an_eighth_is_kept_for_each_guaranteed_kind(self) -> None:
        budget = self.budget(256, WEBSOCKET, BACKEND)
        assert budget.admission_limit == 128
        assert sum(budget.admit(BACKEND) for _ in range(300)) == 112
        assert sum(budget.admit(WEBSOCKET) for _ in range(300)) == 16
        budget.release(BACKEND)
        assert (budget.admit(WEBSOCKET), budget.admit(BACKEND)) == (True, False)

    def test_a_large_limit_keeps_a_fixed_number(self) -> None:
        budget = self.budget(65536, WEBSOCKET, BACKEND)
        assert budget.admission_limit == 65536 - 100 - 140
        assert sum(budget.admit(WEBSOCKET) for _ in range(70_000)) == 65536 - 100 - 140 - 100

    def test_arrive_with_enough_files_evicts_no_newcomer(self) -> None:
        budget = self.budget(256)
        newcomers = self.arrive(budget, 160)
        assert not any(newcomer.evicted for newcomer in newcomers)
        assert budget.sockets() == {HTTP: 160}

    def test_the_oldest_newcomer_is_evicted_for_the_latest(self) -> None:
        for closes in ("at once", "next turn"):
            budget = self.budget(256)
            newcomers = self.arrive(budget, 165, closes)
            assert [newcomer.evicted for newcomer in newcomers] == [1] * 5 + [0] * 160
            for newcomer in newcomers:
                budget.depart(newcomer)
            assert budget.sockets() == {}
            assert budget.evicted == {HTTP: 5}

    def test_a_crowd_of_one_kind_does_not_displace_another_kind(self) -> None:
        budget = self.budget(256)
        http = self.arrive(budget, 20)
        metrics = [FakeNewcomer(budget) for _ in range(500)]
        for metric in metrics:
            budget.arrive(metric, METRICS)
        assert not any(item.evicted for item in http)
        assert sum(metric.evicted for metric in metrics) == 360

    def test_an_evicted_connection_counts_until_it_is_closed(self) -> None:
        budget = self.budget(256)
        newcomers = self.arrive(budget, 161, "later")
        # each that is evicted frees nothing, down to the latest
        assert [newcomer.evicted for newcomer in newcomers] == [1] * 160 + [0]
        for newcomer in newcomers[:160]:
            budget.depart(newcomer)
        assert budget.sockets() == {HTTP: 1}

    def test_admitted_connections_are_not_evicted(self) -> None:
        budget = self.budget(256)
        early = self.arrive(budget, 1)[0]
        assert budget.admit(WEBSOCKET)
        budget.depart(early)
        self.arrive(budget, 500)
        assert early.evicted == 0
        assert budget.sockets()[WEBSOCKET] == 1

    def test_an_eviction_is_logged_once_a_minute_for_each_kind(self) -> None:
        budget = self.budget(256)
        with capturedLogs() as logged:
            self.arrive(budget, 1000)
            self.clock.advance(60)
            self.arrive(budget, 1)
            for _ in range(1000):
                budget.arrive(FakeNewcomer(budget), METRICS)
        lines = [formatEvent(event) for event in logged]
        words = "too few open files: closed the oldest {} connection that was not admitted ({} so far)"
        assert lines == [words.format(HTTP, 1), words.format(HTTP, 841), words.format(METRICS, 1)]

    def test_limit_accepts_bounds_the_accepts_of_a_turn(self) -> None:
        class Port:
            numberAccepts = 100

        for files, accepts in ((65536, 50), (256, 12), (8, 1)):
            port = Port()
            self.budget(files).limit_accepts([port])
            assert port.numberAccepts == accepts


@given(
    st.integers(8, 2000),
    st.lists(st.sampled_from(["arrive", "slow", "admit", "backend", "leave"]), max_size=300),
)
def test_the_files_counted_never_exceed_the_limit_by_more_than_a_turn(files: int, steps: list[str]) -> None:
    budget = FileBudget((WEBSOCKET, BACKEND), lambda: files, Clock())
    newcomers: list[FakeNewcomer] = []
    seen = []
    for step in steps:
        match step:
            case "arrive" | "slow":
                newcomers.append(FakeNewcomer(budget, "at once" if step == "arrive" else "later"))
                budget.arrive(newcomers[-1], HTTP)
            case "leave" if newcomers:
                budget.depart(newcomers.pop(0))
            case "admit" | "backend" if newcomers:
                if budget.admit(WEBSOCKET if step == "admit" else BACKEND):
                    budget.depart(newcomers.pop())
        newcomers = [newcomer for newcomer in newcomers if not newcomer.evicted or newcomer.closes == "later"]
        assert sum(budget.sockets().values()) == len(newcomers) + budget.admitted.total()
        assert budget.admitted.total() <= budget.admission_limit <= files
        seen.append(sum(budget.sockets().values()))
    assert all(later - earlier <= 1 for earlier, later in pairwise(seen))


class SelectReactor(Clock):
    """Twisted's reactor of this name, as far as a budget knows it."""


@pytest.mark.parametrize(
    ("reactor", "platform", "files"),
    [
        (SelectReactor(), "win32", 512),
        (SelectReactor(), "linux", 1024),
        (SelectReactor(), "darwin", 1024),
        (Clock(), "win32", 10_000),
        (Clock(), "linux", 10_000),
    ],
)
def test_a_reactor_that_waits_for_fewer_files_has_a_smaller_budget(
    reactor: Clock, platform: str, files: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_budget, "open_file_limit", lambda: 10_000)
    monkeypatch.setattr(file_budget.sys, "platform", platform)
    expected = FileBudget(limit=lambda: files, clock=reactor).admission_limit
    assert FileBudget(clock=reactor).admission_limit == expected
