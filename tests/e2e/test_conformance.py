"""What `make conformance` makes of the suite's report. The run itself takes long and wants a Python 2.7."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import conformance

GOOD = {"behavior": "OK", "behaviorClose": "OK"}


FAILURES = [{"behavior": "FAILED"}, {"behavior": "UNIMPLEMENTED"}, {"behaviorClose": "UNCLEAN"}]


@pytest.mark.parametrize("result", FAILURES)
def test_a_failing_conformance_case_is_named_and_counted(result: dict[str, str]) -> None:
    cases = {"10.1.1": GOOD, "9.1.1": {**GOOD, **result}, "5.3": {**GOOD, "behavior": "NON-STRICT"}}
    (line,) = conformance.failures(cases)
    assert line.startswith("9.1.1: ")
    table = conformance.summary(cases)
    assert "| 9 limits and performance | 0 | 0 | 0 | 1 |" in table
    assert "| **all** | **1** | **1** | **0** | **1** |" in table


def test_the_summary_is_put_between_the_markers_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "reliability.md"
    text = "before\n<!-- conformance: begin, by `make conformance` -->\n{}\n<!-- conformance: end -->\nafter\n"
    page.write_text(text.format("old"))
    monkeypatch.setattr(conformance, "REPORT", page)
    summary = conformance.summary({"1.1.1": GOOD})
    conformance.write(summary)
    assert page.read_text() == text.format(summary)


def test_the_report_page_has_one_place_for_the_summary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(conformance.REPORT.read_text())
    monkeypatch.setattr(conformance, "REPORT", page)
    conformance.write("1 case")
    assert "-->\n1 case\n<!-- conformance: end -->" in page.read_text()


def test_conformance_without_python_2_7_is_skipped_with_a_reason() -> None:
    environment = {**os.environ, "PYTHON27": "python-that-is-nowhere"}
    command: list[Any] = [sys.executable, "-m", "tests.e2e.conformance"]
    done = subprocess.run(command, cwd=conformance.ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "SKIPPED" in done.stdout
    assert "PYTHON27=" in done.stdout
