"""Questions that wait for their turn, user by user."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.auth import fair_queue
from chatws.auth.fair_queue import FairQueue
from chatws.errors import Unavailable

MAX_COST = 5


@dataclass
class Query:
    """A job of the simulation. `wait` is the time between its arrival and its start."""

    owner: str
    arrival: int
    cost: int
    wait: float = math.inf


def simulate(slots: int, jobs: list[Query]) -> None:
    """Run jobs through a queue whose time advances in steps of 1, and set their `wait`."""
    clock = Clock()
    queue = FairQueue(slots, 1e9, clock)

    async def run(job: Query) -> None:
        job.wait = clock.seconds() - job.arrival
        done: Deferred[None] = Deferred()
        clock.callLater(job.cost, done.callback, None)
        await done

    for job in jobs:
        clock.callLater(job.arrival, lambda job=job: Deferred.fromCoroutine(queue.run(job.owner, lambda: run(job))))
    while clock.getDelayedCalls():
        clock.advance(1)


def bound(slots: int, others: int, jobs_before: int) -> float:
    """The longest wait of a job with `jobs_before` unfinished jobs of its owner before it.

    It depends on the number of other owners only. Each turn comes after at most one turn of each other owner, and
    newcomers take every second slot. A slot is released within `MAX_COST`.
    """
    return MAX_COST * (jobs_before + 1) * (2 + math.ceil(2 * (others + 1) / slots))


demands = st.lists(st.tuples(st.integers(0, 30), st.integers(1, MAX_COST), st.integers(1, 150)), max_size=8)
own_jobs = st.lists(st.tuples(st.integers(0, 60), st.integers(1, MAX_COST)), min_size=1, max_size=5)


@given(st.integers(1, 8), demands, own_jobs)
@settings(max_examples=150, deadline=None)
@pytest.mark.long
def test_no_owner_waits_longer_than_the_number_of_owners_allows_whatever_the_others_demand(
    slots: int, others: list[tuple[int, int, int]], own: list[tuple[int, int]]
) -> None:
    crowd = [
        Query(f"other {number}", arrival + index // 10, cost)
        for number, (arrival, cost, count) in enumerate(others)
        for index in range(count)
    ]
    ana = [Query("ana", arrival, cost) for arrival, cost in sorted(own)]
    simulate(slots, sorted([*crowd, *ana], key=lambda job: job.arrival))
    for index, job in enumerate(ana):
        before = [other for other in ana[:index] if other.arrival + other.wait + other.cost > job.arrival]
        assert job.wait <= bound(slots, len(others), len(before))
    assert all(job.wait < math.inf for job in crowd), "everybody has a turn in the end"


@given(st.integers(4, 40))
@settings(max_examples=20, deadline=None)
def test_first_job_of_an_owner_starts_at_once_beside_one_crowd(slots: int) -> None:
    ana = Query("ana", 10, 1)
    simulate(slots, [*(Query("crowd", 0, 3) for _ in range(500)), ana])
    assert ana.wait == 0


@given(st.integers(5, 40))
@settings(max_examples=20, deadline=None)
@pytest.mark.long
def test_first_job_of_an_owner_starts_with_the_next_free_slot_beside_ten_crowds(slots: int) -> None:
    ana = Query("ana", 10, 1)
    simulate(slots, [*(Query(f"crowd {index % 10}", 0, 3) for index in range(1000)), ana])
    assert ana.wait <= 3


class FairQueueCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.queue = FairQueue(2, 5.0, self.clock)
        self.running: dict[str, Deferred[str]] = {}

    def tearDown(self) -> None:
        while self.running:  # a coroutine that is thrown away would run on at a moment of the collector's choice
            self.finish(next(iter(self.running)))

    def run_job(self, owner: str, name: str) -> Deferred[str]:
        async def job() -> str:
            self.running[name] = Deferred()
            try:
                return await self.running[name]
            finally:
                del self.running[name]

        return Deferred.fromCoroutine(self.queue.run(owner, job))

    def finish(self, name: str) -> None:
        self.running[name].callback(name)

    def test_running_jobs_are_limited_to_the_slots(self) -> None:
        results = [self.run_job("ana", f"a{number}") for number in range(5)]
        for number in range(5):
            self.assertEqual(list(self.running), [f"a{n}" for n in range(number, min(number + 2, 5))])
            self.finish(f"a{number}")
            self.assertEqual(self.successResultOf(results[number]), f"a{number}")
        self.assertEqual(self.running, {})
        self.run_job("ana", "b0")
        self.run_job("ana", "b1")
        self.assertEqual(list(self.running), ["b0", "b1"], "the slots are free again")

    def test_newcomers_and_others_take_turns(self) -> None:
        for number in range(100):
            self.run_job("ana", f"a{number}")
        self.run_job("bia", "b0")
        self.run_job("bia", "b1")
        self.run_job("caio", "c0")
        order = []
        for _ in range(8):
            name = next(iter(self.running))
            order.append(name)
            self.finish(name)
        self.assertEqual(order, ["a0", "a1", "b0", "a2", "c0", "b1", "a3", "a4"])

    def test_a_waiting_job_does_not_expire_while_others_succeed(self) -> None:
        results = [self.run_job("ana", f"a{number}") for number in range(10)]
        for number in range(10):
            self.clock.advance(4.0)
            self.finish(f"a{number}")
        self.assertEqual([self.successResultOf(result) for result in results], [f"a{number}" for number in range(10)])

    def test_timeout_of_a_job_fails_jobs_that_have_waited_as_long(self) -> None:
        first, second, third = (self.run_job("ana", f"a{number}") for number in range(3))
        other = self.run_job("bia", "b0")
        self.clock.advance(1.0)
        late = self.run_job("bia", "b1")
        self.clock.advance(4.0)
        self.running["a0"].errback(Unavailable("the database cannot answer"))
        for item in (first, third, other):
            self.failureResultOf(item, Unavailable)
        self.assertEqual(list(self.running), ["a1", "b1"])
        self.finish("b1")
        self.assertEqual(self.successResultOf(late), "b1")
        self.finish("a1")
        self.assertEqual(self.successResultOf(second), "a1")

    def test_a_job_that_is_cancelled_frees_its_slot(self) -> None:
        first, _, third = (self.run_job("ana", f"a{number}") for number in range(3))
        first.addErrback(lambda failure: None)
        first.cancel()
        self.assertEqual(list(self.running), ["a1", "a2"])
        self.finish("a2")
        self.assertEqual(self.successResultOf(third), "a2")

    def test_an_unexpected_failure_fails_only_its_job(self) -> None:
        first, _, third = (self.run_job("ana", f"a{number}") for number in range(3))
        self.clock.advance(60.0)
        self.running["a0"].errback(ZeroDivisionError())
        self.failureResultOf(first, ZeroDivisionError)
        self.assertNoResult(third)
        self.assertEqual(list(self.running), ["a1", "a2"])

    def test_all_owners_together_cannot_fill_the_memory(self) -> None:
        self.patch(fair_queue, "MAX_TOTAL", 4)
        for number in range(5):
            self.run_job("ana", f"a{number}")
        self.run_job("bia", "b0")
        self.failureResultOf(self.run_job("ana", "a5"), Unavailable)
        self.assertNoResult(self.run_job("bia", "b1"))
        self.assertNoResult(self.run_job("caio", "c0"))

    def test_a_job_cancelled_while_it_waits_takes_no_slot(self) -> None:
        results = [self.run_job("ana", f"a{number}") for number in range(4)]
        results[2].addErrback(lambda failure: None)
        results[2].cancel()
        self.finish("a0")
        self.assertEqual(list(self.running), ["a1", "a3"])
        self.finish("a1")
        self.run_job("ana", "a4")
        self.assertEqual(list(self.running), ["a3", "a4"])

    def test_one_owner_cannot_fill_the_memory(self) -> None:
        self.patch(fair_queue, "MAX_WAITING", 3)
        for number in range(5):
            self.run_job("ana", f"a{number}")
        self.failureResultOf(self.run_job("ana", "a5"), Unavailable)
        self.assertNoResult(self.run_job("bia", "b0"))
