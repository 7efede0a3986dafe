"""Repeated recoveries of a hostile client: what a bystander waits for, in steps, and what is held, in bytes."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from chatws.brokers.interface import Retention
from chatws.brokers.memory import MemoryBroker
from chatws.chat.client import MAX_WAITING
from chatws.chat.history import History
from chatws.chat.interfaces import Credentials, Identity
from chatws.chat.recovery import MAX_REPLAYS
from chatws.chat.server import ChatServer
from chatws.chat.session import SessionLimits
from chatws.chat.work_scheduler import WorkScheduler
from chatws.ids import Id
from tests.fakes import FakeConnection, send_all

EVENTS = 20_000
BLOCK = History.block


#: The agent who is in the group "sales".
SELLER = 9


class Accounts:
    """An authenticator that believes the page."""

    def authenticate(self, credentials: Credentials) -> Identity:
        assert credentials.user_id is not None
        return Identity(credentials.user_id, "trust", groups=("sales",) if credentials.user_id == SELLER else None)

    def forget(self, user_id: Id, *, is_contact: bool = False) -> None:
        pass


class StepClock(Clock):
    """A clock on which each look takes a millisecond, so that a turn of the scheduler has two steps."""

    def seconds(self) -> float:
        self.rightNow += 0.001
        return self.rightNow

    def turn(self) -> None:
        """Make the calls that are due, and none that they add: one turn of a reactor."""
        now = self.seconds()
        due = [call for call in self.calls if call.getTime() <= now]
        self.calls = [call for call in self.calls if call not in due]
        for call in due:
            call.called = 1
            call.func(*call.args, **call.kw)


class UnreadConnection(FakeConnection):
    """A connection whose peer never reads: a stream is never asked for a chunk."""

    def resume_stream(self) -> None:
        pass


class WorkSchedulerTests(SynchronousTestCase):
    def test_key_with_many_jobs_gets_no_more_steps_than_a_key_with_one(self) -> None:
        clock = StepClock()
        scheduler = WorkScheduler(clock)
        order: list[str] = []

        def job(key: str, steps: int) -> None:
            left = [steps]

            def step() -> bool:
                order.append(key)
                left[0] -= 1
                return left[0] > 0

            scheduler.submit(key, step)

        for _ in range(50):
            job("greedy", 10)
        job("modest", 3)
        while scheduler:
            clock.turn()
        assert order[:6] == ["greedy", "modest"] * 3
        assert len(order) == 503

    def test_turn_ends_after_two_milliseconds(self) -> None:
        clock = StepClock()
        scheduler = WorkScheduler(clock)
        scheduler.submit("user", lambda: scheduler.steps < 10)
        clock.turn()
        assert scheduler.steps == 2
        scheduler.stop()
        assert clock.getDelayedCalls() == []

    def test_live_events_get_every_second_step(self) -> None:
        clock = StepClock()
        scheduler = WorkScheduler(clock)
        order: list[str] = []

        def job(name: str) -> Callable[[], bool]:
            def step() -> bool:
                order.append(name)
                return order.count(name) < 4

            return step

        for user in ("a", "b"):
            scheduler.submit(user, job(user))
        scheduler.submit_live(job("live"))
        while scheduler:
            clock.turn()
        assert order == ["live", "a", "live", "b", "live", "a", "live", "b", "a", "b", "a", "b"]

    def test_first_live_steps_run_at_once_for_one_turn_s_time(self) -> None:
        clock = StepClock()
        scheduler = WorkScheduler(clock)
        scheduler.submit_live(lambda: scheduler.steps < 5)
        assert scheduler.steps == 2
        scheduler.submit_live(lambda: scheduler.steps < 20)
        assert scheduler.steps == 2
        clock.turn()
        assert scheduler.steps == 4
        scheduler.stop()

    def test_failed_step_is_logged_and_the_next_job_runs(self) -> None:
        clock = StepClock()
        scheduler = WorkScheduler(clock)
        ran: list[int] = []
        scheduler.submit("user", lambda: bool(1 // 0))
        scheduler.submit("user", lambda: bool(ran.append(1)))
        clock.turn()
        assert ran == [1]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


@dataclass
class Demand:
    """A job of the property test: its key, the turn in which it is submitted, and its steps."""

    key: str
    turn: int
    steps: int
    submitted_at: int = 0
    ended_at: int = 0


demands = st.lists(st.builds(Demand, st.sampled_from("bcdefg"), st.integers(0, 20), st.integers(1, 200)), max_size=40)
own_demands = st.lists(
    st.builds(Demand, st.just("ana"), st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=4
)


@given(demands, own_demands)
@settings(max_examples=30, deadline=None)
def test_no_user_waits_longer_than_the_number_of_users_allows_whatever_the_others_demand(
    others: list[Demand], own: list[Demand]
) -> None:
    clock = StepClock()
    scheduler = WorkScheduler(clock)

    def submit(demand: Demand) -> None:
        left = demand.steps
        demand.submitted_at = scheduler.steps

        def step() -> bool:
            nonlocal left
            left -= 1
            demand.ended_at = scheduler.steps
            return left > 0

        scheduler.submit(demand.key, step)

    waiting = sorted([*others, *own], key=lambda demand: demand.turn)
    turn = 0
    while waiting or scheduler:
        while waiting and waiting[0].turn <= turn:
            submit(waiting.pop(0))
        clock.turn()
        turn += 1
    users = len({demand.key for demand in others}) + 1
    for index, demand in enumerate(sorted(own, key=lambda demand: demand.turn)):
        before = sum(other.steps for other in sorted(own, key=lambda demand: demand.turn)[:index])
        assert demand.ended_at - demand.submitted_at <= (before + demand.steps) * users
    assert all(demand.ended_at for demand in others), "everybody has a turn in the end"


class RepeatedRecoveryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = StepClock()
        broker = MemoryBroker(Retention(), self.clock.seconds)
        self.chat = ChatServer(
            broker,
            authenticator=Accounts(),
            history=History(Retention()),
            limits=SessionLimits(message_rate=0, subscription_rate=0),
            reactor=self.clock,
            schedule=Clock().callLater,
            send_all=send_all,
            auth_deadline=0,
        )
        Deferred.fromCoroutine(self.chat.start())
        for number in range(0, EVENTS, 1000):
            self.publish(456, range(number, number + 1000))

    def publish(self, conversation_id: int, numbers: Any) -> None:
        new_event = self.chat.audiences.new_event
        self.chat.publish(
            [new_event("new_message", b'{"conversation_id":%d,"n":%d}' % (conversation_id, n)) for n in numbers]
        )

    def open(self, user_id: int, connection: FakeConnection | None = None) -> FakeConnection:
        connection = connection or FakeConnection()
        self.chat.on_open(connection)
        self.say(connection, type="auth", user_id=user_id)
        return connection

    def say(self, connection: FakeConnection, **message: Any) -> None:
        self.chat.on_message(connection, json.dumps(message))

    def start(self) -> str:
        return f"{self.chat.broker.epoch}:0"

    def test_bystander_waits_for_two_steps_however_many_recoveries_are_asked_for(self) -> None:
        bystander = self.open(1)
        self.say(bystander, type="subscribe", conversation_id=7)
        bystander.take()
        attackers = [self.open(2) for _ in range(10)]
        looked: list[int] = []
        since = self.chat.history.since

        def counted(*arguments: Any) -> Any:
            events = since(*arguments)
            looked.append(len(events or ()))
            return events

        self.patch(self.chat.history, "since", counted)
        for _ in range(20):
            for attacker in attackers:
                self.say(attacker, type="subscribe", conversation_id=456, last_event_id=self.start())
                self.say(attacker, type="auth", user_id=2, last_event_id=self.start())
        assert sum(looked) <= 4 * BLOCK
        for number in range(50):
            looked.clear()
            self.clock.turn()
            assert len(looked) <= 3
            assert sum(looked) <= 3 * BLOCK
            self.publish(7, [number])
            assert [event["data"]["n"] for event in bystander.take() if event["event"] == "new_message"] == [number]

    def test_other_users_recovery_takes_turns_with_the_attackers(self) -> None:
        for _ in range(10):
            attacker = self.open(2)
            for _ in range(20):
                self.say(attacker, type="subscribe", conversation_id=456, last_event_id=self.start())
        victim = self.open(3)
        before = self.chat._scheduler.steps
        self.say(victim, type="subscribe", conversation_id=456, last_event_id=self.start())
        while not any(event["event"] == "subscribed" for event in victim.take()):
            self.clock.turn()
        assert self.chat._scheduler.steps - before <= 2 * (EVENTS // BLOCK + 2)

    @pytest.mark.long
    def test_client_that_never_reads_holds_one_replay_and_no_events(self) -> None:
        attacker = self.open(2, UnreadConnection())
        self.say(attacker, type="subscribe", conversation_id=456, last_event_id=self.start())
        while not self.chat.replays:
            self.clock.turn()
        gc.collect()
        before = sum(map(sys.getsizeof, gc.get_objects()))
        for _ in range(200):
            self.say(attacker, type="subscribe", conversation_id=456, last_event_id=self.start())
            while self.chat.pending_searches:
                self.clock.turn()
        gc.collect()
        assert self.chat.replays == 1
        assert len([item for item in attacker._queue if not isinstance(item, bytes)]) == 1
        replies = sum(len(item) for item in attacker._queue if isinstance(item, bytes))
        assert sum(map(sys.getsizeof, gc.get_objects())) - before < 200_000 + replies

    def test_recoveries_above_the_limit_of_replays_wait_and_end_with_the_connection(self) -> None:
        for conversation_id in range(1000, 1010):
            self.publish(conversation_id, range(500))
        position = f"{self.chat.broker.epoch}:{EVENTS}"
        attacker = self.open(2, UnreadConnection())
        for conversation_id in range(1000, 1010):
            self.say(attacker, type="subscribe", conversation_id=conversation_id, last_event_id=position)
        for _ in range(100):
            self.clock.turn()
        assert (self.chat.replays, self.chat.pending_searches) == (MAX_REPLAYS, 1)
        for _ in range(MAX_WAITING + 1):
            self.say(attacker, type="subscribe", conversation_id=1001, last_event_id=position)
        assert not attacker.reading
        self.chat.on_close(attacker)
        assert (self.chat.replays, self.chat.pending_searches) == (0, 0)

    def test_ban_during_a_search_reaches_a_client_that_is_not_in_the_hub_yet(self) -> None:
        connection = FakeConnection()
        self.chat.on_open(connection)
        self.say(connection, type="auth", user_id=5, last_event_id=self.start())
        assert self.chat.pending_searches == 1
        self.chat.disconnect(5, "banned", ban=True)
        assert connection.closed == (4903, "banned")
        self.clock.turn()
        assert (connection.take(), self.chat.pending_searches) == ([], 0)

    def test_revoked_subscription_during_its_search_replays_nothing(self) -> None:
        connection = self.open(5)
        connection.take()
        self.say(connection, type="subscribe", conversation_id=456, last_event_id=self.start())
        self.chat.unsubscribe(5, 456)
        for _ in range(100):
            self.clock.turn()
        assert [event["event"] for event in connection.take()] == ["subscribed", "unsubscribed"]
        assert self.chat.hub.count("conversation:456") == 0

    def test_group_lost_in_the_middle_of_a_replay_is_not_replayed_further(self) -> None:
        position = f"{self.chat.broker.epoch}:{EVENTS}"
        new_event = self.chat.audiences.new_event
        for number in range(2000):
            to = ("group:sales",) if number % 2 else (f"user:{SELLER}",)
            self.chat.publish([new_event("note", b'{"n":%d}' % number, to)])
        connection = FakeConnection()
        self.chat.on_open(connection)
        self.say(connection, type="auth", user_id=SELLER, last_event_id=position)
        while not any(event["event"] == "note" for event in connection.take()):
            self.clock.turn()
        self.chat.set_groups(SELLER, ())
        assert [event["event"] for event in connection.take()] == []  # `groups` follows the replay
        for _ in range(100):
            self.clock.turn()
        after = [event["data"]["n"] for event in connection.take() if event["event"] == "note"]
        assert [number for number in after if number % 2] == []
        assert after == [*range(after[0], 2000, 2)]
        assert len(after) > 500
        assert self.chat.replays == 0

    def test_subscription_revoked_in_the_middle_of_its_replay_ends_it(self) -> None:
        connection = self.open(5)
        self.say(connection, type="subscribe", conversation_id=456, last_event_id=self.start())
        while not self.chat.replays:
            self.clock.turn()
        self.clock.turn()
        connection.take()
        self.chat.unsubscribe(5, 456)
        for _ in range(100):
            self.clock.turn()
        assert [event["event"] for event in connection.take()] == ["unsubscribed"]
        assert self.chat.replays == 0

    def test_replies_keep_their_order_and_pong_does_not_wait(self) -> None:
        connection = self.open(5)
        connection.take()
        self.say(connection, type="subscribe", conversation_id=456, last_event_id=self.start())
        self.say(connection, type="subscribe", conversation_id=7)
        self.say(connection, type="presence")
        self.say(connection, type="ping")
        assert [event.get("type") for event in connection.take()] == ["pong"]
        for _ in range(400):
            self.clock.turn()
        names = [event["event"] for event in connection.take()]
        assert names == ["subscribed", *["new_message"] * EVENTS, "subscribed", "presence"]
