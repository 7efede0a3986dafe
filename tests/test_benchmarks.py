"""The programs that write docs/performance.md, its chart and the table of README.md. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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


@pytest.fixture
def results() -> Any:
    return json.loads((BENCHMARKS / "results.json").read_text())


@pytest.fixture
def measured(results: Any) -> Any:
    """The committed results with figures of chatws that no run gives, to find them in what is written."""
    for column, cost in (("room1", 123456.0), ("room16", 234567.0), ("inbox", 345678.0)):
        results["medians"][column]["chatws"]["cpu_us"] = cost
    return results


def test_performance_page_has_the_figures_of_the_results(modules: dict[str, Any], measured: Any) -> None:
    page = modules["report"].page(measured, None)
    (row,) = [line for line in page.splitlines() if line.startswith("| **chatws**")]
    cells = row.split("|")
    for cell, figure in zip(cells[2:5], ("123,456", "234,567", "345,678"), strict=True):
        assert cell.strip().startswith(f"**{figure}")
        assert f": {figure} µs" in page
    assert "Not measured in this run." in page


def test_hostile_clients_have_the_worst_delay_of_all_attacks(modules: dict[str, Any]) -> None:
    calm = {"attack": "no attack", "event_max_ms": 900.0, "login_max_ms": 1.0, "failed_logins": 0, "memory_mib": 0.0}
    attacks = [calm, *({**calm, "attack": str(n), "event_max_ms": float(n)} for n in (7, 99, 3))]
    document: dict[str, Any] = {"limit_ms": 100, "load": 0.5, "history": 20_000, "answer_ms": 20.0, "attacks": attacks}
    text = modules["sections"].hostile(document)
    assert "The longest delay of an event was 99 ms, within the target of 100 ms." in text
    assert "| 99 | 99 ms | 1 ms | 0 MiB |" in text
    attacks[2]["event_max_ms"] = 101.0
    assert "101 ms, **beyond** the target" in modules["sections"].hostile(document)


def test_chart_has_a_bar_for_each_server_and_truncates_long_ones(modules: dict[str, Any], measured: Any) -> None:
    chart = ElementTree.fromstring(modules["report"].chart(measured))
    texts = ["".join(text.itertext()) for text in chart.findall(".//{*}text")]
    assert {"123,456 →", "234,567 →", "345,678 →"} <= set(texts)
    assert texts.count("chatws") == 3
    columns = [servers for column, servers in measured["medians"].items() if column in modules["figures"].MESSAGES]
    variants = modules["figures"].VARIANTS
    assert len(list(chart.findall(".//{*}rect"))) == sum(
        name not in variants for servers in columns for name in servers
    )


def test_contacts_are_compared_with_agents_within_each_round(modules: dict[str, Any], results: Any) -> None:
    for key, cost in (("agents9000", 10.0), ("contacts9000", 15.0)):
        runs = results["runs"][key]["chatws"]
        assert len(runs) >= 9
        results["runs"][key]["chatws"] = [{**run, "cpu_us": cost * (1 + number)} for number, run in enumerate(runs)]
    text = modules["sections"].contacts(results, modules["figures"].figures(results["medians"]))
    assert "Within a round a message cost 1.50 times as much with contacts" in text
    del results["medians"]["contacts9000"]
    figures = modules["figures"].figures(results["medians"])
    assert modules["sections"].contacts(results, figures) == "Not measured in this run."


def test_readme_table_has_the_ratio_of_each_peer_within_a_round(modules: dict[str, Any], measured: Any) -> None:
    for column in modules["figures"].MESSAGES:
        for run in measured["runs"][column]["chatws"]:
            run["cpu_us"] = 10.0
        for name in ("picows", "ws"):
            for run in measured["runs"][column][name]:
                run["cpu_us"] = 25.0
    rows = dict(line[2:-2].split(" | ", 1) for line in modules["readme"].section(measured).splitlines())
    titles = measured["titles"]["servers"]
    assert rows[titles["picows"]] == rows[titles["ws"]] == "2.50 | 2.50 | 2.50"
    assert rows["**chatws**"].startswith("**1** (123,456 µs a delivery)")
    assert titles["floor"] not in rows


def test_figures_are_put_between_the_markers_of_a_page(modules: dict[str, Any]) -> None:
    page = "# chatws\n<!-- figures -->\nold\n<!-- end -->\nmore\n"
    assert modules["readme"].fill(page, r"1 \1") == page.replace("old", r"1 \1")


def test_a_page_without_a_place_for_figures_is_refused(modules: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no place for figures"):
        modules["readme"].fill("# chatws\n", "1")
