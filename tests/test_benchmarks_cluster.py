"""The programs that write docs/scaling.md: the sections, the chart and the calculation. Nothing is timed here."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "benchmarks" / "cluster"
MODULES = ("model", "scaling", "report")


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The programs of benchmarks/cluster, as one of them imports the others."""
    path = list(sys.path)
    sys.path.insert(0, str(CLUSTER))
    try:
        yield {name: importlib.import_module(name) for name in ("model", "scaling")}
    finally:
        sys.path[:] = path
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture
def model(modules: dict[str, ModuleType]) -> Any:
    return modules["model"]


@pytest.fixture
def scaling(modules: dict[str, ModuleType]) -> Any:
    return modules["scaling"]


def test_sections_of_the_page_have_the_figures_of_the_results(scaling: Any) -> None:
    document = json.loads((CLUSTER / "results.json").read_text())
    medians = document["medians"]["redis-2"]
    medians["busy"]["per_s"] = 10 * document["medians"]["socketio-2"]["busy"]["per_s"]
    medians["quiet"]["other"] = {"p50_ms": 12.34, "p99_ms": 56.78}
    medians["busy"]["cpu_us"] = {"node1": 1500.0, "node2": 500.0, "engine": 777.0}
    sections = scaling.measured_sections(document)
    name = "chatws, Redis, 2 nodes"
    rows = {section: sections[section].splitlines() for section in ("measured", "costs per event", "verdict")}
    (delays,) = [line for line in rows["measured"] if line.startswith(f"| {name} ")]
    assert " 12.34 | 56.78 | " in delays
    (costs,) = [line for line in rows["costs per event"] if line.startswith(f"| {name} ")]
    assert " 2,000 | 777 | " in costs
    (sentence,) = [line for line in rows["verdict"] if line.startswith(f"- {name}: ")]
    assert sentence.startswith(f"- {name}: 10.0 times as many events a second as Socket.IO")
    chart = ElementTree.fromstring(scaling.chart(document))
    texts = ["".join(text.itertext()) for text in chart.findall(".//{*}text")]
    assert "12.34, 56.78" in {text.removesuffix(" →") for text in texts}
    assert texts.count(name) == 2


def test_sections_are_put_between_the_markers_of_their_name(scaling: Any) -> None:
    page = "<!-- cluster: {0} -->\n{1}\n<!-- end -->\nbetween\n<!-- cluster: {2} -->\n{3}\n<!-- end -->\n"
    filled = scaling.fill(page.format("b", "old", "a", "old"), {"a": r"new \1", "b": "other"})
    assert filled == page.format("b", "other", "a", r"new \1")


def test_measured_figures_are_only_in_generated_blocks() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    prose = re.sub(r"<!-- cluster: .*? -->.*?<!-- end -->", "", page, flags=re.S)
    assert not re.findall(r"[0-9][0-9.,]* (?:µs|ms|KiB|MiB|GiB|cores?\b)", prose)


def test_a_page_without_a_marker_is_refused(scaling: Any) -> None:
    with pytest.raises(KeyError, match="measured"):
        scaling.fill("# Scaling\n", {"measured": "…"})


def test_a_plan_that_fits_keeps_every_limit_and_one_node_less_does_not(model: Any) -> None:
    costs, limits, settings = model.read_costs(), model.Limits(), model.SETTINGS[-1]
    engine = costs.engines["redis"]
    most, _ = model.largest(model.Workload(), settings, engine, costs, limits)
    work = replace(model.Workload(), connections=most)
    result = model.plan(work, settings, engine, costs, limits)
    assert result.fits
    assert all(need.used <= need.limit for need in result.needs)
    assert result.nodes > 1
    fewer = model.needs(work, settings, engine, costs, limits, result.nodes - 1)
    assert any(need.used > need.limit for need in fewer)


def test_broadcast_load_grows_with_the_square_of_connections(model: Any) -> None:
    first = model.load(replace(model.Workload(), connections=10_000), model.SETTINGS[0])
    two = model.load(replace(model.Workload(), connections=20_000), model.SETTINGS[0])
    assert two.updates_to_all == pytest.approx(4 * first.updates_to_all)
    assert two.presence_to_all == pytest.approx(4 * first.presence_to_all)
    assert two.to_conversations == pytest.approx(2 * first.to_conversations)
    assert two.events == pytest.approx(2 * first.events)


def test_settings_that_tell_fewer_people_carry_more_connections(model: Any) -> None:
    costs, limits = model.read_costs(), model.Limits()
    engine = costs.engines["redis"]
    most = [model.largest(model.Workload(), settings, engine, costs, limits) for settings in model.SETTINGS]
    assert [connections for connections, _ in most] == sorted({connections for connections, _ in most})
    assert not any(beyond.fits for _, beyond in most)


def test_independent_clusters_carry_a_million_connections(model: Any) -> None:
    costs, limits = model.read_costs(), model.Limits()
    for name, engine in costs.engines.items():
        result = model.sharded(model.Workload(), model.SETTINGS[-1], engine, costs, limits)
        assert result is not None, name
        shards, first = result
        assert first.fits
        size = -(-model.Workload().connections // shards)
        again = model.plan(replace(model.Workload(), connections=size), model.SETTINGS[-1], engine, costs, limits)
        assert again == first


def test_the_nodes_reading_does_not_shrink_with_more_of_them(model: Any) -> None:
    costs, limits, work = model.read_costs(), model.Limits(), model.Workload()
    engine = costs.engines["redis"]

    def used(nodes: int, what: str) -> float:
        plan = model.Plan(False, nodes, model.needs(work, model.SETTINGS[-1], engine, costs, limits, nodes))
        return float(plan.used(what))

    assert used(20, model.READING) >= used(10, model.READING)
    assert used(20, model.NETWORK) > used(10, model.NETWORK)
    assert used(20, model.MEMORY) < used(10, model.MEMORY)


def test_engine_cost_is_extrapolated_linearly(model: Any) -> None:
    assert model.for_nodes({1: 10.0, 2: 12.0, 3: 14.0}, 10) == pytest.approx(28.0)
    assert model.for_nodes({1: 10.0, 2: 12.0, 3: 14.0}, 2) == 12.0
    assert model.for_nodes({1: 14.0, 2: 12.0, 3: 13.0}, 10) == 14.0


def test_the_limiting_resource_is_not_relieved_by_more_nodes(model: Any) -> None:
    costs, limits = model.read_costs(), model.Limits()
    for name in ("redis", "postgresql"):
        _, beyond = model.largest(model.Workload(), model.SETTINGS[-1], costs.engines[name], costs, limits)
        assert beyond.breaks not in model.DIVIDED


def test_assumptions_can_be_changed_on_the_command_line(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["model.py", "--set", "connections=5000", "--set", "cpu=0.25"])
    model.main()
    output = capsys.readouterr().out
    assert "| connections | 5,000 |" in output
    assert "25 % of a core" in output
    monkeypatch.setattr(sys, "argv", ["model.py", "--set", "shops=3"])
    with pytest.raises(SystemExit):
        model.main()
    assert "agent_share" in capsys.readouterr().err
