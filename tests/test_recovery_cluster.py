"""Recovery across nodes against a model: random histories of everything that can happen between nodes and their log."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from chatws.brokers.postgres.schema import migrations
from chatws.chat.audience import conversation_channel
from chatws.chat.catching_up import CatchingUp
from chatws.database.migrations import apply, transaction
from tests.fakes_brokers import SharedBroker
from tests.postgres import PostgresLogs, postgres_logs
from tests.recovery_cluster import ClusterRecovery
from tests.recovery_engines import blocking, machine_on
from tests.redis import RedisServer, redis

__all__ = ["postgres_logs", "redis"]


def run(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.generate],
        ),
    )


def test_every_handler_sees_what_the_model_says_whatever_happens_between_the_nodes() -> None:
    run(ClusterRecovery, examples=150, steps=60)


@pytest_twisted.ensureDeferred
async def test_the_same_on_a_real_redis(redis: RedisServer) -> None:
    count = itertools.count()
    machine = machine_on(
        redis.port,
        lambda: redis.url_for(f"{__name__} {next(count)}"),
        lambda url: redis.run("DEL", *redis.run("KEYS", f"*{url.partition('=')[2]}*")),
    )
    await blocking(lambda: run(machine, examples=4, steps=30))


@pytest_twisted.ensureDeferred
async def test_the_same_on_a_real_postgresql(postgres_logs: PostgresLogs) -> None:
    server = postgres_logs.server

    def forget(url: str) -> None:
        server.run("DROP SCHEMA chatws CASCADE", url)
        with transaction(url) as cursor:
            apply(cursor, "chatws", migrations())

    machine = machine_on(server.port, server.new_log, forget)
    await blocking(lambda: run(machine, examples=4, steps=30))


def test_a_replay_that_broke_off_may_go_on_live_at_a_node_that_is_behind() -> None:
    machine = ClusterRecovery()
    machine.everybody_comes()
    machine.read_some(page=0, count=1)
    machine.fall_behind(node=0)
    machine.lose(page=0, handled=0)
    machine.publish(node=1, to="*", left_out=None, count=2)
    machine.come(page=0, node=1)
    machine.move(page=0, node=0, handled=2)
    machine.heal(node=0)
    machine.read_some(page=0, count=5)
    assert machine.pages[0].library.duplicates == 1
    machine.teardown()


def test_the_model_notices_what_a_node_skips_after_it_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = ClusterRecovery()
    machine.everybody_comes()
    machine.subscribe(page=1, conversation_id=10)
    machine.cut_off(node=1)
    machine.publish(node=0, to=conversation_channel(10), left_out=None, count=2)

    def forgetful(self: SharedBroker) -> None:
        self.cut = False
        self._told = self.log.window.last

    monkeypatch.setattr(SharedBroker, "heal", forgetful)
    with pytest.raises(AssertionError):
        machine.teardown()


def test_the_model_notices_one_who_is_let_in_by_a_node_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: CatchingUp, client: Any, last_event_id: Any, question: Any) -> Any:
        return question()

    monkeypatch.setattr(CatchingUp, "ask", at_once)
    machine = ClusterRecovery()
    machine.everybody_comes()
    machine.fall_behind(node=1)
    machine.publish(node=0, to="*", left_out=None, count=2)
    machine.read_some(page=0, count=100)
    machine.move(page=0, node=1, handled=100)
    with pytest.raises(AssertionError):
        machine.read_some(page=0, count=6)
