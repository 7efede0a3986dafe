"""What benchmarks/run.py measured, as the figures that are shown, and how figures are shown."""

from __future__ import annotations

import statistics
from typing import Any

#: Server → {column → figure}; a column is a workload, or what one of them also tells.
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
#: Rows that are not in the main table: chatws in another shape.
VARIANTS = ("chatws-asyncio", "chatws-uvloop", "chatws-deflate", "chatws-other-python")


def figures(medians: dict[str, Any]) -> Figures:
    """What the columns show, from the medians of the runs."""
    found: Figures = {}
    for key, by_server in medians.items():
        for name, one in by_server.items():
            found.setdefault(name, {})[key] = one["cpu_us"]
            if key == "inbox":
                found[name]["idle"] = max(0.0, one["idle_kib"])
    return found


def spread(results: dict[str, Any], name: str, column: str) -> str:
    """The quartiles of a column, where there were several rounds."""
    one = results["medians"].get(column, {}).get(name, {})
    if "cpu_us_low" not in one or len(results["runs"][column][name]) < 3:
        return ""
    return f" ({number(one['cpu_us_low'])} to {number(one['cpu_us_high'])})"


def paired(results: dict[str, Any], column: str, name: str, other: str) -> tuple[float, float, float, int]:
    """How two servers compare within each round: the median of the ratios, their quartiles, and how many there were."""
    runs = results["runs"][column]
    ratios = [one["cpu_us"] / two["cpu_us"] for one, two in zip(runs[name], runs[other], strict=False)]
    if len(ratios) < 2:
        return ratios[0], ratios[0], ratios[0], len(ratios)
    low, median, high = statistics.quantiles(ratios, method="inclusive")
    return median, low, high, len(ratios)


def best_peer(results: dict[str, Any], column: str) -> str | None:
    """Of the servers that are neither chatws nor the floor, the one that does best beside chatws within each round.

    Not the one with the least median: a machine that is slower in some rounds moves the medians, and not all alike.
    """
    runs = results["runs"].get(column, {})
    peers = [name for name in runs if name != "floor" and not name.startswith("chatws")]
    if "chatws" not in runs or not peers:
        return None
    return max(peers, key=lambda name: paired(results, column, "chatws", name)[0])


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
