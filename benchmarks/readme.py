"""Writes the figures of README.md from benchmarks/results.json.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from figures import MESSAGES, figures, number, paired, table

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"

HEADS = {
    "room1": "one room of 500, one message at a time",
    "room16": "the same, 16 messages outstanding",
    "inbox": "9,000 connections, 3 of them for each message",
}
_MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.S)


def section(results: dict[str, Any]) -> str:
    """A table: each server's processor time as a multiple of chatws' within the same round (the median of all)."""
    by_server, titles = figures(results["medians"]), results["titles"]["servers"]
    ours = by_server["chatws"]
    units = {key: results["units"][key] for key in MESSAGES}
    rows = [["**chatws**", *[f"**1** ({number(ours[key])} µs a {units[key]})" for key in MESSAGES]]]
    for name, title in titles.items():
        row = by_server.get(name, {})
        if name.startswith("chatws") or name == "floor" or not set(MESSAGES) <= set(row):
            continue
        rows.append([title, *[number(paired(results, key, name, "chatws")[0]) for key in MESSAGES]])
    return table(["processor time, chatws = 1", *HEADS.values()], rows)


def fill(page: str, text: str) -> str:
    """The page with `text` between its markers.

    :raises ValueError: it has no markers.
    """
    filled, count = _MARKED.subn(lambda match: f"{match[1]}{text}\n{match[2]}", page)
    if count != 1:
        raise ValueError("README.md has no place for figures: <!-- figures --> … <!-- end -->")
    return filled


if __name__ == "__main__":
    README.write_text(fill(README.read_text(), section(json.loads((HERE / "results.json").read_text()))))
