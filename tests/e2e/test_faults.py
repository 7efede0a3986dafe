"""What was acknowledged arrives, whatever happens to the process (the run itself: tests/e2e/fault_run.py)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.fault_run import run


@pytest.mark.long
def test_twenty_kills_lose_nothing_and_repeat_nothing(chatws_server: Callable[..., Any]) -> None:
    server = chatws_server("--broker", "sqlite:///log.db", "--drain-timeout", "0.3")
    report = asyncio.run(run(server, faults=20, clients=50, seed=random.randrange(2**32)))
    assert len(report.acknowledged) > 200, report
    assert (report.lost, report.duplicates, report.out_of_order, report.resyncs) == (0, 0, 0, 0), report
