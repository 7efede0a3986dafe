"""The parts of both suites in which PostgreSQL's versions might differ, on the oldest one there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.contracts.test_broker_contract import (
    World,
    on_postgres,
    test_a_batch_larger_than_the_bound_is_accepted_and_told_whole,
    test_a_key_counts_once_within_a_batch,
    test_an_event_comes_out_as_it_went_in,
    test_ids_of_leases_come_back_as_they_were,
    test_keys_expire_across_a_restart,
    test_leases_say_for_whom_it_makes_a_difference,
    test_reading_in_pages_gives_everything_once,
    test_the_oldest_go_when_their_data_is_too_much,
    test_transient_events_are_told_in_order_and_not_stored,
)
from tests.contracts.test_shared_broker_contract import (
    test_every_node_is_told_of_everything_once_and_in_the_same_order,
    test_leases_are_those_of_all_nodes,
)
from tests.postgres import oldest_postgres_logs
from tests.postgres_nodes import Nodes
from tests.test_brokers_postgres import (
    test_every_committed_event_is_told_once_by_every_node_whatever_overlaps,
    test_one_long_transaction_stalls_nobody_and_is_not_skipped,
    test_the_shops_role_needs_nothing_but_execute,
    test_whatever_isolation_is_the_default_offsets_have_no_gap,
)
from tests.test_brokers_postgres_faults import test_a_log_put_back_from_a_backup_starts_anew

__all__ = [
    "oldest_postgres_logs",
    "test_a_batch_larger_than_the_bound_is_accepted_and_told_whole",
    "test_a_key_counts_once_within_a_batch",
    "test_a_log_put_back_from_a_backup_starts_anew",
    "test_an_event_comes_out_as_it_went_in",
    "test_every_committed_event_is_told_once_by_every_node_whatever_overlaps",
    "test_every_node_is_told_of_everything_once_and_in_the_same_order",
    "test_ids_of_leases_come_back_as_they_were",
    "test_keys_expire_across_a_restart",
    "test_leases_are_those_of_all_nodes",
    "test_leases_say_for_whom_it_makes_a_difference",
    "test_one_long_transaction_stalls_nobody_and_is_not_skipped",
    "test_reading_in_pages_gives_everything_once",
    "test_the_oldest_go_when_their_data_is_too_much",
    "test_the_shops_role_needs_nothing_but_execute",
    "test_transient_events_are_told_in_order_and_not_stored",
    "test_whatever_isolation_is_the_default_offsets_have_no_gap",
]

OLDEST = on_postgres("oldest-postgres", "oldest_postgres_logs")


@pytest_twisted.async_yield_fixture(params=[OLDEST], ids=["oldest-postgres"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


@pytest_twisted.async_yield_fixture(params=[OLDEST], ids=["oldest-postgres"])
async def lasting_world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request, tmp_path)
    yield world
    for broker in world.brokers:
        await broker.stop()


@pytest_twisted.async_yield_fixture
async def nodes(oldest_postgres_logs: object) -> AsyncIterator[Nodes]:
    found = Nodes(oldest_postgres_logs.server)  # type: ignore[attr-defined]
    yield found
    await found.close()
