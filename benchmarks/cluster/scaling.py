"""Write the tables of docs/scaling.md, and docs/images/cluster.svg, from measurements and the calculation.

    python benchmarks/cluster/scaling.py

The program replaces each part between `<!-- cluster: NAME -->` and `<!-- end -->`. Every figure of the page, and every
sentence that compares figures, is in one of them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import model  # noqa: E402
from figures import number, table  # noqa: E402
from model import SETTINGS, Cost, Costs, Limits, Plan, Workload  # noqa: E402
from report import STYLE  # noqa: E402

DOCS = HERE.parents[1] / "docs"
#: Share of the machine that other programs may use before the run. Above it, the page has a warning.
QUIET = 0.05
SIZES = (1_000, 10_000, 100_000, 1_000_000)
VERSIONS = {
    "chatws": "chatws",
    "Twisted": "Twisted",
    "txpostgres": "txpostgres",
    "txredisapi": "txredisapi",
    "python": "Python",
    "redis": "Redis",
    "postgresql": "PostgreSQL",
    "socket.io": "Socket.IO",
    "@socket.io/redis-adapter": "its Redis adapter",
    "@socket.io/redis-streams-adapter": "its Redis Streams adapter",
    "node-redis": "node-redis",
    "node": "Node",
    "kernel": "Linux",
    "machine": "on",
}


# Measured


def measured_sections(document: dict[str, Any]) -> dict[str, str]:
    """By the name of the marker."""
    return {
        "conditions": _conditions(document),
        "measured": _measured(document),
        "costs per event": _costs_per_event(document),
        "verdict": _verdict(document),
    }


def _name(document: dict[str, Any], key: str) -> str:
    cluster = document["clusters"][key]
    parts = [cluster["title"]]
    if cluster["engine"]:
        parts.append("1 node" if cluster["nodes"] == 1 else f"{cluster['nodes']} nodes")
    return ", ".join(parts)


def _conditions(document: dict[str, Any]) -> str:
    busy = document["busy_before"]
    counts = sorted({len(runs) for runs in document["runs"].values()})
    spread = "" if counts[-1] == 1 else ", and for events per second the minimum and maximum"
    times = "once" if counts[-1] == 1 else f"{' to '.join(map(str, counts))} times. The tables show medians"
    share = max(medians["busy"]["client_cpu"] for medians in document["medians"].values())
    settings = document["settings"]
    cores = document["cores"]
    by_program = document["versions"]
    versions = ", ".join(f"{title} {by_program[key]}" for key, title in VERSIONS.items() if key in by_program)
    paragraphs = (
        f"""Measured {times}{spread}. The nodes, the engine and the load client share **{cores} cores**. Latencies
        are therefore those of a machine with spare capacity, and are valid. Events per second do not grow with the
        nodes here, as they would on separate machines. Two nodes and an engine have more work, because each reads every
        event, and no more cores. The processor time of each process can be carried over to other machines. The column
        *cores of their own* is calculated from it: the events per second of the busiest process with a core to
        itself.""",
        f"""The load client (C, one epoll loop) used at most {share * 100:.0f} % of a core in the busy phases and is not
        the bottleneck. Redis ran with `{settings["redis"]}`, PostgreSQL with `{settings["postgresql"]}`. A write of
        8 KiB with `fdatasync` takes {document["disk_sync_ms"]:.1f} ms on this disk. Measured with {versions}.""",
    )
    if busy > QUIET:
        paragraphs = (
            f"""**Other programs were running** and used {busy * 100:.0f} % of this machine before the first cluster
            was started. These figures are only a first impression.""",
            *paragraphs,
        )
    return "\n\n".join(
        textwrap.fill(" ".join(paragraph.split()), 120, break_long_words=False, break_on_hyphens=False)
        for paragraph in paragraphs
    )


def _delay(delays: dict[str, float] | None, which: str) -> str:
    return f"{delays[which]:.2f}" if delays else ""


def _alone(medians: dict[str, Any]) -> float:
    """Events per second if each process had its own core."""
    costs = dict(medians["busy"]["cpu_us"])
    engine = costs.pop("engine", 0.0)
    return 1e6 / max(engine, sum(costs.values()) / len(costs))


def _measured(document: dict[str, Any]) -> str:
    rows = []
    for key, figures in document["medians"].items():
        rates = [run["busy"]["per_s"] for run in document["runs"][key]]
        quiet, busy = figures["quiet"], figures["busy"]
        rows.append(
            [
                _name(document, key),
                *[_delay(quiet[where], which) for where in ("same", "other") for which in ("p50_ms", "p99_ms")],
                f"{busy['per_s']:,.0f}" + (f" ({min(rates):,.0f} to {max(rates):,.0f})" if len(rates) > 1 else ""),
                f"{_alone(figures):,.0f}",
                "yes" if busy["orders"] == 1 else "no",
            ]
        )
    head = ["", "same node p50, ms", "p99", "another node p50, ms", "p99", "events a second", "cores of their own"]
    return table([*head, "one order everywhere"], rows)


def _costs_per_event(document: dict[str, Any]) -> str:
    rows = []
    for key, figures in document["medians"].items():
        cells = [_name(document, key)]
        for phase in ("quiet", "busy"):
            costs = figures[phase]["cpu_us"]
            nodes = sum(cost for name, cost in costs.items() if name != "engine")
            cells += [number(nodes), number(costs.get("engine"))]
        traffic = figures["busy"].get("engine_bytes", {})
        cells += [number(traffic.get(which)) for which in ("received", "sent", "stored")]
        rows.append(cells)
    head = ["µs per event", "quiet: nodes", "engine", "busy: nodes", "engine"]
    return table([*head, "bytes to the engine", "from it", "stored in it"], rows)


def _verdict(document: dict[str, Any]) -> str:
    """chatws on each engine compared with Socket.IO with as many nodes."""
    medians = document["medians"]
    lines = []
    for engine in ("redis", "postgresql"):
        for nodes in (1, 2, 3):
            ours, theirs = medians.get(f"{engine}-{nodes}"), medians.get(f"socketio-{nodes}")
            if ours is None or theirs is None:
                continue
            where = "other" if nodes > 1 else "same"
            delay, beside = ours["quiet"][where], theirs["quiet"][where]
            rate, their_rate = ours["busy"]["per_s"], theirs["busy"]["per_s"]
            cost, their_cost = (
                sum(medians_of_cluster["busy"]["cpu_us"].values()) for medians_of_cluster in (ours, theirs)
            )
            lines.append(
                f"- {_name(document, f'{engine}-{nodes}')}: {rate / their_rate:.1f} times as many events a second as "
                f"Socket.IO with its Redis adapter, for {cost / their_cost:.2f} times its processor time. A quiet "
                f"event takes {delay['p50_ms']:.2f} ms (p99 {delay['p99_ms']:.2f}), that of Socket.IO "
                f"{beside['p50_ms']:.2f} ms (p99 {beside['p99_ms']:.2f})"
                + (" to a browser on another node." if nodes > 1 else ".")
            )
    return "\n".join(lines) or "Not measured in this run."


def chart(document: dict[str, Any]) -> str:
    """Bars: latency of a quiet event (p50, and p99 behind it), and events per second."""
    medians = document["medians"]
    left, width, row, y = 270, 400, 20, 10
    parts: list[str] = []

    def bars(title: str, figures: dict[str, tuple[float, float]], shown: Any) -> None:
        nonlocal y
        if not figures:
            return
        ordered = sorted(second for _, second in figures.values())
        # an outlier would make the other bars invisible
        scale = min(ordered[-1], ordered[len(ordered) // 2] * 4)
        y += row
        parts.append(f'<text class="head" x="10" y="{y}">{escape(title)}</text>')
        for key, (first, second) in figures.items():
            y += row
            kind, head = ("ours", ' class="head"') if not key.startswith("socketio") else ("bar", "")
            short, long = (min(1.0, item / scale) * width for item in (first, second))
            cut = " →" if second > scale else ""
            parts.append(
                f'<text{head} x="{left - 8}" y="{y}" text-anchor="end">{escape(_name(document, key))}</text>'
                f'<rect class="floor" x="{left}" y="{y - 12}" width="{long:.1f}" height="15" rx="2"/>'
                f'<rect class="{kind}" x="{left}" y="{y - 12}" width="{short:.1f}" height="15" rx="2"/>'
                f'<text class="value" x="{left + long + 6:.1f}" y="{y}">{shown(first, second)}{cut}</text>'
            )
        y += row // 2

    bars(
        "push to browser (on another node with several nodes), ms: median, 99th percentile",
        {key: _pair(result["quiet"]["other"] or result["quiet"]["same"]) for key, result in medians.items()},
        lambda first, second: f"{first:.2f}, {second:.2f}",
    )
    bars(
        f"events a second, on {document['cores']} cores for everything",
        {key: (result["busy"]["per_s"], result["busy"]["per_s"]) for key, result in medians.items()},
        lambda first, _: f"{first:,.0f}",
    )
    size = f'width="800" height="{y + 10}" viewBox="0 0 800 {y + 10}"'
    label = "Latency and events per second of chatws on several engines and of Socket.IO"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _pair(delays: dict[str, float]) -> tuple[float, float]:
    return delays["p50_ms"], delays["p99_ms"]


# Calculated


def model_sections(costs: Costs, work: Workload, limits: Limits) -> dict[str, str]:
    """By the name of the marker."""
    return {
        "workload": _workload(work, limits),
        "carried": _carried(costs),
        "everybody": _everybody(costs, work, limits),
        "largest": _largest(costs, work, limits),
        "sizes": _sizes(costs, work, limits),
        "million": _million(costs, work, limits),
        "storm": _storm(costs, work, limits),
    }


def _engines(costs: Costs) -> list[str]:
    return [name for name in ("memory", "sqlite", "postgresql", "redis") if name in costs.engines]


def _workload(work: Workload, limits: Limits) -> str:
    load = model.load(work, SETTINGS[-1])
    rows = [
        ["connections", f"{work.connections:,}"],
        [
            "of them agents' tabs",
            f"{work.agent_share * 100:.0f} %, {work.tabs:g} to an agent: {work.agents:,.0f} agents",
        ],
        ["conversations of an agent at once", f"{work.conversations:g}"],
        [
            "messages",
            f"one every {work.message_seconds:g} s in each conversation, from either side: {work.messages:,.0f} a "
            f"second",
        ],
        [
            "events of a message",
            f"{work.kept_events:g} kept and {work.typing_events:g} `typing` for the conversation (the customer and the "
            f"agent's tabs), {work.updates:g} `conversation_updated`",
        ],
        ["a customer's page stays open", f"{work.customer_seconds / 60:g} minutes"],
        ["an agent stays online", f"{work.agent_seconds / 3600:g} hours"],
        ["new connections, and as many that close", f"{work.arrivals:,.0f} a second"],
        ["presence changes", f"{work.presence_changes:,.0f} a second"],
        ["events through the broker", f"{load.events:,.0f} a second, presence included"],
        [
            "limits",
            f"{limits.cpu * 100:.0f} % of a core for each node and for the engine, {limits.node_gib:g} GiB and "
            f"{limits.node_connections:,.0f} connections for a node, "
            f"{limits.network * 100:.0f} % of {limits.gigabits:g} Gbit/s at the engine, {limits.reconnect_seconds:g} s "
            f"for all clients to reconnect after a restart of all nodes",
        ],
    ]
    return table(["assumed", ""], rows).replace("| --- | ---: |", "| --- | --- |")


def _carried(costs: Costs) -> str:
    rows = [
        ["one event to one connection, each by itself", f"{number(costs.delivery_us)} µs", "`results.json`, room1"],
        ["connect, authenticate, subscribe", f"{number(costs.connect_us)} µs", "`results.json`, inbox"],
        [f"… and recover {costs.recovered} events", f"{number(costs.reconnect_us)} µs", "`storms.json`, reconnect"],
        ["a WebSocket ping and its answer", f"{number(costs.ping_us)} µs", "`cluster/results.json`, staying"],
        ["memory of an idle connection, chatws", f"{number(costs.idle_kib)} KiB", "`results.json`, inbox"],
        ["… and the kernel", f"{number(costs.socket_kib)} KiB", "`cluster/results.json`, staying"],
    ]
    for name in _engines(costs):
        engine = costs.engines[name]
        where = "`cluster/results.json`, small and flood"

        def pair(cost: Cost) -> str:
            return f"{number(cost.batch_us)} + {number(cost.event_us)} µs"

        rows.append([f"{engine.title}: to publish a batch + each event in it", pair(engine.publisher), where])
        if engine.reader is not None:
            rows.append(["… to read them without recipients", pair(engine.reader), where])
        for count, cost in engine.engine.items():
            rows.append([f"… the engine, for {count} node{'s' if count > 1 else ''}", pair(cost), where])
        rows.append(
            ["… time that an append takes", f"{engine.append_s * 1000:.2f} ms", "`cluster/results.json`, quiet"]
        )
        rows.append(
            ["… memory of a node with its history", f"{engine.node_kib / 1024:.0f} MiB", "`cluster/results.json`"]
        )
    return table(["measured", "", "from"], rows).replace("| --- | ---: | ---: |", "| --- | ---: | --- |")


def _everybody(costs: Costs, work: Workload, limits: Limits) -> str:
    """Broadcasts grow with the square of the connections."""
    rows = []
    for size in SIZES:
        load = model.load(replace(work, connections=size), SETTINGS[0])

        def cores(deliveries: float) -> str:
            return number(deliveries * costs.delivery_us / 1e6)

        rows.append(
            [
                f"{size:,}",
                f"{load.to_conversations:,.0f}",
                cores(load.to_conversations),
                f"{load.updates_to_all:,.0f}",
                cores(load.updates_to_all),
                f"{load.presence_to_all:,.0f}",
                cores(load.presence_to_all),
            ]
        )
    head = ["connections", "to conversations, a second", "cores", "`conversation_updated` to all", "cores"]
    return table([*head, "`agent_status` to all", "cores"], rows)


def _processes(plan: Plan, shared: bool) -> str:
    return f"{plan.nodes:,}" + (" + engine" if shared else "")


def _largest(costs: Costs, work: Workload, limits: Limits) -> str:
    rows = []
    for settings in SETTINGS:
        for name in _engines(costs):
            engine = costs.engines[name]
            most, beyond = model.largest(work, settings, engine, costs, limits)
            nodes = model.plan(replace(work, connections=most), settings, engine, costs, limits).nodes
            rows.append([settings.title, engine.title, f"{_rounded(most):,}", f"{nodes:,}", beyond.breaks])
    text = table(["settings", "engine", "connections at most", "nodes", "first limit"], rows)
    return text.replace("| ---: |\n", "| --- |\n", 1).replace("| --- | ---: |", "| --- | --- |", 1)


def _rounded(value: int) -> int:
    """Round down to two significant digits."""
    power = 10 ** max(0, len(str(value)) - 2)
    return value // power * power


def _sizes(costs: Costs, work: Workload, limits: Limits) -> str:
    rows = []
    for size in SIZES:
        for name in _engines(costs):
            engine = costs.engines[name]
            plan = model.plan(replace(work, connections=size), SETTINGS[-1], engine, costs, limits)
            events = model.load(replace(work, connections=size), SETTINGS[-1]).events
            rows.append(
                [
                    f"{size:,}",
                    engine.title,
                    f"{events:,.0f}",
                    f"{plan.nodes:,}" if plan.fits else f"does not fit: {plan.breaks}",
                    _percent(plan.used(model.NODE_CPU)),
                    _percent(plan.used(model.READING)),
                    _percent(plan.used(model.ENGINE_CPU)) if engine.engine else "",
                    f"{plan.used(model.NETWORK) * 1000:,.1f}" if engine.engine else "",
                    f"{plan.used(model.MEMORY):.2f}",
                ]
            )
    head = ["connections", "engine", "events a second", "nodes", "a node's core", "of it reading events"]
    text = table([*head, "the engine's core", "its Mbit/s", "GiB a node"], rows)
    return text.replace("| --- | ---: |", "| --- | --- |", 1)


def _percent(share: float) -> str:
    return f"{share * 100:,.1f} %" if share < 0.1 else f"{share * 100:,.0f} %"


def _million(costs: Costs, work: Workload, limits: Limits) -> str:
    rows, sentences = [], []
    for settings in SETTINGS:
        for name in _engines(costs):
            engine = costs.engines[name]
            whole = model.plan(work, settings, engine, costs, limits)
            clusters = model.sharded(work, settings, engine, costs, limits)
            row = [settings.title, engine.title]
            row.append(f"{whole.nodes:,}" if whole.fits else f"no: {whole.breaks}")
            if clusters is None:
                rows.append([*row, "", "", "", ""])
                continue
            shards, plan = clusters
            size = -(-work.connections // shards)
            memory = plan.used(model.MEMORY) * plan.nodes * shards
            total = shards * plan.nodes
            rows.append(
                [*row, f"{shards:,} of {size:,}", f"{total:,}", f"{shards if engine.engine else 0:,}", f"{memory:,.0f}"]
            )
            if settings is SETTINGS[-1]:
                sentences.append(
                    f"- {engine.title}: {shards:,} clusters of {plan.nodes} node{'s' if plan.nodes > 1 else ''} "
                    f"({total:,} processes with {memory:,.0f} GiB). The tightest limit is {plan.breaks}, "
                    f"used to {plan.tightest.ratio * 100:.0f} %."
                )
    head = ["settings", "engine", "in one cluster: nodes", "clusters", "nodes in all", "engines", "GiB in all"]
    text = table(head, rows).replace("| --- | ---: | ---: |", "| --- | --- | ---: |", 1)
    return f"{text}\n\nWith the last settings:\n\n" + "\n".join(sentences)


def _storm(costs: Costs, work: Workload, limits: Limits) -> str:
    engine = next((name for name in reversed(_engines(costs)) if costs.engines[name].engine), None)
    if engine is None:
        return "Not calculated: no shared engine was measured."
    rows = []
    for size in SIZES[1:]:
        workload = replace(work, connections=size)
        plan = model.plan(workload, SETTINGS[-1], costs.engines[engine], costs, limits)
        nodes = max(2, plan.nodes)
        each = size / nodes * costs.reconnect_us / 1e6
        rows.append([f"{size:,}", f"{nodes:,}", f"{each / (nodes - 1):,.1f} s", f"{each:,.1f} s"])
    return table(["connections", "nodes", "one node lost: the others are busy for", "all restarted: busy for"], rows)


# The page


def fill(page: str, sections: dict[str, str]) -> str:
    """Replace the text between the page's markers.

    :raises KeyError: the page lacks a marker.
    """
    for name, text in sections.items():
        pattern = re.compile(rf"(<!-- cluster: {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
        if not pattern.search(page):
            raise KeyError(name)
        page = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page, count=1)
    return page


def sections(benchmarks: Path = HERE.parent) -> dict[str, str]:
    """The text between each pair of markers."""
    document = json.loads((benchmarks / "cluster" / "results.json").read_text())
    return measured_sections(document) | model_sections(model.read_costs(benchmarks), Workload(), Limits())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    page = arguments.docs / "scaling.md"
    try:
        texts = sections()
    except (KeyError, FileNotFoundError) as error:
        sys.exit(f"not all that the page needs was measured: {error} is missing (make bench, make bench-cluster)")
    page.write_text(fill(page.read_text(), texts))
    document = json.loads((HERE / "results.json").read_text())
    (arguments.docs / "images" / "cluster.svg").write_text(chart(document))


if __name__ == "__main__":
    main()
