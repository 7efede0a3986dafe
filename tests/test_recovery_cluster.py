"""Recovery across nodes against a model: random histories of everything that can happen between nodes and their log."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from chatws.chat.audience import conversation_channel
from chatws.chat.catching_up import CatchingUp
from tests.fakes_brokers import SharedBroker
from tests.recovery_cluster import ClusterRecovery


def test_every_handler_sees_what_the_model_says_whatever_happens_between_the_nodes() -> None:
    run_state_machine_as_test(
        ClusterRecovery,
        settings=settings(
            max_examples=150,
            stateful_step_count=60,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
            phases=[Phase.generate],
        ),
    )


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
