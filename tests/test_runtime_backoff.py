"""Delays between attempts."""

from __future__ import annotations

import pytest

from chatws.runtime.backoff import backoff


def test_backoff_without_jitter_doubles_up_to_its_bound() -> None:
    assert [backoff(failures, 0.1, 1.0, lambda: 1.0) for failures in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]


def test_backoff_with_full_jitter_keeps_a_half() -> None:
    assert backoff(3, 0.1, 10.0, lambda: 0.0) == 0.4


@pytest.mark.parametrize("failures", [0, 7, 100_000])
def test_backoff_by_default_is_random_within_its_bounds(failures: int) -> None:
    delays = [backoff(failures, 0.5, 5.0) for _ in range(200)]
    longest = min(5.0, 0.5 * 2 ** min(failures, 10))
    assert longest / 2 <= min(delays) < max(delays) <= longest
