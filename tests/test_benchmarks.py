"""docs/performance.md, its chart and the README say what was measured. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
MODULES = ("figures", "sections", "report", "readme")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, Any]]:
    """The programs of benchmarks/, as they import each other."""
    path = list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path[:] = path
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads((BENCHMARKS / "results.json").read_text())


def test_the_page_and_the_chart_say_what_was_measured(modules: dict[str, Any], results: Any) -> None:
    report = modules["report"]
    storms = json.loads((BENCHMARKS / "storms.json").read_text())
    assert (ROOT / "docs" / "performance.md").read_text() == report.page(results, storms)
    assert (ROOT / "docs" / "images" / "performance.svg").read_text() == report.chart(results)


def test_the_readme_says_what_was_measured(modules: dict[str, Any], results: Any) -> None:
    readme = modules["readme"]
    page = (ROOT / "README.md").read_text()
    assert readme.fill(page, readme.section(results)) == page


def test_the_readme_names_every_peer_that_was_measured(modules: dict[str, Any], results: Any) -> None:
    section = modules["readme"].section(results)
    for name in results["medians"]["inbox"]:
        if name != "floor" and not name.startswith("chatws"):
            assert f"\n| {results['titles']['servers'][name]} |" in section


def test_a_page_without_a_place_for_figures_is_refused(modules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place for figures"):
        modules["readme"].fill("# chatws\n", "1")
