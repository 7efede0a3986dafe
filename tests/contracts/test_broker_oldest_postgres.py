"""The parts of both suites in which PostgreSQL's versions might differ, on the oldest one there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_twisted

from tests.contracts.test_broker_contract import (
    World,
    on_postgres,
    test_a_batch_larger_than_the_history_bound_is_delivered_completely,
    test_a_key_counts_once_within_a_batch,
    test_an_event_is_delivered_unchanged,
    test_keys_expire_across_a_restart,
    test_lease_ids_are_returned_unchanged,
    test_lease_returns_the_users_whose_presence_changed,
    test_reading_in_pages_gives_everything_once,
    test_retention_by_size_drops_the_oldest,
    test_transient_events_are_delivered_in_order_and_not_stored,
)
from tests.contracts.test_shared_broker_contract import (
    test_every_node_receives_every_event_once_in_the_same_order,
    test_leases_are_those_of_all_nodes,
)
from tests.postgres import oldest_postgres_logs
from tests.postgres_nodes import Nodes
from tests.requirements import needs
from tests.test_brokers_postgres import (
    test_a_long_transaction_delays_no_event_and_is_not_skipped,
    test_offsets_have_no_gap_under_serializable_isolation,
    test_overlapping_transactions_are_delivered_once_by_every_node,
    test_the_shops_role_needs_nothing_but_execute,
)
from tests.test_brokers_postgres_faults import test_a_history_restored_from_a_backup_begins_a_new_epoch

__all__ = [
    "oldest_postgres_logs",
    "test_a_batch_larger_than_the_history_bound_is_delivered_completely",
    "test_a_history_restored_from_a_backup_begins_a_new_epoch",
    "test_a_key_counts_once_within_a_batch",
    "test_a_long_transaction_delays_no_event_and_is_not_skipped",
    "test_an_event_is_delivered_unchanged",
    "test_every_node_receives_every_event_once_in_the_same_order",
    "test_keys_expire_across_a_restart",
    "test_lease_ids_are_returned_unchanged",
    "test_lease_returns_the_users_whose_presence_changed",
    "test_leases_are_those_of_all_nodes",
    "test_offsets_have_no_gap_under_serializable_isolation",
    "test_overlapping_transactions_are_delivered_once_by_every_node",
    "test_reading_in_pages_gives_everything_once",
    "test_retention_by_size_drops_the_oldest",
    "test_the_shops_role_needs_nothing_but_execute",
    "test_transient_events_are_delivered_in_order_and_not_stored",
]

pytestmark = needs("postgresql")

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
    result = Nodes(oldest_postgres_logs.server)  # type: ignore[attr-defined]
    yield result
    await result.close()
