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
from chatws.chat.resume_wait import ResumeWaitQueue
from chatws.database.migrations import apply, transaction
from tests.fakes_brokers import SharedBroker
from tests.postgres import PostgresHistories, postgres_logs
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


@pytest.mark.long
def test_every_handler_gets_the_events_of_the_model_on_several_nodes() -> None:
    run(ClusterRecovery, examples=150, steps=60)


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_every_handler_gets_the_events_of_the_model_on_redis(redis: RedisServer) -> None:
    count = itertools.count()
    machine = machine_on(
        redis.port,
        lambda: redis.url_for(f"{__name__} {next(count)}"),
        lambda url: redis.run("DEL", *redis.run("KEYS", f"*{url.partition('=')[2]}*")),
    )
    await blocking(lambda: run(machine, examples=4, steps=30))


@pytest.mark.long
@pytest_twisted.ensureDeferred
async def test_every_handler_gets_the_events_of_the_model_on_postgresql(postgres_logs: PostgresHistories) -> None:
    server = postgres_logs.server

    def forget(url: str) -> None:
        server.run("DROP SCHEMA chatws CASCADE", url)
        with transaction(url) as cursor:
            apply(cursor, "chatws", migrations())

    machine = machine_on(server.port, server.new_history, forget)
    await blocking(lambda: run(machine, examples=4, steps=30))


def test_interrupted_replay_continues_on_a_node_that_is_behind() -> None:
    machine = ClusterRecovery()
    machine.connect_all_pages()
    machine.read_some(page=0, count=1)
    machine.fall_behind(node=0)
    machine.lose(page=0, handled=0)
    machine.publish(node=1, to="*", excluded=None, count=2)
    machine.come(page=0, node=1)
    machine.move(page=0, node=0, handled=2)
    machine.heal(node=0)
    machine.read_some(page=0, count=5)
    assert machine.pages[0].library.duplicates == 1
    machine.teardown()


def test_model_detects_events_skipped_by_a_node_that_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = ClusterRecovery()
    machine.connect_all_pages()
    machine.subscribe(page=1, conversation_id=10)
    machine.cut_off(node=1)
    machine.publish(node=0, to=conversation_channel(10), excluded=None, count=2)

    def forgetful(self: SharedBroker) -> None:
        self.cut = False
        self._delivered = self.log.window.last

    monkeypatch.setattr(SharedBroker, "heal", forgetful)
    with pytest.raises(AssertionError):
        machine.teardown()


def test_model_detects_a_client_admitted_by_a_node_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: ResumeWaitQueue, client: Any, last_event_id: Any, start: Any) -> Any:
        return start()

    monkeypatch.setattr(ResumeWaitQueue, "run", at_once)
    machine = ClusterRecovery()
    machine.connect_all_pages()
    machine.fall_behind(node=1)
    machine.publish(node=0, to="*", excluded=None, count=2)
    machine.read_some(page=0, count=100)
    machine.move(page=0, node=1, handled=100)
    with pytest.raises(AssertionError):
        machine.read_some(page=0, count=6)
