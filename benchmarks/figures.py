"""Figures from the results of benchmarks/run.py, and their format."""

from __future__ import annotations

import statistics
from typing import Any

#: Server → {column → figure}. A column is a workload, or another result of one.
Figures = dict[str, dict[str, float]]

COLUMNS = {
    "room1": "one room of 500, one message at a time: µs per delivery",
    "room16": "the same, 16 messages outstanding: µs per delivery",
    "inbox": "inbox of 9,000 connections, 3 recipients a message, 16 outstanding: µs per message",
    "connect": "connect + hello: µs per connection",
    "idle": "KiB per idle connection",
}
MESSAGES = ("room1", "room16", "inbox")
SCALING = {"inbox1000": 1_000, "inbox9000": 9_000, "inbox19000": 19_000}
#: Variants of chatws that are not in the main table.
VARIANTS = ("chatws-asyncio", "chatws-deflate", "chatws-other-python")


def figures(medians: dict[str, Any]) -> Figures:
    """The figures of all columns, from the medians of the runs."""
    by_name: Figures = {}
    for key, by_server in medians.items():
        for name, run in by_server.items():
            by_name.setdefault(name, {})[key] = run["cpu_us"]
            if key == "inbox":
                by_name[name]["idle"] = max(0.0, run["idle_kib"])
    return by_name


def spread(results: dict[str, Any], name: str, column: str) -> str:
    """The quartiles of a column, if there were several rounds."""
    median = results["medians"].get(column, {}).get(name, {})
    if "cpu_us_low" not in median or len(results["runs"][column][name]) < 3:
        return ""
    return f" ({number(median['cpu_us_low'])} to {number(median['cpu_us_high'])})"


def paired(results: dict[str, Any], column: str, name: str, other: str) -> tuple[float, float, float, int]:
    """The ratios of two servers within each round: median, quartiles, number of rounds."""
    runs = results["runs"][column]
    ratios = [first["cpu_us"] / second["cpu_us"] for first, second in zip(runs[name], runs[other], strict=False)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0], len(ratios)
    low, median, high = statistics.quantiles(ratios, method="inclusive")
    return median, low, high, len(ratios)


def best_peer(results: dict[str, Any], column: str) -> str | None:
    """The best of the other servers, compared with chatws within each round. The floor does not count.

    Not the one with the least median: a machine that is slower in some rounds moves the medians, and not all alike.
    """
    runs = results["runs"].get(column, {})
    peers = [name for name in runs if name != "floor" and not name.startswith("chatws")]
    if "chatws" not in runs or not peers:
        return None
    return max(peers, key=lambda name: paired(results, column, "chatws", name)[0])


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table. All columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
