"""The soak run records and judges what it should. `make soak` is the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.soak import Sample, growth, run


def series(memory: float, files: float, latency: float) -> list[Sample]:
    """Forty samples, of which each value begins at 100 and grows evenly by this much."""
    return [
        Sample(10.0 * number, *(100 + each * number / 40 for each in (memory, files, latency))) for number in range(40)
    ]


def test_flat_series_have_no_growth() -> None:
    assert growth(series(0, 0, 0)) == []
    assert growth(series(5, 10, 100)) == []


@pytest.mark.parametrize(
    ("name", "grown"), [("memory_mib", (30, 0, 0)), ("open_files", (0, 40, 0)), ("ack_p99_ms", (0, 0, 4000))]
)
def test_growing_series_is_named(name: str, grown: tuple[float, float, float]) -> None:
    (problem,) = growth(series(*grown))
    assert problem.startswith(f"{name} grew from 1")


@pytest.mark.long
def test_short_run_writes_the_samples_and_the_chart(tmp_path: Path) -> None:
    samples = run(6, 1, tmp_path, pages=10)
    assert len(samples) >= 3
    assert all(sample.memory_mib > 10 and sample.open_files > 5 for sample in samples)
    lines = (tmp_path / "soak.csv").read_text().splitlines()
    assert lines[0] == "seconds,memory_mib,open_files,ack_p99_ms"
    assert len(lines) == len(samples) + 1
    assert (tmp_path / "soak.svg").read_text().count("<polyline") == 3
