"""What `make conformance` makes of the suite's report. The run itself takes long and wants a Python 2.7."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e import conformance

GOOD = {"behavior": "OK", "behaviorClose": "OK"}


@pytest.mark.parametrize("found", [{"behavior": "FAILED"}, {"behavior": "UNIMPLEMENTED"}, {"behaviorClose": "UNCLEAN"}])
def test_a_case_that_goes_wrong_is_named_and_counted(found: dict[str, str]) -> None:
    cases = {"10.1.1": GOOD, "9.1.1": {**GOOD, **found}, "5.3": {**GOOD, "behavior": "NON-STRICT"}}
    (line,) = conformance.failures(cases)
    assert line.startswith("9.1.1: ")
    table = conformance.summary(cases)
    assert "| 9 limits and performance | 0 | 0 | 0 | 1 |" in table
    assert "| **all** | **1** | **1** | **0** | **1** |" in table


def test_the_page_says_that_every_case_was_run_and_none_failed() -> None:
    page = conformance.REPORT.read_text()
    block = page.partition("<!-- conformance: begin")[2].partition("<!-- conformance: end -->")[0]
    (total,) = [line for line in block.splitlines() if line.startswith("| **all**")]
    ok, non_strict, informational, failed = (int(cell.strip(" *")) for cell in total.split("|")[2:-1])
    assert failed == 0
    assert ok + non_strict + informational == int(block.partition("-->")[2].split()[0]) > 500


def test_without_a_python_2_7_it_is_skipped_and_says_so() -> None:
    environment = {**os.environ, "PYTHON27": "python-that-is-nowhere"}
    command: list[Any] = [sys.executable, "-m", "tests.e2e.conformance"]
    done = subprocess.run(command, cwd=conformance.ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "SKIPPED" in done.stdout
    assert "PYTHON27=" in done.stdout
