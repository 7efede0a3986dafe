"""Write docs/performance.md and docs/images/performance.svg from the measurements.

    python benchmarks/report.py

Every figure, and every sentence that compares figures, is made from the JSON files in benchmarks/:
a new run cannot leave prose behind that it contradicts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from figures import COLUMNS, MESSAGES, VARIANTS, Figures, best_peer, figures, number, paired, spread, table
from sections import compression, contacts, hostile, longest_turns, pythons, reactors, scaling, storms

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


def main_table(results: dict[str, Any], by_server: Figures, titles: dict[str, str]) -> str:
    rows = []
    for name, title in titles.items():
        row = by_server.get(name)
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
        others = [
            row[column] for name, row in by_server.items() if name[:6] not in ("chatws", "floor") and column in row
        ]
        if column == "idle" and others and column in by_server["chatws"]:
            best[index] = number(by_server["chatws"][column] / min(others))  # it has no rounds
    rows += [["*chatws ÷ best peer, within a round*", *best], ["*chatws ÷ C loop, within a round*", *floors]]
    return table(["", *COLUMNS.values()], rows)


def verdict(results: dict[str, Any], by_server: Figures, titles: dict[str, str]) -> str:
    """The results of chatws in sentences."""
    ours = by_server["chatws"]
    sentences = []
    for column in MESSAGES:
        name = best_peer(results, column)
        if name is None:
            continue
        unit = COLUMNS[column].rpartition("µs ")[2]
        ratio, low, high, rounds = paired(results, column, "chatws", name)
        sentences.append(
            f"- {COLUMNS[column].partition(':')[0]}: {number(ours[column])} µs {unit}. The best of the others, "
            f"{titles[name]}, took {number(by_server[name][column])} µs. Within the same round chatws took {ratio:.2f} "
            f"times as much (the median of {rounds} rounds, quartiles {low:.2f} and {high:.2f})."
        )
    for name in ("ratchet", "ratchet-storage"):
        if name in by_server:
            old = [number(paired(results, key, name, "chatws")[0]) for key in MESSAGES if key in by_server[name]]
            sentences.append(f"- {titles[name]} costs {', '.join(old)} times as much as chatws in these columns.")
    if "ratchet" in by_server:
        sentences[-1] += of_ratchet(results)
    if "connect" in ours:
        beside = [
            f"{paired(results, 'connect', 'chatws', name)[0]:.2f} times {whose}"
            for name, whose in (("picows", "the cost of picows"), ("floor", "that of the C loop"))
            if name in results["runs"]["connect"]
        ]
        sentences.append(
            f"- To connect, authenticate and subscribe takes {number(ours['connect'])} µs of processor time, including "
            "presence announcements."
            + (f" That is {' and '.join(beside)}, within a round." if beside else "")
            + f" The connection then takes {number(ours['idle'])} KiB of memory."
        )
    return "\n".join(sentences)


def of_ratchet(results: dict[str, Any]) -> str:
    """The event loop of Ratchet, if it is known."""
    versions = results["versions"]
    if "ratchet_loop" not in versions:
        return ""
    extension = versions["ratchet_extension"]
    text = f" It runs on React's `{versions['ratchet_loop']}`"
    if extension:
        text += f" with the PHP extension `{extension}`"
        if extension not in ("ev", "uv", "event"):
            text += ". It is not PECL's, but a minimal binding of the same library for the calls of this loop"
    return text + "."


def clients(medians: dict[str, Any]) -> str:
    """The load client's cost of a frame."""
    pairs = [
        (result["client_us_per_frame"], name) for name, result in medians.get("room16", {}).items() if name != "floor"
    ]
    if not pairs:
        return ""
    cost, _ = max(pairs)
    return f" It took at most {number(cost)} µs to read a frame in the second column."


PAGE = """# Performance

<!-- written by benchmarks/report.py: do not edit -->

This page compares the processor time of chatws with other servers, under the same load in the same run. In chatws
everything is enabled: authentication, hub, history and recovery ids, limits, send queues, pings.

## Method

- All servers are pinned to one core, their load clients (C, one epoll loop each) to another. They communicate over
  the loopback, with events of some 250 bytes.
- In each round the servers take turns in a random order. Idle servers are stopped with SIGSTOP. Overdue timers
  (pings) run before measurement starts.
- The time is the kernel's count for the server's threads, user and system. It includes the kernel thread that takes
  over work on a busy core (ksoftirqd). Tables show {repetitions}.
- Memory layout varies per process start and changes results by up to 10 %, so chatws and its close competitors are
  restarted more often.
- The client does not sleep while messages are under way. Waking it would be counted as the server's time, and a real
  server's browsers run on other machines.{clients}
- The first row of the table is a loop of `send()` in C without rooms and without batching. It shows the cost of a
  system call for each delivery.

## Results

![chatws and others: processor time per message](images/performance.svg)

{table}

{verdict}

Connecting is measured separately, with a server that is restarted for each round. The 9,000 connections belong to
{users} users, each with some pages open. chatws announces each user who comes online, which no other server here
does. That is part of its cost to connect, and it is finished before messages are counted.

## Comparability

`benchmarks/servers/` has the programs.

- Every server sends every message to every recipient in its own frame. The client counts the frames, and a round with
  a lost frame is discarded. Each server decodes the message's JSON and looks up its room.
- The messages come from one backend over TCP, one line each. For uWebSockets, the backend is one more WebSocket
  client that is in no room, because uWebSockets has no other socket than a WebSocket. Frames of chatws are some 25
  bytes longer, because they carry an id.
- chatws and uWebSockets write once to each connection for all messages of one read. The others give their transport
  each message as it comes, and some of the transports combine waiting data.
- chatws uses io_uring to write to many connections with one system call. If the kernel forbids it, as in Docker by
  default, the row of `--no-io-uring` applies.
- uWebSockets is measured with two loops. One is libuv's, which blocks until something happens, as in C++. The other
  is the default of socketify, where asyncio polls that loop continuously while there is work and for some time after.
  Part of its time is waiting. socketify 0.0.31 runs the application's Python for each message in both.
- chatws, uWebSockets, websockets, Socket.IO and Autobahn send pings, every 25 to 120 s. picows and ws do not by
  default.

## Idle connections

An event goes to three connections, while others are connected.

{scaling}

## Contacts

A message of a conversation goes to two pages of a customer, who is a contact with a token, and to one agent. 100 agents
share the conversations. The server decides once for each event whether contacts may get it. The first row has the same
number of recipients, all agents.

{contacts}

## Mass reconnects

{storms}

## Hostile clients

{hostile}

The tests count steps and bytes instead: `tests/test_chat_repeated_recovery.py`, `tests/test_auth_fair_queue.py`,
`tests/test_recovery_progress.py`, `tests/test_file_budget.py`.

## Longest turns

Everything else waits during one turn of the event loop. Large work is done in steps of 2 ms
([adr/0022](adr/0022-large-work.md)). `chatws_reactor_turn_seconds` shows a server's own turns.

{turns}

## Reactors

{reactors}

## Python versions

{pythons}

## Compression

Compression is off by default. With `--compression`, an event is deflated once for all connections that negotiated the
same window, and not once for each. `tests/test_server_compression.py` shows that.

{compression}

## Regression tests

No test asserts a timing. `tests/test_speed_guard.py` counts calls and objects instead:

- one `io_uring_enter` for a batch, or one `send` for each of its connections
- no `epoll_ctl`
- one frame built for each event
- upper bounds for the objects created per delivery and for the memory of an idle connection

## Running the benchmarks

    make bench

This takes about half an hour and needs two idle cores, a C compiler and Node. It installs the peers into
`benchmarks/.peers`. Variants:

- `make bench BENCH_ARGS=--quick` gives a first impression.
- `python benchmarks/run.py --nearest` compares the closest competitors in four minutes.
- `make bench PYTHON=python3.13` measures all Python servers with another Python.
- `CHATWS_PYTHON=path/to/bin/python` adds chatws on another Python, from an environment that has chatws.
- Ratchet is measured if `php` is installed and `RATCHET_VENDOR` names a vendor directory with `cboden/ratchet`.

Measured with {versions}.
"""


def page(
    results: dict[str, Any],
    storm: dict[str, Any] | None,
    attacks: dict[str, Any] | None = None,
    turns: dict[str, Any] | None = None,
) -> str:
    """The text of docs/performance.md."""
    by_server = figures(results["medians"])
    titles = results["titles"]["servers"]
    rounds = sorted(len(runs) for runs in results["runs"].get("room1", {}).values()) or [1]
    versions = results["versions"]
    several = f"{rounds[0]} to {rounds[-1]}" if rounds[0] < rounds[-1] else str(rounds[0])
    return PAGE.format(
        repetitions="taken once" if rounds[-1] == 1 else f"the median of {several} rounds (and their quartiles)",
        clients=clients(results["medians"]),
        table=main_table(results, by_server, titles),
        verdict=verdict(results, by_server, titles),
        users=results["users"],
        scaling=scaling(results, by_server),
        contacts=contacts(results, by_server),
        storms=storms(storm) if storm else "Not measured in this run.",
        hostile=hostile(attacks) if attacks else "Not measured in this run.",
        turns=longest_turns(turns) if turns else "Not measured in this run.",
        reactors=reactors(results, by_server),
        pythons=pythons(results, by_server),
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
    """Bars for the three message columns. A bar that is too long for the scale is cut and has an arrow."""
    by_server, titles = figures(results["medians"]), results["titles"]["servers"]
    left, width, row, y = 230, 430, 20, 10
    parts = []
    for column in MESSAGES:
        costs = {name: line[column] for name, line in by_server.items() if column in line}
        costs = {name: cost for name, cost in costs.items() if name not in VARIANTS}
        if not costs:
            continue
        ordered = sorted(costs, key=lambda name: (name != "floor", costs[name]))
        usual = sorted(costs.values())
        # Ratchet's inbox would make the other bars invisible
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
    parser.add_argument("--hostile", type=Path, default=HERE / "hostile.json")
    parser.add_argument("--turns", type=Path, default=HERE / "longest_turns.json")
    parser.add_argument("--docs", type=Path, default=DOCS)
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    storm = json.loads(arguments.storms.read_text()) if arguments.storms.exists() else None
    attacks = json.loads(arguments.hostile.read_text()) if arguments.hostile.exists() else None
    turns = json.loads(arguments.turns.read_text()) if arguments.turns.exists() else None
    (arguments.docs / "images").mkdir(parents=True, exist_ok=True)
    (arguments.docs / "performance.md").write_text(page(results, storm, attacks, turns))
    (arguments.docs / "images" / "performance.svg").write_text(chart(results))


if __name__ == "__main__":
    main()
