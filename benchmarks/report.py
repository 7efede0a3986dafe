"""Writes docs/performance.md and docs/images/performance.svg from what was measured.

    python benchmarks/report.py

Every figure, and every sentence that compares figures, is made from benchmarks/results.json and benchmarks/storms.json:
a new run cannot leave prose behind that it contradicts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from figures import COLUMNS, MESSAGES, VARIANTS, Figures, best_peer, figures, number, paired, spread, table
from sections import compression, pythons, reactors, scaling, storms

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"

VERSIONS = {
    "chatws": "chatws",
    "Twisted": "Twisted",
    "autobahn": "Autobahn",
    "msgspec": "msgspec",
    "python": "Python",
    "websockets": "websockets",
    "picows": "picows",
    "socketify": "socketify",
    "ws": "ws",
    "socket.io": "Socket.IO",
    "node": "Node",
    "ratchet": "Ratchet",
    "php": "PHP",
    "kernel": "Linux",
    "machine": "on",
}


def main_table(results: dict[str, Any], found: Figures, titles: dict[str, str]) -> str:
    rows = []
    for name, title in titles.items():
        row = found.get(name)
        if row is None or not set(MESSAGES) & set(row) or name in VARIANTS:
            continue
        cells = [number(row.get(column)) + spread(results, name, column) for column in COLUMNS]
        rows.append([f"**{title}**", *[f"**{cell}**" for cell in cells]] if name == "chatws" else [title, *cells])
    best, floors = [], []
    for column in COLUMNS:
        peer = best_peer(results, column)
        best.append(number(paired(results, column, "chatws", peer)[0]) if peer else "")
        with_floor = peer is not None and "floor" in results["runs"][column]
        floors.append(number(paired(results, column, "chatws", "floor")[0]) if with_floor else "")
    for index, column in enumerate(COLUMNS):
        others = [row[column] for name, row in found.items() if name[:6] not in ("chatws", "floor") and column in row]
        if column == "idle" and others and column in found["chatws"]:
            best[index] = number(found["chatws"][column] / min(others))  # there are no rounds of it
    rows += [["*chatws ÷ best peer, within a round*", *best], ["*chatws ÷ C loop, within a round*", *floors]]
    return table(["", *COLUMNS.values()], rows)


def verdict(results: dict[str, Any], found: Figures, titles: dict[str, str]) -> str:
    """What the table says of chatws, in sentences."""
    ours = found["chatws"]
    sentences = []
    for column in MESSAGES:
        name = best_peer(results, column)
        if name is None:
            continue
        unit = COLUMNS[column].rpartition("µs ")[2]
        ratio, low, high, rounds = paired(results, column, "chatws", name)
        sentences.append(
            f"- {COLUMNS[column].partition(':')[0]}: {number(ours[column])} µs {unit}; the best of the others, "
            f"{titles[name]}, {number(found[name][column])} µs. Within the same round chatws took {ratio:.2f} times as "
            f"much (the median of {rounds} rounds; quartiles {low:.2f} and {high:.2f})."
        )
    for name in ("ratchet", "ratchet-storage"):
        if name in found:
            old = [number(paired(results, key, name, "chatws")[0]) for key in MESSAGES if key in found[name]]
            sentences.append(f"- {titles[name]} costs {', '.join(old)} times as much as chatws in these columns.")
    if "ratchet" in found:
        sentences[-1] += of_ratchet(results)
    if "connect" in ours:
        beside = [
            f"{paired(results, 'connect', 'chatws', name)[0]:.2f} times {whose}"
            for name, whose in (("picows", "what picows takes to connect"), ("floor", "the C loop's part"))
            if name in results["runs"]["connect"]
        ]
        sentences.append(
            f"- To connect, authenticate and subscribe: {number(ours['connect'])} µs of processor time, what is "
            f"announced about who is online included"
            + (f" (within a round {' and '.join(beside)})" if beside else "")
            + f"; then {number(ours['idle'])} KiB of memory."
        )
    return "\n".join(sentences)


def of_ratchet(results: dict[str, Any]) -> str:
    """What Ratchet ran on, where that is known."""
    versions = results["versions"]
    if "ratchet_loop" not in versions:
        return ""
    extension = versions["ratchet_extension"]
    text = f" It runs on React's `{versions['ratchet_loop']}`"
    if extension:
        text += f", by the PHP extension `{extension}`"
        if extension not in ("ev", "uv", "event"):
            text += ": not PECL's, but a binding of the same library with what that loop calls and no more"
    return text + "."


def clients(medians: dict[str, Any]) -> str:
    """What a frame cost the load client, beside what the delivery cost the server."""
    pairs = [(one["client_us_per_frame"], name) for name, one in medians.get("room16", {}).items() if name != "floor"]
    if not pairs:
        return ""
    cost, _ = max(pairs)
    return f" It took at most {number(cost)} µs to read a frame in the second column."


PAGE = """# Performance

<!-- written by benchmarks/report.py: do not edit -->

Processor time of the server, with everything switched on (authentication, hub, log and recovery ids, limits, budget
for slow readers, pings), beside other servers under the same load in the same run. All servers are pinned to one core,
their load clients (C, one epoll loop each) to another, over the loopback, with events of some 250 bytes; in each round
they take turns in an order drawn anew, and whoever has no turn is stopped; what has fallen due for it meanwhile, as
pings have, it does before its turn is measured. The time is the kernel's own count for the server's threads, user and
system, and for the kernel's thread that takes over some of the work on a core with much of it (ksoftirqd):
{repetitions}.
chatws and those that come nearest to it are started more often than the others: where its memory lies is a process's
luck for its whole life, and makes a tenth.
While messages are under way the client does not sleep: to wake it would be accounted to the server, and the browsers of
a server are on other machines.{clients}
The first row is a loop of `send()` in C that knows no rooms and joins nothing: what a system call for each delivery
costs.

![chatws and others: processor time per message](images/performance.svg)

{table}

{verdict}

Connecting is measured by itself, with a server started anew for each round. The 9,000 connections are of {users}
people, each with some pages open: chatws tells everybody who comes online, which no other server here does; it is part
of what connecting costs it, and over before messages are counted.

What each of them does, so that the figures can be compared (`benchmarks/servers/`):

- Every server sends every message to every recipient in a frame of its own; the client counts them, and a round with
  a frame lost does not count. Each decodes the message's JSON and looks its room up.
- The messages come from one backend over TCP, a line each. uWebSockets takes no other socket than a WebSocket: there
  the backend is one more WebSocket client, which is in no room. chatws's frames are some 25 bytes longer: they carry
  an id.
- chatws and uWebSockets write once to each connection for all that one read has brought; the others give their
  transport each message as it comes, and some of the transports join what waits.
- chatws asks the kernel for the writes to many connections by one system call (io_uring). Where that is not permitted,
  as in Docker by default, it costs what the row of `--no-io-uring` says.
- uWebSockets is there twice: with libuv's loop, which blocks until something comes, as in C++; and as socketify's
  documentation starts it, where asyncio polls that loop without pause while there is work and for some time after:
  part of what it takes is waiting. socketify 0.0.31 runs the application's Python for each message in both.
- chatws, uWebSockets, websockets, Socket.IO and Autobahn send pings, every 25 to 120 s; picows and ws do not unless
  told to.

## Many connections that are not addressed

An event for three, while others are connected.

{scaling}

## Storms

{storms}

## Which reactor

{reactors}

## Which Python

{pythons}

## Compression

Off by default. With `--compression` an event is deflated once for all connections that negotiated the same window,
which `tests/test_server_compression.py` shows, and not once for each.

{compression}

## What the tests hold

Timings are left to this page. `tests/test_speed_guard.py` counts instead: one `io_uring_enter` for a batch, or one
`send` for each of its connections; no `epoll_ctl`; one frame built for each event; and bounds on the objects made per
delivery and the memory of an idle connection.

## How to repeat it

    make bench

takes about half an hour, needs two cores with nothing else to do, a C compiler and Node, and installs the peers into
`benchmarks/.peers`. `make bench BENCH_ARGS=--quick` is a look, and `python benchmarks/run.py --nearest` compares the
nearest in four minutes. `make bench PYTHON=python3.13` measures with another Python, everybody's, and
`CHATWS_PYTHON=path/to/bin/python`, of an environment that has chatws, puts that one beside the first. Ratchet takes
part where `php` is installed and `RATCHET_VENDOR` names a vendor directory with `cboden/ratchet`.

Measured with {versions}.
"""


def page(results: dict[str, Any], storm: dict[str, Any] | None) -> str:
    """docs/performance.md."""
    found = figures(results["medians"])
    titles = results["titles"]["servers"]
    rounds = sorted(len(runs) for runs in results["runs"].get("room1", {}).values()) or [1]
    versions = results["versions"]
    several = f"{rounds[0]} to {rounds[-1]}" if rounds[0] < rounds[-1] else str(rounds[0])
    return PAGE.format(
        repetitions="taken once" if rounds[-1] == 1 else f"the median of {several} rounds (and their quartiles)",
        clients=clients(results["medians"]),
        table=main_table(results, found, titles),
        verdict=verdict(results, found, titles),
        users=results["users"],
        scaling=scaling(results, found),
        storms=storms(storm) if storm else "Not measured in this run.",
        reactors=reactors(results, found),
        pythons=pythons(results, found),
        compression=compression(results),
        versions=", ".join(f"{title} {versions[key]}" for key, title in VERSIONS.items() if key in versions),
    )


STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 } .value { font-size: 12px; fill: #57606a }
.bar { fill: #8c959f } .ours { fill: #0969da } .floor { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .value { fill: #9198a1 }
  .bar { fill: #656c76 } .ours { fill: #4493f8 } .floor { fill: #3d444d }
}
"""


def chart(results: dict[str, Any]) -> str:
    """Bars for the three message columns: the shorter, the better. A bar too long for the scale is cut, and says so."""
    found, titles = figures(results["medians"]), results["titles"]["servers"]
    left, width, row, y = 230, 430, 20, 10
    parts = []
    for column in MESSAGES:
        costs = {name: line[column] for name, line in found.items() if column in line}
        costs = {name: cost for name, cost in costs.items() if name not in VARIANTS}
        if not costs:
            continue
        ordered = sorted(costs, key=lambda name: (name != "floor", costs[name]))
        usual = sorted(costs.values())
        # Ratchet's inbox would leave a hair's breadth to the others
        scale = min(usual[-1], usual[len(usual) // 2] * 4)
        y += row
        parts.append(f'<text class="head" x="10" y="{y}">{escape(COLUMNS[column])}</text>')
        for name in ordered:
            y += row
            length = max(1.0, min(1.0, costs[name] / scale) * width)
            kind = {"chatws": "ours", "floor": "floor"}.get(name, "bar")
            cut = " →" if costs[name] > scale else ""
            head = ' class="head"' if name == "chatws" else ""
            parts.append(f'<text{head} x="{left - 8}" y="{y}" text-anchor="end">{escape(titles[name])}</text>')
            parts.append(f'<rect class="{kind}" x="{left}" y="{y - 12}" width="{length:.1f}" height="15" rx="2"/>')
            parts.append(f'<text class="value" x="{left + length + 6:.1f}" y="{y}">{number(costs[name])}{cut}</text>')
        y += row // 2
    size = f'width="760" height="{y + 10}" viewBox="0 0 760 {y + 10}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'aria-label="Processor time per message of chatws and other servers">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--storms", type=Path, default=HERE / "storms.json")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    storm = json.loads(arguments.storms.read_text()) if arguments.storms.exists() else None
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    (arguments.docs / "performance.md").write_text(page(results, storm))
    (arguments.docs / "images" / "performance.svg").write_text(chart(results))


if __name__ == "__main__":
    main()
